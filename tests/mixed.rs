//! A thousand clients of both eras at a time, at three backends, through the built binary: every
//! answer is right, every session stays where it was opened, and no id shows where it must not.
//!
//! Each client makes a few rounds. `SOAK_SECONDS=60` has them go on for that long.

mod support;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures::stream;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use support::process::ProxyProcess;
use support::{answer, header, route};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(target_os = "linux"), ignore = "memory is read from /proc")]
async fn a_thousand_clients_of_both_eras_get_their_own_answers() {
    let allowed = rlimit::increase_nofile_limit(DESCRIPTORS).unwrap();
    assert!(
        allowed >= DESCRIPTORS,
        "{CLIENTS} clients need {DESCRIPTORS} open files, and this system allows {allowed}"
    );
    let mut backends = Vec::new();
    for name in NAMES {
        backends.push(McpServer::start(name).await);
    }
    let addresses: Vec<_> = backends.iter().map(|(address, _)| *address).collect();
    let proxy = ProxyProcess::start(&route(&addresses)).await;

    let run = Arc::new(Run::new(proxy.url("/mcp")));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client::new(number, Arc::clone(&run));
        clients.spawn(async move {
            match number % 2 {
                0 => client.live_in_sessions().await,
                _ => client.live_without_state().await,
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        // The first wrong answer ends the test.
        ended.unwrap();
    }

    let elapsed = run.begin.elapsed();
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    let (requests, sessions) = (count(&run.requests), count(&run.sessions));
    println!(
        "{CLIENTS} clients, {requests} requests, {sessions} sessions, {} events, no error, \
         in {elapsed:.1?}; the proxy had at most {} KiB, and has {} KiB",
        count(&run.events),
        proxy.peak_resident(),
        proxy.resident()
    );
    assert!(sessions >= CLIENTS / 2);
    let opened: usize = backends
        .iter()
        .map(|(_, server)| count(&server.opened))
        .sum();
    assert_eq!(opened, sessions);
    for (_, server) in &backends {
        assert!(
            count(&server.opened) > 0 && count(&server.stateless) > 0,
            "a backend idles"
        );
        assert!(
            server.sessions.lock().unwrap().is_empty(),
            "DELETE did not arrive"
        );
    }
    // Each client that left a stream has ended it at its backend.
    let open = || {
        backends
            .iter()
            .map(|(_, server)| count(&server.streams))
            .sum::<usize>()
    };
    support::within("the end of all streams at the backends", async {
        while open() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// What all clients share.
struct Run {
    url: String,
    together: Barrier,
    begin: Instant,
    soak: Option<Duration>,
    requests: AtomicUsize,
    sessions: AtomicUsize,
    events: AtomicUsize,
}

impl Run {
    fn new(url: String) -> Self {
        let seconds = std::env::var("SOAK_SECONDS").ok();
        let soak = seconds.map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
        Self {
            url,
            together: Barrier::new(CLIENTS),
            begin: Instant::now(),
            soak,
            requests: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            events: AtomicUsize::new(0),
        }
    }

    /// Whether a client that has made `rounds` makes another.
    fn goes_on(&self, rounds: usize) -> bool {
        match self.soak {
            Some(soak) => self.begin.elapsed() < soak,
            None => rounds < ROUNDS,
        }
    }
}

struct Client {
    number: usize,
    http: reqwest::Client,
    run: Arc<Run>,
}

/// An answer that is a message, read whole.
struct Answer {
    headers: HeaderMap,
    message: Value,
}

impl Client {
    fn new(number: usize, run: Arc<Run>) -> Self {
        Self {
            number,
            http: reqwest::Client::new(),
            run,
        }
    }

    /// Opens sessions one after the other. In each: calls, of which the server tells on a GET stream,
    /// DELETE, and a call too late.
    async fn live_in_sessions(self) {
        self.run.together.wait().await;
        let mut rounds = 0;
        while self.run.goes_on(rounds) {
            let opened = self.call("initialize", &[]).await;
            let id = header(&opened.headers, "mcp-session-id")
                .unwrap()
                .to_owned();
            let home = opened.message["result"].clone();
            self.run.sessions.fetch_add(1, Ordering::Relaxed);
            let bound = [("mcp-session-id", &*id)];

            let mut events = self.send(Method::GET, "", &bound).await;
            self.check(&events);
            for _ in 0..CALLS {
                let answered = self.call("tools/call", &bound).await;
                assert_eq!(header(&answered.headers, "mcp-session-id"), Some(&*id));
                assert_eq!(answered.message["result"], home);
                let event = self.next_event(&mut events).await;
                assert_eq!(event["params"], home, "the stream of another session");
            }
            drop(events);

            assert_eq!(self.send(Method::DELETE, "", &bound).await.status(), 200);
            let late = self.send(Method::POST, "tools/call", &bound).await;
            assert_eq!(late.status(), 404);
            let late: Value = serde_json::from_str(&late.text().await.unwrap()).unwrap();
            assert_eq!(late["error"]["code"], -32001);
            rounds += 1;
        }
    }

    /// Calls that stand alone, with a stray id or without, and a subscription now and then.
    async fn live_without_state(self) {
        self.run.together.wait().await;
        let mut rounds = 0;
        while self.run.goes_on(rounds) {
            for call in 0..CALLS {
                let stray = ("mcp-session-id", "0123456789abcdef0123456789abcdef");
                let headers = [STATELESS, ("mcp-name", "tool"), stray];
                let headers = &headers[..2 + call % 2];
                let answered = self.call("tools/call", headers).await;
                assert_eq!(header(&answered.headers, "mcp-session-id"), None);
                let result = &answered.message["result"];
                assert!(NAMES.contains(&result["backend"].as_str().unwrap()));
                assert_eq!(result["session"], Value::Null);
            }
            if self.number % 10 == 1 {
                let mut events = self.send(Method::POST, LISTEN, &[STATELESS]).await;
                self.check(&events);
                assert_eq!(header(events.headers(), "mcp-session-id"), None);
                self.next_event(&mut events).await;
            }
            rounds += 1;
        }
    }

    /// A request whose answer is a message, as JSON or as an event.
    async fn call(&self, method: &str, headers: &[(&str, &str)]) -> Answer {
        let answered = self.send(Method::POST, method, headers).await;
        self.check(&answered);
        let headers = answered.headers().clone();
        let text = answered.text().await.unwrap();
        assert!(!text.contains(SECRET), "{text}");
        let json = match header(&headers, "content-type") {
            Some("text/event-stream") => {
                let event = text.strip_prefix(PREAMBLE).unwrap();
                event.strip_suffix("\n\n").unwrap()
            }
            _ => &*text,
        };
        let message: Value = serde_json::from_str(json).unwrap();
        assert_eq!(message["id"], self.number, "the answer to another client");
        Answer { headers, message }
    }

    async fn send(
        &self,
        method: Method,
        name: &str,
        headers: &[(&str, &str)],
    ) -> reqwest::Response {
        self.run.requests.fetch_add(1, Ordering::Relaxed);
        let mut request = self.http.request(method.clone(), &self.run.url);
        if method == Method::POST {
            let body = json!({ "jsonrpc": "2.0", "id": self.number, "method": name });
            request = request.body(body.to_string()).header("mcp-method", name);
        } else {
            request = request.header("accept", "text/event-stream");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answered = tokio::time::timeout(PATIENCE, request.send()).await;
        answered.expect("an answer comes").unwrap()
    }

    fn check(&self, answered: &reqwest::Response) {
        assert_eq!(answered.status(), 200);
        let headers = format!("{:?}", answered.headers());
        assert!(!headers.contains(SECRET), "{headers}");
    }

    /// The next event of a stream, on which no other can be yet.
    async fn next_event(&self, events: &mut reqwest::Response) -> Value {
        let mut event = Vec::new();
        while !event.ends_with(b"\n\n") {
            let piece = tokio::time::timeout(PATIENCE, events.chunk()).await;
            event.extend(
                piece
                    .expect("an event comes")
                    .unwrap()
                    .expect("the stream goes on"),
            );
        }
        self.run.events.fetch_add(1, Ordering::Relaxed);
        let event = String::from_utf8(event).unwrap();
        assert!(!event.contains(SECRET), "{event}");
        serde_json::from_str(event.strip_prefix("data: ").unwrap().trim_end()).unwrap()
    }
}

/// A server of both eras that tells in each answer who it is, and refuses what is not its own.
struct McpServer {
    name: &'static str,
    opened: AtomicUsize,
    stateless: AtomicUsize,
    /// Where the events of each session go.
    sessions: Mutex<HashMap<String, Option<UnboundedSender<()>>>>,
    /// Event streams that are open now.
    streams: AtomicUsize,
}

impl McpServer {
    async fn start(name: &'static str) -> (SocketAddr, Arc<Self>) {
        let server = Arc::new(Self {
            name,
            opened: AtomicUsize::new(0),
            stateless: AtomicUsize::new(0),
            sessions: Mutex::default(),
            streams: AtomicUsize::new(0),
        });
        let answering = Arc::clone(&server);
        let service = Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let call = serde_json::from_slice(&body).unwrap_or_default();
            answering.answer(&parts.method, &parts.headers, &call)
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, service).await });
        (address, server)
    }

    fn answer(self: &Arc<Self>, method: &Method, headers: &HeaderMap, call: &Value) -> Response {
        let id = header(headers, "mcp-session-id");
        if header(headers, STATELESS.0) == Some(STATELESS.1) {
            if id.is_some() || header(headers, "mcp-method") != call["method"].as_str() {
                return answer(400, &[], "not as the client sent it");
            }
            let number = self.stateless.fetch_add(1, Ordering::Relaxed);
            // A server must not, and some do.
            let stray = Some("secret-stray").filter(|_| number.is_multiple_of(3));
            if call["method"] == LISTEN {
                let (first, events) = unbounded_channel();
                first.send(()).unwrap();
                return self.stream(Value::Null, stray, Some(first), events);
            }
            return self.result(call, Value::Null, stray, number);
        }
        let Some(id) = id else {
            let number = self.opened.fetch_add(1, Ordering::Relaxed);
            let id = format!("secret-{}-{number}", self.name);
            self.sessions.lock().unwrap().insert(id.clone(), None);
            return self.result(call, json!(number), Some(&id), number);
        };
        let number: usize = id.rsplit('-').next().unwrap().parse().unwrap();
        let mut sessions = self.sessions.lock().unwrap();
        let Some(told) = sessions.get_mut(id) else {
            return answer(404, &[], "no session of this server");
        };
        match *method {
            Method::DELETE => {
                sessions.remove(id);
                answer(200, &[], "")
            }
            Method::GET => {
                let (sender, events) = unbounded_channel();
                *told = Some(sender);
                self.stream(json!(number), Some(id), None, events)
            }
            _ => {
                told.as_ref().unwrap().send(()).unwrap();
                // Some servers repeat the id, some do not.
                let repeated = Some(id).filter(|_| number.is_multiple_of(3));
                self.result(call, json!(number), repeated, number / 2)
            }
        }
    }

    /// The answer to `call`: as an event where `count` is odd.
    fn result(&self, call: &Value, session: Value, id: Option<&str>, count: usize) -> Response {
        let result = json!({ "backend": self.name, "session": session });
        let message = json!({ "jsonrpc": "2.0", "id": call["id"], "result": result });
        match count % 2 {
            0 => respond("application/json", id, message.to_string()),
            _ => respond(EVENTS, id, format!("{PREAMBLE}{message}\n\n")),
        }
    }

    /// A stream that tells what it is of with each of `events`, and ends with its last sender.
    fn stream(
        self: &Arc<Self>,
        session: Value,
        id: Option<&str>,
        sender: Option<UnboundedSender<()>>,
        events: UnboundedReceiver<()>,
    ) -> Response {
        let params = json!({ "backend": self.name, "session": session });
        let event = format!("data: {}\n\n", json!({ "params": params }));
        let open = OpenStream::of(self);
        let events = stream::unfold((events, sender, open), move |mut state| {
            let event = event.clone();
            async move {
                state.0.recv().await?;
                Some((Ok::<_, Infallible>(event), state))
            }
        });
        respond(EVENTS, id, Body::from_stream(events))
    }
}

fn respond(content_type: &str, id: Option<&str>, body: impl Into<Body>) -> Response {
    let content_type = ("content-type", content_type);
    match id {
        Some(id) => answer(200, &[content_type, ("mcp-session-id", id)], body),
        None => answer(200, &[content_type], body),
    }
}

/// Counts a stream for as long as the server holds it.
struct OpenStream(Arc<McpServer>);

impl OpenStream {
    fn of(server: &Arc<McpServer>) -> Self {
        server.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(server))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

const CLIENTS: usize = 1_000;

/// Of each client, where no time is set.
const ROUNDS: usize = 1;

/// Of each round.
const CALLS: usize = 5;

/// A client and a backend have two connections each for a call beside a stream, both in this
/// process; the proxy, which inherits the limit, has as many.
const DESCRIPTORS: u64 = 8_192;

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// What is in each id of a backend's.
const SECRET: &str = "secret";

const STATELESS: (&str, &str) = ("mcp-protocol-version", "2026-07-28");

const LISTEN: &str = "subscriptions/listen";

const EVENTS: &str = "text/event-stream";

/// A priming event and a keep-alive, before the answer as an event.
const PREAMBLE: &str = "id: 1\nretry: 10\ndata:\n\n: keep-alive\n\ndata: ";

/// Far more than an answer takes on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(120);
