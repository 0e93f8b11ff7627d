//! The switches for servers that do not follow the specification to the letter: what each does, and
//! that nothing else is touched by it.

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation, JsonObject,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientLifecycleMode, ClientServiceExt};
use support::typescript::ExampleServer;
use support::wire::Wire;
use support::{Backend, Proxy, Seen, answer, ask, header, open_session, post, route, within};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

#[tokio::test]
async fn a_400_for_a_forgotten_session_becomes_the_404_that_clients_start_over_on() {
    let backend = forgetful(EXPIRED).await;
    let proxy = Proxy::with(&(route(&[backend.address]) + BAD_REQUEST));
    for method in [Method::POST, Method::GET, Method::DELETE] {
        let id = open_session(&proxy.url("/mcp")).await;
        let client = reqwest::Client::new();
        let request = client.request(method.clone(), proxy.url("/mcp"));
        let request = request.header("mcp-session-id", &id);
        let request = request.header("accept", "text/event-stream");
        let request = request.header("origin", "http://localhost:6274");
        let answered = request.send().await.unwrap();
        assert_eq!(answered.status(), 404, "{method}");
        let allowed = header(answered.headers(), "access-control-allow-origin");
        assert_eq!(allowed, Some("http://localhost:6274"), "{method}");
        assert_eq!(header(answered.headers(), "x-backend"), None, "{method}");
        assert_session_not_found(answered).await;

        let asked = backend.seen().len();
        assert_session_not_found(ask(&proxy.url("/mcp"), &id).await).await;
        assert_eq!(backend.seen().len(), asked, "the session is gone here too");
    }
}

#[tokio::test]
async fn a_forgotten_session_is_recognised_in_a_body_that_comes_in_pieces() {
    let (proxy, mut backend, mut client, _) = bound(BAD_REQUEST).await;
    let (start, end) = EXPIRED.split_at(20);
    let length = EXPIRED.len();
    let header = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {length}\r\n\r\n");
    backend.send(&format!("{header}{start}")).await;
    has_read_it(&proxy).await;
    backend.send(end).await;
    let answer = client.receive(r#""id":null}"#).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("-32001"), "{answer}");
    client.until_closed().await;
}

#[tokio::test]
async fn any_other_400_passes_byte_for_byte() {
    let other =
        r#"{"jsonrpc":"2.0", "error":{"code":-32602,"message":"No valid session ID"},"id":1}"#;
    for body in [
        other,
        "x",
        "{\"error\":",
        &"y".repeat(4096),
        &"z".repeat(4097),
    ] {
        let (proxy, mut backend, mut client, id) = bound(BAD_REQUEST).await;
        let length = body.len();
        let header = format!(
            "HTTP/1.1 400 No Good\r\nContent-Type: a/b\r\nX-Own: 1\r\nContent-Length: {length}\r\n\r\n"
        );
        let (start, end) = body.split_at(length / 2);
        backend.send(&format!("{header}{start}")).await;
        has_read_it(&proxy).await;
        backend.send(end).await;
        let answer = client.receive(&format!("\r\n\r\n{body}")).await;
        let lower = answer.to_ascii_lowercase();
        assert!(lower.starts_with("http/1.1 400 "), "{answer}");
        for kept in [
            "content-type: a/b",
            "x-own: 1",
            &format!("mcp-session-id: {id}"),
        ] {
            assert!(lower.contains(kept), "{answer}");
        }
        assert!(
            lower.contains(&format!("content-length: {length}")),
            "{answer}"
        );
        assert!(!lower.contains("transfer-encoding"), "{answer}");
        assert!(!lower.contains("http/1.1 103"), "{answer}");
    }
}

#[tokio::test]
async fn a_400_of_unknown_length_passes_as_it_comes() {
    let (_proxy, mut backend, mut client, _) = bound(BAD_REQUEST).await;
    let header = "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n";
    backend.send(header).await;
    client.receive("\r\n\r\n").await;
    backend.send_chunk(EXPIRED.as_bytes()).await;
    client.receive(EXPIRED).await;
    backend.send_chunk(b"").await;
    client.receive("\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_400_without_a_body_passes() {
    let (_proxy, mut backend, mut client, _) = bound(BAD_REQUEST).await;
    backend
        .send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        .await;
    let answer = client.receive("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_held_400_that_breaks_off_is_502() {
    let (_proxy, mut backend, mut client, id) = bound(BAD_REQUEST).await;
    let header = "HTTP/1.1 400 Bad Request\r\nContent-Length: 400\r\n\r\n";
    backend.send(&format!("{header}{EXPIRED}")).await;
    backend.close().await;
    let answer = client.receive("Try again later.\"}").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains(&id), "{answer}");
}

#[tokio::test]
async fn without_the_switch_or_a_session_the_400_passes() {
    let backend = forgetful(EXPIRED).await;
    let off = Proxy::to(&[backend.address]);
    let id = open_session(&off.url("/mcp")).await;
    for _ in 0..2 {
        let answered = ask(&off.url("/mcp"), &id).await;
        assert_eq!(answered.status(), 400);
        assert_eq!(header(answered.headers(), "x-backend"), Some("yes"));
        assert_eq!(answered.text().await.unwrap(), EXPIRED);
    }

    let on = Proxy::with(&(route(&[backend.address]) + BAD_REQUEST));
    let unbound = reqwest::Client::new().get(on.url("/mcp"));
    let unbound = unbound.header("accept", "text/event-stream").send().await;
    let unbound = unbound.unwrap();
    assert_eq!(unbound.status(), 400);
    assert_eq!(unbound.text().await.unwrap(), EXPIRED);
}

#[tokio::test]
async fn the_example_server_answers_a_client_from_before_its_restart_with_404() {
    let server = Standin::of(ExampleServer::start().await);
    let proxy = Proxy::with(&(route(&[server.address]) + BAD_REQUEST));
    let opened = post(&proxy.url("/mcp"))
        .body(INITIALIZE)
        .send()
        .await
        .unwrap();
    let id = header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned();
    let alive = ask(&proxy.url("/mcp"), &id).await;
    assert_eq!(alive.status(), 200);

    server.restart(ExampleServer::start().await).await;
    assert_session_not_found(ask(&proxy.url("/mcp"), &id).await).await;
}

#[tokio::test]
async fn a_client_of_the_rust_sdk_starts_over_by_itself_when_the_example_server_has_restarted() {
    let server = Standin::of(ExampleServer::start().await);
    let proxy = Proxy::with(&(route(&[server.address]) + BAD_REQUEST));
    let transport = StreamableHttpClientTransport::from_uri(proxy.url("/mcp"));
    let implementation = Implementation::new("test", "1");
    let config = ClientConfig::new(ClientCapabilities::default(), implementation);
    let client = config
        .serve_with_lifecycle(transport, ClientLifecycleMode::Initialize)
        .await
        .unwrap();
    let mut message = JsonObject::new();
    message.insert("message".to_owned(), "hello".into());
    let mut echo = CallToolRequestParams::new("echo");
    echo.arguments = Some(message);
    client.call_tool(echo.clone()).await.unwrap();

    server.restart(ExampleServer::start().await).await;
    let answered = within("the answer to a call", async {
        loop {
            // A call that meets the end of a pooled connection is lost.
            if let Ok(answered) = client.call_tool(echo.clone()).await {
                break answered;
            }
        }
    });
    let said = format!("{:?}", answered.await.content);
    assert!(said.contains("Echo: hello"), "{said}");
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_backend_that_has_no_get_stream_is_asked_for_one_once() {
    let backend = without_get_stream().await;
    let proxy = Proxy::with(&(route(&[backend.address]) + MEMORY));
    let id = open_session(&proxy.url("/mcp")).await;
    let first = get(&proxy, "/mcp", &[("mcp-session-id", &id)]).await;
    assert_eq!(first.text().await.unwrap(), "none");

    let page = ("origin", "http://localhost:6274");
    for headers in [vec![("mcp-session-id", &*id), page], vec![page]] {
        let answered = get(&proxy, "/mcp", &headers).await;
        assert_eq!(answered.status(), 405);
        let allowed = header(answered.headers(), "access-control-allow-origin");
        assert_eq!(allowed, Some(page.1));
        let allow = header(answered.headers(), "allow");
        assert_eq!(allow, Some("POST, DELETE, OPTIONS"));
        let given = header(answered.headers(), "mcp-session-id");
        assert_eq!(given, (headers.len() == 2).then_some(&*id));
        let body = answered.text().await.unwrap();
        assert!(
            body.contains("urn:pingora-mcp:problem:no-event-stream"),
            "{body}"
        );
    }
    assert_eq!(gets(&backend), 1);
    assert_eq!(ask(&proxy.url("/mcp"), &id).await.status(), 200);
}

#[tokio::test]
async fn the_memory_is_of_each_backend_and_of_the_routes_own_path_in_the_session_era() {
    let without = without_get_stream().await;
    let with = Backend::with_session("other").await;
    let proxy = Proxy::with(&(route(&[without.address, with.address]) + MEMORY));
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(open_session(&proxy.url("/mcp")).await);
    }
    for _ in 0..2 {
        for id in &ids {
            get(&proxy, "/mcp", &[("mcp-session-id", id)]).await;
        }
    }
    assert_eq!((gets(&without), gets(&with)), (1, 2));

    let stateless = ("mcp-protocol-version", "2026-07-28");
    for _ in 0..2 {
        get(&proxy, "/mcp", &[stateless]).await;
        get(&proxy, "/mcp/below", &[]).await;
    }
    assert_eq!(gets(&without) + gets(&with), 7);
}

#[tokio::test]
async fn a_backend_is_asked_again_after_the_time() {
    let backend = without_get_stream().await;
    let memory = "      compatibility: { get_405_memory: 200ms }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + memory));
    get(&proxy, "/mcp", &[]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let answered = get(&proxy, "/mcp", &[]).await;
    assert_eq!(answered.text().await.unwrap(), "none");
    assert_eq!(gets(&backend), 2);
}

#[tokio::test]
async fn without_the_switch_a_backend_is_asked_each_time() {
    let backend = without_get_stream().await;
    let proxy = Proxy::to(&[backend.address]);
    for _ in 0..2 {
        let answered = get(&proxy, "/mcp", &[]).await;
        assert_eq!(answered.text().await.unwrap(), "none");
    }
    assert_eq!(gets(&backend), 2);
}

/// What `server-everything` says of a session that it does not know.
const EXPIRED: &str = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}"#;

const BAD_REQUEST: &str = "      compatibility: { expired_session_status: 400 }\n";

const MEMORY: &str = "      compatibility: { get_405_memory: 1h }\n";

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;

/// A backend that opens sessions and forgets each at once: then it answers 400 with `body`.
async fn forgetful(body: &'static str) -> Backend {
    Backend::start(move |request: Seen| {
        let knows = request.method == Method::POST && request.header("mcp-session-id").is_none();
        if knows {
            return answer(200, &[("mcp-session-id", "backend-id")], "{}");
        }
        let headers = [("content-type", "application/json"), ("x-backend", "yes")];
        answer(400, &headers, body)
    })
    .await
}

/// A backend with sessions and without a stream of its own messages.
async fn without_get_stream() -> Backend {
    Backend::start(|request: Seen| match request.method {
        Method::GET => answer(405, &[("allow", "POST")], "none"),
        _ => answer(200, &[("mcp-session-id", "backend-id")], "{}"),
    })
    .await
}

async fn get(proxy: &Proxy, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let mut request = reqwest::Client::new().get(proxy.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.header("accept", "text/event-stream");
    request.send().await.unwrap()
}

fn gets(backend: &Backend) -> usize {
    let seen = backend.seen();
    seen.iter()
        .filter(|seen| seen.method == Method::GET)
        .count()
}

/// A client that has sent a request of a session, the backend that has received it, and the
/// session's id. `switch` follows the route in the YAML.
async fn bound(switch: &str) -> (Proxy, Wire, Wire, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::with(&(route(&[listener.local_addr().unwrap()]) + switch));
    let mut client = Wire::connect(proxy.address).await;
    let post = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n";
    client.send(&format!("{post}\r\n{{}}")).await;
    let (mut backend, _) = Wire::accept(&listener).await;
    backend.receive("{}").await;
    let opened = "HTTP/1.1 200 OK\r\nMcp-Session-Id: backend-id\r\nContent-Length: 2\r\n\r\nok";
    backend.send(opened).await;
    let opened = client.receive("\r\n\r\nok").await;
    let mut lines = opened.lines();
    let id = lines.find_map(|line| line.strip_prefix("mcp-session-id: "));
    let id = id.unwrap().to_owned();
    client
        .send(&format!("{post}Mcp-Session-Id: {id}\r\n\r\n{{}}"))
        .await;
    backend.receive("\r\n\r\n{}").await;
    (proxy, backend, client, id)
}

/// Waits until the proxy, which runs on this thread, has read what has been sent to it: it has
/// answered somebody else meanwhile.
async fn has_read_it(proxy: &Proxy) {
    let client = reqwest::Client::new();
    let preflight = client.request(Method::OPTIONS, proxy.url("/mcp"));
    assert_eq!(preflight.send().await.unwrap().status(), 200);
}

async fn assert_session_not_found(answered: reqwest::Response) {
    assert_eq!(answered.status(), 404);
    let body: serde_json::Value = serde_json::from_str(&answered.text().await.unwrap()).unwrap();
    assert_eq!(body["error"]["code"], -32001);
    assert_eq!(body["id"], serde_json::Value::Null);
}

/// One address for a server that is started anew, each time at a port that the system chooses.
struct Standin {
    address: SocketAddr,
    server: Arc<Mutex<ExampleServer>>,
    relay: Arc<tokio::sync::Mutex<JoinSet<()>>>,
    _accepting: JoinSet<()>,
}

impl Standin {
    fn of(server: ExampleServer) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Mutex::new(server));
        let relay = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
        let (to, connections) = (Arc::clone(&server), Arc::clone(&relay));
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((mut client, _)) = listener.accept().await {
                let address = to.lock().unwrap().address;
                connections.lock().await.spawn(async move {
                    let mut server = TcpStream::connect(address).await.unwrap();
                    // It ends when either side leaves.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self {
            address,
            server,
            relay,
            _accepting: accepting,
        }
    }

    /// Ends the server and its connections; `next` takes its place.
    async fn restart(&self, next: ExampleServer) {
        drop(std::mem::replace(&mut *self.server.lock().unwrap(), next));
        self.relay.lock().await.shutdown().await;
    }
}
