//! Sealed ids: proxies that share a key, and no store, serve each other's sessions, and those from
//! before they were started.

mod support;

#[path = "support/demo.rs"]
mod demo;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use demo::demo_server;
use http::HeaderValue;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_mcp::mcp::ClientSessionId;
use pingora_mcp::session::{MemoryStore, SessionSettings, SessionStore};
use pingora_mcp::{Connection, Exchange, Gateway, Rejection, Settings, server};
use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::transport::StreamableHttpClientTransport;
use serde_json::{Value, json};
use support::process::ProxyProcess;
use support::{
    Backend, Outage, Proxy, Seen, answer, ask, header, initialize, open_session, post, route,
    until, within,
};

#[tokio::test]
async fn a_session_is_served_by_every_proxy_with_the_key() {
    let backends = [demo_server("alpha").await, demo_server("beta").await];
    let proxies = fleet(&backends).await;
    for turn in 0..3 {
        let [first, second, third] = [0, 1, 2].map(|at| proxies[(turn + at) % 3].address);
        let id = begin(first).await;
        let told = whoami(second, &id).await;
        for _ in 0..3 {
            assert_eq!(whoami(third, &id).await, told);
        }

        let mut stream = Events::open(third, &id, None).await;
        let announce = json!({ "name": "announce", "arguments": { "message": "dinner" } });
        let announced = Events::call(first, &id, announce)
            .await
            .next("result")
            .await;
        assert!(announced.contains("announced on the GET stream"));
        assert!(
            stream
                .next("notifications/message")
                .await
                .contains("dinner")
        );

        let delete = reqwest::Client::new().delete(url(second));
        let ended = delete.header("mcp-session-id", &id).send().await.unwrap();
        assert!(ended.status().is_success(), "{}", ended.status());
        assert_eq!(header(ended.headers(), "mcp-session-id"), Some(&*id));
        // The backend's own answer, where a proxy knows no better.
        for proxy in &proxies {
            assert_eq!(ask(&url(proxy.address), &id).await.status(), 404);
        }
    }
}

// MCP 2025-11-25, Transports, Resumability and Redelivery. Here each request of one call goes to
// another proxy: the call, its resumption, and the answer to what the server asks on it.
#[tokio::test]
async fn a_stream_that_breaks_is_resumed_at_another_proxy() {
    let proxies = fleet(&[demo_server("alpha").await, demo_server("beta").await]).await;
    let [first, second, third] = [0, 1, 2].map(|at| proxies[at].address);
    let id = begin(first).await;
    let mut call = Events::call(first, &id, json!({ "name": "ask" })).await;
    let question = call.next("elicitation/create").await;
    drop(call);

    let mut resumed = Events::open(second, &id, field(&question, "id: ")).await;
    let question: Value = serde_json::from_str(field(&question, "data: ").unwrap()).unwrap();
    let accepted = json!({ "action": "accept", "content": { "name": "Ada" } });
    let answered = message(json!({ "id": question["id"], "result": accepted }));
    let answered = sent(third, &id, answered).await;
    assert_eq!(answered.status(), 202);
    assert!(resumed.next("result").await.contains("Hello, Ada!"));
}

/// What the client of a proxy that is gone sees of it is a broken connection, and its cue to ask
/// another one. Whatever is answered at all must be the answer of the session's own server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_are_killed_and_started_again_one_by_one_and_no_call_fails() {
    const CLIENTS: usize = 6;
    let backends = [demo_server("alpha").await, demo_server("beta").await];
    let mut proxies = fleet(&backends).await;
    let addresses = [0, 1, 2].map(|at| proxies[at].address);
    let answered = Arc::new([0; 3].map(AtomicUsize::new));
    let is_over = Arc::new(AtomicBool::new(false));
    let clients = (0..CLIENTS).map(|client| {
        let (answered, is_over) = (Arc::clone(&answered), Arc::clone(&is_over));
        tokio::spawn(async move {
            let http = reqwest::Client::new();
            let id = begin(addresses[client % 3]).await;
            let server = whoami(addresses[client % 3], &id).await;
            let mut at = client;
            while !is_over.load(Ordering::Relaxed) {
                at += 1;
                let request = http
                    .post(url(addresses[at % 3]))
                    .header("mcp-session-id", &id);
                let request = as_mcp(request).body(tools_call(json!({ "name": "whoami" })));
                let Ok(response) = request.send().await else {
                    continue;
                };
                assert_eq!(response.status(), 200);
                assert_eq!(header(response.headers(), "mcp-session-id"), Some(&*id));
                let Ok(body) = response.text().await else {
                    continue;
                };
                assert_eq!(of_whom(&body), server);
                answered[at % 3].fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    let count = |at: usize| answered[at].load(Ordering::Relaxed);
    for (at, proxy) in proxies.iter_mut().enumerate() {
        until("calls by way of each proxy", || {
            (0..3).all(|at| count(at) > 0)
        })
        .await;
        proxy.kill().await;
        let others = || count((at + 1) % 3) + count((at + 2) % 3);
        let before = others();
        until("calls by way of the others", || {
            others() > before + 2 * CLIENTS
        })
        .await;
        let before = count(at);
        proxy.start_again().await;
        until("calls by way of the new one", || {
            count(at) > before + CLIENTS
        })
        .await;
    }
    is_over.store(true, Ordering::Relaxed);
    for client in clients {
        within("the end of a client", client).await.unwrap();
    }
    for proxy in &proxies {
        assert!(!proxy.log().contains("outcome=lost"), "{}", proxy.log());
    }
}

#[tokio::test]
async fn a_session_of_a_real_client_goes_on_in_the_next_process() {
    let log = "  access_log:\n    format: text\n";
    let mcp = sealed(&route(&[
        demo_server("alpha").await,
        demo_server("beta").await,
    ])) + log;
    let mut proxy = ProxyProcess::start(&mcp).await;
    let client = ().serve(StreamableHttpClientTransport::from_uri(url(proxy.address)));
    let client = within("the client's start", client).await.unwrap();
    let whoami = || client.call_tool(CallToolRequestParams::new("whoami"));
    let server = whoami().await.unwrap().content;

    proxy.kill().await;
    proxy.start_again().await;
    for _ in 0..3 {
        let told = within("an answer of the next process", whoami())
            .await
            .unwrap();
        assert_eq!(told.content, server);
    }
    // It did not start over, as this client would after a 404.
    assert!(proxy.until(|log| log.contains("outcome=kept")).await);

    // An upgrade, whose new process has never seen the session either.
    let mut successor = proxy.successor();
    proxy.signal("QUIT");
    let handed_over = within("the end of the process before", proxy.ended()).await;
    assert_eq!(handed_over, Some(0));
    let told = within("an answer after the upgrade", whoami())
        .await
        .unwrap();
    assert_eq!(told.content, server);
    assert!(successor.until(|log| log.contains("outcome=kept")).await);
    for log in [proxy.log(), successor.log()] {
        assert!(
            !log.contains("outcome=opened") && !log.contains("outcome=lost"),
            "{log}"
        );
    }
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_lifetime_is_kept_by_a_proxy_that_did_not_open_the_session() {
    let backend = Backend::with_session("own").await;
    let opening = Proxy::with(&sealed(&route(&[backend.address])));
    let short = sealed(&route(&[backend.address])) + "    lifetime: 300ms\n";
    let [adopting, late] = [Proxy::with(&short), Proxy::with(&short)];
    let began = Instant::now();
    let id = open_session(&opening.url("/mcp")).await;
    while ask(&adopting.url("/mcp"), &id).await.status() == 200 {
        assert!(began.elapsed() < Duration::from_secs(10), "it lives on");
    }
    assert!(began.elapsed() >= Duration::from_millis(299));
    let asked = backend.seen().len();
    assert_eq!(ask(&adopting.url("/mcp"), &id).await.status(), 404);
    assert_eq!(ask(&late.url("/mcp"), &id).await.status(), 404);
    assert_eq!(backend.seen().len(), asked);
    assert_eq!(ask(&opening.url("/mcp"), &id).await.status(), 200);
}

#[tokio::test]
async fn an_id_is_another_one_after_any_change_whether_its_session_is_known_or_not() {
    let backend = Backend::with_session("own").await;
    let mcp = sealed(&route(&[backend.address]));
    let [near, far] = [gateway(&mcp), gateway(&mcp)];
    let id = opened(&near).await;
    assert_eq!(admitted(&near, id.as_bytes()).await, Ok(()));
    let mut forged = 0;
    for bit in 0..id.len() * 8 {
        let mut flipped = id.clone().into_bytes();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if HeaderValue::from_bytes(&flipped).is_ok() {
            assert_unknown(&near, &flipped).await;
            assert_unknown(&far, &flipped).await;
            forged += 1;
        }
    }
    assert!(forged > id.len() * 6, "{forged}");
    for length in 0..id.len() {
        assert_unknown(&near, &id.as_bytes()[..length]).await;
        assert_unknown(&far, &id.as_bytes()[..length]).await;
    }
    for added in ["A", "=", "AAAA"] {
        assert_unknown(&near, format!("{id}{added}").as_bytes()).await;
        assert_unknown(&far, format!("{id}{added}").as_bytes()).await;
    }
    assert_eq!(far.store().census().await.live, Some(0));
    assert_eq!(admitted(&far, id.as_bytes()).await, Ok(()));
    // Adopted, it is near, and as hard to change.
    assert_eq!(far.store().census().await.live, Some(1));
    let last = id.len() - 1;
    assert_unknown(&far, &id.as_bytes()[..last]).await;
    assert_unknown(&far, &id.as_bytes()[..32]).await;
}

#[tokio::test]
async fn a_forged_id_is_404_and_asks_no_backend() {
    let backend = Backend::with_session("own").await;
    let routes = format!(
        "{}    - path: /other\n      backends:\n        - name: b0\n          url: http://{}/mcp\n",
        route(&[backend.address]),
        backend.address
    );
    let [opening, other] = [Proxy::with(&sealed(&routes)), Proxy::with(&sealed(&routes))];
    let stranger = Proxy::with(&with_keys(&routes, &[OTHER_KEY]));
    let id = open_session(&opening.url("/mcp")).await;
    let asked = backend.seen().len();
    let (digits, seal) = id.split_at(32);
    let second = open_session(&opening.url("/mcp")).await;
    assert_eq!(ask(&other.url("/mcp"), digits).await.status(), 404);
    for url in [
        stranger.url("/mcp"),
        opening.url("/other"),
        other.url("/other"),
    ] {
        let refused = ask(&url, &id).await;
        assert_eq!(refused.status(), 404);
        let body: Value = serde_json::from_str(&refused.text().await.unwrap()).unwrap();
        assert_eq!(body["error"]["code"], -32001);
    }
    // The seal of one session with the digits of another.
    let swapped = format!("{}{seal}", &second[..32]);
    for proxy in [&opening, &other] {
        assert_eq!(ask(&proxy.url("/mcp"), &swapped).await.status(), 404);
    }
    assert_eq!(backend.seen().len(), asked + 1);
    assert_eq!(ask(&other.url("/mcp"), &id).await.status(), 200);
}

#[tokio::test]
async fn what_its_backend_has_ended_is_not_kept() {
    let backend = Backend::start(|request: Seen| match request.header("mcp-session-id") {
        None => answer(200, &[("mcp-session-id", "own")], "{}"),
        Some(_) => answer(404, &[], "{}"),
    })
    .await;
    let mcp = sealed(&route(&[backend.address]));
    let opening = Proxy::with(&mcp);
    let store = memory("{}");
    let other = Proxy::with_store(&mcp, Arc::clone(&store) as _);
    let id = open_session(&opening.url("/mcp")).await;
    for times in 1..=3 {
        assert_eq!(ask(&other.url("/mcp"), &id).await.status(), 404);
        assert_eq!(backend.seen().len(), 1 + times);
        assert_eq!(store.census().await.live, Some(0));
    }
}

#[tokio::test]
async fn a_full_store_serves_what_it_cannot_keep() {
    let backend = Backend::with_session("own").await;
    let mcp = sealed(&route(&[backend.address]));
    let opening = Proxy::with(&mcp);
    let store = memory("{ capacity: 2 }");
    let other = Proxy::with_store(&mcp, Arc::clone(&store) as _);
    for _ in 0..5 {
        let id = open_session(&opening.url("/mcp")).await;
        for _ in 0..2 {
            assert_eq!(ask(&other.url("/mcp"), &id).await.status(), 200);
        }
    }
    assert_eq!(store.census().await.live, Some(2));
}

#[tokio::test]
async fn an_outage_of_the_store_is_bridged_and_what_is_not_known_is_503() {
    let backend = Backend::with_session("own").await;
    let mcp = sealed(&route(&[backend.address]));
    let opening = Proxy::with(&mcp);
    let id = open_session(&opening.url("/mcp")).await;
    let other = Proxy::with_store(&mcp, Arc::new(Outage));
    assert_eq!(ask(&other.url("/mcp"), &id).await.status(), 200);
    assert_eq!(backend.last().header("mcp-session-id"), Some("own"));
    let stranger = Proxy::with_store(
        &with_keys(&route(&[backend.address]), &[OTHER_KEY]),
        Arc::new(Outage),
    );
    assert_eq!(ask(&stranger.url("/mcp"), &id).await.status(), 503);
    assert_eq!(ask(&other.url("/mcp"), &id[..32]).await.status(), 503);
    assert_eq!(
        ask(&other.url("/mcp"), &id[..id.len() - 1]).await.status(),
        404
    );
    assert_eq!(
        initialize(&other.url("/mcp"))
            .send()
            .await
            .unwrap()
            .status(),
        503
    );
}

/// As docs/operations.md has it, with a session that is opened at each step.
#[tokio::test]
async fn keys_are_replaced_without_losing_a_session() {
    let backend = Backend::with_session("own").await;
    let route = route(&[backend.address]);
    let steps = [
        &[KEY][..],
        &[KEY, OTHER_KEY],
        &[OTHER_KEY, KEY],
        &[OTHER_KEY],
    ];
    let before = with_keys(&route, steps[0]);
    let mut proxies = [
        ProxyProcess::start(&before).await,
        ProxyProcess::start(&before).await,
    ];
    let mut ids: Vec<String> = Vec::new();
    for step in &steps {
        for at in 0..2 {
            // Between the two, one is a step ahead.
            proxies[at].reload(&with_keys(&route, step)).await;
            for proxy in &proxies {
                ids.push(open_session(&url(proxy.address)).await);
            }
            let is_over = step.len() == 1 && step[0] == OTHER_KEY;
            let living = if is_over { &ids[ids.len() - 2..] } else { &ids };
            for id in living {
                for proxy in &proxies {
                    assert_eq!(ask(&url(proxy.address), id).await.status(), 200);
                }
            }
        }
    }
    for proxy in &proxies {
        assert!(!proxy.log().contains("restart"), "{}", proxy.log());
    }
    // One that never had the old key knows only what the new one sealed.
    let late = ProxyProcess::start(&with_keys(&route, &[OTHER_KEY])).await;
    assert_eq!(ask(&url(late.address), &ids[0]).await.status(), 404);
    assert_eq!(
        ask(&url(late.address), ids.last().unwrap()).await.status(),
        200
    );
}

#[tokio::test]
async fn sessions_from_before_the_first_key_stay_with_the_proxy_that_has_them() {
    let backend = Backend::with_session("own").await;
    let route = route(&[backend.address]);
    let mut proxy = ProxyProcess::start(&route).await;
    let bare = open_session(&url(proxy.address)).await;
    assert_eq!(bare.len(), 32);
    proxy.reload(&sealed(&route)).await;
    let whole = open_session(&url(proxy.address)).await;
    assert!(whole.len() > 32);
    for (id, status) in [(&*bare, 200), (&whole, 200), (&whole[..32], 404)] {
        assert_eq!(ask(&url(proxy.address), id).await.status(), status);
    }
    let other = Proxy::with(&sealed(&route));
    assert_eq!(ask(&other.url("/mcp"), &bare).await.status(), 404);
}

#[tokio::test]
async fn a_backends_new_id_is_followed_where_the_session_is_kept() {
    let backend = Backend::start(|request: Seen| {
        let given = match request.header("mcp-session-id") {
            None => "first",
            Some("first" | "second") => "second",
            Some(other) => panic!("{other}"),
        };
        answer(200, &[("mcp-session-id", given)], "{}")
    })
    .await;
    let mcp = sealed(&route(&[backend.address]));
    let [opening, other] = [Proxy::with(&mcp), Proxy::with(&mcp)];
    let id = open_session(&opening.url("/mcp")).await;
    for proxy in [&opening, &other] {
        for expected in ["first", "second", "second"] {
            let answered = ask(&proxy.url("/mcp"), &id).await;
            assert_eq!(header(answered.headers(), "mcp-session-id"), Some(&*id));
            assert_eq!(backend.last().header("mcp-session-id"), Some(expected));
        }
    }
}

#[tokio::test]
async fn a_full_store_stays_so_when_backends_change_their_ids() {
    let backend = Backend::start(|_| {
        let given = ClientSessionId::mint().to_header();
        answer(200, &[("mcp-session-id", given.to_str().unwrap())], "{}")
    })
    .await;
    let mcp = sealed(&route(&[backend.address]));
    let opening = Proxy::with(&mcp);
    let store = memory("{ capacity: 1 }");
    let other = Proxy::with_store(&mcp, Arc::clone(&store) as _);
    for _ in 0..3 {
        let id = open_session(&opening.url("/mcp")).await;
        assert_eq!(ask(&other.url("/mcp"), &id).await.status(), 200);
    }
    assert_eq!(store.census().await.live, Some(1));
}

#[tokio::test]
async fn a_backends_id_that_is_too_long_is_known_to_its_store_alone_and_the_log_says_so_once() {
    let long: &'static str = "long".repeat(100).leak();
    let backend = Backend::with_session(long).await;
    let mcp = sealed(&route(&[backend.address]));
    let mut proxy = ProxyProcess::start(&mcp).await;
    let other = Proxy::with(&mcp);
    for _ in 0..3 {
        let id = open_session(&url(proxy.address)).await;
        assert_eq!(id.len(), 32);
        assert_eq!(ask(&url(proxy.address), &id).await.status(), 200);
        assert_eq!(ask(&other.url("/mcp"), &id).await.status(), 404);
    }
    proxy.signal("INT");
    assert_eq!(proxy.ended().await, Some(0));
    let log = proxy.log();
    assert_eq!(log.matches("too long to be sealed").count(), 1, "{log}");
    assert!(!log.contains("longlong"), "{log}");
}

#[tokio::test]
async fn a_key_comes_from_the_environment_and_is_told_to_nobody() {
    let backend = Backend::with_session("own").await;
    let route = route(&[backend.address]);
    let admin = support::unused_address();
    let mcp = with_keys(&route, &["${SEAL_KEY}"]) + &format!("  admin:\n    address: {admin}\n");
    let proxy = ProxyProcess::with_environment(&mcp, &[("SEAL_KEY", KEY)]).await;
    let id = open_session(&url(proxy.address)).await;
    let other = Proxy::with(&sealed(&route));
    assert_eq!(ask(&other.url("/mcp"), &id).await.status(), 200);
    let page = |path| reqwest::get(format!("http://{admin}{path}"));
    let mut told = proxy.log();
    for path in ["/status", "/metrics"] {
        told += &page(path).await.unwrap().text().await.unwrap();
    }
    for secret in [KEY, &id[..32], &id[32..]] {
        assert!(!told.contains(secret));
    }
}

/// Three proxies as processes, that share a key and nothing else.
async fn fleet(backends: &[SocketAddr]) -> Vec<ProxyProcess> {
    let log = "  access_log:\n    format: text\n";
    let mcp = sealed(&route(backends)) + log;
    let mut proxies = Vec::new();
    for _ in 0..3 {
        proxies.push(ProxyProcess::start(&mcp).await);
    }
    proxies
}

fn sealed(route: &str) -> String {
    with_keys(route, &[KEY])
}

fn with_keys(route: &str, keys: &[&str]) -> String {
    let keys = keys.iter().map(|key| format!("        - {key}\n"));
    let keys: String = keys.collect();
    format!("{route}  sessions:\n    seal:\n      keys:\n{keys}")
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/mcp")
}

/// Opens a session with a real server, and returns the client's id of it.
async fn begin(proxy: SocketAddr) -> String {
    let client = json!({ "name": "test", "version": "1" });
    let capabilities = json!({ "elicitation": { "form": {} } });
    let params = json!({
        "protocolVersion": "2025-11-25", "capabilities": capabilities, "clientInfo": client
    });
    let body = message(json!({ "id": 1, "method": "initialize", "params": params }));
    let opened = post(&url(proxy)).body(body).send().await.unwrap();
    assert_eq!(opened.status(), 200);
    let id = header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned();
    opened.text().await.unwrap();
    let body = message(json!({ "method": "notifications/initialized" }));
    assert_eq!(sent(proxy, &id, body).await.status(), 202);
    id
}

async fn sent(proxy: SocketAddr, id: &str, body: String) -> reqwest::Response {
    let request = post(&url(proxy)).header("mcp-session-id", id).body(body);
    within("an answer", request.send()).await.unwrap()
}

/// The name of the server that the session is with.
async fn whoami(proxy: SocketAddr, id: &str) -> &'static str {
    let mut answer = Events::call(proxy, id, json!({ "name": "whoami" })).await;
    of_whom(&answer.next("result").await)
}

fn of_whom(answer: &str) -> &'static str {
    match (answer.contains("alpha"), answer.contains("beta")) {
        (true, false) => "alpha",
        (false, true) => "beta",
        _ => panic!("{answer}"),
    }
}

fn tools_call(params: Value) -> String {
    message(json!({ "id": 7, "method": "tools/call", "params": params }))
}

fn message(mut message: Value) -> String {
    message["jsonrpc"] = json!("2.0");
    message.to_string()
}

fn as_mcp(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    request
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
}

/// A stream of events that is read one by one.
struct Events {
    response: reqwest::Response,
    received: String,
}

impl Events {
    /// The answer to `tools/call`.
    async fn call(proxy: SocketAddr, id: &str, params: Value) -> Self {
        Self::of(sent(proxy, id, tools_call(params)).await)
    }

    /// A GET stream.
    async fn open(proxy: SocketAddr, id: &str, last: Option<&str>) -> Self {
        let request = reqwest::Client::new().get(url(proxy));
        let mut request = as_mcp(request).header("mcp-session-id", id);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        Self::of(within("a stream", request.send()).await.unwrap())
    }

    fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.status(), 200);
        Self {
            response,
            received: String::new(),
        }
    }

    /// The next event that has `part` in it.
    async fn next(&mut self, part: &str) -> String {
        loop {
            while let Some((event, rest)) = self.received.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.received = rest;
                if event.contains(part) {
                    return event;
                }
            }
            let chunk = within(part, self.response.chunk()).await.unwrap();
            let chunk = chunk.expect("the stream goes on").to_vec();
            self.received += &String::from_utf8(chunk).unwrap();
        }
    }
}

fn field<'e>(event: &'e str, name: &str) -> Option<&'e str> {
    event.lines().find_map(|line| line.strip_prefix(name))
}

fn gateway(mcp: &str) -> Gateway {
    let yaml = format!("version: 1\nmcp:\n  listeners:\n    - address: 127.0.0.1:8080\n{mcp}");
    let settings = Settings::parse("test.yaml", &yaml, HashMap::new()).unwrap();
    server::gateway(settings.mcp)
}

/// Has a backend's answer open a session, and returns the client's id of it.
async fn opened(gateway: &Gateway) -> String {
    let mut exchange = Exchange::default();
    let request = request(None);
    let admitted = gateway.admit(&request, Connection::default(), &mut exchange);
    admitted.await.unwrap();
    gateway.route(&mut exchange).unwrap();
    let mut answer = ResponseHeader::build(200, None).unwrap();
    answer.insert_header("mcp-session-id", "own").unwrap();
    let taken = gateway.from_backend(&mut answer, &mut exchange);
    taken.await.unwrap();
    gateway.to_client(&mut answer, &exchange);
    header(&answer.headers, "mcp-session-id")
        .unwrap()
        .to_owned()
}

async fn admitted(gateway: &Gateway, id: &[u8]) -> Result<(), Rejection> {
    let mut exchange = Exchange::default();
    let request = request(Some(id));
    let admitted = gateway.admit(&request, Connection::default(), &mut exchange);
    admitted.await.map(drop)
}

async fn assert_unknown(gateway: &Gateway, id: &[u8]) {
    let told = admitted(gateway, id).await;
    assert_eq!(
        told,
        Err(Rejection::UnknownSession),
        "{}",
        id.escape_ascii()
    );
}

fn request(id: Option<&[u8]>) -> RequestHeader {
    let mut request = RequestHeader::build("POST", b"/mcp", None).unwrap();
    request.insert_header("host", "localhost").unwrap();
    if let Some(id) = id {
        let id = HeaderValue::from_bytes(id).unwrap();
        request.insert_header("mcp-session-id", id).unwrap();
    }
    request
}

fn memory(settings: &str) -> Arc<MemoryStore> {
    let settings: SessionSettings = serde_saphyr::from_str(settings).unwrap();
    Arc::new(MemoryStore::new(settings))
}

const KEY: &str = "5a0c6f1e7d93b824f6e1d0c9b8a73625";
const OTHER_KEY: &str = "e17f4b09d2c8a6350f9e8d7c6b5a4132";
