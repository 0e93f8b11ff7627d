//! From a request's path to the route that serves it, and on to the backend's own path.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use http::Uri;
use http::uri::PathAndQuery;
use serde::{Deserialize, Deserializer, Serialize};

use crate::backend::{Backend, BackendSection, HealthSettings, Pool, Profile, Timeouts, look_up};
use crate::compatibility::Compatibility;
use crate::discovery::{PROTECTED_RESOURCE, PublicUrl, WellKnown};
use crate::metrics::Series;
use crate::policy::{MethodPolicy, Policy, ToolPolicy};
use crate::setting::{Entries, Entry, Most, MostBytes, Text, parse};
use crate::tls::BackendTls;

/// One MCP endpoint: a path that clients use, and the backends that serve it.
#[derive(Debug)]
pub struct Route {
    /// What clients call.
    pub path: RoutePath,
    /// Who answers.
    pub pool: Pool,
    /// Whose name backends see.
    pub host: HostHeader,
    /// The URL by which clients know it.
    pub public_url: Option<PublicUrl>,
    /// What clients may use. `None`: all, and no body is looked at.
    pub policy: Option<Policy>,
    /// What its backends are made up for.
    pub compatibility: Compatibility,
    /// How long its backends may be silent, and its streams live.
    pub timeouts: Timeouts,
    /// How much of it there may be.
    pub limits: RouteLimits,
    /// Whether a session has been opened here.
    opens_sessions: AtomicBool,
    /// Where its backends keep the protected resource's metadata, once one has said so.
    metadata: ArcSwapOption<Uri>,
    /// What is counted of requests that are at none of its backends.
    pub(crate) series: Arc<Series>,
}

/// `host` of a route: what backends get as `Host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HostHeader {
    /// The backend's own name, as its `url` says: what servers that check `Host` expect.
    #[default]
    Backend,
    /// The name that the client used.
    Client,
}

/// The path of a route: it begins with `/`, and ends with none unless it is all of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RoutePath(Arc<str>);

impl RoutePath {
    /// The path as it stands in the configuration.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows this path in `path`: empty, or more segments with their leading `/`. `None`
    /// where `path` is not this one or below it.
    fn rest_of<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.0.trim_end_matches('/'))?;
        match rest {
            "" => Some(""),
            "/" if &*self.0 == "/" => Some(""),
            // `a/../b` and its encoded forms would leave the backend's own path.
            _ if rest.starts_with('/') && !has_dot_segment(rest) => Some(rest),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for RoutePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl FromStr for RoutePath {
    type Err = &'static str;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        Self::try_from(Text(path.to_owned()))
    }
}

impl TryFrom<Text> for RoutePath {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        let is_plain = text
            .parse::<PathAndQuery>()
            .is_ok_and(|path| path.query().is_none());
        if !text.starts_with('/') || !is_plain || has_dot_segment(&text) {
            return Err("not a path: expected one that begins with '/', such as /mcp");
        }
        if text.len() > 1 && text.ends_with('/') {
            return Err(
                "ends with '/': expected the path without it, as everything below is included",
            );
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for RoutePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for RoutePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Route {
    /// Whether its backends give sessions, as far as is known: one has been opened here.
    pub fn opens_sessions(&self) -> bool {
        self.opens_sessions.load(Ordering::Relaxed)
    }

    /// Notes that its backends give sessions.
    pub(crate) fn note_session(&self) {
        self.opens_sessions.store(true, Ordering::Relaxed);
    }

    /// Notes where its backends keep the protected resource's metadata.
    pub(crate) fn note_metadata(&self, target: Uri) {
        self.metadata.store(Some(Arc::new(target)));
    }

    /// The URI of `uri` at `backend`: the backend's path in place of the route's, also where it
    /// follows a discovery path, but for metadata of which it is known where they are. `None` where
    /// the client's path is not this route's, or is too long.
    pub fn backend_uri(&self, uri: &Uri, backend: &Backend) -> Option<Uri> {
        let (document, endpoint) = match WellKnown::parse(uri.path()) {
            Some(WellKnown {
                document,
                endpoint: "",
            }) => return Uri::try_from(document).ok(),
            Some(WellKnown { document, endpoint }) => (document, endpoint),
            None => ("", uri.path()),
        };
        let rest = self.path.rest_of(endpoint)?;
        if let (PROTECTED_RESOURCE, "", Some(target)) = (document, rest, &*self.metadata.load()) {
            return Some(Uri::clone(target));
        }
        if rest.is_empty() && document.is_empty() && uri.query().is_none() {
            return Some(backend.uri().clone());
        }
        let base = match (document, rest) {
            ("", "") => backend.uri().path(),
            _ => backend.uri().path().trim_end_matches('/'),
        };
        let query = uri.query().map_or("", |_| "?");
        let target = format!(
            "{document}{base}{rest}{query}{}",
            uri.query().unwrap_or_default()
        );
        Uri::try_from(target).ok()
    }
}

/// All routes, most specific first.
#[derive(Debug, Deserialize)]
#[serde(from = "Entries<RouteSection>")]
pub struct RouteTable(Vec<Arc<Route>>);

impl RouteTable {
    /// The route with the longest path that is `path` or above it; for a discovery path, the
    /// route of the endpoint that it asks for.
    pub fn find(&self, path: &str) -> Option<&Arc<Route>> {
        match WellKnown::parse(path) {
            None => self.find_endpoint(path),
            // Of the whole server: clear only where one route is.
            Some(WellKnown { endpoint: "", .. }) => match self.0.as_slice() {
                [only] => Some(only),
                _ => self.find_endpoint("/"),
            },
            Some(WellKnown { endpoint, .. }) => self.find_endpoint(endpoint),
        }
    }

    fn find_endpoint(&self, path: &str) -> Option<&Arc<Route>> {
        self.0
            .iter()
            .find(|route| route.path.rest_of(path).is_some())
    }

    /// Looks the host names of all backends up, at the same time, and waits for as long as the system
    /// does. One that does not resolve is no mistake: programs start in any order.
    pub fn look_names_up(&mut self) {
        let names = self.0.iter().flat_map(|route| route.pool.host_names());
        let found = look_up(names.cloned().collect());
        for route in self.0.iter_mut().filter_map(Arc::get_mut) {
            route.pool.begin(&found);
        }
    }

    /// Goes on with what `former` knows of the backends of routes that both have.
    pub(crate) fn succeed(&mut self, former: &Self) {
        for route in &mut self.0 {
            let same = former.0.iter().find(|former| former.path == route.path);
            if let (Some(route), Some(former)) = (Arc::get_mut(route), same) {
                route.pool.succeed(&former.pool);
                route.opens_sessions = AtomicBool::new(former.opens_sessions());
                route.metadata = ArcSwapOption::new(former.metadata.load_full());
                route.series = Arc::clone(&former.series);
            }
        }
    }

    /// All of them, most specific first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.0.iter()
    }

    /// All backends of all routes that are connected to by TLS.
    pub(crate) fn backend_tls(&self) -> impl Iterator<Item = &BackendTls> {
        let entries = self.iter().flat_map(|route| route.pool.entries());
        entries.filter_map(|entry| entry.profile().tls())
    }
}

impl From<Entries<RouteSection>> for RouteTable {
    fn from(Entries(sections): Entries<RouteSection>) -> Self {
        let routes = sections.into_iter().map(|section| Arc::new(section.into()));
        let mut routes: Vec<Arc<Route>> = routes.collect();
        routes.sort_by_key(|route| std::cmp::Reverse(route.path.as_str().len()));
        Self(routes)
    }
}

/// An entry of `mcp.routes` in the configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteSection {
    /// What clients call; what is below belongs to it.
    path: RoutePath,
    /// The servers that answer.
    backends: Entries<BackendSection>,
    /// What backends get as `Host`.
    #[serde(default)]
    host: HostHeader,
    /// The URL by which clients know the endpoint.
    #[serde(default)]
    public_url: Option<PublicUrl>,
    /// Which JSON-RPC methods clients may use.
    #[serde(default)]
    methods: MethodPolicy,
    /// Which tools clients may call.
    #[serde(default)]
    tools: ToolPolicy,
    /// How long a backend may be silent.
    #[serde(default)]
    timeouts: Timeouts,
    /// What the servers are made up for.
    #[serde(default)]
    compatibility: Compatibility,
    /// How much of it there may be.
    #[serde(default)]
    limits: RouteLimits,
    /// When its backends are believed to be down.
    #[serde(default)]
    health: HealthSettings,
}

/// `limits` of a route in the configuration file.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteLimits {
    /// The longest body of a request.
    pub max_body: MostBytes,
    /// The most requests at a time at each backend, open streams included.
    pub max_requests_per_backend: Most,
}

impl Default for RouteLimits {
    /// Half as many requests as there may be connections, so that one backend that hangs does not
    /// take them all.
    fn default() -> Self {
        Self {
            max_body: MostBytes(Some(4 * 1024 * 1024)),
            max_requests_per_backend: Most(Some(4_000)),
        }
    }
}

impl Entry for RouteSection {
    const DUPLICATE: &'static str = "duplicate path: expected each once";

    fn is_same(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl From<RouteSection> for Route {
    fn from(section: RouteSection) -> Self {
        let Entries(backends) = section.backends;
        let (timeouts, limits) = (section.timeouts, section.limits);
        let most = limits.max_requests_per_backend;
        let health = Arc::new(section.health);
        let backends = backends.into_iter();
        let profiles =
            backends.map(|backend| Profile::new(backend, &timeouts, most, Arc::clone(&health)));
        Self {
            path: section.path,
            pool: Pool::new(profiles),
            host: section.host,
            public_url: section.public_url,
            policy: Policy::new(section.methods, section.tools),
            compatibility: section.compatibility,
            timeouts,
            limits,
            opens_sessions: AtomicBool::new(false),
            metadata: ArcSwapOption::empty(),
            series: Arc::default(),
        }
    }
}

/// Whether a segment is `.` or `..`, however a backend that decodes early may read it: dots and
/// slashes percent-encoded (RFC 3986 6.2.2), backslashes, and `..;` with parameters (RFC 2396 3.3).
fn has_dot_segment(path: &str) -> bool {
    if !path.contains(['.', '%']) {
        return false;
    }
    let decoded = path
        .to_ascii_lowercase()
        .replace("%2e", ".")
        .replace("%2f", "/")
        .replace("%5c", "/");
    decoded.split(['/', '\\']).any(|segment| {
        let name = segment.split(';').next().unwrap_or_default();
        matches!(name, "." | "..")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest_of<'p>(route: &str, path: &'p str) -> Option<&'p str> {
        RoutePath::try_from(Text(route.to_owned()))
            .unwrap()
            .rest_of(path)
    }

    #[test]
    fn a_route_is_its_path_and_what_is_below() {
        assert_eq!(rest_of("/mcp", "/mcp"), Some(""));
        assert_eq!(rest_of("/mcp", "/mcp/"), Some("/"));
        assert_eq!(rest_of("/mcp", "/mcp/a/b"), Some("/a/b"));
        assert_eq!(rest_of("/mcp", "/mcp2"), None);
        assert_eq!(rest_of("/mcp", "/"), None);
        assert_eq!(rest_of("/mcp", "/MCP"), None);
        assert_eq!(rest_of("/", "/"), Some(""));
        assert_eq!(rest_of("/", "/anything"), Some("/anything"));
    }

    #[test]
    fn dot_segments_do_not_leave_a_route() {
        for path in [
            "/mcp/../admin",
            "/mcp/.",
            "/mcp/%2e%2E/admin",
            "/mcp/.%2e",
            "/mcp/..\\x",
            "/mcp/..%2fadmin",
            "/mcp/x%2F..%2Fadmin",
            "/mcp/%5c..%5cadmin",
            "/mcp/..;x/admin",
        ] {
            assert_eq!(rest_of("/mcp", path), None, "{path}");
        }
        for path in ["/..a", "/a%2fb", "/%252e%252e/x", "/a..b/.c"] {
            assert_eq!(rest_of("/mcp", &format!("/mcp{path}")), Some(path));
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [
            "mcp",
            "",
            "/mcp/",
            "/mcp?x",
            "/a b",
            "/a/../b",
            "http://x/mcp",
        ] {
            assert!(
                RoutePath::try_from(Text(text.to_owned())).is_err(),
                "{text}"
            );
        }
    }
}
