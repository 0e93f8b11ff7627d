//! What each request gets: the behaviour table of `docs/architecture.md`, row by row, on the wire.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use http::Method;
use pingora_mcp::session::{MemoryStore, SessionSettings};
use support::{
    Backend, Outage, Proxy, Seen, answer, ask, header, initialize, open_session, post, route,
    unused_address,
};

#[tokio::test]
async fn options_is_answered_here_and_reaches_no_backend() {
    let (backend, proxy) = one_backend().await;
    let answered = send(&proxy, Method::OPTIONS, &[]).await;
    assert_eq!(answered.status(), 200);
    assert_eq!(
        header(answered.headers(), "allow"),
        Some("GET, POST, DELETE, OPTIONS")
    );
    assert_eq!(backend.seen().len(), 0);
}

// MCP 2025-11-25, Transports, Session Management 1 and 2.
#[tokio::test]
async fn a_successful_answer_with_an_id_opens_a_session_under_an_id_of_our_own() {
    let (backend, proxy) = one_backend().await;
    let opened = initialize(&proxy.url("/mcp")).send().await.unwrap();
    let id = header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned();
    assert_eq!(id.len(), 32);
    assert_ne!(id, BACKEND_ID);

    let answered = ask(&proxy.url("/mcp"), &id).await;
    assert_eq!(answered.status(), 200);
    assert_eq!(header(answered.headers(), "mcp-session-id"), Some(&*id));
    assert_eq!(backend.last().header("mcp-session-id"), Some(BACKEND_ID));
}

// Practice: Python servers put a throwaway id on a 400 and a 405, which TypeScript clients adopt.
#[tokio::test]
async fn an_id_on_an_answer_that_opens_no_session_is_removed() {
    for status in [400, 401, 405, 500] {
        let backend =
            Backend::start(move |_| answer(status, &[("mcp-session-id", "throwaway")], "")).await;
        let proxy = Proxy::to(&[backend.address]);
        let answered = initialize(&proxy.url("/mcp")).send().await.unwrap();
        assert_eq!(answered.status(), status);
        assert_eq!(header(answered.headers(), "mcp-session-id"), None);
    }
}

// Practice: servers repeat the id on every answer, or do not.
#[tokio::test]
async fn every_answer_on_a_bound_request_carries_the_clients_id() {
    let backend = Backend::start(|request: Seen| {
        let status: u16 = request.header("x-status").unwrap_or("200").parse().unwrap();
        match request.header("x-id") {
            Some("none") => answer(status, &[], ""),
            _ => answer(status, &[("mcp-session-id", BACKEND_ID)], ""),
        }
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    for status in ["200", "202", "400", "401", "405", "500", "503"] {
        for given in ["same", "none"] {
            let request = post(&proxy.url("/mcp")).header("mcp-session-id", &id);
            let answered = request
                .header("x-status", status)
                .header("x-id", given)
                .send()
                .await;
            let answered = answered.unwrap();
            assert_eq!(answered.status().as_str(), status);
            assert_eq!(header(answered.headers(), "mcp-session-id"), Some(&*id));
        }
    }
}

#[tokio::test]
async fn a_backend_that_changes_its_id_is_followed_and_its_client_sees_one() {
    let backend = Backend::start(|request: Seen| {
        let next = match request.header("mcp-session-id") {
            None => "first",
            Some("first") => "second",
            Some(_) => "third",
        };
        answer(200, &[("mcp-session-id", next)], "")
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    for expected in ["first", "second", "third", "third"] {
        let answered = ask(&proxy.url("/mcp"), &id).await;
        assert_eq!(header(answered.headers(), "mcp-session-id"), Some(&*id));
        assert_eq!(backend.last().header("mcp-session-id"), Some(expected));
    }
}

#[tokio::test]
async fn get_without_event_stream_in_accept_is_400() {
    let (backend, proxy) = one_backend().await;
    for accept in ["*/*", "application/json", "text/event-streams"] {
        let answered = send(&proxy, Method::GET, &[("accept", accept)]).await;
        assert_problem(answered, 400, "stream-not-accepted").await;
    }
    assert_eq!(backend.seen().len(), 0);
}

// MCP 2025-11-25, Transports, Listening for Messages 1, Resumability and Redelivery 2.
#[tokio::test]
async fn get_with_an_id_reaches_the_bound_backend_with_last_event_id() {
    let (backend, proxy) = one_backend().await;
    let id = open_session(&proxy.url("/mcp")).await;
    let headers = [
        ("accept", "application/json;q=0.1, Text/Event-Stream;q=1"),
        ("mcp-session-id", &*id),
        ("last-event-id", "stream-1_7"),
    ];
    let answered = send(&proxy, Method::GET, &headers).await;
    assert_eq!(answered.status(), 200);
    assert_eq!(backend.last().header("mcp-session-id"), Some(BACKEND_ID));
    assert_eq!(backend.last().header("last-event-id"), Some("stream-1_7"));
}

#[tokio::test]
async fn get_without_an_id_reaches_any_backend() {
    let (backend, proxy) = one_backend().await;
    let answered = send(&proxy, Method::GET, &[("accept", "text/event-stream")]).await;
    assert_eq!(answered.status(), 200);
    assert_eq!(backend.last().header("mcp-session-id"), None);
}

#[tokio::test]
async fn delete_without_an_id_is_400() {
    let (backend, proxy) = one_backend().await;
    assert_problem(
        send(&proxy, Method::DELETE, &[]).await,
        400,
        "session-id-missing",
    )
    .await;
    assert_eq!(backend.seen().len(), 0);
}

// MCP 2025-11-25, Transports, Session Management 5.
#[tokio::test]
async fn delete_ends_the_session() {
    let (backend, proxy) = one_backend().await;
    let id = open_session(&proxy.url("/mcp")).await;
    let ended = send(&proxy, Method::DELETE, &[("mcp-session-id", &id)]).await;
    assert_eq!(ended.status(), 200);
    assert_eq!(backend.last().header("mcp-session-id"), Some(BACKEND_ID));

    let asked = backend.seen().len();
    let late = ask(&proxy.url("/mcp"), &id).await;
    assert_session_not_found(late).await;
    assert_eq!(
        backend.seen().len(),
        asked,
        "the backend is not asked again"
    );
}

// MCP 2025-11-25, Transports, Session Management 5: a server may not let clients end sessions.
#[tokio::test]
async fn a_405_to_delete_keeps_the_session() {
    let backend = Backend::start(|request: Seen| {
        let status = if request.method == Method::DELETE {
            405
        } else {
            200
        };
        answer(status, &[("mcp-session-id", BACKEND_ID)], "")
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    let refused = send(&proxy, Method::DELETE, &[("mcp-session-id", &id)]).await;
    assert_eq!(refused.status(), 405);
    assert_eq!(ask(&proxy.url("/mcp"), &id).await.status(), 200);
}

// MCP 2025-11-25, Transports, Session Management 3 and 4: a 404 has the client start over.
#[tokio::test]
async fn a_backends_404_passes_and_ends_the_session() {
    let backend = Backend::start(|request: Seen| match request.header("mcp-session-id") {
        None => answer(200, &[("mcp-session-id", BACKEND_ID)], ""),
        Some(_) => answer(
            404,
            &[("content-type", "application/json")],
            "the backend's words",
        ),
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    let lost = ask(&proxy.url("/mcp"), &id).await;
    assert_eq!(lost.status(), 404);
    assert_eq!(lost.text().await.unwrap(), "the backend's words");

    let asked = backend.seen().len();
    let late = ask(&proxy.url("/mcp"), &id).await;
    assert_session_not_found(late).await;
    assert_eq!(backend.seen().len(), asked);
}

#[tokio::test]
async fn a_404_to_delete_ends_the_session() {
    let backend = Backend::start(|request: Seen| {
        let is_delete = request.method == Method::DELETE;
        let status = if is_delete { 404 } else { 200 };
        answer(status, &[("mcp-session-id", BACKEND_ID)], "")
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let id = open_session(&proxy.url("/mcp")).await;
    let ended = send(&proxy, Method::DELETE, &[("mcp-session-id", &id)]).await;
    assert_eq!(ended.status(), 404);
    assert_session_not_found(ask(&proxy.url("/mcp"), &id).await).await;
}

#[tokio::test]
async fn a_session_whose_backend_is_gone_from_the_configuration_is_unknown() {
    let backend = Backend::with_session(BACKEND_ID).await;
    let store = Arc::new(MemoryStore::new(SessionSettings::default()));
    let before = Proxy::with_store(&route(&[backend.address]), store.clone());
    let id = open_session(&before.url("/mcp")).await;

    let renamed = route(&[backend.address]).replace("name: b0", "name: other");
    let after = Proxy::with_store(&renamed, store.clone());
    assert_session_not_found(ask(&after.url("/mcp"), &id).await).await;
    assert_eq!(ask(&before.url("/mcp"), &id).await.status(), 200);
}

// MCP 2025-11-25, Transports, Session Management 3. Practice: one client starts over only on the
// JSON-RPC error that the SDKs' servers send.
#[tokio::test]
async fn an_unknown_or_malformed_id_is_404_that_clients_start_over_on() {
    let (backend, proxy) = one_backend().await;
    for id in [
        "00000000000000000000000000000000",
        "no-such-id",
        BACKEND_ID,
        "é",
    ] {
        let request = post(&proxy.url("/mcp")).header("mcp-session-id", id.as_bytes());
        assert_session_not_found(request.send().await.unwrap()).await;
    }
    assert_eq!(backend.seen().len(), 0);
}

#[tokio::test]
async fn two_session_ids_are_none() {
    let (backend, proxy) = one_backend().await;
    let id = open_session(&proxy.url("/mcp")).await;
    let request = post(&proxy.url("/mcp")).header("mcp-session-id", &id);
    let answered = request.header("mcp-session-id", &id).send().await.unwrap();
    assert_session_not_found(answered).await;
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn an_idle_session_expires() {
    let backend = Backend::with_session(BACKEND_ID).await;
    let yaml = route(&[backend.address]) + "  sessions: { idle_timeout: 100ms }\n";
    let proxy = Proxy::with(&yaml);
    let id = open_session(&proxy.url("/mcp")).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let late = ask(&proxy.url("/mcp"), &id).await;
    assert_session_not_found(late).await;
}

#[tokio::test]
async fn a_session_of_one_route_is_unknown_on_another() {
    let backend = Backend::with_session(BACKEND_ID).await;
    let address = backend.address;
    let proxy = Proxy::with(&format!(
        "  routes:
    - {{ path: /one, backends: [{{ name: b, url: \"http://{address}/mcp\" }}] }}
    - {{ path: /two, backends: [{{ name: b, url: \"http://{address}/mcp\" }}] }}
"
    ));
    let id = open_session(&proxy.url("/one")).await;
    assert_session_not_found(ask(&proxy.url("/two"), &id).await).await;
    assert_eq!(ask(&proxy.url("/one"), &id).await.status(), 200);
}

// MCP 2026-07-28, Streamable HTTP: no session; the standard request headers, sentinel included.
#[tokio::test]
async fn the_stateless_era_has_no_session() {
    let backend = Backend::with_session(BACKEND_ID).await;
    let proxy = Proxy::to(&[backend.address]);
    let request = post(&proxy.url("/mcp"))
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-session-id", "stray")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "=?base64?w6k=?=");
    let answered = request.send().await.unwrap();
    assert_eq!(answered.status(), 200);
    assert_eq!(header(answered.headers(), "mcp-session-id"), None);
    let seen = backend.last();
    assert_eq!(seen.header("mcp-session-id"), None);
    assert_eq!(seen.header("mcp-protocol-version"), Some("2026-07-28"));
    assert_eq!(seen.header("mcp-method"), Some("tools/call"));
    assert_eq!(seen.header("mcp-name"), Some("=?base64?w6k=?="));
}

// MCP 2026-07-28, Streamable HTTP: 405 to both, and that is the server's to say.
#[tokio::test]
async fn stateless_get_and_delete_are_the_backends_to_answer() {
    let backend = Backend::start(|_| answer(405, &[("allow", "POST")], "")).await;
    let proxy = Proxy::to(&[backend.address]);
    for method in [Method::GET, Method::DELETE] {
        let answered = send(&proxy, method, &[("mcp-protocol-version", "2026-07-28")]).await;
        assert_eq!(answered.status(), 405);
        assert_eq!(header(answered.headers(), "allow"), Some("POST"));
    }
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn other_methods_are_405_with_allow_and_unknown_paths_404() {
    let (backend, proxy) = one_backend().await;
    for method in [Method::PUT, Method::PATCH, Method::TRACE] {
        let answered = send(&proxy, method, &[]).await;
        assert_eq!(
            header(answered.headers(), "allow"),
            Some("GET, POST, DELETE, OPTIONS")
        );
        assert_problem(answered, 405, "method-not-allowed").await;
    }
    assert_eq!(send(&proxy, Method::HEAD, &[]).await.status(), 405);
    for path in ["/", "/mcp2", "/mc", "/mcp/../admin", "/mcp/%2e%2e/admin"] {
        let raw = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let answered = support::raw(proxy.address, &raw).await;
        assert!(answered.starts_with("HTTP/1.1 404 "), "{path}: {answered}");
        assert!(
            answered.contains("urn:pingora-mcp:problem:unknown-path"),
            "{answered}"
        );
    }
    assert_eq!(backend.seen().len(), 0);
}

#[tokio::test]
async fn an_origin_that_is_not_allowed_is_403_before_a_backend_is_touched() {
    let (backend, proxy) = one_backend().await;
    for method in [
        Method::POST,
        Method::GET,
        Method::DELETE,
        Method::OPTIONS,
        Method::PUT,
    ] {
        let answered = send(&proxy, method, &[("origin", "https://attacker.example")]).await;
        assert_eq!(
            header(answered.headers(), "access-control-allow-origin"),
            None
        );
        assert_problem(answered, 403, "origin-forbidden").await;
    }
    assert_eq!(backend.seen().len(), 0);
}

#[tokio::test]
async fn a_foreign_host_on_loopback_is_403_before_a_backend_is_touched() {
    let (backend, proxy) = one_backend().await;
    let answered = send(&proxy, Method::POST, &[("host", "attacker.example:8080")]).await;
    assert_problem(answered, 403, "host-forbidden").await;
    assert_eq!(backend.seen().len(), 0);
    let answered = send(&proxy, Method::POST, &[("host", "localhost:1234")]).await;
    assert_eq!(answered.status(), 200);
}

#[tokio::test]
async fn an_unreachable_backend_is_502() {
    let proxy = Proxy::to(&[unused_address()]);
    let answered = initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_problem(answered, 502, "backend-unreachable").await;
}

#[tokio::test]
async fn a_connect_failure_on_an_unbound_request_tries_the_next_backend() {
    let backend = Backend::with_session(BACKEND_ID).await;
    let proxy = Proxy::to(&[unused_address(), backend.address, unused_address()]);
    for _ in 0..6 {
        open_session(&proxy.url("/mcp")).await;
    }
    assert_eq!(backend.seen().len(), 6);
}

#[tokio::test]
async fn a_bound_request_goes_to_its_own_backend_and_nowhere_else() {
    let own = DyingBackend::start().await;
    let other = Backend::with_session(BACKEND_ID).await;
    let proxy = Proxy::to(&[own.address, other.address]);
    let mut bound = None;
    for _ in 0..2 {
        let opened = initialize(&proxy.url("/mcp")).send().await.unwrap();
        let id = header(opened.headers(), "mcp-session-id")
            .unwrap()
            .to_owned();
        if opened.text().await.unwrap() == "mine" {
            bound = Some(id);
        }
    }
    let id = bound.expect("two sessions of two backends are one each");
    own.die().await;

    let asked = other.seen().len();
    let answered = ask(&proxy.url("/mcp"), &id).await;
    assert_eq!(header(answered.headers(), "mcp-session-id"), Some(&*id));
    assert_problem(answered, 502, "backend-unreachable").await;
    assert_eq!(other.seen().len(), asked);
}

#[tokio::test]
async fn a_backend_that_never_answers_is_504() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = route(&[silent.local_addr().unwrap()]) + "      timeouts: { post: 100ms }\n";
    let proxy = Proxy::with(&yaml);
    let answered = initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_problem(answered, 504, "backend-timeout").await;
}

#[tokio::test]
async fn a_backend_that_breaks_off_is_502_and_the_connection_is_not_just_dropped() {
    let broken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = broken.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok(accepted) = broken.accept().await {
            drop(accepted)
        }
    });
    let proxy = Proxy::to(&[address]);
    let answered = initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_problem(answered, 502, "backend-unreachable").await;
}

#[tokio::test]
async fn a_malformed_backend_id_is_502_and_never_shown() {
    let backend = Backend::start(|_| answer(200, &[("mcp-session-id", "a b")], "")).await;
    let proxy = Proxy::to(&[backend.address]);
    let answered = initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(header(answered.headers(), "mcp-session-id"), None);
    assert_problem(answered, 502, "backend-answer-invalid").await;
}

#[tokio::test]
async fn a_store_outage_is_503_not_404() {
    let backend = Backend::with_session(BACKEND_ID).await;
    let proxy = Proxy::with_store(&route(&[backend.address]), Arc::new(Outage));
    let request = post(&proxy.url("/mcp"));
    let bound = request.header("mcp-session-id", "00000000000000000000000000000000");
    let answered = bound.send().await.unwrap();
    assert!(header(answered.headers(), "retry-after").is_some());
    assert_problem(answered, 503, "store-unavailable").await;

    let unbound = initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(header(unbound.headers(), "mcp-session-id"), None);
    assert_problem(unbound, 503, "store-unavailable").await;
}

#[tokio::test]
async fn a_refusal_keeps_the_connection_alive() {
    let (_backend, proxy) = one_backend().await;
    let refused = "DELETE /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let with_body = "PUT /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
    let last = "PUT /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answered = support::raw_in_turn(proxy.address, &[refused, with_body, last]).await;
    assert!(answered[0].starts_with("HTTP/1.1 400 "), "{answered:?}");
    assert!(answered[1].starts_with("HTTP/1.1 405 "), "{answered:?}");
    assert!(answered[2].starts_with("HTTP/1.1 405 "), "{answered:?}");
}

#[tokio::test]
async fn the_backends_path_replaces_the_routes_and_the_query_goes_along() {
    let backend = Backend::start(|_| answer(200, &[], "")).await;
    let address = backend.address;
    let proxy = Proxy::with(&format!(
        "  routes:
    - {{ path: /public, backends: [{{ name: b, url: \"http://{address}/api/mcp\" }}] }}
    - {{ path: /public/deep, backends: [{{ name: b, url: \"http://{address}/\" }}] }}
"
    ));
    for (client, expected) in [
        ("/public", "/api/mcp"),
        ("/public?a=b%20c&d", "/api/mcp?a=b%20c&d"),
        ("/public/", "/api/mcp/"),
        ("/public/x/y?z", "/api/mcp/x/y?z"),
        ("/public/deep", "/"),
        ("/public/deep/x", "/x"),
        ("/public/deeper", "/api/mcp/deeper"),
    ] {
        post(&proxy.url(client)).send().await.unwrap();
        assert_eq!(backend.last().uri.to_string(), expected, "{client}");
    }
}

const BACKEND_ID: &str = "the-backends-own-id";

async fn one_backend() -> (Backend, Proxy) {
    let backend = Backend::with_session(BACKEND_ID).await;
    let proxy = Proxy::to(&[backend.address]);
    (backend, proxy)
}

async fn send(proxy: &Proxy, method: Method, headers: &[(&str, &str)]) -> reqwest::Response {
    let mut request = reqwest::Client::new().request(method, proxy.url("/mcp"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

async fn assert_problem(answered: reqwest::Response, status: u16, name: &str) {
    assert_eq!(answered.status(), status);
    assert_eq!(
        header(answered.headers(), "content-type"),
        Some("application/problem+json")
    );
    let body: serde_json::Value = serde_json::from_str(&answered.text().await.unwrap()).unwrap();
    assert_eq!(body["type"], format!("urn:pingora-mcp:problem:{name}"));
    assert_eq!(body["status"], status);
    assert!(body["title"].is_string() && body["detail"].is_string());
}

async fn assert_session_not_found(answered: reqwest::Response) {
    assert_eq!(answered.status(), 404);
    assert_eq!(
        header(answered.headers(), "content-type"),
        Some("application/json")
    );
    assert_eq!(header(answered.headers(), "mcp-session-id"), None);
    let body: serde_json::Value = serde_json::from_str(&answered.text().await.unwrap()).unwrap();
    assert_eq!(body["error"]["code"], -32001);
    assert_eq!(body["id"], serde_json::Value::Null);
}

/// A backend that opens sessions, and closes its port and all connections on command.
struct DyingBackend {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl DyingBackend {
    async fn start() -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                assert!(read > 0);
                let answer = "HTTP/1.1 200 OK\r\nmcp-session-id: own\r\ncontent-length: 4\r\n\
                              connection: close\r\n\r\nmine";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { address, task }
    }

    async fn die(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}
