//! Requests that lie, byte by byte: each gets the answer that `docs/operations.md` says, the backend
//! gets what one reader only could take it for or nothing at all, and other clients are served, on
//! connections from before and on new ones.

mod support;

use support::wire::Wire;
use support::{Backend, Proxy, Seen, answer, header, open_session, route};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

#[tokio::test]
async fn a_body_without_one_clear_end_is_refused() {
    let edge = Edge::start().await;
    for headers in [
        "Content-Length: 2\r\nContent-Length: 3",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2, 2",
        "Content-Length: 2,3",
        "Content-Length: +2",
        "Content-Length: 0x2",
        "Content-Length: -2",
        "Content-Length: 99999999999999999999999999",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: \x0bchunked",
    ] {
        edge.refuses(&post(headers, "{}"), 400).await;
    }
    // The chunks can be read, and what is in them cannot.
    for headers in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ] {
        edge.refuses(&post(headers, "2\r\n{}\r\n0\r\n\r\n"), 501)
            .await;
    }
    edge.refuses(
        &request("POST /mcp HTTP/1.0", "Transfer-Encoding: chunked", ""),
        400,
    )
    .await;
}

#[tokio::test]
async fn with_both_framings_the_chunks_count_and_the_connection_ends() {
    let edge = Edge::start().await;
    let smuggled = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    for headers in [
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
    ] {
        let seen = edge.backend.seen().len();
        let mut client = Wire::connect(edge.proxy.address).await;
        let lie = post(headers, "2\r\n{}\r\n0\r\n\r\n");
        client.send(&(lie + smuggled)).await;
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        client.closed_in_silence().await;
        assert_eq!(edge.backend.seen().len(), seen + 1);
        let last = edge.backend.last();
        assert_eq!(last.body, "{}");
        assert_eq!(last.header("content-length"), None);
        assert_eq!(last.header("transfer-encoding"), Some("chunked"));
        edge.serves_others().await;
    }
}

#[tokio::test]
async fn chunks_are_framed_anew() {
    for (coding, body) in [
        ("chunked", "2;name=value\r\n{}\r\n0\r\n\r\n"),
        ("chunked", "2\r\n{}\r\n0\r\nMcp-Session-Id: trailer\r\n\r\n"),
        ("CHUNKED", "00000002\r\n{}\r\n000\r\n\r\n"),
    ] {
        let post = post(&format!("Transfer-Encoding: {coding}"), body);
        let (_proxy, mut backend, header) = raw(&post).await;
        assert!(
            header.contains("Transfer-Encoding: chunked\r\n"),
            "{header}"
        );
        assert_eq!(backend.receive("0\r\n\r\n").await, "2\r\n{}\r\n0\r\n\r\n");
    }
}

#[tokio::test]
async fn a_broken_chunk_ends_the_request_for_both_sides() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = Edge::with(&second_route(&listener)).await;
    for body in [
        "0x2\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "fffffffffffffffff2\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}XX0\r\n\r\n",
        "2\n{}\n0\n\n",
    ] {
        let mut client = Wire::connect(edge.proxy.address).await;
        let lie = request(SECOND, "Transfer-Encoding: chunked", body);
        client.send(&lie).await;
        let (backend, _) = Wire::accept(&listener).await;
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
        client.closed_in_silence().await;
        backend.until_closed().await;
        edge.serves_others().await;
    }
}

#[tokio::test]
async fn a_header_that_is_no_header_is_400() {
    let edge = Edge::start().await;
    for headers in [
        "X-A: 1\r\n 2",
        "X-A: 1\r\n\tTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Content-Length : 2",
        " Content-Length: 2",
        "X-A: 1\rX-B: 2",
        "X-A: 1\x002",
        "X\x00A: 1",
        ": 1",
        "no colon",
        "Host: localhost",
        "Host: attacker.example",
    ] {
        edge.refuses(&post(headers, "{}"), 400).await;
    }
}

#[tokio::test]
async fn lines_that_end_with_lf_alone_are_read_and_written_anew() {
    let lie = post("Content-Length: 2", "{}").replace("\r\n", "\n");
    let (_proxy, mut backend, header) = raw(&lie).await;
    assert!(header.contains("Content-Length: 2\r\n"), "{header}");
    assert!(!header.replace("\r\n", "").contains('\n'), "{header}");
    backend.receive("{}").await;
}

#[tokio::test]
async fn http_1_1_needs_a_host_without_a_user_and_http_1_0_does_not() {
    let edge = Edge::start().await;
    edge.refuses("POST /mcp HTTP/1.1\r\nHost: user@localhost\r\n\r\n", 400)
        .await;
    for target in ["/mcp", "http://localhost/mcp"] {
        let lie = format!("POST {target} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}");
        edge.refuses(&lie, 400).await;
    }
    edge.accepts("POST /mcp HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
        .await;
}

#[tokio::test]
async fn no_session_id_is_too_long_or_too_strange_for_an_answer() {
    let edge = Edge::start().await;
    let twice = format!("{0}\r\nMcp-Session-Id: {0}", edge.others_id);
    let long = |length| "a".repeat(length);
    for (id, status) in [
        ("", 404),
        ("é", 404),
        (&long(33), 404),
        (&long(60_000), 404),
        (&twice, 404),
        ("a\x01b", 400),
        ("a\x7f", 400),
        // Longer than the whole header may be.
        (&long(1024 * 1024), 431),
    ] {
        let lie = post(&format!("Content-Length: 2\r\nMcp-Session-Id: {id}"), "{}");
        edge.refuses(&lie, status).await;
    }
}

#[tokio::test]
async fn a_request_says_once_which_revision_and_method_it_is_of() {
    let edge = Edge::start().await;
    for headers in [
        "MCP-Protocol-Version: 2026-07-28\r\nMCP-Protocol-Version: 2025-06-18",
        "MCP-Protocol-Version: 2025-06-18\r\nMcp-Protocol-Version: 2025-06-18",
        "Mcp-Method: tools/list\r\nMcp-Method: tools/call",
    ] {
        let lie = post(&format!("Content-Length: 2\r\n{headers}"), "{}");
        edge.refuses(&lie, 400).await;
    }
}

#[tokio::test]
async fn a_client_cannot_nominate_away_what_the_proxy_adds() {
    let added = "          headers: { Authorization: Bearer ours }\n";
    let edge = Edge::with(added).await;
    let id = open_session(&edge.proxy.url("/mcp")).await;
    let lie = format!(
        "Content-Length: 2\r\nMcp-Session-Id: {id}\r\nAuthorization: Bearer theirs\r\n\
         Connection: Mcp-Session-Id, Authorization, Accept, Content-Length, Transfer-Encoding"
    );
    let seen = edge.accepts(&post(&lie, "{}")).await;
    assert_eq!(seen.header("mcp-session-id"), Some(BACKEND_ID));
    assert_eq!(seen.header("authorization"), Some("Bearer ours"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("connection"), None);
    assert_eq!(seen.body, "{}");

    let many = (0..20).map(|n| format!("x-{n}")).collect::<Vec<_>>();
    for nominated in [
        "Host",
        "x-forwarded-for",
        "close, X-Forwarded-Host",
        "X-Forwarded-Proto",
        "\"X-Forwarded-For\"",
        ":authority",
        "keep-alive, MCP-Protocol-Version",
        "mcp-method",
        "Mcp-Name",
        "Mcp-Param-x",
        &many.join(","),
    ] {
        let lie = format!("Content-Length: 2\r\nConnection: {nominated}");
        edge.refuses(&post(&lie, "{}"), 400).await;
    }
}

#[tokio::test]
async fn a_backend_cannot_nominate_away_what_the_proxy_adds() {
    let backend = Backend::start(|request: Seen| {
        let id = ("mcp-session-id", BACKEND_ID);
        if request.header("mcp-session-id").is_none() {
            return answer(200, &[id], "{}");
        }
        let nominated = "Mcp-Session-Id, Access-Control-Allow-Origin, Vary, X-Own";
        answer(200, &[id, ("connection", nominated), ("x-own", "1")], "{}")
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    let origin = "http://localhost:6274";
    let request = support::post(&proxy.url("/mcp")).header("mcp-session-id", &id);
    let answered = request.header("origin", origin).send().await.unwrap();
    let headers = answered.headers();
    assert_eq!(header(headers, "mcp-session-id"), Some(&*id));
    assert_eq!(header(headers, "access-control-allow-origin"), Some(origin));
    assert_eq!(header(headers, "vary"), Some("Origin"));
    assert_eq!(header(headers, "x-own"), None);
}

#[tokio::test]
async fn an_absolute_target_is_judged_as_the_host_that_it_names() {
    let edge = Edge::start().await;
    let absolute = |target: &str, host: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}")
    };
    let lie = absolute("http://localhost/mcp?a=b", "localhost");
    let seen = edge.accepts(&lie).await;
    assert_eq!(seen.uri, "/mcp?a=b");
    assert_eq!(seen.header("x-forwarded-host"), Some("localhost"));

    let foreign = "attacker.example";
    edge.refuses(&absolute("http://attacker.example/mcp", foreign), 403)
        .await;
    for (target, host) in [
        ("http://attacker.example/mcp", "localhost"),
        ("http://localhost/mcp", foreign),
        ("http://localhost:1/mcp", "localhost"),
        ("http://user@localhost/mcp", "localhost"),
        ("http:/\\localhost/mcp", "localhost"),
    ] {
        edge.refuses(&absolute(target, host), 400).await;
    }
}

#[tokio::test]
async fn a_path_is_matched_as_it_is_written() {
    let edge = Edge::start().await;
    for path in [
        "*",
        "mcp",
        "?mcp",
        "//mcp",
        "/%6dcp",
        "/mcp%2f",
        "/mcp;a",
        "/mcp\\",
        "/mcp/%2e%2e%2fadmin",
        "/mcp/a%5c..%5c..%5cadmin",
        "/mcp/a\\..\\..\\admin",
    ] {
        let lie = post("Content-Length: 2", "{}").replacen("/mcp", path, 1);
        edge.refuses(&lie, 404).await;
    }
    for path in [
        "/mcp/a%2fb",
        "/mcp/a%5Cb",
        "/mcp/a\\b",
        "/mcp//a",
        "/mcp/%00",
    ] {
        let lie = post("Content-Length: 2", "{}").replacen("/mcp", path, 1);
        let (_proxy, _backend, header) = raw(&lie).await;
        let line = format!("POST {path} HTTP/1.1\r\n");
        assert!(header.starts_with(&line), "{header}");
    }
}

#[tokio::test]
async fn other_versions_of_http_are_400() {
    let edge = Edge::start().await;
    for lie in [
        "GET /mcp\r\n",
        "GET /mcp\r\n\r\n",
        "POST /mcp HTTP/1.2\r\nHost: localhost\r\n\r\n",
        "POST /mcp HTTP/3.0\r\nHost: localhost\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\r\n\r\n",
    ] {
        edge.refuses(lie, 400).await;
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_keeps_its_connection_only_where_it_asks_to() {
    let edge = Edge::start().await;
    let plain = request("POST /mcp HTTP/1.0", "Content-Length: 2", "{}");
    let asks = request(
        "POST /mcp HTTP/1.0",
        "Content-Length: 2\r\nConnection: keep-alive",
        "{}",
    );
    let before = edge.backend.seen().len();
    let mut client = Wire::connect(edge.proxy.address).await;
    for (request, connection) in [
        (&asks, "keep-alive"),
        (&asks, "keep-alive"),
        (&plain, "close"),
    ] {
        client.send(request).await;
        let answer = client.answer().await;
        assert!(
            answer.contains(&format!("Connection: {connection}\r\n")),
            "{answer}"
        );
    }
    client.closed_in_silence().await;
    assert_eq!(edge.backend.seen().len(), before + 3);
    edge.serves_others().await;
}

#[tokio::test]
async fn a_client_of_http_1_0_is_told_nothing_that_it_does_not_know() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    let headers = "Content-Length: 2\r\nExpect: 100-continue";
    client
        .send(&request("POST /mcp HTTP/1.0", headers, "{}"))
        .await;
    let (mut backend, header) = Wire::accept(&listener).await;
    assert!(!header.to_ascii_lowercase().contains("expect"), "{header}");
    let answers = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n\
                   HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    backend.send(answers).await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_upgrade_is_a_plain_request() {
    let edge = Edge::start().await;
    for upgrade in [
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    ] {
        let headers = format!("Content-Length: 2\r\n{upgrade}");
        let seen = edge.accepts(&post(&headers, "{}")).await;
        for name in ["connection", "upgrade", "http2-settings"] {
            assert_eq!(seen.header(name), None, "{name}");
        }
    }
}

#[tokio::test]
async fn connect_and_trace_are_405() {
    let edge = Edge::start().await;
    edge.refuses(&request("CONNECT localhost:80 HTTP/1.1", "", ""), 405)
        .await;
    edge.refuses(&request("CONNECT /mcp HTTP/1.1", "", ""), 405)
        .await;
    let secret = "Authorization: Bearer token";
    let answer = edge
        .refuses(&request("TRACE /mcp HTTP/1.1", secret, ""), 405)
        .await;
    assert!(!answer.contains("token"), "{answer}");
}

#[tokio::test]
async fn it_is_the_backend_that_says_100() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client
        .send(&post("Content-Length: 2\r\nExpect: 100-Continue", ""))
        .await;
    let (mut backend, header) = Wire::accept(&listener).await;
    assert!(header.contains("expect: 100-Continue\r\n"), "{header}");
    backend.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.receive("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("{}").await;
    backend.receive("{}").await;
    backend
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_backend_may_answer_instead_of_100_and_the_body_is_never_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client
        .send(&post("Content-Length: 2\r\nExpect: 100-continue", ""))
        .await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend
        .send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        .await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    client.finish_sending().await;
    client.closed_in_silence().await;
    backend.until_closed().await;
}

#[tokio::test]
async fn any_other_expectation_is_417() {
    let edge = Edge::start().await;
    for headers in [
        "Expect: 200-ok",
        "Expect: 100-continue, other",
        "Expect: 100-continue\r\nExpect: other",
    ] {
        let lie = post(&format!("Content-Length: 2\r\n{headers}"), "{}");
        edge.refuses(&lie, 417).await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_each_whole() {
    let edge = Edge::start().await;
    let bodies = ["1", "22", "333"].map(str::to_owned);
    let refused = request("PUT /mcp HTTP/1.1", "Content-Length: 5", "hello");
    let asked = bodies.clone().map(|body| post(&length(&body), &body));
    let pipeline = [&*refused, &asked[0], &refused, &asked[1], &asked[2]].concat();
    // At once, and in two pieces: a cut may fall between two requests or within one.
    for cut in (0..pipeline.len()).step_by(3) {
        let (first, second) = pipeline.split_at(cut);
        let seen = edge.backend.seen().len();
        let mut client = Wire::connect(edge.proxy.address).await;
        client.send(first).await;
        client.send(second).await;
        for status in [405, 200, 405, 200, 200] {
            let answer = client.answer().await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{cut}: {answer}"
            );
        }
        let seen = edge.backend.seen().split_off(seen);
        let seen: Vec<_> = seen.into_iter().map(|seen| seen.body).collect();
        assert_eq!(seen, bodies, "{cut}");
        edge.serves_others().await;
    }
}

#[tokio::test]
async fn a_request_behind_a_slow_one_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client.send(&post("Content-Length: 1", "1")).await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend.receive("1").await;
    client.send(&post("Content-Length: 1", "2")).await;
    for body in ["1", "2"] {
        let ok = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{body}");
        backend.send(&ok).await;
        let answer = client.answer().await;
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
        if body == "1" {
            backend.receive("\r\n\r\n2").await;
        }
    }
}

#[tokio::test]
async fn nothing_follows_a_stream() {
    let next = post("Content-Length: 1", "2");
    for at_once in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
        let mut client = Wire::connect(proxy.address).await;
        let get = request("GET /mcp HTTP/1.1", "Accept: text/event-stream", "");
        let first = if at_once { get + &next } else { get };
        client.send(&first).await;
        let (mut backend, _) = Wire::accept(&listener).await;
        let header = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                      Transfer-Encoding: chunked\r\n\r\n";
        backend.send(header).await;
        backend.send_chunk(b"data: 1\n\n").await;
        client.receive("data: 1\n\n\r\n").await;
        if at_once {
            backend.send_chunk(b"").await;
            client.receive("0\r\n\r\n").await;
        } else {
            client.send(&next).await;
            backend.until_closed().await;
        }
        client.closed_in_silence().await;
    }
}

#[tokio::test]
async fn bytes_after_a_body_are_the_next_request_or_none() {
    let edge = Edge::start().await;
    let seen = edge.backend.seen().len();
    let mut client = Wire::connect(edge.proxy.address).await;
    client
        .send(&(post("Content-Length: 2", "{}") + "{}\r\n\r\n"))
        .await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    client.closed_in_silence().await;
    assert_eq!(edge.backend.seen().len(), seen + 1);
    edge.serves_others().await;

    // A body that no header announces is none.
    assert_eq!(edge.accepts(&post("X-A: 1", "")).await.body, "");
}

#[tokio::test]
async fn a_body_is_passed_or_read_whatever_the_method() {
    let edge = Edge::start().await;
    let get = "Content-Length: 5\r\nAccept: text/event-stream";
    let get = request("GET /mcp HTTP/1.1", get, "hello");
    assert_eq!(edge.accepts(&get).await.body, "hello");
    let delete = "Content-Length: 5\r\nMCP-Protocol-Version: 2026-07-28";
    let delete = request("DELETE /mcp HTTP/1.1", delete, "hello");
    assert_eq!(edge.accepts(&delete).await.body, "hello");

    let seen = edge.backend.seen().len();
    let mut client = Wire::connect(edge.proxy.address).await;
    for _ in 0..2 {
        let options = request("OPTIONS /mcp HTTP/1.1", "Content-Length: 5", "hello");
        client.send(&options).await;
        let answer = client.receive("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(edge.backend.seen().len(), seen);
}

#[tokio::test]
async fn whatever_the_limits_a_header_has_256_fields_and_1_mib_at_most_and_64_kib_of_target() {
    let raised = "  limits: { max_headers: 2000, max_header_size: 4MiB }\n";
    let edge = Edge::with(raised).await;
    let fields = |count: usize| {
        let fields = (0..count).map(|n| format!("X-{n}: a\r\n"));
        post(&(fields.collect::<String>() + "Content-Length: 2"), "{}")
    };
    edge.refuses(&fields(1000), 400).await;
    edge.refuses(&fields(255), 400).await;

    let long = "a".repeat(64 * 1024);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + raised));
    for (passes, part) in [
        (fields(254), "x-253: a\r\n"),
        (
            post(&format!("X-A: {long}\r\nContent-Length: 2"), "{}"),
            &long,
        ),
    ] {
        Wire::connect(proxy.address).await.send(&passes).await;
        let (_, header) = Wire::accept(&listener).await;
        assert!(header.contains(part), "{}", header.len());
    }

    edge.refuses(&format!("POST /mcp?{}", "a".repeat(MAX_HEADER - 10)), 400)
        .await;
}

#[tokio::test]
async fn a_request_of_one_byte_at_a_time_is_one_request() {
    let edge = Edge::start().await;
    for lie in [
        post("Content-Length: 2", "{}"),
        post("Transfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"),
    ] {
        let before = edge.backend.seen().len();
        let mut client = Wire::connect(edge.proxy.address).await;
        for byte in lie.chars() {
            client.send(&byte.to_string()).await;
        }
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let seen = edge.backend.seen().split_off(before);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].body, "{}");
        edge.serves_others().await;
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_has_left() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client.send(&post("Content-Length: 2", "{}")).await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend.receive("{}").await;
    client.finish_sending().await;
    client.closed_in_silence().await;
    backend.until_closed().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_reaches_the_backend_as_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = Edge::with(&second_route(&listener)).await;
    for (headers, body) in [
        ("Content-Length: 9", "{}"),
        ("Transfer-Encoding: chunked", "2\r\n{}\r\n"),
    ] {
        let mut client = Wire::connect(edge.proxy.address).await;
        client.send(&request(SECOND, headers, body)).await;
        let (mut backend, _) = Wire::accept(&listener).await;
        backend.receive("{}").await;
        client.finish_sending().await;
        backend.until_closed().await;
        edge.serves_others().await;
    }
}

const BACKEND_ID: &str = "the-backends-own-id";

/// A request of the [`second_route`].
const SECOND: &str = "POST /second HTTP/1.1";

/// What Pingora reads of a header before it gives up, in bytes.
const MAX_HEADER: usize = 1024 * 1024;

/// A proxy in front of one backend, which sends back what it is sent, with another client: its session
/// was opened before any lie, on a connection that stays open.
struct Edge {
    backend: Backend,
    proxy: Proxy,
    other: Mutex<Wire>,
    others_id: String,
}

impl Edge {
    async fn start() -> Self {
        Self::with("").await
    }

    /// `more` follows the backend in the YAML.
    async fn with(more: &str) -> Self {
        let id = ("mcp-session-id", BACKEND_ID);
        let backend = Backend::start(move |seen| answer(200, &[id], seen.body)).await;
        let proxy = Proxy::with(&(route(&[backend.address]) + more));
        let mut other = Wire::connect(proxy.address).await;
        other.send(&post("Content-Length: 2", "{}")).await;
        let opened = other.answer().await;
        let mut lines = opened.lines();
        let id = lines.find_map(|line| line.strip_prefix("mcp-session-id: "));
        Self {
            backend,
            proxy,
            other: Mutex::new(other),
            others_id: id.unwrap().to_owned(),
        }
    }

    /// Sends a request that is to get `status`, to end the connection where the answer says so, and
    /// to leave backend and other clients alone. Returns the answer.
    async fn refuses(&self, lie: &str, status: u16) -> String {
        let shown: String = lie.chars().take(300).collect();
        let seen = self.backend.seen().len();
        let mut client = Wire::connect(self.proxy.address).await;
        client.send(lie).await;
        let answer = client.answer().await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{shown:?}: {answer}");
        if answer.contains("Connection: close\r\n") {
            client.closed_in_silence().await;
        }
        assert_eq!(self.backend.seen().len(), seen, "{shown:?}");
        self.serves_others().await;
        answer
    }

    /// Sends a request that is to reach the backend as one, and to leave other clients alone. Returns
    /// what the backend saw.
    async fn accepts(&self, request: &str) -> Seen {
        let seen = self.backend.seen().len();
        let mut client = Wire::connect(self.proxy.address).await;
        client.send(request).await;
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{request:?}: {answer}");
        let mut seen = self.backend.seen().split_off(seen);
        assert_eq!(seen.len(), 1, "{request:?}");
        self.serves_others().await;
        seen.remove(0)
    }

    /// The other client's session goes on, on its connection and on a new one: its request reaches the
    /// backend as it is, on the connection that a lie may have been on, and the answer is the one to it.
    async fn serves_others(&self) {
        let mut new = Wire::connect(self.proxy.address).await;
        let mut open = self.other.lock().await;
        for (client, body) in [(&mut *open, "on its own"), (&mut new, "on a new one")] {
            let seen = self.backend.seen().len();
            let id = format!("\r\nMcp-Session-Id: {}", self.others_id);
            client.send(&post(&(length(body) + &id), body)).await;
            let answer = client.answer().await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
            let seen = self.backend.seen().split_off(seen);
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert_eq!(seen[0].body, body);
            assert_eq!(seen[0].header("mcp-session-id"), Some(BACKEND_ID));
        }
    }
}

/// The YAML of a route to a backend whose connections the test takes.
fn second_route(backend: &TcpListener) -> String {
    let route = route(&[backend.local_addr().unwrap()]);
    let route = route.strip_prefix("  routes:\n").unwrap();
    route.replacen("/mcp", "/second", 1)
}

/// Sends a request to a backend that shows what it gets byte for byte: the header, and then what
/// follows it.
async fn raw(request: &str) -> (Proxy, Wire, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client.send(request).await;
    let (backend, header) = Wire::accept(&listener).await;
    (proxy, backend, header)
}

fn request(line: &str, headers: &str, body: &str) -> String {
    let separator = if headers.is_empty() { "" } else { "\r\n" };
    format!("{line}\r\nHost: localhost\r\n{headers}{separator}\r\n{body}")
}

fn post(headers: &str, body: &str) -> String {
    request("POST /mcp HTTP/1.1", headers, body)
}

fn length(body: &str) -> String {
    format!("Content-Length: {}", body.len())
}
