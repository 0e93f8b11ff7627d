//! Clients that speak HTTP/2: all that HTTP/1.1 does, many streams on one connection, and one that
//! is given up takes none of the others with it. Without TLS here; `tests/tls.rs` has it with TLS.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::poll_fn;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response};
use support::process::ProxyProcess;
use support::tls::{Http2, next, rest};
use support::wire::Wire;
use support::{
    Backend, Proxy, Seen, answer, header, raw, route, until, until_asked, unused_address, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_session_is_opened_used_and_ended() {
    let backend = Backend::with_session("backends-own").await;
    let proxy = Proxy::listening(H2C, &route(&[backend.address]));
    let client = Http2::connect(proxy.address).await;

    let opened = client.send(client.post(), INITIALIZE).await;
    assert_eq!(opened.status(), 200);
    let id = header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned();
    assert_ne!(id, "backends-own");

    for method in [Method::POST, Method::GET, Method::DELETE] {
        let request = client.request(method.clone(), "/mcp");
        let answered = client.send(request.header("mcp-session-id", &id), "").await;
        assert_eq!(answered.status(), 200, "{method}");
        assert_eq!(header(answered.headers(), "mcp-session-id"), Some(&*id));
        assert_eq!(
            backend.last().header("mcp-session-id"),
            Some("backends-own")
        );
    }
    let ended = client.post().header("mcp-session-id", &id);
    assert_eq!(client.send(ended, PING).await.status(), 404);
}

#[tokio::test]
async fn each_event_arrives_when_it_is_sent() {
    let (backend, proxy) = wired().await;
    let client = Http2::connect(proxy.address).await;
    let (mut wire, answered) = stream(&client, &backend).await;
    let mut body = answered.into_body();
    for event in ["data: 1\n\n", ": comment\n\n", "id: 2\ndata: 2\n\n"] {
        wire.send_chunk(event.as_bytes()).await;
        assert_eq!(next(&mut body).await.unwrap(), event);
    }
    wire.send_chunk(b"").await;
    assert!(rest(body).await.is_empty());
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_at_its_backend_and_no_other_does() {
    let (backend, proxy) = wired().await;
    let client = Http2::connect(proxy.address).await;
    let (left_wire, left) = stream(&client, &backend).await;
    let (mut kept_wire, kept) = stream(&client, &backend).await;

    // The last handle of a stream that is not over resets it (RFC 9113 5.4.2, CANCEL).
    drop(left);
    left_wire.until_closed().await;

    let mut kept = kept.into_body();
    kept_wire.send_chunk(b"data: still here\n\n").await;
    assert_eq!(next(&mut kept).await.unwrap(), "data: still here\n\n");
}

#[tokio::test]
async fn a_request_that_is_reset_before_its_answer_ends_at_its_backend() {
    let (backend, proxy) = wired().await;
    let client = Http2::connect(proxy.address).await;
    let request = client.post().body(()).unwrap();
    let (_answer, mut sending) = client.send.clone().send_request(request, false).unwrap();
    sending.send_data(PING.into(), true).unwrap();
    let (wire, _) = Wire::accept(&backend).await;
    sending.send_reset(Reason::CANCEL);
    wire.until_closed().await;
}

#[tokio::test]
async fn a_hundred_streams_are_open_on_one_connection() {
    let (backend, proxy) = wired().await;
    let client = Http2::connect(proxy.address).await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(stream(&client, &backend).await);
    }
    // In another order than they were opened in.
    for (number, (wire, _)) in streams.iter_mut().enumerate().rev() {
        wire.send_chunk(format!("data: {number}\n\n").as_bytes())
            .await;
    }
    for (number, (_, answered)) in streams.iter_mut().enumerate() {
        let event = next(answered.body_mut()).await.unwrap();
        assert_eq!(event, format!("data: {number}\n\n"));
    }
}

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "limits are set as its shell does")]
async fn no_more_requests_are_taken_than_there_are_descriptors_for() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = route(&[backend.local_addr().unwrap()]);
    let proxy = ProxyProcess::with_descriptors(H2C, &routes, 400).await;
    let log = proxy.log();
    let said = "max_requests is 36: there are descriptors for no more";
    assert!(log.contains(said), "{log}");

    let (client, other) = (
        Http2::connect(proxy.address).await,
        Http2::connect(proxy.address).await,
    );
    // One that waits for its client's body has no descriptor.
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let request = other.post().body(()).unwrap();
        waiting.push(other.send.clone().send_request(request, false).unwrap());
    }
    let options = other.request(Method::OPTIONS, "/mcp");
    assert_eq!(other.send(options, "").await.status(), 200);
    let (mut held, mut wires) = (Vec::new(), Vec::new());
    for _ in 0..36 {
        let request = client.post().body(()).unwrap();
        held.push(client.send.clone().send_request(request, true).unwrap().0);
        wires.push(Wire::accept(&backend).await);
    }
    for _ in 0..100 {
        let refused = other.send(other.post(), PING).await;
        assert_eq!(refused.status(), 503);
        let told = String::from_utf8(rest(refused.into_body()).await).unwrap();
        assert!(told.contains("problem:requests-full"), "{told}");
    }
    assert!(!proxy.log().contains("ERROR"), "{}", proxy.log());

    // Their places are free again, and nobody answers there any more.
    drop((held, waiting, wires, backend));
    until_asked("a place", async || {
        other.send(other.post(), PING).await.status() == 502
    })
    .await;
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let backend = Backend::start(|seen: Seen| answer(200, &[], seen.body)).await;
    let limits = "      limits: { max_body: 8MiB }\n";
    let proxy = Proxy::listening(H2C, &(route(&[backend.address]) + limits));
    let client = Http2::connect(proxy.address).await;
    let (answered, mut sending) = {
        let request = client.post().body(()).unwrap();
        client.send.clone().send_request(request, false).unwrap()
    };
    let body: Vec<u8> = (0..LARGE).map(|position| (position % 251) as u8).collect();
    let upload = async {
        for part in body.chunks(1 << 20) {
            sending
                .send_data(Bytes::copy_from_slice(part), false)
                .unwrap();
        }
        // Trailers end the request; they have no place in HTTP/1.1 with a length, and are dropped.
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "1".parse().unwrap());
        sending.send_trailers(trailers).unwrap();
        within("an answer", answered).await.unwrap()
    };
    let echoed = rest(upload.await.into_body()).await;
    assert_eq!(backend.last().body.len(), LARGE);
    assert!(echoed == body, "{} bytes came back", echoed.len());
}

/// Both streams have their part of the connection's window.
#[tokio::test]
async fn an_upload_that_its_backend_does_not_take_holds_no_other_up() {
    let stuck = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend::with_session("id").await;
    let stuck_address = stuck.local_addr().unwrap();
    let routes = route(&[backend.address])
        + &format!(
            "    - path: /stuck\n      backends:\n        - name: a\n          url: http://{stuck_address}/mcp\n"
        );
    let proxy = Proxy::listening(H2C, &routes);
    let client = Http2::connect(proxy.address).await;

    let request = client.request(Method::POST, "/stuck").body(()).unwrap();
    let (_answer, mut sending) = client.send.clone().send_request(request, false).unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    tokio::spawn(async move {
        loop {
            sending.reserve_capacity(1 << 14);
            let capacity = poll_fn(|context| sending.poll_capacity(context)).await;
            let Some(Ok(capacity)) = capacity else { return };
            sending.send_data(vec![0; capacity].into(), false).unwrap();
            counter.fetch_add(capacity, Ordering::Relaxed);
        }
    });
    let (_wire, _) = Wire::accept(&stuck).await;
    // Until the upload has come to a halt for a while.
    let mut seen = 0;
    let mut halted = 0;
    while halted < 20 {
        assert_eq!(client.send(client.post(), INITIALIZE).await.status(), 200);
        let now = sent.load(Ordering::Relaxed);
        halted = if now == seen { halted + 1 } else { 0 };
        seen = now;
    }
    assert_ne!(seen, 0);
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_open() {
    let backend = Backend::with_session("id").await;
    let routes = route(&[backend.address])
        + &format!(
            "    - path: /nobody\n      backends:\n        - name: a\n          url: http://{}/mcp\n",
            unused_address()
        );
    let proxy = Proxy::listening(H2C, &routes);
    let client = Http2::connect(proxy.address).await;
    let foreign = format!("http://attacker.example:{}/mcp", proxy.address.port());
    let refused = [
        (404, client.request(Method::POST, "/unknown")),
        (404, client.post().header("mcp-session-id", "unknown")),
        (405, client.request(Method::PUT, "/mcp")),
        (
            403,
            client.post().header("origin", "https://attacker.example"),
        ),
        (403, client.post().uri(foreign)),
        (502, client.request(Method::POST, "/nobody")),
    ];
    for (status, request) in refused {
        let refused = client.send(request, PING).await;
        assert_eq!(refused.status(), status);
        assert_eq!(header(refused.headers(), "connection"), None);
        let body = rest(refused.into_body()).await;
        assert!(!body.is_empty(), "{status}");
    }
    let preflight = client.request(Method::OPTIONS, "/mcp");
    assert_eq!(client.send(preflight, "").await.status(), 200);
    assert_eq!(client.send(client.post(), INITIALIZE).await.status(), 200);
}

/// Far more than fits into the window of a stream that nobody reads.
#[tokio::test]
async fn a_refusal_of_a_large_request_is_told() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::listening(H2C, &route(&[backend.address]));
    let client = Http2::connect(proxy.address).await;
    let request = client.request(Method::POST, "/unknown").body(()).unwrap();
    let (answered, mut sending) = client.send.clone().send_request(request, false).unwrap();
    sending.send_data(vec![0; LARGE].into(), true).unwrap();
    let answered = within("an answer", answered).await.unwrap();
    assert_eq!(answered.status(), 404);
    assert!(!rest(answered.into_body()).await.is_empty());
    assert_eq!(client.send(client.post(), INITIALIZE).await.status(), 200);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_given_up_though_its_windows_are_open() {
    let backend = Backend::start(|_| answer(200, &[], vec![b'x'; 300_000])).await;
    let limits = "  timeouts: { write: 200ms }\n";
    let proxy = Proxy::listening(H2C, &(route(&[backend.address]) + limits));
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let mut asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS: each stream's window is as wide as can be (RFC 9113 6.5); so is the connection's.
    asked.extend(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
    asked.extend(b"\0\0\x04\x08\0\0\0\0\0\x7f\x00\x00\x00");
    for stream in (1..200u8).step_by(2) {
        // HEADERS, whole: POST (3), http (6), /mcp and localhost spelt out (RFC 7541 A).
        asked.extend(b"\0\0\x13\x01\x05\0\0\0");
        asked.push(stream);
        asked.extend(b"\x83\x86\x04\x04/mcp\x01\x09localhost");
    }
    client.write_all(&asked).await.unwrap();
    until("requests", || !backend.seen().is_empty()).await;
    until("the end of the connection", || {
        proxy.load.connections() == 0
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn a_refused_request_may_be_sent_to_its_end() {
    let proxy = Proxy::listening(H2C, &route(&[unused_address()]));
    let client = Http2::connect(proxy.address).await;
    for path in ["/unknown", "/mcp"] {
        let request = client.request(Method::POST, path).body(()).unwrap();
        let (answered, mut sending) = client.send.clone().send_request(request, false).unwrap();
        sending.send_data(vec![0; LONG].into(), false).unwrap();
        let answered = within("an answer", answered).await.unwrap();
        assert!(answered.status().as_u16() >= 400);
        assert!(!rest(answered.into_body()).await.is_empty());
        // What the proxy sent before it answers this has come.
        client
            .send(client.request(Method::OPTIONS, "/mcp"), "")
            .await;
        let reset = poll_fn(|context| sending.poll_reset(context)).now_or_never();
        assert!(reset.is_none(), "{path}: {reset:?}");
        sending.send_data(Bytes::new(), true).unwrap();
    }
}

#[tokio::test]
async fn a_backend_sees_a_request_of_http_1() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::listening(H2C, &(route(&[backend.address]) + "      host: client\n"));
    let client = Http2::connect(proxy.address).await;
    let request = client
        .post()
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let request = request.header("te", "trailers").header("x-own", "kept");
    assert_eq!(client.send(request, PING).await.status(), 200);
    let seen = backend.last();
    let authority = proxy.address.to_string();
    assert_eq!(seen.header("host"), Some(&*authority));
    assert_eq!(seen.header("x-forwarded-host"), Some(&*authority));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("cookie"), Some("a=1; b=2"));
    assert_eq!(seen.header("x-own"), Some("kept"));
    assert_eq!(seen.header("te"), None);
    assert_eq!(seen.body, PING);
}

#[tokio::test]
async fn an_expectation_is_ignored() {
    let backend = Backend::with_session("id").await;
    let proxy = Proxy::listening(H2C, &route(&[backend.address]));
    let client = Http2::connect(proxy.address).await;
    let request = client.post().header("expect", "100-continue");
    assert_eq!(client.send(request, INITIALIZE).await.status(), 200);
    assert_eq!(backend.last().header("expect"), None);
}

#[tokio::test]
async fn without_tls_it_is_spoken_only_where_configured() {
    let backend = Backend::with_session("id").await;
    let plain = Proxy::to(&[backend.address]);
    let refused = raw(plain.address, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!refused.contains("HTTP/2"), "{refused}");
    assert!(
        refused.is_empty() || refused.starts_with("HTTP/1.1 4"),
        "{refused}"
    );

    let both = Proxy::listening(H2C, &route(&[backend.address]));
    let opened = support::initialize(&both.url("/mcp")).send().await.unwrap();
    assert_eq!(
        (opened.status(), opened.version()),
        (200.try_into().unwrap(), http::Version::HTTP_11)
    );
}

/// One that says too little to tell which it speaks, too.
#[tokio::test]
async fn where_both_are_spoken_a_client_has_no_more_time_for_its_first_header() {
    let limits = "  timeouts: { first_byte: 100ms, header: 100ms }\n";
    let proxy = Proxy::listening(H2C, &(route(&[unused_address()]) + limits));
    for (said, answered) in [
        ("", ""),
        ("PRI * HTTP", "HTTP/1.1 408 "),
        ("POST /mcp", "HTTP/1.1 408 "),
        // Whole, and shorter than what HTTP/2 begins with.
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 4"),
    ] {
        let mut client = Wire::connect(proxy.address).await;
        client.send(said).await;
        let answer = client.until_end().await;
        assert!(answer.starts_with(answered), "{said:?} {answer}");
        assert_eq!(answer.is_empty(), said.is_empty());
    }
}

#[tokio::test]
async fn a_body_that_stops_coming_is_408_before_a_backend_is_asked() {
    let backend = Backend::with_session("id").await;
    let limits = "  timeouts: { body: 200ms }\n";
    let proxy = Proxy::listening(H2C, &(route(&[backend.address]) + limits));
    let client = Http2::connect(proxy.address).await;
    for part in ["", "{"] {
        let request = client.post().body(()).unwrap();
        let (answered, mut sending) = client.send.clone().send_request(request, false).unwrap();
        if !part.is_empty() {
            sending.send_data(part.into(), false).unwrap();
        }
        let answered = within("an answer", answered).await.unwrap();
        assert_eq!(answered.status(), 408);
        assert!(!rest(answered.into_body()).await.is_empty());
    }
    assert_eq!(backend.seen().len(), 0);
    assert_eq!(client.send(client.post(), INITIALIZE).await.status(), 200);
}

#[tokio::test]
async fn a_long_body_that_stops_coming_is_408_and_ends_the_request_at_the_backend() {
    let (backend, proxy) = wired_with("  timeouts: { body: 500ms }\n").await;
    let client = Http2::connect(proxy.address).await;
    let request = client.post().body(()).unwrap();
    let (answered, mut sending) = client.send.clone().send_request(request, false).unwrap();
    sending.send_data(vec![0; LONG].into(), false).unwrap();
    let (wire, _) = Wire::accept(&backend).await;
    let answered = within("an answer", answered).await.unwrap();
    assert_eq!(answered.status(), 408);
    assert!(!rest(answered.into_body()).await.is_empty());
    wire.until_end().await;
}

#[tokio::test]
async fn a_long_body_that_its_backend_is_slow_to_take_is_not_late() {
    let limits = "      limits: { max_body: none }\n  timeouts: { body: 1s }\n";
    let (backend, proxy) = wired_with(limits).await;
    let client = Http2::connect(proxy.address).await;
    let request = client.post().body(()).unwrap();
    let (answered, mut sending) = client.send.clone().send_request(request, false).unwrap();
    // More than the system holds for who does not read.
    sending.send_data(vec![0; 256 * LONG].into(), true).unwrap();
    let (mut wire, _) = within("the backend's connection", backend.accept())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut taken = Vec::new();
    while !taken.ends_with(b"0\r\n\r\n") {
        let read = within("the rest", wire.read_buf(&mut taken)).await.unwrap();
        assert_ne!(read, 0);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    wire.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(within("an answer", answered).await.unwrap().status(), 204);
}

#[tokio::test]
async fn a_body_may_come_part_by_part_for_longer_than_it_may_be_silent() {
    let backend = Backend::start(|seen: Seen| answer(200, &[], seen.body)).await;
    let limits = "  timeouts: { body: 1s }\n";
    let proxy = Proxy::listening(H2C, &(route(&[backend.address]) + limits));
    let client = Http2::connect(proxy.address).await;
    let request = client.post().body(()).unwrap();
    let (answered, mut sending) = client.send.clone().send_request(request, false).unwrap();
    for part in 0..10 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        // Of more, in all, than is read before a backend is asked.
        sending
            .send_data(vec![part; 10_000].into(), part == 9)
            .unwrap();
    }
    let echoed = rest(within("an answer", answered).await.unwrap().into_body()).await;
    let sent: Vec<u8> = (0..10).flat_map(|part| vec![part; 10_000]).collect();
    assert!(echoed == sent, "{} bytes came back", echoed.len());
}

/// By the window of its stream: that of the connection has room for others.
#[tokio::test]
async fn a_client_that_stops_reading_a_stream_is_given_up_and_no_other_stream_is() {
    let (backend, proxy) = wired_with("  timeouts: { write: 200ms }\n").await;
    let client = Http2::connect(proxy.address).await;
    let (mut kept_wire, kept) = stream(&client, &backend).await;
    let (wire, unread) = stream(&client, &backend).await;
    wire.flood().await;
    until("the end of one stream", || proxy.load.streams() == 1).await;
    let mut unread = unread.into_body();
    let broken = async { while unread.data().await.expect("no end in order").is_ok() {} };
    within("what had come, and that it is broken", broken).await;

    let mut kept = kept.into_body();
    kept_wire.send_chunk(b"data: still here\n\n").await;
    assert_eq!(next(&mut kept).await.unwrap(), "data: still here\n\n");
    assert_eq!(proxy.load.connections(), 1);
}

/// By its socket: the windows have room for all that comes.
#[tokio::test]
async fn a_client_that_stops_reading_its_connection_is_given_up_with_it() {
    let limits = "  timeouts: { write: 200ms, keep_alive: 200ms }\n";
    let (backend, proxy) = wired_with(limits).await;
    let socket = TcpStream::connect(proxy.address).await.unwrap();
    let mut windows = h2::client::Builder::new();
    windows.initial_window_size(WIDE);
    windows.initial_connection_window_size(WIDE);
    let handshake = windows.handshake::<_, Bytes>(socket);
    let (mut send, connection) = within("the handshake", handshake).await.unwrap();
    let mut connection = std::pin::pin!(connection);
    let get = Request::get(proxy.url("/mcp")).header("accept", "text/event-stream");
    let (answered, _) = send.send_request(get.body(()).unwrap(), true).unwrap();
    let open = async {
        let (mut wire, _) = Wire::accept(&backend).await;
        wire.send(EVENT_STREAM).await;
        (wire, within("the answer", answered).await.unwrap())
    };
    let (wire, _answered) = tokio::select! {
        opened = open => opened,
        ended = &mut connection => panic!("{ended:?}"),
    };

    // Nobody reads from here on, as nobody polls the connection.
    wire.flood().await;
    until("the end of all", || {
        proxy.load.streams() + proxy.load.connections() == 0
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_or_becomes_too_long_is_413() {
    let (backend, proxy) = wired_with("      limits: { max_body: 100KiB }\n").await;
    let client = Http2::connect(proxy.address).await;
    let says = |length: usize| client.post().header("content-length", length);
    for request in [says(LARGE), client.post()] {
        let announced = request
            .headers_ref()
            .unwrap()
            .contains_key("content-length");
        let request = request.body(()).unwrap();
        let (answered, mut sending) = client.send.clone().send_request(request, false).unwrap();
        if !announced {
            sending.send_data(vec![0; LONG].into(), false).unwrap();
            let (wire, _) = Wire::accept(&backend).await;
            sending.send_data(vec![0; LONG].into(), false).unwrap();
            let taken = wire.until_end().await;
            let length = taken.matches('\0').count();
            assert!(
                length <= 100 << 10 && !taken.ends_with("0\r\n\r\n"),
                "{length}"
            );
        }
        let answered = within("an answer", answered).await.unwrap();
        assert_eq!(answered.status(), 413);
        let told = String::from_utf8(rest(answered.into_body()).await).unwrap();
        assert!(told.contains("urn:pingora-mcp:problem:body-too-large"));
    }
    stream(&client, &backend).await;
}

#[tokio::test]
async fn a_header_of_too_many_lines_or_bytes_is_431() {
    let backend = Backend::with_session("id").await;
    let limits = "  limits: { max_headers: 20, max_header_size: 2KiB }\n";
    let proxy = Proxy::listening(H2C, &(route(&[backend.address]) + limits));
    let client = Http2::connect(proxy.address).await;
    let lines =
        |count: usize| (0..count).fold(client.post(), |request, _| request.header("x", "y"));
    for (request, status) in [
        (lines(15), 200),
        (lines(30), 431),
        (client.post().header("x", "y".repeat(3000)), 431),
        (client.post(), 200),
    ] {
        assert_eq!(client.send(request, PING).await.status(), status);
    }
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn a_silent_stream_is_ended_in_order_when_the_process_ends() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = route(&[backend.local_addr().unwrap()]);
    let yaml = route + "  drain: { streams_after: 200ms, deadline: 10m }\n";
    let mut proxy = ProxyProcess::listening(H2C, &yaml, &[]).await;
    let client = Http2::connect(proxy.address).await;
    let (mut wire, answered) = stream(&client, &backend).await;
    wire.send_chunk(b"data: 1\n\n").await;

    proxy.signal("TERM");
    assert_eq!(rest(answered.into_body()).await, b"data: 1\n\n");
    wire.until_closed().await;
    assert_eq!(proxy.ended().await, Some(0));
}

/// A proxy in front of a backend whose connections the test takes.
async fn wired() -> (TcpListener, Proxy) {
    wired_with("").await
}

async fn wired_with(limits: &str) -> (TcpListener, Proxy) {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = route(&[backend.local_addr().unwrap()]);
    let proxy = Proxy::listening(H2C, &(routes + limits));
    (backend, proxy)
}

/// An open event stream, with the backend's end of it.
async fn stream(client: &Http2, backend: &TcpListener) -> (Wire, Response<RecvStream>) {
    let open = async {
        let (mut wire, _) = Wire::accept(backend).await;
        wire.send(EVENT_STREAM).await;
        wire
    };
    let (wire, answered) = tokio::join!(open, client.send(client.request(Method::GET, "/mcp"), ""));
    assert_eq!(answered.status(), 200);
    assert_eq!(header(answered.headers(), "transfer-encoding"), None);
    (wire, answered)
}

const H2C: &str = "      h2c: true\n";

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;

const PING: &str = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;

const EVENT_STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

const LARGE: usize = 8 << 20;

/// More than the sockets of both sides hold.
const WIDE: u32 = 1 << 30;

/// More than the proxy reads before it asks a backend.
const LONG: usize = 64 << 10;
