//! An MCP server behind the proxy: where it is, what is added for it, how long it may take.

mod ending;
mod health;
mod names;
mod pool;
mod probe;
mod upload;
mod watched;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use pingora_core::protocols::TcpKeepalive;
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

pub use ending::{Ending, Ends};
pub(crate) use health::{Health, HealthSettings};
pub use names::Resolver;
pub(crate) use names::{HostName, SystemResolver, look_up};
pub use pool::{For, Lease, Pool};
pub(crate) use probe::Prober;
pub(crate) use upload::Upload;

use crate::compatibility::GetRefusal;
use crate::limits::Bound;
use crate::mcp::Call;
use crate::metrics::{Series, Standing};
use crate::setting::{Count, Entry, Limit, Most, Period, Text, is_bare, parse, refuse};
use crate::tls::{BackendTls, BackendTlsSection};

/// One MCP server of a route, at one address.
#[derive(Debug)]
pub struct Backend {
    name: BackendName,
    profile: Arc<Profile>,
    address: SocketAddr,
    peer: HttpPeer,
    /// Whether its host name still stands for its address.
    is_listed: AtomicBool,
    /// Requests that are at this backend now, open streams included.
    in_flight: Bound,
    /// Those of them that may open a session.
    opening: Arc<AtomicUsize>,
    pub(crate) health: Arc<Health>,
    /// Its last 405 to a GET, for routes that remember it.
    pub(crate) get_refusal: GetRefusal,
    /// What is counted of it, and of others of its host name.
    pub(crate) series: Arc<Series>,
}

/// What is configured of a backend: the same for each address of its host name.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) name: BackendName,
    url: BackendUrl,
    headers: Vec<(HeaderName, HeaderValue)>,
    tls: Option<BackendTls>,
    limits: Limits,
    connect: Duration,
    pool_idle: Duration,
    most: Most,
    weight: Count,
    drain: bool,
    resolve: Duration,
    health: Arc<HealthSettings>,
}

/// How long a backend may be silent, by method.
#[derive(Debug)]
struct Limits {
    get: Option<Duration>,
    post: Option<Duration>,
    delete: Option<Duration>,
}

impl Profile {
    pub(crate) fn new(
        section: BackendSection,
        timeouts: &Timeouts,
        most: Most,
        health: Arc<HealthSettings>,
    ) -> Self {
        Self {
            name: section.name,
            url: section.url,
            headers: section.headers.0,
            tls: section.tls,
            limits: Limits {
                get: timeouts.get.0,
                post: timeouts.post.0,
                delete: timeouts.delete.0,
            },
            connect: timeouts.connect.0,
            pool_idle: timeouts.pool_idle.0,
            most,
            weight: section.weight,
            drain: section.drain,
            resolve: section.resolve.0,
            health,
        }
    }

    pub(crate) fn tls(&self) -> Option<&BackendTls> {
        self.tls.as_ref()
    }

    /// What the backend at `address` is called. An address that is configured needs no mention.
    fn name_at(&self, address: SocketAddr) -> BackendName {
        match self.url.host_name {
            Some(_) => BackendName(format!("{}@{address}", self.name).into()),
            None => self.name.clone(),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.name, self.url)
    }
}

impl Backend {
    fn new(profile: &Arc<Profile>, address: SocketAddr, series: &Arc<Series>) -> Self {
        let name = profile.url.tls_name.clone();
        let mut peer = HttpPeer::new(address, name.is_some(), name.unwrap_or_default());
        peer.options.connection_timeout = Some(profile.connect);
        peer.options.idle_timeout = Some(profile.pool_idle);
        peer.options.tcp_keepalive = Some(tcp_keepalive());
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy {
            // `to_backend` does it, in a pass that it makes anyway: Pingora looks for each name.
            strip_hop_by_hop: false,
            ..HttpUpstreamRequestPolicy::deny_upgrades()
        };
        Self {
            name: profile.name_at(address),
            profile: Arc::clone(profile),
            address,
            peer,
            is_listed: AtomicBool::new(true),
            in_flight: Bound::new(profile.most),
            opening: Arc::default(),
            health: Arc::default(),
            get_refusal: GetRefusal::default(),
            series: Arc::clone(series),
        }
    }

    /// Its name, unique in its route, and what its sessions are bound to: with its address, where the
    /// configuration has a host name in its place.
    pub fn name(&self) -> &BackendName {
        &self.name
    }

    /// Its name as it stands in the configuration, which it may share with others.
    pub fn configured_name(&self) -> &str {
        self.profile.name.as_str()
    }

    /// Its URL, as it stands in the configuration.
    pub(crate) fn url(&self) -> impl fmt::Display {
        &self.profile.url
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The path of its MCP endpoint, as the target of a request.
    pub fn uri(&self) -> &Uri {
        &self.profile.url.target
    }

    /// `Host` as its URL says.
    pub fn host(&self) -> &HeaderValue {
        &self.profile.url.host
    }

    /// The headers that the configuration adds to every request to it.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.profile.headers
    }

    /// Its part of new sessions and requests, in proportion to the others'.
    pub(crate) fn weight(&self) -> u64 {
        self.profile.weight.0
    }

    /// Whether it takes what belongs to none of its sessions.
    pub(crate) fn is_draining(&self) -> bool {
        self.profile.drain || !self.is_listed()
    }

    /// Whether its host name still stands for its address.
    fn is_listed(&self) -> bool {
        self.is_listed.load(Ordering::Relaxed)
    }

    /// Whether it takes requests, for those who watch.
    pub(crate) fn standing(&self) -> Standing {
        if self.health.is_down() {
            Standing::Down
        } else if self.is_draining() {
            Standing::Draining
        } else {
            Standing::Up
        }
    }

    fn health_settings(&self) -> &HealthSettings {
        &self.profile.health
    }

    /// Which part of its share it gets now: all of it, unless it is new.
    pub(crate) fn share(&self) -> f64 {
        self.health.share(self.health_settings())
    }

    /// Whether its sessions are lost, as far as can be known from here: it has been down for
    /// `lost_after`, or is down and its host name no longer stands for its address.
    pub(crate) fn is_lost(&self, lost_after: Duration) -> bool {
        let down_for = self.health.down_for();
        down_for.is_some_and(|down_for| !self.is_listed() || down_for >= lost_after)
    }

    /// Whether a request of its own sessions may go to it: it is up, or this is the one that tries it.
    pub(crate) fn may_be_asked(&self) -> bool {
        !self.health.is_down() || self.is_tried_now()
    }

    /// Whether this request is the one that tries it, where it is down.
    fn is_tried_now(&self) -> bool {
        self.health
            .is_tried_now(self.health_settings(), self.profile.connect)
    }

    /// It could be connected to.
    pub(crate) fn connected(&self) {
        let turn = self.health.connected(self.health_settings());
        self.tell(turn, "it takes connections");
    }

    /// It could not be connected to.
    pub(crate) fn failed(&self) {
        let turn = self.health.failed(self.health_settings());
        self.tell(turn, "it takes no connections");
    }

    /// Whether it is to be probed now. Then [`probed`](Self::probed) must follow.
    pub(crate) fn is_probe_due(&self) -> bool {
        let settings = self.health_settings();
        settings.probe.is_on() && self.health.is_probe_due(settings)
    }

    /// What a probe came to.
    pub(crate) fn probed(&self, outcome: pingora_core::Result<()>) {
        let turn = self.health.probed(outcome.is_ok(), self.health_settings());
        match outcome {
            Ok(()) => self.tell(turn, "it answers probes"),
            Err(error) => self.tell(turn, error.etype().as_str()),
        }
    }

    fn tell(&self, turn: Option<health::Turn>, reason: &str) {
        match turn {
            Some(health::Turn::Down) => log::warn!("backend {self} is down: {reason}"),
            Some(health::Turn::Up) => log::info!("backend {self} is up: {reason}"),
            None => {}
        }
    }

    /// Whether a client has no say in the header `name`, in lower case: it frames the message, says
    /// what the request is, or is configured.
    pub(crate) fn is_reserved(&self, name: &str) -> bool {
        RESERVED_HEADERS.contains(&name)
            || STANDARD_HEADERS.contains(&name)
            || CLAIMS.contains(&name)
            || self
                .headers()
                .iter()
                .any(|(configured, _)| configured == name)
    }

    /// How many requests it is at now, open streams included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.held()
    }

    /// Where Pingora is to connect for `call`, and how long it may wait. As of
    /// [`Exchange::peer`](crate::Exchange::peer), hop-by-hop headers are not Pingora's to remove.
    pub fn peer(&self, call: Call) -> HttpPeer {
        let mut peer = self.peer.clone();
        let limits = &self.profile.limits;
        let limit = match call {
            Call::Post | Call::Discover => limits.post,
            Call::Get | Call::Listen => limits.get,
            Call::Delete => limits.delete,
        };
        peer.options.read_timeout = limit;
        peer.options.write_timeout = limit;
        if let Some(tls) = &self.profile.tls {
            tls.apply(&mut peer);
        }
        peer
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.name, self.profile.url)
    }
}

/// A silent peer that is gone is found within two minutes.
pub(crate) fn tcp_keepalive() -> TcpKeepalive {
    TcpKeepalive {
        idle: Duration::from_secs(60),
        interval: Duration::from_secs(15),
        count: 4,
        #[cfg(target_os = "linux")]
        user_timeout: Duration::ZERO,
    }
}

/// The name of a backend, unique in its route and stable across restarts: `alpha`, or
/// `alpha@10.0.0.3:3000` where a host name of the configuration stands for that address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BackendName(Arc<str>);

impl<'de> Deserialize<'de> for BackendName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl FromStr for BackendName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let Some((configured, address)) = name.split_once('@') else {
            return Self::try_from(Text(name.to_owned()));
        };
        Self::try_from(Text(configured.to_owned()))?;
        match address.parse::<SocketAddr>() {
            Ok(_) => Ok(Self(name.into())),
            Err(_) => Err("not an address after '@': expected an IP address and a port"),
        }
    }
}

impl TryFrom<Text> for BackendName {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > 63 || !text.bytes().all(is_plain) {
            return Err("not a name: expected 1 to 63 letters, digits, '-', '_' or '.'");
        }
        Ok(Self(text.into()))
    }
}

impl BackendName {
    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part of it that stands in the configuration.
    fn configured(&self) -> &str {
        self.0.split('@').next().unwrap_or_default()
    }
}

impl fmt::Debug for BackendName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// `timeouts` of a route in the configuration file.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// The longest that a connection to a backend may take to open.
    pub connect: Period,
    /// The longest silence of a backend on a GET stream.
    pub get: Limit,
    /// The longest silence of a backend on a POST, before its answer and within it.
    pub post: Limit,
    /// The longest silence of a backend on a DELETE.
    pub delete: Limit,
    /// How long an idle connection to a backend is kept for the next request. It must be below
    /// the time after which the backend closes it, or a request is lost in between.
    pub pool_idle: Period,
    /// How long a GET stream or a subscription may live.
    pub max_stream_age: Limit,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Period(Duration::from_secs(5)),
            get: Limit(None),
            post: Limit(Some(Duration::from_secs(60 * 60))),
            delete: Limit(Some(Duration::from_secs(10))),
            // Node and Uvicorn close after 5 s.
            pool_idle: Period(Duration::from_secs(3)),
            max_stream_age: Limit(None),
        }
    }
}

/// An entry of a route's `backends` whose keys fit together.
pub(crate) struct BackendSection {
    name: BackendName,
    url: BackendUrl,
    headers: Headers,
    tls: Option<BackendTls>,
    weight: Count,
    drain: bool,
    resolve: Period,
}

impl<'de> Deserialize<'de> for BackendSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<BackendKeys, _, _>(deserializer)
    }
}

impl TryFrom<BackendKeys> for BackendSection {
    type Error = String;

    fn try_from(keys: BackendKeys) -> Result<Self, String> {
        let tls = match (&keys.url.tls_name, keys.tls) {
            (Some(_), tls) => Some(BackendTls::try_from(tls.unwrap_or_default())?),
            (None, None) => None,
            (None, Some(_)) => return Err("'tls' with an http URL: expected https".to_owned()),
        };
        Ok(Self {
            name: keys.name,
            url: keys.url,
            headers: keys.headers,
            tls,
            weight: keys.weight,
            drain: keys.drain,
            resolve: keys.resolve,
        })
    }
}

/// An entry of a route's `backends` in the configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendKeys {
    /// What sessions are bound to.
    name: BackendName,
    /// Its MCP endpoint.
    url: BackendUrl,
    /// What each request to it gets, in place of the client's own.
    #[serde(default)]
    headers: Headers,
    /// Who vouches for it, and what it is shown, where its URL is https.
    #[serde(default)]
    tls: Option<BackendTlsSection>,
    /// Its part of new sessions and requests, in proportion to the others'.
    #[serde(default = "one")]
    weight: Count,
    /// Whether it gets nothing but what belongs to its sessions.
    #[serde(default)]
    drain: bool,
    /// How often the host name of its URL is looked up.
    #[serde(default = "resolve")]
    resolve: Period,
}

fn one() -> Count {
    Count(1)
}

fn resolve() -> Period {
    Period(Duration::from_secs(10))
}

impl Entry for BackendSection {
    const DUPLICATE: &'static str = "duplicate name: expected each once in a route";

    fn is_same(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The URL of an MCP endpoint.
#[derive(Debug)]
struct BackendUrl {
    /// The address that it names, where the host is no name.
    address: Option<SocketAddr>,
    /// Its host and port, where the host is a name.
    host_name: Option<HostName>,
    host: HeaderValue,
    target: Uri,
    /// The host, where the scheme is https: what the backend's certificate must be for.
    tls_name: Option<String>,
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.tls_name.as_ref().map_or("http", |_| "https");
        let host = self.host.to_str().unwrap_or_default();
        write!(formatter, "{scheme}://{host}{}", self.target)
    }
}

impl<'de> Deserialize<'de> for BackendUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for BackendUrl {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        const EXPECTED: &str =
            "not a URL of an MCP server: expected one such as http://127.0.0.1:3000/mcp";
        let url = Url::parse(&text).map_err(|_| EXPECTED)?;
        let is_plain = ["http", "https"].contains(&url.scheme()) && is_bare(&url);
        let (true, Some(host), Some(port)) =
            (is_plain, url.host_str(), url.port_or_known_default())
        else {
            return Err(EXPECTED);
        };
        if port == 0 {
            return Err("port zero: expected the port of an MCP server");
        }
        let name = host.trim_matches(['[', ']']).to_owned();
        let tls_name = (url.scheme() == "https").then_some(name);
        let host = match url.port() {
            Some(port) => HeaderValue::try_from(format!("{host}:{port}")),
            None => HeaderValue::try_from(host),
        };
        let (address, host_name) = match url.host() {
            Some(url::Host::Ipv4(ip)) => (Some(SocketAddr::from((ip, port))), None),
            Some(url::Host::Ipv6(ip)) => (Some(SocketAddr::from((ip, port))), None),
            Some(url::Host::Domain(name)) => (None, Some((name.to_owned(), port))),
            None => return Err(EXPECTED),
        };
        Ok(Self {
            address,
            host_name,
            host: host.map_err(|_| EXPECTED)?,
            target: Uri::try_from(url.path()).map_err(|_| EXPECTED)?,
            tls_name,
        })
    }
}

/// Headers to add, each name once, their values kept out of `Debug`.
#[derive(Debug, Default)]
struct Headers(Vec<(HeaderName, HeaderValue)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
        while let Some(ConfiguredName(name)) = map.next_key()? {
            if headers.iter().any(|(other, _)| *other == name) {
                return Err(refuse("duplicate header: expected each once, in any case"));
            }
            let ConfiguredValue(value) = map.next_value()?;
            headers.push((name, value));
        }
        Ok(Headers(headers))
    }
}

struct ConfiguredName(HeaderName);

impl<'de> Deserialize<'de> for ConfiguredName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for ConfiguredName {
    type Error = &'static str;

    fn try_from(Text(name): Text) -> Result<Self, Self::Error> {
        let Ok(name) = HeaderName::try_from(name) else {
            return Err("not a header name: expected letters, digits and '-'");
        };
        if RESERVED_HEADERS.contains(&name.as_str()) {
            return Err("set by the proxy: expected another header");
        }
        Ok(Self(name))
    }
}

struct ConfiguredValue(HeaderValue);

impl<'de> Deserialize<'de> for ConfiguredValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for ConfiguredValue {
    type Error = &'static str;

    fn try_from(Text(value): Text) -> Result<Self, Self::Error> {
        let Ok(mut value) = HeaderValue::try_from(value) else {
            return Err("not a header's value: expected one line without control characters");
        };
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

/// What proxies say of a client beside `X-Forwarded-For`, `-Host` and `-Proto`. From a client it is
/// a claim that nobody has checked.
pub(crate) const CLAIMS: [&str; 5] = [
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-real-ip",
];

/// What requests are told apart by (MCP 2026-07-28, Standard Request Headers).
const STANDARD_HEADERS: [&str; 3] = ["mcp-method", "mcp-name", "mcp-protocol-version"];

/// What frames a message, names a session or says who asked: the proxy sets these itself.
const RESERVED_HEADERS: [&str; 13] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "mcp-session-id",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];
