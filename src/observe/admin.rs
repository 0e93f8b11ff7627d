//! The admin listener: health, metrics and status, for the operator alone, and one thing to do.
//!
//! It is never one of the addresses that clients use. Pages of other sites cannot read it: no answer
//! allows another origin, and a foreign `Host` (DNS rebinding) is refused. Nor can they have it do
//! anything: what changes something is refused where a browser says that another page asks.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, Uri, header};
use pingora_core::apps::ServerApp;
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::server::ShutdownWatch;
use prometheus::TEXT_FORMAT;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::Observer;
use super::status::Status;
use crate::gateway::Gateway;
use crate::headers::authority;
use crate::host::{HostPolicy, Reach};
use crate::limits::Bound;
use crate::session::{SessionSettings, StoreSettings};
use crate::setting::{Address, Most, parse};

/// `mcp.admin` in the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where the operator connects; `None`: nowhere.
    pub address: Option<SocketAddr>,
    /// Whether the address may be another than loopback.
    pub allow_network: bool,
    /// The names by which the operator may address it, beside loopback names and IP addresses.
    pub allowed_hosts: HostPolicy,
}

impl<'de> Deserialize<'de> for AdminSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<AdminSection, _, _>(deserializer)
    }
}

impl TryFrom<AdminSection> for AdminSettings {
    type Error = &'static str;

    fn try_from(section: AdminSection) -> Result<Self, Self::Error> {
        let address = section.address.map(|Address(address)| address);
        if address.is_some_and(|address| !address.ip().is_loopback()) && !section.allow_network {
            return Err("not a loopback address: expected one, or 'allow_network: true' beside it");
        }
        Ok(Self {
            address,
            allow_network: section.allow_network,
            allowed_hosts: section.allowed_hosts,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AdminSection {
    #[serde(default)]
    address: Option<Address>,
    #[serde(default)]
    allow_network: bool,
    #[serde(default)]
    allowed_hosts: HostPolicy,
}

/// Who can have the proxy go by its configuration file as it is now.
pub trait Reloads: Debug + Send + Sync {
    /// Reads the file and goes by it. Returns the keys whose change takes a restart.
    ///
    /// # Errors
    /// What is wrong with the file, without any value of it; then nothing has changed.
    fn reload(&self) -> Result<Vec<&'static str>, String>;
}

/// What the admin listener serves.
#[derive(Debug)]
pub struct Admin {
    hosts: HostPolicy,
    gateway: Arc<Gateway>,
    observer: Observer,
    sessions: SessionSettings,
    /// `None`: there is no file to read.
    reload: Option<Arc<dyn Reloads>>,
    /// Turns true when the process is to end.
    is_ending: watch::Receiver<bool>,
    started: Instant,
}

impl Admin {
    /// Shows `gateway` and what `observer` has counted, to who addresses it as `hosts` allow.
    /// `sessions` are the limits of the gateway's store. When `is_ending` turns true, new requests
    /// are to go elsewhere.
    pub fn new(
        hosts: HostPolicy,
        gateway: Arc<Gateway>,
        observer: Observer,
        sessions: SessionSettings,
        is_ending: watch::Receiver<bool>,
    ) -> Self {
        Self {
            hosts,
            gateway,
            observer,
            sessions,
            reload: None,
            is_ending,
            started: Instant::now(),
        }
    }

    /// Has `reload` read the configuration again when it is asked for.
    #[must_use]
    pub fn with_reload(self, reload: Arc<dyn Reloads>) -> Self {
        Self {
            reload: Some(reload),
            ..self
        }
    }

    /// Why the proxy is not to be sent requests. `None` where it is.
    fn unready(&self) -> Option<&'static str> {
        if *self.is_ending.borrow() {
            return Some("draining");
        }
        let StoreSettings::Redis(redis) = &self.sessions.store else {
            return None;
        };
        let is_away = redis.unready_when_away && !self.gateway.store().is_reached();
        is_away.then_some("store")
    }

    async fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Answer {
        let path = uri.path();
        if let ("/reload", Some(reload)) = (path, &self.reload) {
            return reloaded(method, headers, Arc::clone(reload)).await;
        }
        if method != Method::GET && method != Method::HEAD {
            return Answer::not_allowed("GET, HEAD");
        }
        match path {
            "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.unready() {
                None if self.gateway.store().is_reached() => {
                    Answer::text(StatusCode::OK, "ready\n")
                }
                None => Answer::text(StatusCode::OK, "ready, but the session store is away\n"),
                Some(reason) => {
                    Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
                }
            },
            "/metrics" => self.metrics().await,
            "/status" => self.status(wants_json(headers), uri.query()).await,
            _ => Answer::text(StatusCode::NOT_FOUND, PATHS),
        }
    }

    async fn metrics(&self) -> Answer {
        match self.observer.scrape(&self.gateway, &self.sessions).await {
            Ok(metrics) => Answer {
                content_type: TEXT_FORMAT,
                ..Answer::text(StatusCode::OK, metrics)
            },
            Err(error) => {
                log::error!("metrics cannot be written: {error}");
                Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "The log says more.\n")
            }
        }
    }

    async fn status(&self, wanted: Wanted, query: Option<&str>) -> Answer {
        let census = self.gateway.store().census().await;
        let uptime = self.started.elapsed();
        let status = Status::new(
            uptime,
            self.unready(),
            &self.gateway,
            census,
            &self.sessions,
        );
        match wanted {
            Wanted::Json => Answer {
                content_type: "application/json",
                ..Answer::text(StatusCode::OK, status.to_json())
            },
            Wanted::Html => Answer {
                content_type: "text/html; charset=utf-8",
                ..Answer::text(StatusCode::OK, status.to_html(query))
            },
        }
    }

    /// An address as `Host` is no name that was made to point here.
    fn is_addressed(&self, authority: Option<&str>) -> bool {
        let is_address = authority.is_some_and(|authority| {
            let parsed = authority.parse::<Authority>();
            parsed.is_ok_and(|authority| {
                let host = authority.host().trim_matches(['[', ']']);
                host.parse::<IpAddr>().is_ok()
            })
        });
        is_address || self.hosts.allows(authority, Reach::Loopback)
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        let answer = if self.is_addressed(authority(request)) {
            self.answer(&request.method, &request.uri, &request.headers)
                .await
        } else {
            let detail = "Not reached by this host name. 'mcp.admin.allowed_hosts' can add it.\n";
            Answer::text(StatusCode::FORBIDDEN, detail)
        };
        answer.into_response()
    }
}

/// [`Admin`] for so many connections that they leave clients their descriptors. One more is closed.
pub struct BoundedAdmin {
    admin: Arc<Admin>,
    connections: Arc<Bound>,
}

impl From<Admin> for BoundedAdmin {
    fn from(admin: Admin) -> Self {
        Self {
            admin: Arc::new(admin),
            connections: Arc::new(Bound::new(Most(Some(MOST_CONNECTIONS)))),
        }
    }
}

#[async_trait]
impl ServerApp for BoundedAdmin {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _held = self.connections.hold()?;
        self.admin.process_new(stream, shutdown).await
    }
}

/// In a thread of its own, as host names may be looked up: health is asked for meanwhile.
async fn reloaded(method: &Method, headers: &HeaderMap, reload: Arc<dyn Reloads>) -> Answer {
    if method != Method::POST {
        return Answer::not_allowed("POST");
    }
    if is_of_page(headers) {
        return Answer::text(StatusCode::FORBIDDEN, "Not for web pages.\n");
    }
    let (status, content_type, body) = match spawn_blocking(move || reload.reload()).await {
        Ok(Ok(kept)) => (
            StatusCode::OK,
            "application/json",
            json!({ "restart": kept }),
        ),
        Ok(Err(detail)) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let problem = json!({
                "type": "urn:pingora-mcp:problem:configuration",
                "title": "Configuration not reloaded",
                "status": status.as_u16(),
                "detail": detail,
            });
            (status, "application/problem+json", problem)
        }
        Err(error) => {
            log::error!("configuration not reloaded: {error}");
            return Answer::text(StatusCode::INTERNAL_SERVER_ERROR, "The log says more.\n");
        }
    };
    Answer {
        content_type,
        ..Answer::text(status, format!("{body}\n"))
    }
}

/// A page that posts is named in `Origin` by every browser, and in `Sec-Fetch-Site` by those of today
/// (Fetch Metadata 2.4).
fn is_of_page(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
    headers.contains_key(header::ORIGIN)
        || sites.any(|site| !["same-origin", "none"].iter().any(|own| site == own))
}

enum Wanted {
    Html,
    Json,
}

/// What a browser asks for names HTML; a program names JSON.
fn wants_json(headers: &HeaderMap) -> Wanted {
    let accepted = headers.get_all(header::ACCEPT);
    let is_json = accepted.into_iter().any(|accepted| {
        let accepted = accepted.to_str();
        accepted.is_ok_and(|accepted| accepted.contains("application/json"))
    });
    if is_json { Wanted::Json } else { Wanted::Html }
}

struct Answer {
    status: StatusCode,
    content_type: &'static str,
    /// The methods that are, where another was used.
    allow: Option<&'static str>,
    body: Vec<u8>,
}

impl Answer {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            allow: None,
            body: body.into().into_bytes(),
        }
    }

    fn not_allowed(allow: &'static str) -> Self {
        Self {
            allow: Some(allow),
            ..Self::text(StatusCode::METHOD_NOT_ALLOWED, format!("Use {allow}.\n"))
        }
    }

    fn into_response(self) -> Response<Vec<u8>> {
        let mut response = Response::builder()
            .status(self.status)
            .header(header::CONTENT_TYPE, self.content_type)
            .header(header::CONTENT_LENGTH, self.body.len())
            .header(header::CACHE_CONTROL, "no-store")
            .header(header::VARY, "Accept")
            .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
            .header(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY);
        if let Some(allow) = self.allow {
            response = response.header(header::ALLOW, allow);
        }
        response
            .body(self.body)
            .expect("each header is a constant or a number")
    }
}

/// Enough for those who watch, each of whom keeps one.
const MOST_CONNECTIONS: usize = 64;

const PATHS: &str = "Here are /healthz, /readyz, /metrics and /status, and POST /reload.\n";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The page's own style, and nothing from anywhere, within nobody's frame.
const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";
