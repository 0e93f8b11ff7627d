//! The admin listener: health, metrics and status, for the operator alone.
//!
//! It is never one of the addresses that clients use. Pages of other sites cannot read it: no answer
//! allows another origin, and a foreign `Host` (DNS rebinding) is refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use http::uri::Authority;
use http::{HeaderMap, Method, Response, StatusCode, header};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use prometheus::TEXT_FORMAT;
use serde::{Deserialize, Deserializer};
use tokio::sync::watch;

use super::Observer;
use super::status::Status;
use crate::gateway::{Gateway, authority};
use crate::host::{HostPolicy, Reach};
use crate::session::SessionSettings;
use crate::setting::{Address, parse};

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

/// What the admin listener serves.
#[derive(Debug)]
pub struct Admin {
    hosts: HostPolicy,
    gateway: Arc<Gateway>,
    observer: Observer,
    sessions: SessionSettings,
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
            is_ending,
            started: Instant::now(),
        }
    }

    /// Why the proxy is not to be sent requests. `None` where it is.
    fn unready(&self) -> Option<&'static str> {
        self.is_ending.borrow().then_some("draining")
    }

    async fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Answer {
        if method != Method::GET && method != Method::HEAD {
            return Answer::text(StatusCode::METHOD_NOT_ALLOWED, "Use GET.\n");
        }
        match path {
            "/healthz" => Answer::text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.unready() {
                None => Answer::text(StatusCode::OK, "ready\n"),
                Some(reason) => {
                    Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
                }
            },
            "/metrics" => self.metrics().await,
            "/status" => self.status(wants_json(headers)).await,
            _ => Answer::text(StatusCode::NOT_FOUND, PATHS),
        }
    }

    async fn metrics(&self) -> Answer {
        match self.observer.scrape(&self.gateway).await {
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

    async fn status(&self, wanted: Wanted) -> Answer {
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
                ..Answer::text(StatusCode::OK, status.to_html())
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
            let path = request.uri.path();
            self.answer(&request.method, path, &request.headers).await
        } else {
            let detail = "Not reached by this host name. 'mcp.admin.allowed_hosts' can add it.\n";
            Answer::text(StatusCode::FORBIDDEN, detail)
        };
        answer.into_response()
    }
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
    body: Vec<u8>,
}

impl Answer {
    fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into().into_bytes(),
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
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response = response.header(header::ALLOW, "GET, HEAD");
        }
        response
            .body(self.body)
            .expect("each header is a constant or a number")
    }
}

const PATHS: &str = "Here are /healthz, /readyz, /metrics and /status.\n";

/// The page's own style, and nothing from anywhere, within nobody's frame.
const CONTENT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";
