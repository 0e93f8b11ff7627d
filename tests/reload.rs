//! A configuration that changes while the proxy runs: it is read again on SIGHUP, and as the admin
//! listener is asked to.

mod support;

use std::net::SocketAddr;

use axum::body::Body;
use futures::StreamExt;
use serde_json::{Value, json};
use support::process::ProxyProcess;
use support::wire::Wire;
use support::{
    Backend, answer, ask, header, initialize, open_session, post, raw, route, unused_address,
    within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_reload_changes_routes_and_backends_and_keeps_sessions() {
    let first = Backend::with_session("first").await;
    let second = Backend::with_session("second").await;
    let mut proxy = ProxyProcess::start(&route(&[first.address])).await;
    let url = proxy.url("/mcp");
    let id = open_session(&url).await;

    let both = route(&[first.address]) + &new_route(&second);
    proxy.reload(&both).await;
    open_session(&proxy.url("/new")).await;
    assert_eq!(second.seen().len(), 1);
    assert_eq!(ask(&url, &id).await.status(), 200);
    assert_eq!(first.last().header("mcp-session-id"), Some("first"));

    let replaced = route(&[second.address]).replace("b0", "b1");
    proxy.reload(&replaced).await;
    assert_eq!(ask(&url, &id).await.status(), 404, "its backend is gone");
    open_session(&url).await;
    let gone = initialize(&proxy.url("/new")).send().await.unwrap();
    assert_eq!(gone.status(), 404);
}

#[tokio::test]
async fn a_reload_drops_no_connection_and_no_stream() {
    let (events, body) = futures::channel::mpsc::unbounded::<Result<&str, std::io::Error>>();
    let body = std::sync::Mutex::new(Some(body));
    let body = std::sync::Arc::new(body);
    let backend = Backend::start(move |_| {
        let body = body.lock().unwrap().take();
        let body = body.map_or_else(Body::empty, Body::from_stream);
        answer(200, &[("content-type", "text/event-stream")], body)
    })
    .await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let client = reqwest::Client::new();
    let stream = client
        .get(proxy.url("/mcp"))
        .header("accept", "text/event-stream");
    let mut stream = stream.send().await.unwrap().bytes_stream();
    events.unbounded_send(Ok("data: before\n\n")).unwrap();
    assert_eq!(
        within("an event", stream.next()).await.unwrap().unwrap(),
        "data: before\n\n"
    );

    // The stream's route and backend are there no more.
    let other = Backend::with_session("other").await;
    proxy
        .reload(&new_route(&other).replacen("", "  routes:\n", 1))
        .await;
    events.unbounded_send(Ok("data: after\n\n")).unwrap();
    assert_eq!(
        within("an event", stream.next()).await.unwrap().unwrap(),
        "data: after\n\n"
    );
    drop(events);
    assert!(within("the stream's end", stream.next()).await.is_none());
}

#[tokio::test]
async fn a_reload_changes_who_may_come_in() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let from_page = || post(&proxy.url("/mcp")).header("origin", "https://app.example");
    assert_eq!(from_page().send().await.unwrap().status(), 403);

    let open = route(&[backend.address]) + "  cors: { origins: [\"https://app.example\"] }\n";
    proxy.reload(&open).await;
    let from_page = post(&proxy.url("/mcp")).header("origin", "https://app.example");
    let answered = from_page.send().await.unwrap();
    assert_eq!(answered.status(), 200);
    let allowed = header(answered.headers(), "access-control-allow-origin");
    assert_eq!(allowed, Some("https://app.example"));
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_so() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let id = open_session(&proxy.url("/mcp")).await;
    proxy.replace_configuration("  routes: []\n");
    let said = |log: String| {
        log.contains("configuration not reloaded") && log.contains("mcp.routes: empty: expected")
    };
    assert!(proxy.until(said).await);
    assert_eq!(ask(&proxy.url("/mcp"), &id).await.status(), 200);

    let good = route(&[backend.address]) + &new_route(&backend);
    proxy.reload(&good).await;
    assert_eq!(ask(&proxy.url("/new"), &id).await.status(), 404);
}

#[tokio::test]
async fn what_needs_a_restart_is_named_and_the_rest_is_taken_up() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let changed =
        route(&[backend.address]) + &new_route(&backend) + "  sessions: { capacity: 7 }\n";
    proxy.reload(&changed).await;
    assert!(
        proxy
            .log()
            .contains("but what needs a restart: mcp.sessions"),
        "{}",
        proxy.log()
    );
    open_session(&proxy.url("/new")).await;
}

// --- Limits and timeouts -------------------------------------------------------------------------

#[tokio::test]
async fn a_reload_bounds_connections_anew_and_closes_none() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let mut clients = [
        Wire::connect(proxy.address).await,
        Wire::connect(proxy.address).await,
    ];
    for client in &mut clients {
        client.send(POST).await;
        client.answer().await;
    }
    let fewer = route(&[backend.address]) + "  limits: { max_connections: 1 }\n";
    proxy.reload(&fewer).await;
    let told = raw(proxy.address, POST).await;
    assert!(told.contains("urn:pingora-mcp:problem:connections-full"));
    for client in &mut clients {
        client.send(POST).await;
        let answer = client.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    proxy.reload(&route(&[backend.address])).await;
    assert!(raw(proxy.address, POST).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "limits are set as its shell does")]
async fn a_reload_too_takes_no_more_connections_than_there_are_descriptors_for() {
    let backend = Backend::with_session("id").await;
    let mcp = route(&[backend.address]);
    let mut proxy = ProxyProcess::with_descriptors(
        "",
        &(mcp.clone() + "  limits: { max_connections: 30 }\n"),
        400,
    )
    .await;
    assert!(!proxy.log().contains("max_connections"), "{}", proxy.log());
    proxy
        .reload(&(mcp + "  limits: { max_connections: 5000 }\n"))
        .await;
    let log = proxy.log();
    let said = "max_connections is 36: there are descriptors for no more";
    assert!(log.contains(said), "{log}");
}

#[tokio::test]
async fn a_reload_bounds_streams_anew_and_ends_none() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mcp = route(&[backend.local_addr().unwrap()]);
    let mut proxy = ProxyProcess::start(&mcp).await;
    let mut open = Wire::connect(proxy.address).await;
    open.send(GET).await;
    let (mut wire, _) = Wire::accept(&backend).await;

    proxy
        .reload(&(mcp + "  limits: { max_streams: 1 }\n"))
        .await;
    let told = raw(proxy.address, GET).await;
    assert!(
        told.contains("urn:pingora-mcp:problem:streams-full"),
        "{told}"
    );
    wire.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: still\n\n")
        .await;
    open.receive(": still\n\n").await;
}

#[tokio::test]
async fn a_reload_bounds_the_streams_of_a_session_anew() {
    let backend = Backend::start(|request| match request.method.as_str() {
        "GET" => {
            let never = futures::stream::pending::<Result<&str, String>>();
            let events = [("content-type", "text/event-stream")];
            answer(200, &events, Body::from_stream(never))
        }
        _ => answer(200, &[("mcp-session-id", "id")], ""),
    })
    .await;
    let mcp = route(&[backend.address]);
    let mut proxy = ProxyProcess::start(&mcp).await;
    let url = proxy.url("/mcp");
    let id = open_session(&url).await;
    let open = async || {
        let stream = reqwest::Client::new().get(&url);
        let stream = stream.header("accept", "text/event-stream");
        stream.header("mcp-session-id", &id).send().await.unwrap()
    };
    let _streams = [open().await, open().await];
    let fewer = mcp + "  limits: { max_streams_per_session: 2 }\n";
    proxy.reload(&fewer).await;
    assert_eq!(open().await.status(), 429);
}

#[tokio::test]
async fn a_connection_that_is_open_gets_the_new_limits_of_a_request() {
    let backend = Backend::with_session("id").await;
    let mcp = route(&[backend.address]);
    let mut proxy = ProxyProcess::start(&mcp).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send(POST).await;
    client.answer().await;

    let stricter = "  limits: { max_headers: 3 }\n  timeouts: { body: 200ms }\n";
    proxy.reload(&(mcp + stricter)).await;
    let more = POST.replacen("\r\n", "\r\nX-One: 1\r\nX-Two: 2\r\n", 1);
    client.send(&more).await;
    let told = client.answer().await;
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    let stalled = POST.replace("Length: 2", "Length: 3");
    client.send(&stalled).await;
    let told = client.answer().await;
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
}

#[tokio::test]
async fn a_new_connection_gets_the_new_limits_of_a_connection() {
    let mcp = route(&[unused_address()]);
    let mut proxy = ProxyProcess::start(&mcp).await;
    let stricter = "  limits: { max_header_size: 1KiB }\n  timeouts: { first_byte: 200ms }\n";
    proxy.reload(&(mcp.clone() + stricter)).await;
    let long = format!("POST /mcp HTTP/1.1\r\nX-Long: {}", "x".repeat(10_000));
    let mut client = Wire::connect(proxy.address).await;
    client.send(&long).await;
    client.finish_sending().await;
    let told = client.until_end().await;
    assert!(told.starts_with("HTTP/1.1 431 "), "{told}");
    let silent = Wire::connect(proxy.address).await;
    assert_eq!(silent.until_end().await, "");

    proxy
        .reload(&(mcp.clone() + "  timeouts: { header: 200ms }\n"))
        .await;
    let mut slow = Wire::connect(proxy.address).await;
    slow.send("POST").await;
    let told = slow.until_end().await;
    assert!(told.starts_with("HTTP/1.1 408 "), "{told}");

    proxy
        .reload(&(mcp + "  timeouts: { keep_alive: 200ms }\n"))
        .await;
    let mut idle = Wire::connect(proxy.address).await;
    idle.send(POST).await;
    let told = idle.until_end().await;
    assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
}

#[tokio::test]
async fn so_does_a_new_connection_of_http_2() {
    let h2c = "      h2c: true\n";
    let mcp = route(&[unused_address()]);
    let mut proxy = ProxyProcess::listening(h2c, &mcp, &[]).await;
    let stricter = "  limits: { max_header_size: 32KiB }\n  timeouts: { keep_alive: 200ms }\n";
    proxy.reload(&(mcp + stricter)).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    // An empty SETTINGS frame after the preface (RFC 9113 3.4, 6.5).
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    client.write_all(preface).await.unwrap();
    let mut received = Vec::new();
    // It is idle, and so is closed.
    let closed = client.read_to_end(&mut received);
    within("the end of the connection", closed).await.unwrap();
    // SETTINGS_MAX_HEADER_LIST_SIZE of 32 KiB (RFC 9113 6.5.2).
    let setting = b"\0\x06\0\0\x80\0";
    let has_setting = received.windows(setting.len()).any(|at| at == setting);
    assert!(has_setting, "{received:?}");
}

// --- POST /reload --------------------------------------------------------------------------------

#[tokio::test]
async fn the_admin_listener_reloads_and_names_what_takes_a_restart() {
    let backend = Backend::with_session("id").await;
    let (mut proxy, admin) = with_admin(&route(&[backend.address])).await;
    let changed = route(&[backend.address])
        + &new_route(&backend)
        + &format!("  admin: {{ address: \"{admin}\" }}\n");
    proxy.write_configuration(&changed);
    let (status, kind, body) = reload(admin, &[]).await;
    assert_eq!((status, &*kind), (200, "application/json"));
    assert_eq!(body, json!({ "restart": [] }));
    open_session(&proxy.url("/new")).await;
    let said = |log: String| log.contains("configuration reloaded");
    assert!(proxy.until(said).await);

    proxy.write_configuration(&(changed + "  sessions: { capacity: 7 }\n"));
    let (status, _, body) = reload(admin, &[]).await;
    assert_eq!(status, 200);
    assert_eq!(body, json!({ "restart": ["mcp.sessions"] }));
}

#[tokio::test]
async fn the_admin_listener_says_what_is_wrong_with_a_bad_file_and_nothing_has_changed() {
    let backend = Backend::with_session("id").await;
    let (mut proxy, admin) = with_admin(&route(&[backend.address])).await;
    proxy.write_configuration("  routes: []\n");
    let (status, kind, body) = reload(admin, &[]).await;
    assert_eq!((status, &*kind), (422, "application/problem+json"));
    assert_eq!(body["type"], "urn:pingora-mcp:problem:configuration");
    assert_eq!(body["status"], 422);
    let detail = body["detail"].as_str().unwrap();
    assert!(detail.contains("mcp.routes: empty: expected"), "{detail}");
    let said = |log: String| log.contains("configuration not reloaded");
    assert!(proxy.until(said).await);
    open_session(&proxy.url("/mcp")).await;
}

#[tokio::test]
async fn no_page_can_have_it_reload() {
    let backend = Backend::with_session("id").await;
    let (proxy, admin) = with_admin(&route(&[backend.address])).await;
    for header in [
        ("origin", "https://attacker.example"),
        ("origin", "null"),
        ("origin", "http://localhost"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("host", "attacker.example"),
    ] {
        let asked = reqwest::Client::new().post(format!("http://{admin}/reload"));
        let refused = asked.header(header.0, header.1).send().await.unwrap();
        assert_eq!(refused.status(), 403, "{header:?}");
    }
    let got = reqwest::get(format!("http://{admin}/reload"))
        .await
        .unwrap();
    assert_eq!(got.status(), 405);
    assert_eq!(header(got.headers(), "allow"), Some("POST"));
    assert!(!proxy.log().contains("reloaded"), "{}", proxy.log());
    for site in ["same-origin", "none"] {
        let (status, ..) = reload(admin, &[("sec-fetch-site", site)]).await;
        assert_eq!(status, 200, "{site}");
    }
}

/// A proxy with `mcp` and an admin listener.
async fn with_admin(mcp: &str) -> (ProxyProcess, SocketAddr) {
    let admin = unused_address();
    let mcp = format!("{mcp}  admin: {{ address: \"{admin}\" }}\n");
    let proxy = ProxyProcess::start(&mcp).await;
    (proxy, admin)
}

/// What `POST /reload` with `headers` gets: the status, the type, and the body.
async fn reload(admin: SocketAddr, headers: &[(&str, &str)]) -> (u16, String, Value) {
    let mut asked = reqwest::Client::new().post(format!("http://{admin}/reload"));
    for (name, value) in headers {
        asked = asked.header(*name, *value);
    }
    let answered = within("an answer", asked.send()).await.unwrap();
    let kind = header(answered.headers(), "content-type")
        .unwrap()
        .to_owned();
    let (status, body) = (answered.status().as_u16(), answered.bytes().await.unwrap());
    (status, kind, serde_json::from_slice(&body).unwrap())
}

const POST: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
const GET: &str = "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";

/// The YAML of one more route, `/new`, to `backend`.
fn new_route(backend: &Backend) -> String {
    let address = backend.address;
    format!("    - {{ path: /new, backends: [{{ name: n, url: \"http://{address}/mcp\" }}] }}\n")
}
