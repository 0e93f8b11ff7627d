//! Streams pass through untouched and at once, both ways, and end on both sides together.

mod support;

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::stream::{self, StreamExt};
use reqwest::Response;
use support::wire::Wire;
use support::{Backend, Proxy, Seen, answer, header, open_session, post, route, within};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

// MCP 2025-11-25, Transports, Sending Messages 5 and Listening for Messages 3.
#[tokio::test]
async fn the_header_of_a_stream_arrives_before_its_first_event() {
    for method in METHODS {
        let (_proxy, mut backend, mut client) = open(method, CHUNKED).await;
        // The client has the header, and only now the backend sends an event.
        backend.send_chunk(b"data: 1\n\n").await;
        receive(&mut client, b"data: 1\n\n").await;
    }
}

#[tokio::test]
async fn each_event_arrives_before_the_next_is_sent() {
    for method in METHODS {
        let (_proxy, mut backend, mut client) = open(method, CHUNKED).await;
        for number in 0..100 {
            let event = format!("id: {number}\ndata: {{\"number\":{number}}}\n\n");
            backend.send_chunk(event.as_bytes()).await;
            receive(&mut client, event.as_bytes()).await;
        }
        backend.send_chunk(b"").await;
        assert_eq!(next(&mut client).await.unwrap(), None);
    }
}

#[tokio::test]
async fn events_that_are_200_ms_apart_arrive_200_ms_apart() {
    for method in METHODS {
        let (_proxy, mut backend, mut client) = open(method, CHUNKED).await;
        let sending = async {
            for _ in 0..5 {
                backend.send_chunk(b"data: x\n\n").await;
                sleep(Duration::from_millis(200)).await;
            }
        };
        let receiving = async {
            receive(&mut client, b"data: x\n\n").await;
            let first = Instant::now();
            for _ in 0..4 {
                receive(&mut client, b"data: x\n\n").await;
            }
            first.elapsed()
        };
        let ((), first_to_last) = tokio::join!(sending, receiving);
        // The backend takes 800 ms. Half of it forgives a slow machine and no held-back event.
        assert!(
            first_to_last >= Duration::from_millis(400),
            "{first_to_last:?}"
        );
    }
}

// MCP 2025-11-25, Transports, Resumability and Redelivery 1: ids, priming events and `retry:` mean
// something to the client (HTML, Server-sent events), and comments keep the connection.
#[tokio::test]
async fn events_arrive_byte_for_byte_however_the_backend_cuts_them() {
    for method in METHODS {
        for length in [1, 7, 64, EVENTS.len()] {
            let (_proxy, mut backend, mut client) = open(method, CHUNKED).await;
            for piece in EVENTS.as_bytes().chunks(length) {
                backend.send_chunk(piece).await;
                receive(&mut client, piece).await;
            }
            backend.send_chunk(b"").await;
            assert_eq!(next(&mut client).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn a_stream_loses_its_content_length_and_is_not_held_back_for_it() {
    for method in METHODS {
        let head = format!("{EVENT_STREAM}Content-Length: {}\r\n\r\n", EVENTS.len());
        let (_proxy, mut backend, mut client) = open(method, &head).await;
        assert_eq!(header(client.headers(), "content-length"), None);
        for event in EVENTS.split_inclusive("\n\n") {
            backend.send(event).await;
            receive(&mut client, event.as_bytes()).await;
        }
        assert_eq!(next(&mut client).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_stream_that_ends_with_its_connection_arrives_whole() {
    for method in METHODS {
        let head = format!("{EVENT_STREAM}Connection: close\r\n\r\n");
        let (_proxy, mut backend, mut client) = open(method, &head).await;
        for event in EVENTS.split_inclusive("\n\n") {
            backend.send(event).await;
            receive(&mut client, event.as_bytes()).await;
        }
        backend.close().await;
        assert_eq!(next(&mut client).await.unwrap(), None);
    }
}

// MCP 2026-07-28, Streamable HTTP, Receiving Messages: `X-Accel-Buffering: no`.
#[tokio::test]
async fn a_stream_says_that_it_is_not_to_be_cached_changed_or_held_back() {
    for method in METHODS {
        let (_proxy, _backend, client) = open(method, CHUNKED).await;
        assert_eq!(
            header(client.headers(), "cache-control"),
            Some("no-cache, no-transform")
        );
        assert_eq!(header(client.headers(), "x-accel-buffering"), Some("no"));
    }
}

#[tokio::test]
async fn what_the_backend_says_of_caching_and_holding_back_stays() {
    let own = "Cache-Control: private, max-age=1\r\nX-Accel-Buffering: yes\r\n";
    for method in METHODS {
        let head = CHUNKED.replace("Transfer-Encoding", &format!("{own}Transfer-Encoding"));
        let (_proxy, _backend, client) = open(method, &head).await;
        assert_eq!(
            header(client.headers(), "cache-control"),
            Some("private, max-age=1")
        );
        assert_eq!(header(client.headers(), "x-accel-buffering"), Some("yes"));
    }
}

#[tokio::test]
async fn an_answer_that_is_no_stream_is_told_nothing_of_caching_or_holding_back() {
    let json = [("content-type", "application/json")];
    let backend = Backend::start(move |_| answer(200, &json, "{}")).await;
    let proxy = Proxy::to(&[backend.address]);
    let answered = post(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(header(answered.headers(), "content-length"), Some("2"));
    assert_eq!(header(answered.headers(), "cache-control"), None);
    assert_eq!(header(answered.headers(), "x-accel-buffering"), None);
}

#[tokio::test]
async fn nothing_is_compressed_for_a_client_that_would_take_it() {
    for method in METHODS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
        let accepting = request(&proxy, method).header("accept-encoding", "gzip, br, zstd");
        let (mut backend, mut client) = exchange(&listener, accepting, CHUNKED).await;
        assert_eq!(header(client.headers(), "content-encoding"), None);
        backend.send_chunk(EVENTS.as_bytes()).await;
        receive(&mut client, EVENTS.as_bytes()).await;
    }
}

// MCP 2026-07-28, Cancellation: to close the stream is to cancel the request. In the session era it
// is not, but the server is to know (MCP 2025-11-25, Transports, Sending Messages 6).
#[tokio::test]
async fn a_client_that_leaves_a_stream_ends_it_at_the_backend() {
    for method in METHODS {
        let (_proxy, mut backend, mut client) = open(method, CHUNKED).await;
        backend.send_chunk(b"data: 1\n\n").await;
        receive(&mut client, b"data: 1\n\n").await;
        drop(client);
        backend.until_closed().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_ends_the_request_at_the_backend() {
    for method in METHODS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
        let asking = tokio::spawn(request(&proxy, method).send());
        let (backend, _) = Wire::accept(&listener).await;
        asking.abort();
        backend.until_closed().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_within_its_request_ends_it_at_the_backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client.send(UPLOAD).await;
    client.send("Content-Length: 1000\r\n\r\nthe first").await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend.receive("the first").await;
    drop(client);
    backend.until_closed().await;
}

#[tokio::test]
async fn a_request_body_reaches_the_backend_while_the_client_sends_it() {
    let framings = [
        (
            "Transfer-Encoding: chunked",
            "5\r\nfirst\r\n",
            "4\r\nlast\r\n0\r\n\r\n",
        ),
        ("Content-Length: 9", "first", "last"),
    ];
    for (framing, first, last) in framings {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
        let mut client = Wire::connect(proxy.address).await;
        client
            .send(&format!("{UPLOAD}{framing}\r\n\r\n{first}"))
            .await;
        let (mut backend, _) = Wire::accept(&listener).await;
        backend.receive("first").await;
        // The backend has the first part, and only now the client sends the last.
        client.send(last).await;
        backend.receive("last").await;
        backend.send("HTTP/1.1 202 Accepted\r\n\r\n").await;
        assert!(
            client
                .receive("\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 202 ")
        );
    }
}

// MCP 2025-11-25, Transports, Sending Messages 6: a server asks on the stream of a call, and the
// client answers with a POST of the same session.
#[tokio::test]
async fn a_server_gets_the_answer_to_its_question_while_the_call_is_open() {
    let backends = [
        asking_backend("session-of-a").await,
        asking_backend("session-of-b").await,
    ];
    let proxy = Proxy::to(&[backends[0].address, backends[1].address]);
    let url = proxy.url("/mcp");
    let mut calls = Vec::new();
    for _ in &backends {
        let id = open_session(&url).await;
        let call = post(&url)
            .header("mcp-session-id", &id)
            .body(r#"{"method":"tools/call"}"#);
        let mut stream = within("the header", call.send()).await.unwrap();
        receive(&mut stream, QUESTION).await;
        calls.push((id, stream));
    }
    // Both calls are open, one at each backend.
    for (id, stream) in calls.iter_mut().rev() {
        let answered = post(&url)
            .header("mcp-session-id", &*id)
            .body(r#"{"result":{}}"#);
        assert_eq!(answered.send().await.unwrap().status(), 202);
        receive(stream, RESULT).await;
        assert_eq!(next(stream).await.unwrap(), None);
    }
    for (backend, id) in backends.iter().zip(["session-of-a", "session-of-b"]) {
        let asked = backend.seen();
        let ids: Vec<_> = asked
            .iter()
            .map(|seen| seen.header("mcp-session-id"))
            .collect();
        assert_eq!(ids, [None, Some(id), Some(id)]);
    }
}

#[tokio::test]
async fn a_silent_get_stream_outlives_every_limit_of_a_post() {
    outlives_every_limit_of_a_post(|proxy| request(proxy, "GET")).await;
}

// MCP 2026-07-28, Subscriptions: the stream lives for as long as both sides want it.
#[tokio::test]
async fn a_silent_subscription_outlives_every_limit_of_a_post() {
    outlives_every_limit_of_a_post(|proxy| {
        request(proxy, "POST")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "subscriptions/listen")
    })
    .await;
}

async fn outlives_every_limit_of_a_post(stream: fn(&Proxy) -> reqwest::RequestBuilder) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = "      timeouts: { post: 100ms, delete: 100ms }\n";
    let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + limits));
    let (mut backend, mut client) = exchange(&listener, stream(&proxy), CHUNKED).await;
    // POSTs that get no answer measure the time: five limits pass, one after the other.
    for _ in 0..5 {
        let silence = async { Wire::accept(&listener).await.0.until_closed().await };
        let (cut, ()) = tokio::join!(request(&proxy, "POST").send(), silence);
        assert_eq!(cut.unwrap().status(), 504);
    }
    backend.send_chunk(b"data: still here\n\n").await;
    receive(&mut client, b"data: still here\n\n").await;
}

#[tokio::test]
async fn a_stream_whose_backend_dies_ends_incomplete() {
    let with_length = format!("{EVENT_STREAM}Content-Length: 1000\r\n\r\n");
    for method in METHODS {
        for (head, event) in [
            (CHUNKED, "9\r\ndata: 1\n\n\r\n"),
            (&with_length, "data: 1\n\n"),
        ] {
            for death in DEATHS {
                let (_proxy, mut backend, mut client) = open(method, head).await;
                backend.send(event).await;
                receive(&mut client, b"data: 1\n\n").await;
                die(backend, death).await;
                assert!(
                    next(&mut client).await.is_err(),
                    "{method} {head:?} {death}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_answer_whose_backend_dies_ends_incomplete() {
    for death in DEATHS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
        let dying = async {
            let (mut backend, _) = Wire::accept(&listener).await;
            backend
                .send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"jsonrpc\"")
                .await;
            die(backend, death).await;
        };
        let (answered, ()) = tokio::join!(request(&proxy, "POST").send(), dying);
        // It may break off before the client has its header.
        if let Ok(answered) = answered {
            assert!(answered.bytes().await.is_err(), "{death}");
        }
    }
}

/// Ends the backend's connection as its system does when the backend dies.
async fn die(backend: Wire, death: &str) {
    match death {
        "closed" => backend.close().await,
        _ => backend.reset(),
    }
}

/// A new proxy, and a stream through it: the backend has sent `head`, and the client has it.
async fn open(method: &str, head: &str) -> (Proxy, Wire, Response) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let (backend, client) = exchange(&listener, request(&proxy, method), head).await;
    (proxy, backend, client)
}

/// Sends `request`, answers it with `head`, and waits until this has arrived.
async fn exchange(
    listener: &TcpListener,
    request: reqwest::RequestBuilder,
    head: &str,
) -> (Wire, Response) {
    let backend = async {
        let (mut backend, _) = Wire::accept(listener).await;
        backend.send(head).await;
        backend
    };
    let client = within("the header of the answer", request.send());
    let (backend, client) = tokio::join!(backend, client);
    (backend, client.unwrap())
}

fn request(proxy: &Proxy, method: &str) -> reqwest::RequestBuilder {
    if method != "GET" {
        let post = post(&proxy.url("/mcp"));
        let version = method.strip_prefix("POST of ").into_iter();
        return version.fold(post, |post, version| {
            post.header("mcp-protocol-version", version)
        });
    }
    let get = reqwest::Client::new().get(proxy.url("/mcp"));
    get.header("accept", "text/event-stream")
}

/// Reads as many bytes as are expected, and compares.
async fn receive(client: &mut Response, expected: &[u8]) {
    let mut received = Vec::new();
    while received.len() < expected.len() {
        let more = next(client).await.unwrap();
        received.extend(more.expect("the stream goes on"));
    }
    assert_eq!(
        String::from_utf8_lossy(&received),
        String::from_utf8_lossy(expected)
    );
}

/// The next bytes of a body. `None` where it is complete.
async fn next(client: &mut Response) -> reqwest::Result<Option<Bytes>> {
    within("the next bytes of the answer", client.chunk()).await
}

/// A backend that asks back on the stream of a call, and completes it once it has the answer.
async fn asking_backend(id: &'static str) -> Backend {
    let answered = std::sync::Arc::new(Notify::new());
    Backend::start(move |request: Seen| {
        let body = String::from_utf8(request.body.into()).unwrap();
        if body.contains("initialize") {
            return answer(200, &[("mcp-session-id", id)], "");
        }
        if body.contains("result") {
            answered.notify_one();
            return answer(202, &[], "");
        }
        let answered = std::sync::Arc::clone(&answered);
        let result = async move {
            answered.notified().await;
            RESULT
        };
        let events = stream::iter([QUESTION]).chain(stream::once(result));
        let events = events.map(Ok::<_, std::convert::Infallible>);
        answer(
            200,
            &[("content-type", "text/event-stream")],
            Body::from_stream(events),
        )
    })
    .await
}

const METHODS: [&str; 3] = ["GET", "POST", "POST of 2026-07-28"];

const DEATHS: [&str; 2] = ["closed", "reset"];

const EVENT_STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";

const CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A priming event, keep-alives, a reconnection time, the three line ends, all fields, several
/// data lines, characters of two to four bytes, a field that nobody knows.
const EVENTS: &str = "id: stream-1_0\ndata:\n\n: keep-alive\n\n:\n\nretry: 500\n\n\
    event: message\nid: stream-1_1\ndata: {\"text\":\"é ✓ 🦀\"}\n\n\
    id: 2\r\ndata: carriage\r\ndata: return\r\n\r\nid: 3\rdata: only\r\r\
    data:no space\ndata:  two spaces\ndata\n\nunknown: field\n\nid\n\ndata: last\n\n";

const UPLOAD: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

const QUESTION: &[u8] = b"data: {\"id\":1,\"method\":\"elicitation/create\"}\n\n";

const RESULT: &[u8] = b"data: {\"id\":2,\"result\":{}}\n\n";
