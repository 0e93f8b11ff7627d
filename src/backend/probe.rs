//! Probes: how a backend is asked whether it lives.

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use pingora::http::RequestHeader;
use pingora_core::connectors::ConnectorOptions;
use pingora_core::connectors::http::v1::Connector;
use pingora_core::server::configuration::ServerConf;
use pingora_core::{Error, ErrorType, Result};
use serde::{Deserialize, Deserializer};
use tokio::net::TcpStream;

use super::Backend;
use crate::mcp::Call;
use crate::mcp::header::MCP_SESSION_ID;
use crate::setting::{Count, Period, Text, parse, refuse};

/// `probe` of a route's `health` in the configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ProbeSettings {
    /// What is asked.
    kind: Kind,
    /// From the end of one probe to the next; of a backend that is down, `max_backoff` at the most.
    pub(super) interval: Period,
    /// The longest that one may take.
    timeout: Period,
    /// How many in a row must succeed before a backend that is down is up.
    pub(super) healthy: Count,
    /// How many in a row must fail before one that is up is down.
    pub(super) unhealthy: Count,
    /// Of the request, with `http`.
    method: ProbeMethod,
    /// The same; `None` is that of the backend's URL.
    path: Option<ProbePath>,
    /// The same: what it must answer; `None` is [`lives`].
    statuses: Option<Vec<Status>>,
}

impl Default for ProbeSettings {
    fn default() -> Self {
        Self {
            kind: Kind::None,
            interval: Period(Duration::from_secs(10)),
            timeout: Period(Duration::from_secs(2)),
            healthy: Count(1),
            unhealthy: Count(3),
            method: ProbeMethod::Get,
            path: None,
            statuses: None,
        }
    }
}

impl ProbeSettings {
    /// Whether there are probes.
    pub(super) fn is_on(&self) -> bool {
        self.kind != Kind::None
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    None,
    Tcp,
    Http,
    Mcp,
}

/// Those that change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum ProbeMethod {
    Get,
    Head,
    Options,
}

impl From<ProbeMethod> for Method {
    fn from(method: ProbeMethod) -> Self {
        match method {
            ProbeMethod::Get => Self::GET,
            ProbeMethod::Head => Self::HEAD,
            ProbeMethod::Options => Self::OPTIONS,
        }
    }
}

/// A path, and a query if there is one.
#[derive(Clone, Debug)]
struct ProbePath(http::uri::PathAndQuery);

impl<'de> Deserialize<'de> for ProbePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for ProbePath {
    type Error = &'static str;

    fn try_from(Text(path): Text) -> std::result::Result<Self, Self::Error> {
        match path.parse() {
            Ok(target) if path.starts_with('/') => Ok(Self(target)),
            _ => Err("not a path: expected one that begins with '/', such as /healthz"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status(StatusCode);

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let status = u64::deserialize(deserializer)?;
        let status = u16::try_from(status).ok();
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        let is_final = |status: &StatusCode| (200..600).contains(&status.as_u16());
        match status.filter(is_final) {
            Some(status) => Ok(Self(status)),
            None => Err(refuse("not a status: expected one from 200 to 599")),
        }
    }
}

/// Sends probes.
pub(crate) struct Prober(Connector);

impl Prober {
    /// One whose connections are as those of requests.
    pub(crate) fn new(conf: &ServerConf) -> Self {
        let options = ConnectorOptions::from_server_conf(conf);
        Self(Connector::new(Some(options)))
    }

    /// Whether `backend` lives, as its route's configuration has it asked; without probes, whether it
    /// can be connected to.
    ///
    /// # Errors
    /// It does not, and why.
    pub(crate) async fn probe(&self, backend: &Backend) -> Result<()> {
        let settings = &backend.health_settings().probe;
        let probe = async {
            match settings.kind {
                Kind::None | Kind::Tcp => connect(backend).await,
                Kind::Http | Kind::Mcp => self.ask(backend, settings).await,
            }
        };
        match tokio::time::timeout(settings.timeout.0, probe).await {
            Ok(outcome) => outcome,
            Err(_) => Error::e_explain(ErrorType::ConnectTimedout, "no answer in time"),
        }
    }

    async fn ask(&self, backend: &Backend, settings: &ProbeSettings) -> Result<()> {
        // Not one that is used again: a server may be full, and live on with what it has.
        let (mut session, _) = self.0.get_http_session(&backend.peer(Call::Get)).await?;
        let request = request(backend, settings)?;
        session.write_request_header(Box::new(request)).await?;
        // Interim answers are none.
        loop {
            session.read_response().await?;
            let status = session.get_status();
            let Some(status) = status.filter(|status| !status.is_informational()) else {
                continue;
            };
            let is_accepted = match (settings.kind, &settings.statuses) {
                (Kind::Http, Some(statuses)) => statuses.contains(&Status(status)),
                _ => lives(status),
            };
            return match is_accepted {
                true => Ok(()),
                false => Error::e_explain(ErrorType::HTTPStatus(status.as_u16()), "of a probe"),
            };
        }
    }
}

/// Connects, and no more.
async fn connect(backend: &Backend) -> Result<()> {
    match TcpStream::connect(backend.address()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::because(ErrorType::ConnectError, "a probe", error)),
    }
}

/// The MCP probe is a GET of a session that does not exist, by a client that takes no stream: a
/// server answers 404, 400, 405 or 406, and has opened neither a session nor a stream. Without an id,
/// the Python SDK opens one for whatever comes.
fn request(backend: &Backend, settings: &ProbeSettings) -> Result<RequestHeader> {
    let (method, target) = match (settings.kind, &settings.path) {
        (Kind::Http, Some(ProbePath(path))) => (settings.method.into(), path.as_str()),
        (Kind::Http, None) => (settings.method.into(), backend.uri().path()),
        _ => (Method::GET, backend.uri().path()),
    };
    let mut request = RequestHeader::build(method, target.as_bytes(), None)?;
    request.insert_header(header::HOST, backend.host().clone())?;
    request.insert_header(header::CONNECTION, HeaderValue::from_static("close"))?;
    request.insert_header(header::USER_AGENT, HeaderValue::from_static(USER_AGENT))?;
    if settings.kind == Kind::Mcp {
        let json = HeaderValue::from_static("application/json");
        request.insert_header(header::ACCEPT, json)?;
        request.insert_header(MCP_SESSION_ID, HeaderValue::from_static(NO_SESSION))?;
    }
    for (name, value) in backend.headers() {
        request.insert_header(name.clone(), value.clone())?;
    }
    Ok(request)
}

/// What MCP servers answer to what they do not want is an answer.
fn lives(status: StatusCode) -> bool {
    status.is_success() || matches!(status.as_u16(), 400 | 401 | 404 | 405 | 406)
}

const NO_SESSION: &str = "pingora-mcp-probe";

const USER_AGENT: &str = concat!("pingora-mcp/", env!("CARGO_PKG_VERSION"));
