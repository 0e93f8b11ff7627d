//! A configuration that changes while the proxy runs: on SIGHUP it is read again.

mod support;

use axum::body::Body;
use futures::StreamExt;
use support::process::ProxyProcess;
use support::{Backend, answer, ask, header, initialize, open_session, post, route, within};

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

/// The YAML of one more route, `/new`, to `backend`.
fn new_route(backend: &Backend) -> String {
    let address = backend.address;
    format!("    - {{ path: /new, backends: [{{ name: n, url: \"http://{address}/mcp\" }}] }}\n")
}
