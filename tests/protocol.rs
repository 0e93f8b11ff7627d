//! What MCP asks of an intermediary, rule by rule, where no other file of tests is about it. Each
//! test names its rule: the page of the specification's revision, its section, and the paragraph.

mod support;

use http::Method;
use support::wire::Wire;
use support::{
    Backend, Proxy, Seen, answer, ask, header, initialize, open_session, post, raw, route,
};
use tokio::net::TcpListener;

// MCP 2025-11-25, Transports, Sending Messages 4: a notification or a response gets 202 without a
// body. MCP 2026-07-28, Streamable HTTP, Sending Messages: the same.
#[tokio::test]
async fn a_202_has_no_body() {
    for version in VERSIONS {
        for framing in ["Content-Length: 0", "Connection: close"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
            let mut client = Wire::connect(proxy.address).await;
            let message = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
            let request = format!(
                "POST /mcp HTTP/1.1\r\nHost: localhost\r\n{version}Content-Length: {}\r\n\
                 Connection: close\r\n\r\n{message}",
                message.len()
            );
            client.send(&request).await;
            let (mut backend, _) = Wire::accept(&listener).await;
            backend.receive(message).await;
            backend
                .send(&format!("HTTP/1.1 202 Accepted\r\n{framing}\r\n\r\n"))
                .await;
            backend.close().await;
            let header = client.receive("\r\n\r\n").await;
            assert!(header.starts_with("HTTP/1.1 202 "), "{header}");
            let body = client.until_end().await;
            assert!(["", "0\r\n\r\n"].contains(&&*body), "{header}{body}");
        }
    }
}

// MCP 2025-03-26, Transports, Sending Messages 3: a body may be an array of messages, and so may
// the answer.
#[tokio::test]
async fn a_batch_passes_both_ways() {
    let batch = "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"},\r\n {\"id\":2}]\n";
    let answers = r#"[{"jsonrpc":"2.0","id":2,"result":{}},{"id":1}]"#;
    let backend =
        Backend::start(move |_| answer(200, &[("content-type", "application/json")], answers))
            .await;
    let proxy = Proxy::to(&[backend.address]);
    let answered = post(&proxy.url("/mcp")).body(batch).send().await.unwrap();
    assert_eq!(answered.text().await.unwrap(), answers);
    assert_eq!(backend.last().body, batch);
}

// MCP 2025-11-25, Transports, Session Management: the header is spelled in two ways, and HTTP
// compares names without case (RFC 9110 5.1) but not values.
#[tokio::test]
async fn names_of_headers_have_no_case_and_values_do() {
    let backend = Backend::with_session("OwnId").await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    for name in ["Mcp-Session-Id", "MCP-Session-Id", "MCP-SESSION-ID"] {
        let asked =
            |id: &str| format!("POST /mcp HTTP/1.1\r\nHost: localhost\r\n{name}: {id}\r\n\r\n");
        let answered = raw(proxy.address, &asked(&id)).await;
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
        assert_eq!(backend.last().header("mcp-session-id"), Some("OwnId"));
        let answered = raw(proxy.address, &asked(&id.to_uppercase())).await;
        assert!(answered.starts_with("HTTP/1.1 404 "), "{answered}");
    }
    let stateless = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nmcp-PROTOCOL-version: 2026-07-28\r\n\
                     mCP-nAME: CaSe\r\nMcp-Session-Id: stray\r\n\r\n";
    let answered = raw(proxy.address, stateless).await;
    assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
    assert_eq!(backend.last().header("mcp-name"), Some("CaSe"));
}

// MCP 2025-11-25, Transports, Session Management 1: the id is on the answer that carries the
// InitializeResult, which is JSON or an event stream.
#[tokio::test]
async fn initialize_opens_a_session_as_json_and_as_events() {
    for (content_type, body) in [
        ("application/json", "{\"id\":1,\"result\":{}}"),
        (
            "text/event-stream",
            "id: 0\ndata:\n\ndata: {\"id\":1,\"result\":{}}\n\n",
        ),
    ] {
        let headers = [("mcp-session-id", "own"), ("content-type", content_type)];
        let backend = Backend::start(move |_| answer(200, &headers, body)).await;
        let proxy = Proxy::to(&[backend.address]);
        let opened = initialize(&proxy.url("/mcp")).send().await.unwrap();
        assert_eq!(header(opened.headers(), "content-type"), Some(content_type));
        let id = header(opened.headers(), "mcp-session-id")
            .unwrap()
            .to_owned();
        assert_eq!(opened.text().await.unwrap(), body);
        ask(&proxy.url("/mcp"), &id).await;
        assert_eq!(backend.last().header("mcp-session-id"), Some("own"));
    }
}

// MCP 2025-11-25, Transports, Session Management 1: a server without sessions gives no id, and
// its clients send none.
#[tokio::test]
async fn a_server_without_sessions_is_served_without_one() {
    let backend = Backend::start(|_| answer(200, &[], "{}")).await;
    let proxy = Proxy::to(&[backend.address]);
    for request in [initialize(&proxy.url("/mcp")), post(&proxy.url("/mcp"))] {
        let answered = request.send().await.unwrap();
        assert_eq!(answered.status(), 200);
        assert_eq!(header(answered.headers(), "mcp-session-id"), None);
        assert_eq!(backend.last().header("mcp-session-id"), None);
    }
}

// Practice: a session opens by its answer's header and status, as bodies are not read. So it does
// on an answer that says in its body that it failed, and on one to another method: clients adopt
// such an id, and the backend knows it.
#[tokio::test]
async fn a_2xx_with_an_id_opens_a_session_whatever_its_body_says() {
    let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no such version"}}"#;
    let backend = Backend::start(move |_| answer(200, &[("mcp-session-id", "own")], error)).await;
    let proxy = Proxy::to(&[backend.address]);
    for request in [initialize(&proxy.url("/mcp")), post(&proxy.url("/mcp"))] {
        let opened = request.send().await.unwrap();
        let id = header(opened.headers(), "mcp-session-id")
            .unwrap()
            .to_owned();
        assert_eq!(opened.text().await.unwrap(), error);
        ask(&proxy.url("/mcp"), &id).await;
        assert_eq!(backend.last().header("mcp-session-id"), Some("own"));
    }
}

// MCP 2025-11-25, Transports, Session Management 2: a request that lacks its id gets 400 from the
// server. Practice: some servers say 400 of a forgotten session, too. It is no 404, so that the
// session goes on.
#[tokio::test]
async fn a_400_of_a_session_passes_and_ends_nothing() {
    let words = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request"},"id":null}"#;
    let backend = Backend::start(move |request: Seen| match request.header("x-fail") {
        None => answer(200, &[("mcp-session-id", "own")], "{}"),
        Some(_) => answer(400, &[("content-type", "application/json")], words),
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    let request = post(&proxy.url("/mcp")).header("mcp-session-id", &id);
    let refused = request.header("x-fail", "1").send().await.unwrap();
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.text().await.unwrap(), words);
    assert_eq!(ask(&proxy.url("/mcp"), &id).await.status(), 200);
}

// MCP 2025-11-25, Transports, Listening for Messages 3: a server without a GET stream says 405.
#[tokio::test]
async fn a_405_to_get_passes_and_the_session_goes_on() {
    let backend = Backend::start(|request: Seen| match request.method {
        Method::GET => answer(
            405,
            &[("allow", "POST"), ("mcp-session-id", "throwaway")],
            "none",
        ),
        _ => answer(200, &[("mcp-session-id", "own")], "{}"),
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    let refused = get(&proxy)
        .header("mcp-session-id", &id)
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 405);
    assert_eq!(header(refused.headers(), "allow"), Some("POST"));
    assert_eq!(header(refused.headers(), "mcp-session-id"), Some(&*id));
    assert_eq!(refused.text().await.unwrap(), "none");
    assert_eq!(ask(&proxy.url("/mcp"), &id).await.status(), 200);
    assert_eq!(backend.last().header("mcp-session-id"), Some("own"));
}

// MCP 2025-11-25, Transports, Listening for Messages: a stream belongs to the session that it is
// asked for with, and one without an id to none.
#[tokio::test]
async fn a_get_without_an_id_joins_nobodys_session() {
    let backend = Backend::with_session("own").await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    ask(&proxy.url("/mcp"), &id).await;
    let answered = get(&proxy).send().await.unwrap();
    assert_eq!(backend.last().header("mcp-session-id"), None);
    assert_ne!(
        header(answered.headers(), "mcp-session-id"),
        Some(&*id),
        "the backend opened one of its own"
    );
}

// MCP 2025-11-25, Transports, Multiple Connections: a session may have several streams, and each
// message is on one of them.
#[tokio::test]
async fn streams_of_one_session_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut opening = Wire::connect(proxy.address).await;
    opening
        .send("POST /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend
        .send("HTTP/1.1 200 OK\r\nMcp-Session-Id: own\r\nConnection: close\r\n\r\n")
        .await;
    backend.close().await;
    let opened = opening.receive("\r\n\r\n").await;
    let mut lines = opened.lines();
    let id = lines
        .find_map(|line| line.strip_prefix("mcp-session-id: "))
        .unwrap();
    let mut streams = Vec::new();
    for number in 0..3 {
        let mut client = Wire::connect(proxy.address).await;
        let request = "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n";
        client
            .send(&format!("{request}Mcp-Session-Id: {id}\r\n\r\n"))
            .await;
        let (mut backend, header) = Wire::accept(&listener).await;
        assert!(header.to_ascii_lowercase().contains("mcp-session-id: own"));
        backend
            .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            .await;
        streams.push((client, backend, format!("data: {number}\n\n")));
    }
    for (_, backend, event) in streams.iter_mut().rev() {
        backend.send(event).await;
    }
    for (client, _, event) in &mut streams {
        client.receive("\r\n\r\n").await;
        let received = client.receive("\n\n").await;
        assert!(received.ends_with(&*event), "{received} is not {event}");
    }
}

// MCP 2025-11-25, Transports, Resumability and Redelivery 2: the client comes back with GET and
// `Last-Event-ID`, to the backend that has the session, also for a stream that began as a POST's
// answer.
#[tokio::test]
async fn a_broken_stream_is_resumed_at_the_sessions_own_backend() {
    let backends = [resumable("session-a").await, resumable("session-b").await];
    let proxy = Proxy::to(&[backends[0].address, backends[1].address]);
    for _ in 0..2 {
        let id = open_session(&proxy.url("/mcp")).await;
        let began = ask(&proxy.url("/mcp"), &id).await.text().await.unwrap();
        let resuming = get(&proxy).header("mcp-session-id", &id);
        let resumed = resuming.header("last-event-id", "Cursor_1").send().await;
        let rest = resumed.unwrap().text().await.unwrap();
        assert_eq!(
            rest,
            began.replace("id: Cursor_1\nretry: 5\ndata:\n\n", "data: rest of ")
        );
    }
}

// MCP 2025-11-25, Transports, Sending Messages 6: a disconnect is no cancellation. The server
// decides; the proxy sends it no message of its own.
#[tokio::test]
async fn a_client_that_leaves_is_not_reported_in_a_message() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(&[listener.local_addr().unwrap()]);
    let mut client = Wire::connect(proxy.address).await;
    client
        .send("POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        .await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend.receive("{}").await;
    drop(client);
    assert_eq!(backend.until_end().await, "");
    // The next to connect is the next client, and nobody before.
    let mut client = Wire::connect(proxy.address).await;
    client
        .send("GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        .await;
    let (_backend, next) = Wire::accept(&listener).await;
    assert!(next.starts_with("GET /mcp "), "{next}");
}

// MCP 2026-07-28, Streamable HTTP: every message stands alone, and any server can answer it, the
// retry of one that needed input included.
#[tokio::test]
async fn the_stateless_era_is_shared_by_all_backends() {
    let first = Backend::start(|_| answer(200, &[], "{}")).await;
    let second = Backend::start(|_| answer(200, &[], "{}")).await;
    let proxy = Proxy::to(&[first.address, second.address]);
    for _ in 0..4 {
        stateless(&proxy).send().await.unwrap();
    }
    assert_eq!([first.seen().len(), second.seen().len()], [2, 2]);
}

// MCP 2026-07-28, Streamable HTTP: `Mcp-Session-Id` and `Last-Event-ID` mean nothing. The id goes
// no further, as it may be another server's; nobody gains by dropping the other.
#[tokio::test]
async fn the_stateless_era_knows_no_id_of_any_kind() {
    let backend = Backend::start(|_| answer(200, &[("mcp-session-id", "stray")], "{}")).await;
    let proxy = Proxy::to(&[backend.address]);
    let url = proxy.url("/mcp");
    let session = open_session(&url).await;
    for id in ["unknown", &session] {
        let request = stateless(&proxy).header("mcp-session-id", id);
        let answered = request.header("last-event-id", "7").send().await.unwrap();
        assert_eq!(answered.status(), 200);
        assert_eq!(header(answered.headers(), "mcp-session-id"), None);
        assert_eq!(backend.last().header("mcp-session-id"), None);
        assert_eq!(backend.last().header("last-event-id"), Some("7"));
    }
    // A stateless DELETE of it is the backend's to answer, and ends nothing here.
    let request = reqwest::Client::new().delete(&url);
    let request = request.header("mcp-protocol-version", "2026-07-28");
    let answered = request.header("mcp-session-id", &session).send().await;
    assert_eq!(header(answered.unwrap().headers(), "mcp-session-id"), None);
    assert_eq!(ask(&url, &session).await.status(), 200);
}

// MCP 2026-07-28, Versioning, Backward Compatibility: a client of both eras asks in the newer one
// first. From the body of a 400, 404 or 405 it learns whether the server is modern, or that it is
// to fall back to `initialize`.
#[tokio::test]
async fn a_client_of_both_eras_learns_from_the_servers_own_words() {
    let bodies = [
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32020,"message":"Header mismatch"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32021,"message":"Missing capability"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"data":{"supported":["2026-07-28"]}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"Method not found"}}"#,
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"No session id"}}"#,
        "Bad Request: unsupported\tprotocol version\r\n",
        "",
    ];
    for body in bodies {
        let headers = [
            ("content-type", "application/json"),
            ("mcp-session-id", "throwaway"),
        ];
        let backend = Backend::start(move |request: Seen| {
            let status = request.header("x-status").unwrap_or("200").parse().unwrap();
            answer(status, &headers, if status == 200 { "{}" } else { body })
        })
        .await;
        let proxy = Proxy::to(&[backend.address]);
        for status in ["400", "404", "405"] {
            let probe = stateless(&proxy).header("x-status", status);
            let answered = probe.send().await.unwrap();
            assert_eq!(answered.status().as_str(), status);
            assert_eq!(
                header(answered.headers(), "content-type"),
                Some("application/json")
            );
            assert_eq!(header(answered.headers(), "mcp-session-id"), None);
            assert_eq!(answered.text().await.unwrap(), body);
            // It falls back, through the same proxy and on the same connection or another.
            open_session(&proxy.url("/mcp")).await;
        }
    }
}

// The same, from the other side: a 400, 404 or 405 of the proxy's own would be taken for the word
// of an old server. What is for an MCP endpoint gets none in the stateless era.
#[tokio::test]
async fn a_client_of_both_eras_is_never_misled_by_the_proxy() {
    let backend = Backend::start(|_| answer(200, &[], "the backend's")).await;
    let proxy = Proxy::to(&[backend.address]);
    for method in [Method::POST, Method::GET, Method::DELETE] {
        for path in ["/mcp", "/mcp/below", "/mcp?query"] {
            for (name, value) in [
                ("accept", "application/json"),
                ("mcp-session-id", "00000000000000000000000000000000"),
                ("mcp-session-id", "no id"),
                ("mcp-method", "no such method"),
                ("mcp-name", "=?base64?!?="),
                ("last-event-id", ""),
            ] {
                let client = reqwest::Client::new();
                let request = client.request(method.clone(), proxy.url(path));
                let request = request.header("mcp-protocol-version", "2026-07-28");
                let answered = request.header(name, value).send().await.unwrap();
                assert_eq!(answered.status(), 200, "{method} {path} {name}: {value}");
                assert_eq!(answered.text().await.unwrap(), "the backend's");
            }
        }
    }
}

// A backend that joins two versions, or takes the other one of them, would serve the request in
// another era than the proxy: with its session's checks left out, or its id passed on.
#[tokio::test]
async fn two_versions_are_none() {
    let backend = Backend::with_session("own").await;
    let proxy = Proxy::to(&[backend.address]);
    let versions = ["2025-11-25", "2026-07-28"];
    for (first, second) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let request = post(&proxy.url("/mcp")).header("mcp-protocol-version", versions[first]);
        let request = request.header("mcp-protocol-version", versions[second]);
        let answered = request.send().await.unwrap();
        assert_eq!(answered.status(), 400);
        let body = answered.text().await.unwrap();
        assert!(
            body.contains("urn:pingora-mcp:problem:malformed-request"),
            "{body}"
        );
    }
    assert_eq!(backend.seen().len(), 0);
}

// MCP 2025-11-25, Protocol Version Header: a backend answers in its own words to a version that it
// does not know, and a proxy that knows none of it has no say.
#[tokio::test]
async fn a_version_that_nobody_knows_passes_as_it_is() {
    let backend =
        Backend::start(|_| answer(200, &[("mcp-protocol-version", "1999-01-01")], "")).await;
    let proxy = Proxy::to(&[backend.address]);
    for version in [
        "1.0",
        "DRAFT-2026-v1",
        "2025-11-25, 2026-07-28",
        "2099-12-31",
    ] {
        let request = post(&proxy.url("/mcp")).header("mcp-protocol-version", version);
        let answered = request.send().await.unwrap();
        assert_eq!(backend.last().header("mcp-protocol-version"), Some(version));
        assert_eq!(
            header(answered.headers(), "mcp-protocol-version"),
            Some("1999-01-01")
        );
    }
}

// RFC 3875 4.1.18: CGI, and WSGI after it, read `_` in a name as `-`. What the proxy sets, or
// decides by, must not come to such a backend from the client under another spelling.
#[tokio::test]
async fn a_name_that_cgi_reads_as_one_of_ours_stops_here() {
    let backend = Backend::start(|_| answer(200, &[], "")).await;
    let headers = "          headers: { X-Api-Key: ours }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + headers));
    let lookalikes = [
        "Mcp_Session_Id",
        "mcp_session-id",
        "MCP_Protocol_Version",
        "Mcp_Method",
        "Mcp_Name",
        "X_Forwarded_For",
        "X-Forwarded_Host",
        "X_Api_Key",
        "Content_Length",
        "Transfer_Encoding",
    ];
    let mut request = post(&proxy.url("/mcp"));
    for name in lookalikes {
        request = request.header(name, "1");
    }
    let others = ["x_unknown", "mcp-param-user_id", "_"];
    for name in others {
        request = request.header(name, "2");
    }
    request.send().await.unwrap();
    let seen = backend.last();
    for name in lookalikes {
        assert_eq!(seen.header(name), None, "{name}");
    }
    for name in others {
        assert_eq!(seen.header(name), Some("2"), "{name}");
    }
    assert_eq!(seen.header("x-api-key"), Some("ours"));
}

// MCP 2025-11-25, Authorization, Error Handling: 401 and 403 carry a challenge, which a page must
// be able to read (Fetch, CORS protocol). Neither opens a session.
#[tokio::test]
async fn a_challenge_can_be_read_by_a_page_in_both_eras() {
    let challenge = r#"Bearer error="insufficient_scope", scope="a b""#;
    for (status, version) in [
        (401, "2025-11-25"),
        (403, "2025-11-25"),
        (401, "2026-07-28"),
    ] {
        let headers = [
            ("www-authenticate", challenge),
            ("mcp-session-id", "throwaway"),
        ];
        let backend = Backend::start(move |_| answer(status, &headers, "who?")).await;
        let proxy = Proxy::to(&[backend.address]);
        let request = post(&proxy.url("/mcp")).header("origin", "http://localhost:6274");
        let answered = request.header("mcp-protocol-version", version).send().await;
        let answered = answered.unwrap();
        assert_eq!(answered.status(), status);
        assert_eq!(
            header(answered.headers(), "www-authenticate"),
            Some(challenge)
        );
        assert_eq!(header(answered.headers(), "mcp-session-id"), None);
        let exposed = header(answered.headers(), "access-control-expose-headers").unwrap();
        assert!(exposed.contains("WWW-Authenticate"), "{exposed}");
        assert_eq!(answered.text().await.unwrap(), "who?");
    }
}

// Fetch, CORS protocol: a preflight carries neither id nor authorization, and a page reads no
// answer whose preflight was not 2xx, not even the 404 of a wrong path.
#[tokio::test]
async fn options_is_200_on_every_path_and_in_both_eras() {
    let backend = Backend::start(|_| answer(500, &[], "")).await;
    let proxy = Proxy::to(&[backend.address]);
    for path in [
        "/mcp",
        "/mcp/below",
        "/other",
        "/.well-known/oauth-protected-resource/other",
        "*",
    ] {
        for version in VERSIONS {
            let request = format!(
                "OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n{version}\
                 Origin: http://localhost:6274\r\nAccess-Control-Request-Method: POST\r\n\r\n"
            );
            let answered = raw(proxy.address, &request).await.to_ascii_lowercase();
            assert!(answered.starts_with("http/1.1 200 "), "{path}: {answered}");
            let allowed = "access-control-allow-origin: http://localhost:6274\r\n";
            assert!(answered.contains(allowed), "{path}: {answered}");
        }
    }
    assert_eq!(backend.seen().len(), 0);
}

/// The version's header line: none, of the session era, of the stateless era.
const VERSIONS: [&str; 3] = [
    "",
    "MCP-Protocol-Version: 2025-11-25\r\n",
    "MCP-Protocol-Version: 2026-07-28\r\n",
];

fn get(proxy: &Proxy) -> reqwest::RequestBuilder {
    let request = reqwest::Client::new().get(proxy.url("/mcp"));
    request.header("accept", "text/event-stream")
}

/// A request as a client of the stateless era sends it.
fn stateless(proxy: &Proxy) -> reqwest::RequestBuilder {
    post(&proxy.url("/mcp"))
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "a")
}

/// A backend of one session that primes each stream, breaks it off, and goes on where it is told.
async fn resumable(id: &'static str) -> Backend {
    Backend::start(move |request: Seen| {
        let events = [
            ("content-type", "text/event-stream"),
            ("mcp-session-id", id),
        ];
        match (
            request.header("mcp-session-id"),
            request.header("last-event-id"),
        ) {
            (None, _) => answer(200, &events, ""),
            (Some(given), None) if given == id => answer(
                200,
                &events,
                format!("id: Cursor_1\nretry: 5\ndata:\n\n{id}"),
            ),
            (Some(given), Some("Cursor_1")) if given == id => {
                answer(200, &events, format!("data: rest of {id}"))
            }
            _ => answer(404, &[], "of another backend"),
        }
    })
    .await
}
