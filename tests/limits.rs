//! Every limit of time and of number: what is told where one is met, and that what stays below passes.

mod support;

use std::time::Duration;

use axum::body::Body;
use futures::stream as pieces;
use pingora_mcp::{Load, Rejection};
use support::process::ProxyProcess;
use support::wire::Wire;
use support::{
    Backend, Proxy, Seen, answer, ask, header, initialize, open_session, post, raw, route, until,
    within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

// --- Time: the client ----------------------------------------------------------------------------

#[tokio::test]
async fn a_header_that_comes_byte_by_byte_is_408_when_its_time_is_up() {
    let proxy = without_backend("  timeouts: { header: 200ms }\n");
    let mut client = Wire::connect(proxy.address).await;
    let endless = format!("POST /mcp HTTP/1.1\r\nX-Slow: {}", "x".repeat(10_000));
    let told = client.trickle(&endless, Duration::from_millis(10)).await;
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    assert!(told.contains("Connection: close"), "{told}");
    assert!(told.contains("urn:pingora-mcp:problem:request-timeout"));
    drop(client);
    all_is_over(&proxy.load).await;
    assert_eq!(refusals(&proxy.load, Rejection::RequestTimeout), 1);
}

#[tokio::test]
async fn a_header_in_time_may_come_byte_by_byte() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::to(&[backend.address]);
    let mut client = Wire::connect(proxy.address).await;
    let (start, last) = POST.split_at(POST.len() - 1);
    assert_eq!(client.trickle(start, Duration::from_millis(1)).await, "");
    client.send(last).await;
    let answer = client.receive("\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_without_a_word() {
    let proxy = without_backend("  timeouts: { first_byte: 200ms }\n");
    let client = Wire::connect(proxy.address).await;
    assert_eq!(client.until_end().await, "");
    all_is_over(&proxy.load).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_when_its_time_is_up_and_serves_until_then() {
    let backend = Backend::with_session("id").await;
    let limits = "  timeouts: { keep_alive: 2s, header: 100ms }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + limits));
    let mut client = Wire::connect(proxy.address).await;
    for _ in 0..3 {
        client.send(POST).await;
        client.receive("\"result\":{}}").await;
        // It is idle for longer than a header may take.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(client.until_end().await, "");
    all_is_over(&proxy.load).await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408_and_ends_the_request_at_the_backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = "  timeouts: { body: 200ms, drain: 100ms }\n";
    let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + limits));
    let mut client = Wire::connect(proxy.address).await;
    client.send(&upload("Content-Length: 100")).await;
    client.send("the first").await;
    let (backend, _) = Wire::accept(&listener).await;
    let told = client.receive("\r\n\r\n{").await;
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
    backend.until_closed().await;
    client.until_closed().await;
    all_is_over(&proxy.load).await;
}

#[tokio::test]
async fn a_body_may_come_byte_by_byte_for_longer_than_it_may_be_silent() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::with(&(route(&[backend.address]) + "  timeouts: { body: 1s }\n"));
    let mut client = Wire::connect(proxy.address).await;
    client.send(&upload("Content-Length: 10")).await;
    let told = client
        .trickle("012345678", Duration::from_millis(150))
        .await;
    assert_eq!(told, "");
    client.send("9").await;
    let answer = client.receive("\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(backend.last().body, "0123456789");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up() {
    const PIECE: &[u8] = &[b'x'; 64 * 1024];
    let endless = |_: Seen| {
        let endless = pieces::repeat(Ok::<_, std::convert::Infallible>(PIECE));
        answer(200, &[], Body::from_stream(endless))
    };
    let backend = Backend::start(endless).await;
    let proxy = Proxy::with(&(route(&[backend.address]) + "  timeouts: { write: 200ms }\n"));
    let mut client = Wire::connect(proxy.address).await;
    client.send(POST).await;
    client.receive("\r\n\r\n").await;
    // The client's end stays open, and unread.
    all_is_over(&proxy.load).await;
    drop(client);
}

/// Each answer is a header, without a body.
#[tokio::test]
async fn a_client_that_asks_on_and_reads_nothing_is_given_up() {
    let proxy = without_backend("  timeouts: { write: 200ms }\n");
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let requests = "OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000);
    let asking = async { while client.write_all(requests.as_bytes()).await.is_ok() {} };
    within("the end of the connection", asking).await;
    all_is_over(&proxy.load).await;
}

#[tokio::test]
async fn the_rest_of_a_refused_request_is_awaited_for_its_time_only() {
    let proxy = without_backend("  timeouts: { drain: 200ms }\n");
    let mut client = Wire::connect(proxy.address).await;
    client
        .send("PUT /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nthe")
        .await;
    let told = client.receive("\r\n\r\n{").await;
    assert!(told.starts_with("HTTP/1.1 405 "), "{told}");
    client.until_closed().await;
    all_is_over(&proxy.load).await;
}

// --- Time: the backend ---------------------------------------------------------------------------

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "a full backlog is refused there")]
async fn a_backend_that_takes_no_connection_in_time_is_502() {
    let full = TcpSocket::new_v4().unwrap();
    full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = full.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    let connect = || tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address));
    while let Ok(connected) = connect().await {
        waiting.push(connected);
    }
    let proxy = Proxy::with(&(route(&[address]) + "      timeouts: { connect: 200ms }\n"));
    let get = reqwest::Client::new()
        .get(proxy.url("/mcp"))
        .header("accept", "text/event-stream");
    for request in [post(&proxy.url("/mcp")), get] {
        let told = within("the refusal", request.send()).await.unwrap();
        assert_eq!(told.status(), 502);
    }
}

/// To connect is to have TLS, too.
#[tokio::test]
async fn a_backend_that_never_shakes_hands_is_502_when_its_time_to_connect_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = route(&[listener.local_addr().unwrap()]).replacen("http://", "https://", 1);
    let proxy = Proxy::with(&(silent + "      timeouts: { connect: 200ms }\n"));
    for request in [POST, GET] {
        let mut client = Wire::connect(proxy.address).await;
        client.send(request).await;
        let (mut backend, _) = within("a connection", listener.accept()).await.unwrap();
        let mut hello = Vec::new();
        within("its end", backend.read_to_end(&mut hello))
            .await
            .unwrap();
        assert!(hello.starts_with(b"\x16\x03"), "{hello:?}");
        let told = client.answer().await;
        assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
    }
}

#[tokio::test]
async fn a_silent_backend_is_504_before_its_answer_and_ends_a_stream_after() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // The limit of one is none of the others.
    for (times, requests) in [
        ("post: 500ms, get: 10m", &[POST][..]),
        ("post: 10m, get: 500ms", &STREAMS),
    ] {
        let limits = format!("      timeouts: {{ {times} }}\n");
        for request in requests {
            let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + &limits));
            let mut client = Wire::connect(proxy.address).await;
            client.send(request).await;
            let (backend, _) = Wire::accept(&listener).await;
            let told = client.answer().await;
            assert!(told.starts_with("HTTP/1.1 504 "), "{told}");
            backend.until_closed().await;
            client.until_closed().await;

            let (proxy, backend, client) = stream(&listener, &limits, request).await;
            // Broken off: no last chunk says that this was all.
            assert_eq!(client.until_end().await, "7\r\ndata: 1\r\n");
            backend.until_closed().await;
            all_is_over(&proxy.load).await;
        }
    }
}

#[tokio::test]
async fn a_silent_stream_ends_in_order_at_its_age() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = "      timeouts: { max_stream_age: 1s }\n";
    for request in STREAMS {
        let (proxy, backend, mut client) = stream(&listener, limits, request).await;
        assert_eq!(proxy.load.streams(), 1);
        assert_eq!(
            client.receive("0\r\n\r\n").await,
            "7\r\ndata: 1\r\n0\r\n\r\n"
        );
        assert_eq!(client.until_end().await, "");
        backend.until_closed().await;
        all_is_over(&proxy.load).await;
    }
}

#[tokio::test]
async fn a_call_may_outlive_the_age_of_streams() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = "      timeouts: { max_stream_age: 100ms }\n";
    let (_proxy, mut backend, mut client) = stream(&listener, limits, POST).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    backend.send_chunk(b"data: 2").await;
    client.receive("7\r\ndata: 2\r\n").await;
}

#[tokio::test]
async fn all_streams_are_ended_in_order_at_once_and_no_new_one_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (proxy, backend, mut client) = stream(&listener, "", GET).await;
    client.receive("7\r\ndata: 1\r\n").await;
    proxy.load.end_streams();
    assert_eq!(client.until_end().await, "0\r\n\r\n");
    backend.until_closed().await;
    all_is_over(&proxy.load).await;

    let get = reqwest::Client::new()
        .get(proxy.url("/mcp"))
        .header("accept", EVENTS.1);
    let told = within("the refusal", get.send()).await.unwrap();
    assert_eq!(told.status(), 503);
    assert_eq!(header(told.headers(), "retry-after"), Some("1"));
}

// --- Bounds --------------------------------------------------------------------------------------

#[tokio::test]
async fn a_body_that_says_it_is_too_long_reaches_no_backend() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::with(&(route(&[backend.address]) + "      limits: { max_body: 10B }\n"));
    let told = raw(proxy.address, &upload("Content-Length: 11")).await;
    assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
    assert!(told.contains("urn:pingora-mcp:problem:body-too-large"));
    assert_eq!(backend.seen().len(), 0);

    let longest = post(&proxy.url("/mcp")).body("0123456789");
    assert_eq!(longest.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_that_becomes_too_long_is_cut_at_the_backend_and_413() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = "      limits: { max_body: 10B }\n";
    let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + limits));
    let mut client = Wire::connect(proxy.address).await;
    client.send(&upload("Transfer-Encoding: chunked")).await;
    client.send_chunk(b"0123456789").await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend.receive("0123456789").await;
    client.send_chunk(b"x").await;
    client.send_chunk(b"").await;
    let told = client.receive("\r\n\r\n{").await;
    assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
    let more = backend.until_end().await;
    assert!(
        !more.contains('x') && !more.ends_with("0\r\n\r\n"),
        "{more:?}"
    );
    client.until_closed().await;
    all_is_over(&proxy.load).await;
}

#[tokio::test]
async fn a_body_has_4_mib_by_default_and_no_end_with_none() {
    let backend = Backend::with_session("id").await;
    let longer = || "x".repeat(4 * 1024 * 1024 + 1);
    let proxy = Proxy::to(&[backend.address]);
    let told = post(&proxy.url("/mcp"))
        .body(longer())
        .send()
        .await
        .unwrap();
    assert_eq!(told.status(), 413);
    let proxy = Proxy::with(&(route(&[backend.address]) + "      limits: { max_body: none }\n"));
    let answered = post(&proxy.url("/mcp"))
        .body(longer())
        .send()
        .await
        .unwrap();
    assert_eq!(answered.status(), 200);
}

#[tokio::test]
async fn a_header_of_too_many_lines_or_bytes_is_431() {
    let backend = Backend::with_session("id").await;
    let limits = "  limits: { max_headers: 20, max_header_size: 1KiB }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + limits));
    let lines = |count: usize| "X: y\r\n".repeat(count);
    // As `raw` sends it.
    let header = POST.find("{}").unwrap() + "Connection: close\r\n".len();
    let line = |length: usize| format!("X: {}\r\n", "y".repeat(length - header - "X: \r\n".len()));
    let cases = [
        (lines(17), 200),
        (lines(30), 431),
        (line(1024), 200),
        (line(1025), 431),
        (line(2000), 431),
    ];
    for (more, status) in cases {
        let told = raw(
            proxy.address,
            &POST.replacen("Content", &format!("{more}Content"), 1),
        )
        .await;
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
    }
    let target = format!("/mcp?{}", "y".repeat(1024));
    let told = raw(proxy.address, &POST.replacen("/mcp", &target, 1)).await;
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
}

#[tokio::test]
async fn a_header_without_end_is_431() {
    let proxy = without_backend("  limits: { max_header_size: 64KiB }\n");
    let mut client = Wire::connect(proxy.address).await;
    client.send("POST /mcp HTTP/1.1\r\nX: ").await;
    client.send(&"x".repeat(200 * 1024)).await;
    let told = client.until_end().await;
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    all_is_over(&proxy.load).await;
    assert_eq!(refusals(&proxy.load, Rejection::HeaderTooLarge), 1);
}

#[tokio::test]
async fn one_connection_too_many_is_503_until_another_is_closed() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::with(&(route(&[backend.address]) + "  limits: { max_connections: 2 }\n"));
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Wire::connect(proxy.address).await;
        client.send(POST).await;
        client.receive("\"result\":{}}").await;
        clients.push(client);
    }
    let mut refused = Wire::connect(proxy.address).await;
    refused.send(POST).await;
    refused.finish_sending().await;
    let told = refused.until_end().await;
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert!(told.contains("urn:pingora-mcp:problem:connections-full"));
    assert_eq!(proxy.load.connections(), 2);
    assert_eq!(refusals(&proxy.load, Rejection::ConnectionsFull), 1);

    drop(clients.pop());
    until("a free connection", || proxy.load.connections() < 2).await;
    assert!(raw(proxy.address, POST).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "limits are set as its shell does")]
async fn no_more_connections_are_taken_than_there_are_descriptors_for() {
    let backend = Backend::with_session("id").await;
    let limits = "  timeouts: { first_byte: 3s }\n";
    let mcp = route(&[backend.address]) + limits;
    let proxy = ProxyProcess::with_descriptors("", &mcp, 400).await;
    let mut clients = Vec::new();
    for _ in 0..80 {
        clients.push(Wire::connect(proxy.address).await);
    }
    // None says a word: those that have a place are closed for it in the end, without an answer.
    let mut refused = 0;
    for client in clients {
        refused += usize::from(client.until_end().await.starts_with("HTTP/1.1 503 "));
    }
    // The one that looked whether the proxy listens may still have had a place.
    assert!(matches!(refused, 44 | 45), "{refused}");
    let log = proxy.log();
    assert!(
        log.contains("max_connections is 36: there are descriptors for no more"),
        "{log}"
    );
    assert!(!log.contains("ERROR"), "{log}");
    assert!(raw(proxy.address, POST).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn one_stream_too_many_is_503_until_another_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let limits = "  limits: { max_streams: 1 }\n";
    let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + limits));
    let mut first = Wire::connect(proxy.address).await;
    first.send(GET).await;
    let (_backend, _) = Wire::accept(&listener).await;

    let told = raw(proxy.address, GET).await;
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert!(told.contains("urn:pingora-mcp:problem:streams-full"));
    drop(first);
    all_is_over(&proxy.load).await;
    let mut next = Wire::connect(proxy.address).await;
    next.send(GET).await;
    Wire::accept(&listener).await;
}

#[tokio::test]
async fn one_stream_too_many_of_a_session_is_429_and_others_keep_theirs() {
    let backend = Backend::start(|request: Seen| match request.method.as_str() {
        "GET" => answer(
            200,
            &[EVENTS],
            Body::from_stream(pieces::pending::<Result<&str, String>>()),
        ),
        _ => answer(200, &[("mcp-session-id", "id")], ""),
    })
    .await;
    let limits = "  limits: { max_streams_per_session: 1 }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + limits));
    let url = proxy.url("/mcp");
    let open = async |id: &str| {
        let get = reqwest::Client::new().get(&url).header("accept", EVENTS.1);
        let opened = get.header("mcp-session-id", id).send();
        within("the header of the stream", opened).await.unwrap()
    };
    let sessions = [open_session(&url).await, open_session(&url).await];
    let mut streams = Vec::new();
    for id in &sessions {
        streams.push(open(id).await);
        let told = open(id).await;
        assert_eq!(told.status(), 429);
        assert_eq!(header(told.headers(), "retry-after"), Some("1"));
        assert!(told.text().await.unwrap().contains("session-streams"));
    }
    streams.clear();
    until("the end of the streams", || proxy.load.streams() == 0).await;
    assert_eq!(open(&sessions[0]).await.status(), 200);
}

#[tokio::test]
async fn a_full_backend_passes_new_clients_on_and_has_its_own_wait() {
    let listeners = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let addresses = [0, 1].map(|at: usize| listeners[at].local_addr().unwrap());
    let limits = "      limits: { max_requests_per_backend: 1 }\n";
    let proxy = Proxy::with(&(route(&addresses) + limits));
    let mut first = Wire::connect(proxy.address).await;
    first.send(POST).await;
    let mut second = Wire::connect(proxy.address).await;
    second.send(POST).await;
    let (mut backend, _) = Wire::accept(&listeners[0]).await;
    let (_other, _) = Wire::accept(&listeners[1]).await;
    let told = raw(proxy.address, POST).await;
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert!(told.contains("urn:pingora-mcp:problem:backend-full"));

    // A session of the first backend, which has one request again.
    let opened = "HTTP/1.1 200 OK\r\nMcp-Session-Id: id\r\nContent-Length: 0\r\n\r\n";
    backend.send(opened).await;
    // Which of the two it has is not known.
    let opened = tokio::select! {
        opened = first.receive("\r\n\r\n") => opened,
        opened = second.receive("\r\n\r\n") => opened,
    };
    let mut lines = opened.lines();
    let id = lines.find_map(|line| line.strip_prefix("mcp-session-id: "));
    let bound = format!("Mcp-Session-Id: {}\r\nContent", id.unwrap());
    let request = POST.replacen("Content", &bound, 1);
    let mut third = Wire::connect(proxy.address).await;
    third.send(&request).await;
    backend.receive("\r\n\r\n").await;
    let told = raw(proxy.address, &request).await;
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert!(told.contains("urn:pingora-mcp:problem:backend-full"));
}

#[tokio::test]
async fn at_capacity_a_new_session_is_503_before_the_backend_is_asked() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::with(&(route(&[backend.address]) + "  sessions: { capacity: 2 }\n"));
    let url = proxy.url("/mcp");
    let sessions = [open_session(&url).await, open_session(&url).await];
    let asked = backend.seen().len();
    let told = initialize(&url).send().await.unwrap();
    assert_eq!(told.status(), 503);
    assert_eq!(header(told.headers(), "retry-after"), Some("60"));
    assert!(told.text().await.unwrap().contains("sessions-full"));
    assert_eq!(backend.seen().len(), asked);

    // Those that are there are served, and the end of one makes room.
    assert_eq!(ask(&url, &sessions[0]).await.status(), 200);
    let delete = reqwest::Client::new().delete(&url);
    let ended = delete.header("mcp-session-id", &sessions[1]).send().await;
    assert_eq!(ended.unwrap().status(), 200);
    open_session(&url).await;
}

#[tokio::test]
async fn a_session_beyond_capacity_that_nobody_foresaw_is_503_at_its_answer() {
    let backend = Backend::with_session("id").await;
    let second = route(&[backend.address])
        .replacen("  routes:\n", "", 1)
        .replacen("/mcp", "/other", 1);
    let proxy =
        Proxy::with(&(route(&[backend.address]) + &second + "  sessions: { capacity: 1 }\n"));
    open_session(&proxy.url("/mcp")).await;
    let told = initialize(&proxy.url("/other")).send().await.unwrap();
    assert_eq!(told.status(), 503);
    assert_eq!(header(told.headers(), "mcp-session-id"), None);
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn servers_without_sessions_are_served_when_the_store_is_full() {
    let with = Backend::with_session("id").await;
    let without = Backend::start(|_| answer(200, &[], "")).await;
    let second = route(&[without.address])
        .replacen("  routes:\n", "", 1)
        .replacen("/mcp", "/other", 1);
    let proxy = Proxy::with(&(route(&[with.address]) + &second + "  sessions: { capacity: 1 }\n"));
    open_session(&proxy.url("/mcp")).await;
    assert_eq!(
        post(&proxy.url("/other")).send().await.unwrap().status(),
        200
    );
    let stateless = post(&proxy.url("/mcp")).header("mcp-protocol-version", "2026-07-28");
    assert_eq!(stateless.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_oldest_session_goes_for_a_new_one_where_that_is_asked_for() {
    let backend = Backend::with_session("id").await;
    let sessions = "  sessions: { capacity: 1, evict: oldest }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + sessions));
    let url = proxy.url("/mcp");
    let oldest = open_session(&url).await;
    let newest = open_session(&url).await;
    assert_eq!(ask(&url, &oldest).await.status(), 404);
    assert_eq!(ask(&url, &newest).await.status(), 200);
}

#[tokio::test]
async fn one_session_too_many_of_an_address_is_429_until_another_ends() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::with(&(route(&[backend.address]) + "  sessions: { max_per_client: 1 }\n"));
    let url = proxy.url("/mcp");
    let id = open_session(&url).await;
    let asked = backend.seen().len();
    let told = initialize(&url).send().await.unwrap();
    assert_eq!(told.status(), 429);
    assert_eq!(header(told.headers(), "retry-after"), Some("60"));
    assert!(told.text().await.unwrap().contains("client-sessions"));
    assert_eq!(backend.seen().len(), asked);

    let delete = reqwest::Client::new().delete(&url);
    delete.header("mcp-session-id", &id).send().await.unwrap();
    open_session(&url).await;
}

#[tokio::test]
async fn new_sessions_beyond_the_rate_of_an_address_are_429() {
    let backend = Backend::with_session("id").await;
    let sessions = "  sessions: { max_new_per_client: 1 }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + sessions));
    let url = proxy.url("/mcp");
    // Two of these are in one second, however slow the machine is.
    let refused = within("a refusal", async {
        loop {
            let told = initialize(&url).send().await.unwrap();
            if told.status() != 200 {
                break told;
            }
        }
    })
    .await;
    assert_eq!(refused.status(), 429);
    assert_eq!(header(refused.headers(), "retry-after"), Some("1"));
    assert!(
        refused
            .text()
            .await
            .unwrap()
            .contains("client-session-rate")
    );
    // It passes by itself.
    let again = async { while initialize(&url).send().await.unwrap().status() != 200 {} };
    within("a new second", again).await;
}

/// Waits until the proxy has no client any more, nor a stream.
async fn all_is_over(load: &Load) {
    until("the end of all connections", || {
        load.connections() + load.streams() == 0
    })
    .await;
}

/// How many connections were refused for `reason`.
fn refusals(load: &Load, reason: Rejection) -> u64 {
    let mut counts = load.refused_connections();
    counts.find(|count| count.0 == reason).unwrap().1
}

/// A proxy whose backend is never asked.
fn without_backend(limits: &str) -> Proxy {
    Proxy::with(&(route(&[support::unused_address()]) + limits))
}

/// A new proxy, and a stream through it whose first event has been sent.
async fn stream(listener: &TcpListener, limits: &str, request: &str) -> (Proxy, Wire, Wire) {
    let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + limits));
    let mut client = Wire::connect(proxy.address).await;
    client.send(request).await;
    let (mut backend, _) = Wire::accept(listener).await;
    backend
        .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let header = client.receive("\r\n\r\n").await;
    assert!(header.starts_with("HTTP/1.1 200 "), "{header}");
    backend.send_chunk(b"data: 1").await;
    (proxy, backend, client)
}

fn upload(framing: &str) -> String {
    format!("POST /mcp HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n")
}

const POST: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";

const GET: &str = "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";

const LISTEN: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nMCP-Protocol-Version: 2026-07-28\r\n\
                      Mcp-Method: subscriptions/listen\r\nContent-Length: 2\r\n\r\n{}";

const STREAMS: [&str; 2] = [GET, LISTEN];

const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
