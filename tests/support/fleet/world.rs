//! What clients of a fleet know of it: what may be away, and so what an answer may be.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::http_client;
use super::member::Member;
use super::server::Server;
use crate::support::{ask, header, within};

/// What clients know: where the proxies are, and what may be away.
pub(crate) struct World {
    urls: Vec<String>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) proxies: [Outages; 3],
    pub(super) backends: [Outages; 3],
    pub(super) store: Outages,
    /// The number of each server's process; 0 while there is none.
    pub(super) processes: [AtomicU32; 3],
    pub(crate) is_over: AtomicBool,
    http: reqwest::Client,
    pub(super) turns: Semaphore,
    pub(super) calls: AtomicUsize,
    met: Mutex<BTreeMap<String, usize>>,
    /// How many answers each client has got.
    pub(super) answered: Mutex<Vec<Arc<AtomicUsize>>>,
}

/// How often something has gone away or come back: an odd number while it is away.
#[derive(Debug, Default)]
pub(super) struct Outages(AtomicUsize);

impl Outages {
    pub(super) fn goes_away(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 0);
    }

    pub(super) fn is_back(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 1);
    }

    fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn is_away(&self) -> bool {
        self.now() % 2 == 1
    }

    /// Whether it has been away since it was `then`.
    fn was_away(&self, then: usize) -> bool {
        then % 2 == 1 || self.now() != then
    }
}

/// A session as its client knows it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    id: String,
    home: Home,
}

/// A session as its server knows it: `backend/process/number`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home(pub(super) String);

impl Home {
    fn part(&self, position: usize) -> usize {
        self.0.split('/').nth(position).unwrap().parse().unwrap()
    }

    fn backend(&self) -> usize {
        self.part(0)
    }

    fn process(&self) -> usize {
        self.part(1)
    }
}

/// What a client does next.
#[derive(Debug)]
pub(super) enum Reply {
    /// This came: a message, or none where there is none to be.
    Is(HeaderMap, Value),
    StartOver,
    TryLater,
}

impl World {
    pub(super) fn new(proxies: &[Member], servers: &[Server]) -> Self {
        let process = |number: usize| AtomicU32::new(servers[number].program.id());
        Self {
            urls: proxies.iter().map(Member::url).collect(),
            addresses: proxies.iter().map(|proxy| proxy.process.address).collect(),
            proxies: Default::default(),
            backends: Default::default(),
            store: Outages::default(),
            processes: [process(0), process(1), process(2)],
            is_over: AtomicBool::new(false),
            http: http_client(),
            turns: Semaphore::new(TURNS),
            calls: AtomicUsize::new(0),
            met: Mutex::default(),
            answered: Mutex::default(),
        }
    }

    /// How often clients have met what.
    pub(crate) fn seen(&self) -> BTreeMap<String, usize> {
        self.met.lock().unwrap().clone()
    }

    pub(super) fn has_lost(&self, home: &Home) -> bool {
        let process = self.processes[home.backend()].load(Ordering::SeqCst);
        process as usize != home.process()
    }

    /// Everything that may be away, as it is now.
    pub(super) fn outages(&self) -> Vec<usize> {
        let all = self.proxies.iter().chain(&self.backends);
        all.chain([&self.store]).map(Outages::now).collect()
    }

    /// Sends a request of `session`, or of none, to a proxy. Whatever comes of it but what is in
    /// docs/operations.md, when it may come, ends the test.
    async fn send(
        &self,
        proxy: usize,
        session: Option<&Session>,
        method: Method,
        message: &Value,
    ) -> Reply {
        let then = self.outages();
        let is_proxy_away = || self.proxies[proxy].was_away(then[proxy]);
        let is_backend_away = || match session {
            Some(session) => {
                let backend = session.home.backend();
                self.backends[backend].was_away(then[3 + backend])
            }
            None => (0..3).any(|backend| self.backends[backend].was_away(then[3 + backend])),
        };
        let mut request = self.http.request(method, &self.urls[proxy]);
        if let Some(session) = session {
            request = request.header("mcp-session-id", &session.id);
        }
        if !message.is_null() {
            request = request
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .body(message.to_string());
        }
        let received = async {
            let answer = request.send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            answer.text().await.map(|text| (status, headers, text))
        };
        let received = within("an answer", received).await;
        let (met, reply) = match &received {
            Err(error) if error.is_connect() && is_proxy_away() => ("refused", Reply::TryLater),
            // It was not taken yet when the proxy began to end.
            Err(error) if is_reset(error) && is_proxy_away() => ("reset", Reply::TryLater),
            Err(_) if proxy == KILLED && is_proxy_away() => ("broken off", Reply::TryLater),
            // Its answer had begun.
            Err(error) if error.is_decode() && is_backend_away() => ("cut", Reply::TryLater),
            Ok((status, headers, text)) if status.is_success() => {
                let message = message_in(text);
                ("an answer", Reply::Is(headers.clone(), message))
            }
            Ok((StatusCode::NOT_FOUND, _, text))
                if session.is_some_and(|session| self.has_lost(&session.home))
                    && text.contains("Session not found") =>
            {
                ("404", Reply::StartOver)
            }
            Ok((StatusCode::BAD_GATEWAY, ..)) if is_backend_away() => ("502", Reply::TryLater),
            Ok((StatusCode::SERVICE_UNAVAILABLE, headers, _))
                if self.store.was_away(then[6]) && headers.contains_key("retry-after") =>
            {
                ("503", Reply::TryLater)
            }
            _ => panic!("proxy {proxy}, {session:?}, outages {then:?}, may not say {received:?}"),
        };
        *self.met.lock().unwrap().entry(met.to_owned()).or_default() += 1;
        self.calls.fetch_add(1, Ordering::SeqCst);
        reply
    }

    pub(super) async fn initialize(&self, proxy: usize) -> Reply {
        let message = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": { "name": "test", "version": "1" },
        }});
        self.send(proxy, None, Method::POST, &message).await
    }

    /// Opens a session, at any proxy, however long that takes.
    pub(super) async fn open(&self) -> Session {
        loop {
            let opened = self.initialize(random(3)).await;
            let Reply::Is(headers, message) = opened else {
                continue;
            };
            let name = &message["result"]["serverInfo"]["name"];
            let session = Session {
                id: header(&headers, "mcp-session-id").unwrap().to_owned(),
                home: Home(name.as_str().unwrap().to_owned()),
            };
            let noted = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
            loop {
                match self
                    .send(random(3), Some(&session), Method::POST, &noted)
                    .await
                {
                    Reply::Is(..) => return session,
                    Reply::StartOver => break,
                    Reply::TryLater => {}
                }
            }
        }
    }

    /// Has a tool tell whose session this is, which must be right.
    pub(super) async fn call(&self, proxy: usize, session: &Session) -> Reply {
        let number = random(1_000_000);
        let call = json!({ "jsonrpc": "2.0", "id": number, "method": "tools/call",
            "params": { "name": "whoami", "arguments": {} } });
        let reply = self.send(proxy, Some(session), Method::POST, &call).await;
        if let Reply::Is(_, message) = &reply {
            assert_eq!(message["id"], number, "the answer to another call");
            let text = &message["result"]["content"][0]["text"];
            assert_eq!(text, &session.home.0, "the answer of another session");
        }
        reply
    }

    /// Ends a session, of which no proxy has anything else to say then.
    pub(crate) async fn end(&self, session: &Session) {
        let _turn = self.turns.acquire().await.unwrap();
        let ended = self.send(random(3), Some(session), Method::DELETE, &Value::Null);
        assert!(matches!(ended.await, Reply::Is(..)));
        for url in &self.urls {
            is_lost(ask(url, &session.id).await).await;
        }
    }

    /// Uses a session at all proxies, and leaves it.
    pub(crate) async fn use_last(&self, session: &Session) {
        let _turn = self.turns.acquire().await.unwrap();
        let begun = Instant::now();
        for proxy in 0..3 {
            let used = ask(&self.urls[proxy], &session.id).await;
            // Where the machine is slow, its time may be over between two of them.
            let is_late = proxy > 0 && begun.elapsed() > IDLE / 2;
            assert!(used.status() == 200 || is_late, "{used:?}");
        }
    }
}

pub(crate) async fn is_lost(answer: reqwest::Response) {
    assert_eq!(answer.status(), 404);
    assert!(answer.text().await.unwrap().contains("Session not found"));
}

fn is_reset(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) = kind {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What stands in an answer: JSON, or an event with it, or nothing.
fn message_in(text: &str) -> Value {
    let mut events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let message = events.next_back().unwrap_or(text);
    serde_json::from_str(message).unwrap_or_default()
}

pub(super) fn random(below: usize) -> usize {
    (uuid::Uuid::new_v4().as_u128() % below as u128) as usize
}

/// The proxy that has no time to end in order.
pub(crate) const KILLED: usize = 0;

/// Requests of clients at a time.
pub(crate) const TURNS: usize = 32;

/// How long a session lives that is used by [`World::use_last`].
pub(super) const IDLE: Duration = Duration::from_secs(2);
