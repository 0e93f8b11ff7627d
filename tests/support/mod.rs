//! What the tests are made of: a proxy in this process, backends that answer as a test says, and
//! what both sides saw, all on real TCP connections of ports that the system chooses.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a program of its own and uses a part of this"
)]

pub mod backend_process;
pub mod mutant;
pub mod mutation;
pub mod network;
pub mod process;
pub mod redis;
pub mod relay;
pub mod session_model;
pub mod tls;
pub mod typescript;
pub mod wire;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, Method, Uri};
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{Fds, ListenFds};
use pingora_core::services::Service;
use pingora_core::services::background::BackgroundService;
use pingora_mcp::mcp::ClientSessionId;
use pingora_mcp::metrics::Metrics;
use pingora_mcp::reaper::Reaper;
use pingora_mcp::session::{Binding, Find, SessionStore, StoreError};
use pingora_mcp::tls::CertificateWatch;
use pingora_mcp::{Gateway, Load, Settings, server};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use mutation::Mutation;

/// A proxy that runs until it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    /// What its clients have now.
    pub load: Load,
    pub gateway: Arc<Gateway>,
    pub certificates: CertificateWatch,
    conf: Arc<ServerConf>,
    _running: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy with one route `/mcp` to `backends`, named `b0`, `b1`, and so on.
    pub fn to(backends: &[SocketAddr]) -> Self {
        Self::with(&route(backends))
    }

    /// A proxy with `mcp`, the YAML below `mcp:` but for its listeners.
    pub fn with(mcp: &str) -> Self {
        Self::listening_on(LOOPBACK, mcp)
    }

    /// A proxy as [`with`](Self::with), on another address, whose port the system chooses.
    pub fn listening_on(address: SocketAddr, mcp: &str) -> Self {
        Self::start(address, "", mcp, server::gateway)
    }

    /// A proxy as [`with`](Self::with), its listener with `keys` beside its address.
    pub fn listening(keys: &str, mcp: &str) -> Self {
        Self::start(LOOPBACK, keys, mcp, server::gateway)
    }

    /// A proxy as [`with`](Self::with), its sessions in `store`.
    pub fn with_store(mcp: &str, store: Arc<dyn SessionStore>) -> Self {
        Self::start(LOOPBACK, "", mcp, |mcp| Gateway::new(mcp.into(), store))
    }

    /// A proxy as [`with`](Self::with), of the gateway that `gateway` makes.
    pub fn with_gateway(mcp: &str, gateway: impl FnOnce(pingora_mcp::Config) -> Gateway) -> Self {
        Self::start(LOOPBACK, "", mcp, gateway)
    }

    /// Tells backends of sessions that have ended without them, until what is returned is dropped.
    pub fn reap(&self, metrics: &Arc<Metrics>) -> watch::Sender<bool> {
        let (gateway, metrics) = (Arc::clone(&self.gateway), Arc::clone(metrics));
        let reaper = Reaper::new(&self.conf, gateway, Some(metrics)).unwrap();
        let (running, shutdown) = watch::channel(false);
        tokio::spawn(async move { reaper.start(shutdown).await });
        running
    }

    fn start(
        address: SocketAddr,
        keys: &str,
        mcp: &str,
        gateway: impl FnOnce(pingora_mcp::Config) -> Gateway,
    ) -> Self {
        let (address, fds) = listen(address);
        let yaml = format!("version: 1\nmcp:\n  listeners:\n    - address: {address}\n{keys}{mcp}");
        let settings = || Settings::parse("test.yaml", &yaml, HashMap::new()).unwrap();
        let Settings { server, mcp, .. } = settings();
        let listeners = mcp.listeners.clone();
        let (server, gateway) = (Arc::new(server), Arc::new(gateway(mcp)));
        let load = gateway.load().clone();
        let certificates = server::certificate_watch(&listeners, Arc::clone(&gateway));
        let (kept, conf) = (Arc::clone(&gateway), Arc::clone(&server));
        let mut service: Box<dyn Service> = match Mutation::from_environment() {
            Some(mutation) => mutant::service(&server, gateway, settings().mcp, mutation),
            None => Box::new(server::proxy_service(&server, gateway, &listeners)),
        };
        let (running, shutdown) = watch::channel(false);
        tokio::spawn(async move { service.start_service(Some(fds), shutdown, 1).await });
        Self {
            address: relay::in_front_of(address),
            load,
            gateway: kept,
            certificates,
            conf,
            _running: running,
        }
    }

    /// The URL of `path` at this proxy.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// A socket on `address`, to be handed over to a service as in an upgrade: it takes connections
/// from now on.
pub fn listen(address: SocketAddr) -> (SocketAddr, ListenFds) {
    let socket = std::net::TcpListener::bind(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    let mut fds = Fds::new();
    fds.add(address.to_string(), socket.into_raw_fd());
    (address, Arc::new(fds.into()))
}

/// The YAML of one route `/mcp` to `backends`.
pub fn route(backends: &[SocketAddr]) -> String {
    let mut yaml = String::from("  routes:\n    - path: /mcp\n      backends:\n");
    for (position, address) in backends.iter().enumerate() {
        yaml += &format!("        - name: b{position}\n          url: http://{address}/mcp\n");
    }
    yaml
}

/// A request as a backend saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    /// The value of a header that is there once.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// The value of a header. Panics where it is there more than once.
pub fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    assert!(values.next().is_none(), "{name} is there more than once");
    Some(value.to_str().unwrap())
}

/// A backend that answers as its test says and remembers what it was asked.
pub struct Backend {
    pub address: SocketAddr,
    serving: tokio::task::AbortHandle,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Backend {
    /// Answers each request, its body read, with what `answer` makes of it.
    pub async fn start(answer: impl Fn(Seen) -> Response + Clone + Send + Sync + 'static) -> Self {
        Self::listening_on(LOOPBACK, answer).await
    }

    /// The same on `address`.
    pub async fn listening_on(
        address: SocketAddr,
        answer: impl Fn(Seen) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let service = axum::Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let seen = Seen {
                method: parts.method,
                uri: parts.uri,
                headers: parts.headers,
                body: axum::body::to_bytes(body, usize::MAX).await.unwrap(),
            };
            log.lock().unwrap().push(seen.clone());
            answer(seen)
        });
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, service).await });
        Self {
            address,
            serving: serving.abort_handle(),
            seen,
        }
    }

    /// Takes no more connections, as if it had died.
    pub async fn stop(&self) {
        self.serving.abort();
        within("its end", async {
            while TcpStream::connect(self.address).await.is_ok() {}
        })
        .await;
    }

    /// A backend in the manner of the SDKs' servers: `initialize` opens a session of the id
    /// `id`, any request of that id gets 200, any other 404, and DELETE 200.
    pub async fn with_session(id: &'static str) -> Self {
        Self::at(LOOPBACK, id).await
    }

    /// The same on `address`.
    pub async fn at(address: SocketAddr, id: &'static str) -> Self {
        Self::listening_on(address, move |request: Seen| {
            if request
                .header("mcp-session-id")
                .is_some_and(|given| given != id)
            {
                return answer(404, &[], r#"{"jsonrpc":"2.0","error":{"code":-32001}}"#);
            }
            let headers = [("mcp-session-id", id), ("content-type", "application/json")];
            answer(200, &headers, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#)
        })
        .await
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The last request.
    pub fn last(&self) -> Seen {
        self.seen().pop().expect("the backend was asked")
    }
}

/// An answer of a backend's.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

/// A POST of `initialize` to `url`.
pub fn initialize(url: &str) -> reqwest::RequestBuilder {
    post(url).body(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#)
}

/// A POST as MCP clients send it.
pub fn post(url: &str) -> reqwest::RequestBuilder {
    reqwest::Client::new()
        .post(url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#)
}

/// Opens a session at `url` and returns the client's id of it.
pub async fn open_session(url: &str) -> String {
    let opened = initialize(url).send().await.unwrap();
    assert_eq!(opened.status(), 200);
    header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned()
}

/// Waits for what comes soon if the proxy does its part, and panics where it does not come. The
/// limit is generous: it only ends a test that would wait for ever, as many do under a mutation.
pub async fn within<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    let limit = match Mutation::from_environment() {
        Some(mutation) if mutation != Mutation::Nothing => Duration::from_secs(5),
        _ => Duration::from_secs(30),
    };
    let Ok(value) = tokio::time::timeout(limit, awaited).await else {
        panic!("it never came: {what}");
    };
    value
}

/// Waits until `is_so`, which nothing tells of.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    until_asked(what, async || is_so()).await;
}

/// As [`until`], where the answer takes a moment.
pub async fn until_asked(what: &str, is_so: impl AsyncFn() -> bool) {
    within(what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Sends a request of the session `id`.
pub async fn ask(url: &str, id: &str) -> reqwest::Response {
    post(url).header("mcp-session-id", id).send().await.unwrap()
}

/// Sends `request` as it is and returns all that comes back until the proxy closes.
pub async fn raw(proxy: SocketAddr, request: &str) -> String {
    let request = request.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    let mut answers = raw_in_turn(proxy, &[&request]).await;
    answers.remove(0)
}

/// Sends each request on one connection, once the answer to the one before has come. All answers
/// must have a `Content-Length`.
pub async fn raw_in_turn(proxy: SocketAddr, requests: &[&str]) -> Vec<String> {
    let mut stream = BufReader::new(TcpStream::connect(proxy).await.unwrap());
    let mut answers = Vec::new();
    for request in requests {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let mut length = 0;
        while !answer.ends_with("\r\n\r\n") {
            let from = answer.len();
            assert_ne!(
                stream.read_line(&mut answer).await.unwrap(),
                0,
                "closed: {answer}"
            );
            let line = answer[from..].to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        answer += std::str::from_utf8(&body).unwrap();
        answers.push(answer);
    }
    answers
}

/// An address where nothing listens, for whoever is told of it to do so. The system gives it to
/// nobody else for a minute, in no process, as a connection that was closed there waits (TIME_WAIT).
pub fn unused_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::net::TcpStream::connect(address).unwrap();
    let (closed_first, _) = listener.accept().unwrap();
    drop(closed_first);
    drop(client);
    address
}

pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A store that cannot be reached.
#[derive(Debug)]
pub struct Outage;

#[async_trait]
impl SessionStore for Outage {
    async fn insert(&self, _: ClientSessionId, _: Binding) -> Result<(), StoreError> {
        Err(StoreError)
    }

    fn find(&self, _: ClientSessionId) -> Find<'_> {
        Find::known(Err(StoreError))
    }

    async fn remove(&self, _: ClientSessionId) -> Result<(), StoreError> {
        Err(StoreError)
    }
}
