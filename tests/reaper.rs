//! Sessions that end without their backends: each backend is told once, by a DELETE of its own id,
//! within bounds, and nothing of it is in a log.

#[path = "support/demo.rs"]
mod demo;
mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use demo::demo_server;
use futures::stream::pending;
use http::{HeaderValue, Method};
use pingora_mcp::mcp::{BackendSessionId, ClientSessionId};
use pingora_mcp::metrics::{Metrics, MetricsSettings, Now, Totals};
use pingora_mcp::reaper::Reaper;
use pingora_mcp::session::{
    Binding, ClientNetwork, Find, MemoryStore, OpenError, Opened, SessionStore, StoreError,
};
use pingora_mcp::{Gateway, Settings, server};
use support::process::ProxyProcess;
use support::tls::{Http2, next};
use support::wire::Wire;
use support::{
    Backend, Proxy, Seen, answer, ask, header, initialize, open_session, route, until, until_asked,
    within,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// MCP 2025-11-25, Session Management 5: DELETE is how a session is ended.
#[tokio::test]
async fn the_backend_of_an_idle_session_is_told_once_by_its_own_id_and_with_the_configured_headers()
{
    let backend = numbering_backend(200).await;
    let headers = "          headers: { x-key: of-the-route }\n";
    let idle = "  sessions: { idle_timeout: 1s }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + headers + idle));
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    open_session_of(&proxy, "Bearer one").await;
    until_deleted(&backend, 1).await;
    // In the meantime, one that its client ends itself is not ended again.
    let id = open_session(&proxy.url("/mcp")).await;
    delete(&proxy, &id).await;
    open_session(&proxy.url("/mcp")).await;
    until_deleted(&backend, 3).await;
    until_counted(&metrics, "ended", 2).await;

    let deletes = deletes(&backend);
    assert_eq!(ids(&deletes), ["session-0", "session-1", "session-2"]);
    let [first, ..] = deletes.as_slice() else {
        panic!("there is none");
    };
    assert_eq!(first.uri.path(), "/mcp");
    assert_eq!(first.header("x-key"), Some("of-the-route"));
    let host = backend.address.to_string();
    assert_eq!(first.header("host"), Some(host.as_str()));
    assert_eq!(first.header("authorization"), None);
    assert_eq!(first.header("mcp-protocol-version"), None);
}

#[tokio::test]
async fn a_client_that_only_listens_uses_its_session() {
    let backend = numbering_backend(200).await;
    let idle = "  sessions: { idle_timeout: 2s }\n";
    let proxy = ProxyProcess::start(&(route(&[backend.address]) + idle)).await;
    let url = proxy.url("/mcp");
    let listening = open_session(&url).await;
    let listen = reqwest::Client::new().get(&url);
    let listen = listen.header("accept", "text/event-stream");
    let stream = listen.header("mcp-session-id", &listening).send().await;
    assert_eq!(stream.as_ref().unwrap().status(), 200);
    for count in [1, 2] {
        open_session(&url).await;
        until_deleted(&backend, count).await;
    }
    assert_eq!(ids(&deletes(&backend)), ["session-1", "session-2"]);
    assert_eq!(ask(&url, &listening).await.status(), 200);
    drop(stream);
    until_deleted(&backend, 3).await;
}

#[tokio::test]
async fn a_session_in_use_is_ended_when_its_lifetime_is_over() {
    let backend = numbering_backend(200).await;
    let lifetime = "  sessions: { lifetime: 200ms }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + lifetime));
    let _reaping = proxy.reap(&metrics());
    let id = open_session(&proxy.url("/mcp")).await;
    let used = async {
        while ask(&proxy.url("/mcp"), &id).await.status() == 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the end of the session", used).await;
    until_deleted(&backend, 1).await;
}

#[tokio::test]
async fn the_session_that_makes_room_is_ended_and_the_other_goes_on() {
    let backend = numbering_backend(200).await;
    let evict = "  sessions: { capacity: 1, evict: oldest }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + evict));
    let _reaping = proxy.reap(&metrics());
    open_session(&proxy.url("/mcp")).await;
    let id = open_session(&proxy.url("/mcp")).await;
    until_deleted(&backend, 1).await;
    assert_eq!(ids(&deletes(&backend)), ["session-0"]);
    assert_eq!(ask(&proxy.url("/mcp"), &id).await.status(), 200);
}

#[tokio::test]
async fn a_session_that_finds_no_place_in_the_store_is_ended() {
    let backend = numbering_backend(200).await;
    let full = "  sessions: { capacity: 1 }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + full));
    let _reaping = proxy.reap(&metrics());
    put(&proxy.gateway, "b0", "another").await;
    let refused = initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    until_deleted(&backend, 1).await;
    assert_eq!(ids(&deletes(&backend)), ["session-0"]);
}

#[tokio::test]
async fn a_session_that_a_server_opens_in_the_stateless_era_is_ended() {
    let backend = numbering_backend(200).await;
    let proxy = Proxy::to(&[backend.address]);
    let _reaping = proxy.reap(&metrics());
    let modern = initialize(&proxy.url("/mcp")).header("mcp-protocol-version", "2026-07-28");
    let answered = modern.send().await.unwrap();
    assert_eq!(answered.status(), 200);
    assert_eq!(header(answered.headers(), "mcp-session-id"), None);
    until_deleted(&backend, 1).await;
    assert_eq!(ids(&deletes(&backend)), ["session-0"]);
}

#[tokio::test]
async fn a_session_whose_id_is_malformed_is_ended_by_that_id() {
    let backend = Backend::start(|_| answer(200, &[("mcp-session-id", "no id")], "{}")).await;
    let proxy = Proxy::to(&[backend.address]);
    let _reaping = proxy.reap(&metrics());
    let refused = initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(refused.status(), 502);
    until_deleted(&backend, 1).await;
    assert_eq!(ids(&deletes(&backend)), ["no id"]);
}

#[tokio::test]
async fn a_session_whose_client_left_before_it_had_the_answer_is_ended() {
    let backend = numbering_backend(200).await;
    let store = Arc::new(HeldStore::default());
    let held = Arc::clone(&store);
    let proxy = Proxy::with_gateway(&route(&[backend.address]), |mcp| {
        let sessions = mcp.sessions.clone();
        Gateway::new(mcp.into(), held).with_reaping(&sessions)
    });
    let _reaping = proxy.reap(&metrics());
    let mut client = Wire::connect(proxy.address).await;
    client
        .send("POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        .await;
    let opening = store.opening.acquire();
    within("the opening of the session", opening)
        .await
        .unwrap()
        .forget();
    client.reset();
    store.may_open.add_permits(1);
    until_deleted(&backend, 1).await;
    assert_eq!(ids(&deletes(&backend)), ["session-0"]);
    assert!(store.sessions.is_empty());
}

#[tokio::test]
async fn so_is_one_whose_client_leaves_over_http_2_in_the_middle_of_the_answer() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = route(&[backend.local_addr().unwrap()]);
    let proxy = Proxy::listening("      h2c: true\n", &routes);
    let _reaping = proxy.reap(&metrics());
    let client = Http2::connect(proxy.address).await;
    let open = async {
        let (mut wire, _) = Wire::accept(&backend).await;
        wire.send(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: backends-own\r\n\
             Content-Length: 2\r\n\r\n{",
        )
        .await;
        wire
    };
    let (mut answered, wire) = tokio::join!(client.send(client.post(), "{}"), open);
    assert_eq!(next(answered.body_mut()).await.unwrap(), "{");
    drop(answered);
    let (_wire, told) = Wire::accept(&backend).await;
    assert!(told.starts_with("DELETE /mcp HTTP/1.1\r\n"), "{told}");
    assert!(told.contains("backends-own"), "{told}");
    wire.until_closed().await;
}

#[tokio::test]
async fn a_backend_that_lets_nobody_end_a_session_is_asked_once() {
    let backend = numbering_backend(405).await;
    let proxy = Proxy::with(&(route(&[backend.address]) + IDLE));
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    open_session(&proxy.url("/mcp")).await;
    until_counted(&metrics, "refused", 1).await;
    assert_eq!(deletes(&backend).len(), 1);
}

#[tokio::test]
async fn what_becomes_of_each_session_is_counted() {
    let gone = numbering_backend(404).await;
    let failing = numbering_backend(500).await;
    let proxy = Proxy::with(&(route(&[gone.address, failing.address]) + IDLE));
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    for backend in ["b0", "b1", "of-another-configuration"] {
        put(&proxy.gateway, backend, "id").await;
    }
    until_counted(&metrics, "gone", 2).await;
    until_counted(&metrics, "failed", 1).await;
}

#[tokio::test]
async fn a_backend_that_breaks_off_is_told_again_until_it_answers() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let proxy = Proxy::with(&(route(&[address]) + IDLE));
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    put(&proxy.gateway, "b0", "id").await;
    let (broken, _) = Wire::accept(&backend).await;
    broken.reset();
    let (mut wire, request) = Wire::accept(&backend).await;
    assert!(request.starts_with("DELETE /mcp HTTP/1.1\r\n"), "{request}");
    wire.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    until_counted(&metrics, "ended", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_sessions_at_once_a_few_at_a_time_are_ended() {
    let (now, most, ended) = (counter(), counter(), counter());
    let may_end = Arc::new(Semaphore::new(0));
    let handler = {
        let (now, most, ended) = (now.clone(), most.clone(), ended.clone());
        let may_end = may_end.clone();
        async move || {
            let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(at_once, Ordering::SeqCst);
            may_end.acquire().await.unwrap().forget();
            now.fetch_sub(1, Ordering::SeqCst);
            ended.fetch_add(1, Ordering::SeqCst);
        }
    };
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = backend.local_addr().unwrap();
    let router = Router::new().fallback(handler);
    tokio::spawn(async move { axum::serve(backend, router).await });

    let bounds = "  sessions:\n    idle_timeout: 1ms\n    \
                  reap: { max_per_backend: 4, max_per_second: 1000 }\n";
    let proxy = Proxy::with(&(route(&[address]) + bounds));
    for number in 0..1000 {
        put(&proxy.gateway, "b0", &format!("session-{number}")).await;
    }
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    until("as many as may be", || now.load(Ordering::SeqCst) == 4).await;
    may_end.add_permits(1000);
    until_counted(&metrics, "ended", 1000).await;
    assert_eq!(most.load(Ordering::SeqCst), 4);
    assert_eq!(ended.load(Ordering::SeqCst), 1000);
}

#[tokio::test]
async fn sessions_beyond_those_that_may_wait_are_counted_and_left() {
    let backend = numbering_backend(200).await;
    let bounds = "  sessions: { idle_timeout: 1ms, reap: { max_waiting: 3 } }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + bounds));
    for number in 0..10 {
        put(&proxy.gateway, "b0", &format!("session-{number}")).await;
    }
    let store = proxy.gateway.store();
    until_asked("the end of all", async || {
        store.census().await.live == Some(0)
    })
    .await;
    assert_eq!(store.census().await.dropped, 7);
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    until_counted(&metrics, "ended", 3).await;
    assert_eq!(deletes(&backend).len(), 3);
}

#[tokio::test]
async fn a_backend_that_hangs_costs_only_its_own_sessions_their_end() {
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = numbering_backend(200).await;
    let addresses = [hanging.local_addr().unwrap(), other.address];
    let bounds =
        "  sessions: { idle_timeout: 1ms, reap: { max_per_backend: 1, max_waiting: 3 } }\n";
    let proxy = Proxy::with(&(route(&addresses) + bounds));
    for id in ["first", "second", "third"] {
        put(&proxy.gateway, "b0", id).await;
    }
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    let (_hangs, request) = Wire::accept(&hanging).await;
    assert!(request.starts_with("DELETE /mcp HTTP/1.1\r\n"), "{request}");
    put(&proxy.gateway, "b1", "of-another").await;
    until_counted(&metrics, "ended", 1).await;
    put(&proxy.gateway, "b0", "one-too-many").await;
    until_counted(&metrics, "dropped", 1).await;
}

#[tokio::test]
async fn where_it_is_asked_for_the_clients_last_authorization_goes_along() {
    let backend = numbering_backend(200).await;
    let asked_for = "  sessions: { idle_timeout: 1s, reap: { authorization: true } }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + asked_for));
    let _reaping = proxy.reap(&metrics());
    let id = open_session_of(&proxy, "Bearer one").await;
    let used = support::post(&proxy.url("/mcp"))
        .header("mcp-session-id", &id)
        .header("authorization", "Bearer two");
    assert_eq!(used.send().await.unwrap().status(), 200);
    open_session_of(&proxy, "Bearer three").await;
    until_deleted(&backend, 2).await;
    for deleted in deletes(&backend) {
        let expected = match deleted.header("mcp-session-id") {
            Some("session-0") => "Bearer two",
            _ => "Bearer three",
        };
        assert_eq!(deleted.header("authorization"), Some(expected));
    }
    let kept = format!("{:?}", proxy.gateway);
    assert!(!kept.contains("Bearer"), "{kept}");
}

#[tokio::test]
async fn a_real_server_knows_the_session_no_more() {
    let server = demo_server("real").await;
    let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":
        "2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
    let url = format!("http://{server}/mcp");
    let opened = support::post(&url).body(initialize).send().await.unwrap();
    let id = header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned();
    assert_ne!(ask(&url, &id).await.status(), 404);

    let proxy = Proxy::with(&(route(&[server]) + IDLE));
    let metrics = metrics();
    let _reaping = proxy.reap(&metrics);
    put(&proxy.gateway, "b0", &id).await;
    until_counted(&metrics, "ended", 1).await;
    assert_eq!(ask(&url, &id).await.status(), 404);
}

#[tokio::test]
async fn switched_off_there_is_no_reaper_and_nothing_waits_for_one() {
    let yaml = route(&["127.0.0.1:1".parse().unwrap()]);
    let off = "  sessions: { capacity: 1, evict: oldest, reap: off }\n";
    let yaml = format!("mcp:\n  listeners:\n    - address: 127.0.0.1:8080\n{yaml}{off}");
    let Settings { server, mcp, .. } = Settings::parse("off.yaml", &yaml, [].into()).unwrap();
    let gateway = Arc::new(server::gateway(mcp));
    assert!(Reaper::new(&server, Arc::clone(&gateway), None).is_none());
    for id in ["one", "two"] {
        put(&gateway, "b0", id).await;
    }
    assert_eq!(gateway.store().census().await.capacity, 1);
    assert_eq!(gateway.store().abandoned(10).await, Ok(Vec::new()));
}

#[tokio::test]
async fn the_shipped_proxy_ends_sessions_and_tells_no_log_of_it() {
    let backend = numbering_backend(500).await;
    let asked_for = "  sessions: { idle_timeout: 100ms, reap: { authorization: true } }\n";
    let mcp = route(&[backend.address]) + asked_for;
    let mut proxy = ProxyProcess::with_environment(&mcp, &[("RUST_LOG", "trace")]).await;
    let opened = initialize(&proxy.url("/mcp")).header("authorization", "Bearer s3cret");
    let opened = opened.send().await.unwrap();
    let id = header(opened.headers(), "mcp-session-id").unwrap();
    until_deleted(&backend, 1).await;
    let [deleted] = &*deletes(&backend) else {
        panic!("there is more than one");
    };
    assert_eq!(deleted.header("authorization"), Some("Bearer s3cret"));
    proxy.signal("INT");
    assert_eq!(proxy.ended().await, Some(0));
    let log = proxy.log();
    assert!(!log.is_empty());
    for secret in ["s3cret", "session-0", id] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }
}

/// A backend whose sessions are `session-0`, `session-1` and so on, that answers a DELETE with
/// `status`, and a GET with a stream on which nothing comes.
async fn numbering_backend(status: u16) -> Backend {
    let opened = counter();
    Backend::start(move |request: Seen| match request.method {
        Method::DELETE => answer(status, &[], ""),
        Method::GET => {
            let events = pending::<Result<Bytes, Infallible>>();
            let headers = [("content-type", "text/event-stream")];
            answer(200, &headers, Body::from_stream(events))
        }
        _ if request.header("mcp-session-id").is_some() => answer(200, &[], "{}"),
        _ => {
            let id = format!("session-{}", opened.fetch_add(1, Ordering::SeqCst));
            answer(200, &[("mcp-session-id", &id)], "{}")
        }
    })
    .await
}

/// A store in memory, where each session has to wait to be opened.
#[derive(Debug)]
struct HeldStore {
    sessions: MemoryStore,
    opening: Semaphore,
    may_open: Semaphore,
}

impl Default for HeldStore {
    fn default() -> Self {
        Self {
            sessions: MemoryStore::new(Default::default()),
            opening: Semaphore::new(0),
            may_open: Semaphore::new(0),
        }
    }
}

#[async_trait]
impl SessionStore for HeldStore {
    async fn insert(&self, id: ClientSessionId, binding: Binding) -> Result<(), StoreError> {
        self.sessions.insert(id, binding).await
    }

    async fn open(
        &self,
        id: ClientSessionId,
        binding: Binding,
        client: Option<ClientNetwork>,
    ) -> Result<(), OpenError> {
        self.opening.add_permits(1);
        self.may_open.acquire().await.unwrap().forget();
        self.sessions.open(id, binding, client).await
    }

    fn find(&self, id: ClientSessionId) -> Find<'_> {
        self.sessions.find(id)
    }

    async fn remove(&self, id: ClientSessionId) -> Result<(), StoreError> {
        self.sessions.remove(id).await
    }
}

/// Puts a session of `backend`'s into the store, as if it had been opened through the proxy.
async fn put(gateway: &Gateway, backend: &str, id: &str) {
    let binding = Binding {
        route: "/mcp".parse().unwrap(),
        backend: backend.parse().unwrap(),
        session: BackendSessionId::try_from(&HeaderValue::from_str(id).unwrap()).unwrap(),
        opened: Opened::now(),
        seal: None,
    };
    let opened = gateway.store().open(ClientSessionId::mint(), binding, None);
    opened.await.unwrap();
}

async fn open_session_of(proxy: &Proxy, authorization: &str) -> String {
    let opened = initialize(&proxy.url("/mcp")).header("authorization", authorization);
    let opened = opened.send().await.unwrap();
    header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned()
}

async fn delete(proxy: &Proxy, id: &str) {
    let delete = reqwest::Client::new().delete(proxy.url("/mcp"));
    let deleted = delete.header("mcp-session-id", id).send().await.unwrap();
    assert_eq!(deleted.status(), 200);
}

fn deletes(backend: &Backend) -> Vec<Seen> {
    let mut seen = backend.seen();
    seen.retain(|seen| seen.method == Method::DELETE);
    seen
}

fn ids(requests: &[Seen]) -> Vec<&str> {
    let ids = requests.iter().map(|seen| seen.header("mcp-session-id"));
    ids.map(Option::unwrap).collect()
}

async fn until_deleted(backend: &Backend, count: usize) {
    until("a DELETE", || deletes(backend).len() == count).await;
}

async fn until_counted(metrics: &Metrics, outcome: &str, count: usize) {
    let sample = format!("pingora_mcp_sessions_reaped_total{{outcome=\"{outcome}\"}} {count}\n");
    let is_counted = || {
        let scraped = metrics.scrape(Now::default(), Totals::default());
        scraped.unwrap().contains(&sample)
    };
    until(&sample, is_counted).await;
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(MetricsSettings::default()).unwrap())
}

fn counter() -> Arc<AtomicUsize> {
    Arc::default()
}

const IDLE: &str = "  sessions: { idle_timeout: 100ms }\n";
