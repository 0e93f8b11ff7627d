//! Backends that misbehave byte by byte, and clients of another age: every request gets an answer,
//! and nothing of the backend's shows.

mod support;

use support::wire::Wire;
use support::{Proxy, route, unused_address};
use tokio::net::TcpListener;

#[tokio::test]
async fn an_interim_answer_shows_neither_the_backends_id_nor_its_cors_policy() {
    let (_proxy, mut backend, mut client) = asked(POST).await;
    let hints = "HTTP/1.1 103 Early Hints\r\nMcp-Session-Id: backend-id\r\nServer: x\r\n\
                 Access-Control-Allow-Origin: *\r\nLink: </style>\r\n\r\n";
    backend.send(hints).await;
    backend
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    let interim = client.receive("\r\n\r\n").await.to_ascii_lowercase();
    assert!(interim.starts_with("http/1.1 103 "), "{interim}");
    assert!(interim.contains("link: </style>"), "{interim}");
    for hidden in ["backend-id", "server", "access-control"] {
        assert!(!interim.contains(hidden), "{interim}");
    }
    let answer = client.receive("\r\n\r\nok").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_502() {
    let (_proxy, mut backend, mut client) = asked(POST).await;
    let upgrade = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\
                   Mcp-Session-Id: backend-id\r\n\r\nbytes of another protocol";
    backend.send(upgrade).await;
    let answer = client.receive("\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(!answer.contains("backend-id"), "{answer}");
}

#[tokio::test]
async fn a_backend_that_dies_after_an_interim_answer_is_still_502() {
    let (_proxy, mut backend, mut client) = asked(POST).await;
    backend.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.receive("HTTP/1.1 100 Continue\r\n\r\n").await;
    backend.close().await;
    let answer = client.receive("\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn a_502_is_received_whole_while_the_request_is_still_being_sent() {
    let dead = unused_address();
    let proxy = Proxy::with(&route(&[dead]));
    for _ in 0..10 {
        let mut client = Wire::connect(proxy.address).await;
        let body = "x".repeat(1_000_000);
        let header = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
        client.send(&format!("{header}{body}")).await;
        let answer = client.receive("Try again later.\"}").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("Connection: close"), "{answer}");
        client.until_closed().await;
    }
}

#[tokio::test]
async fn a_refusal_does_not_wait_for_a_body_that_the_client_holds_back() {
    let proxy = Proxy::with(&route(&[unused_address()]));
    let mut client = Wire::connect(proxy.address).await;
    let request = "PUT /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
                   Expect: 100-continue\r\n\r\n";
    client.send(request).await;
    let answer = client.receive("\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("Connection: close"), "{answer}");
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_a_body_without_chunks() {
    let request = "GET /mcp HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    let (_proxy, mut backend, mut client) = asked(request).await;
    let header = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                  Transfer-Encoding: chunked\r\n\r\n";
    backend.send(header).await;
    backend.send_chunk(b"data: 1\n\n").await;
    backend.send_chunk(b"").await;
    let answer = client
        .receive("\r\n\r\ndata: 1\n\n")
        .await
        .to_ascii_lowercase();
    assert!(!answer.contains("transfer-encoding"), "{answer}");
    client.until_closed().await;
}

#[tokio::test]
async fn every_connection_header_of_a_backend_is_followed() {
    let (_proxy, mut backend, mut client) = asked(POST).await;
    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: x-one, Content-Length\r\n\
                  X-One: 1\r\nTrailer: x-two\r\nAlt-Svc: h3=\":443\"\r\nContent-Length: 2\r\n\r\nok";
    backend.send(answer).await;
    let answer = client.receive("\r\n\r\nok").await.to_ascii_lowercase();
    assert!(answer.contains("content-length: 2"), "{answer}");
    for hidden in ["x-one", "trailer", "alt-svc"] {
        assert!(!answer.contains(hidden), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_that_can_be_read_in_two_ways_is_502() {
    let lies = [
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: ",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Content-Length: 5, 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5\r\nMcp-Session-Id: a\r\nMcp-Session-Id: b",
    ];
    for lie in lies {
        let (_proxy, mut backend, client) = asked(POST).await;
        let body = "0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
        backend
            .send(&format!("HTTP/1.1 200 OK\r\n{lie}\r\n\r\n{body}"))
            .await;
        let answer = client.until_end().await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{lie}: {answer}");
        assert!(!answer.contains("forged"), "{lie}: {answer}");
    }
}

#[tokio::test]
async fn of_chunks_and_a_length_the_chunks_count() {
    let (_proxy, mut backend, mut client) = asked(POST).await;
    let header = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
    backend.send(header).await;
    backend.send_chunk(b"nine more").await;
    backend.send_chunk(b"").await;
    let answer = client.receive("nine more\r\n0\r\n\r\n").await;
    let header = answer.to_ascii_lowercase();
    assert!(header.contains("transfer-encoding: chunked"), "{answer}");
    assert!(!header.contains("content-length"), "{answer}");
}

#[tokio::test]
async fn an_answer_without_a_body_has_no_framing() {
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let (_proxy, mut backend, mut client) = asked(POST).await;
        let answer = format!("HTTP/1.1 204 No Content\r\n{framing}\r\n\r\n");
        backend.send(&answer).await;
        let answer = client.receive("\r\n\r\n").await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 204 "), "{answer}");
        assert!(!answer.contains("content-length"), "{answer}");
        assert!(!answer.contains("transfer-encoding"), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_of_http_1_0_is_passed_as_one_of_1_1() {
    for (header, end) in [("", "\r\n0\r\n\r\n"), ("Content-Length: 10\r\n", "")] {
        let (_proxy, mut backend, mut client) = asked(POST).await;
        let answer = format!("HTTP/1.0 200 OK\r\n{header}\r\nto the end");
        backend.send(&answer).await;
        backend.close().await;
        let answer = client.receive(&format!("to the end{end}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_backend_that_is_silent_on_a_delete_is_504_soon() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = route(&[backend.local_addr().unwrap()]) + "      timeouts: { delete: 100ms }\n";
    let proxy = Proxy::with(&yaml);
    let mut client = Wire::connect(proxy.address).await;
    client.send(POST).await;
    let (mut server, _) = Wire::accept(&backend).await;
    let opened = "HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-id\r\nContent-Length: 2\r\n\r\nok";
    server.send(opened).await;
    let answer = client.receive("\r\n\r\nok").await;
    let id = answer
        .lines()
        .find_map(|line| line.strip_prefix("mcp-session-id: "))
        .unwrap();

    let delete = format!("DELETE /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: {id}\r\n\r\n");
    client.send(&delete).await;
    server.receive("\r\n\r\n").await;
    let answer = client.receive("\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(
        answer.contains(id),
        "it carries the client's own id: {answer}"
    );
}

const POST: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";

/// A client that has sent `request`, and the backend that has received its header.
async fn asked(request: &str) -> (Proxy, Wire, Wire) {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[backend.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client.send(request).await;
    let (backend, _) = Wire::accept(&backend).await;
    (proxy, backend, client)
}
