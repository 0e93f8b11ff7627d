//! Cross-origin access for browser clients: a policy that is valid by construction, closed by
//! default, and applied to every answer.
//!
//! A browser asks before it sends what MCP needs (Fetch, CORS protocol), reads only what is
//! exposed to it, and must be refused where its page's origin is not allowed (MCP 2025-11-25,
//! Transports, Security Warning).

use std::time::Duration;

use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use serde::{Deserialize, Deserializer};

use crate::host::{Reach, is_loopback};
use crate::mcp::ALLOWED_METHODS;
use crate::setting::{Period, Text, is_bare, parse};

/// Which pages may use this server, and what browsers are told about it.
#[derive(Clone, Debug)]
pub struct CorsPolicy {
    origins: Origins,
    credentials: bool,
    max_age: HeaderValue,
}

/// What the policy said of one request's `Origin`, kept for its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OriginGrant {
    /// The request has no `Origin`: it does not come from a page.
    #[default]
    NotAsked,
    /// The origin is allowed and named in the answer.
    Granted(HeaderValue),
    /// The origin is not allowed: the page must not read the refusal either.
    Denied,
}

impl CorsPolicy {
    /// Judges the request's `Origin`.
    pub fn judge(&self, headers: &HeaderMap, reach: Reach) -> OriginGrant {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else {
            return OriginGrant::NotAsked;
        };
        let is_allowed = origins.next().is_none()
            && match &self.origins {
                Origins::Loopback => reach == Reach::Loopback && is_loopback_origin(origin),
                Origins::Listed(listed) => listed.iter().any(|Origin(allowed)| allowed == origin),
                Origins::Any => true,
            };
        if is_allowed {
            OriginGrant::Granted(origin.clone())
        } else {
            OriginGrant::Denied
        }
    }

    /// Adds what every answer carries, whoever gave it.
    pub fn apply(&self, grant: &OriginGrant, answer: &mut HeaderMap) {
        let allowed_origin = match (&self.origins, grant) {
            (Origins::Any, OriginGrant::NotAsked | OriginGrant::Granted(_)) => {
                HeaderValue::from_static("*")
            }
            (Origins::Loopback | Origins::Listed(_), OriginGrant::Granted(origin)) => {
                answer.append(header::VARY, HeaderValue::from_static("Origin"));
                origin.clone()
            }
            (Origins::Loopback | Origins::Listed(_), OriginGrant::NotAsked)
            | (Origins::Loopback | Origins::Listed(_) | Origins::Any, OriginGrant::Denied) => {
                answer.append(header::VARY, HeaderValue::from_static("Origin"));
                return;
            }
        };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed_origin);
        let exposed = HeaderValue::from_static(EXPOSED_HEADERS);
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        if self.credentials {
            let credentials = HeaderValue::from_static("true");
            answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
        }
    }

    /// The answer to `OPTIONS`, but for what [`apply`](Self::apply) adds to every answer.
    ///
    /// # Errors
    /// Pingora refuses a header; it does not, as each is a constant or made of header names.
    pub fn preflight(&self, request: &HeaderMap) -> pingora_core::Result<ResponseHeader> {
        let mut answer = ResponseHeader::build_no_case(http::StatusCode::OK, Some(12))?;
        answer.insert_header(header::CONTENT_LENGTH, HeaderValue::from_static("0"))?;
        answer.insert_header(header::ALLOW, HeaderValue::from_static(ALLOWED_METHODS))?;
        answer.insert_header(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static(ALLOWED_METHODS),
        )?;
        answer.insert_header(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            allowed_headers(request),
        )?;
        answer.insert_header(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone())?;
        answer.insert_header(
            header::VARY,
            HeaderValue::from_static("Access-Control-Request-Headers"),
        )?;
        Ok(answer)
    }
}

impl Default for CorsPolicy {
    fn default() -> Self {
        Self::try_from(Section::default()).expect("the default section is valid")
    }
}

impl<'de> Deserialize<'de> for CorsPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Section, _, _>(deserializer)
    }
}

impl TryFrom<Section> for CorsPolicy {
    type Error = &'static str;

    fn try_from(section: Section) -> Result<Self, Self::Error> {
        let origins = section.origins.unwrap_or(Origins::Loopback);
        if section.credentials && matches!(origins, Origins::Any) {
            return Err(
                "'credentials: true' with '*' would let every page act as its visitor: \
                 expected a list of origins",
            );
        }
        Ok(Self {
            origins,
            credentials: section.credentials,
            max_age: HeaderValue::from(section.max_age.0.as_secs()),
        })
    }
}

/// `mcp.cors` in the configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Section {
    /// Origins whose pages may use the server, or `*` for all. Default: those on loopback, for
    /// clients that reach a loopback address.
    origins: Option<Origins>,
    /// Whether pages may send cookies and other credentials of the browser's.
    credentials: bool,
    /// How long a browser may remember a preflight's answer.
    max_age: Period,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            origins: None,
            credentials: false,
            max_age: Period(Duration::from_secs(2 * 60 * 60)),
        }
    }
}

#[derive(Clone, Debug)]
enum Origins {
    Loopback,
    Listed(Vec<Origin>),
    Any,
}

impl<'de> Deserialize<'de> for Origins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Vec<OriginEntry>, _, _>(deserializer)
    }
}

impl TryFrom<Vec<OriginEntry>> for Origins {
    type Error = &'static str;

    fn try_from(entries: Vec<OriginEntry>) -> Result<Self, Self::Error> {
        if let [OriginEntry::Any] = entries.as_slice() {
            return Ok(Self::Any);
        }
        let mut listed = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry {
                OriginEntry::One(origin) => listed.push(origin),
                OriginEntry::Any => return Err("'*' and more: expected '*' alone, or origins"),
            }
        }
        Ok(Self::Listed(listed))
    }
}

/// An entry of `origins`.
enum OriginEntry {
    Any,
    One(Origin),
}

impl<'de> Deserialize<'de> for OriginEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for OriginEntry {
    type Error = &'static str;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        match &*text.0 {
            "*" => Ok(Self::Any),
            _ => Origin::try_from(text).map(Self::One),
        }
    }
}

/// An origin as browsers write it (RFC 6454 6.2): lower case, the scheme's own port left out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin(HeaderValue);

impl TryFrom<Text> for Origin {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        let url = url::Url::parse(&text).map_err(|_| NOT_AN_ORIGIN)?;
        let origin = url.origin();
        let names_nothing_more =
            origin.is_tuple() && url.path().trim_end_matches('/').is_empty() && is_bare(&url);
        if !names_nothing_more {
            return Err(NOT_AN_ORIGIN);
        }
        HeaderValue::from_str(&origin.ascii_serialization())
            .map(Self)
            .map_err(|_| NOT_AN_ORIGIN)
    }
}

/// The request headers that MCP clients send, and any `Mcp-Param-*` that the browser asks for.
fn allowed_headers(request: &HeaderMap) -> HeaderValue {
    let mut allowed = String::from(REQUEST_HEADERS);
    for asked in request.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        let names = asked.to_str().unwrap_or_default().split(',').map(str::trim);
        for name in names {
            let is_parameter = name
                .get(..PARAMETER_PREFIX.len())
                .is_some_and(|prefix| prefix.eq_ignore_ascii_case(PARAMETER_PREFIX));
            if is_parameter && name.parse::<HeaderName>().is_ok() {
                allowed.push_str(", ");
                allowed.push_str(name);
            }
        }
    }
    HeaderValue::try_from(allowed).unwrap_or(HeaderValue::from_static(REQUEST_HEADERS))
}

fn is_loopback_origin(origin: &HeaderValue) -> bool {
    let origin = origin.as_bytes();
    let authority = origin.strip_prefix(b"http://");
    let authority = authority.or_else(|| origin.strip_prefix(b"https://"));
    let Some(Ok(authority)) = authority.map(Authority::try_from) else {
        return false;
    };
    let names_no_more = authority.port_u16().is_some() || authority.as_str() == authority.host();
    names_no_more && !authority.as_str().contains('@') && is_loopback(authority.host())
}

const NOT_AN_ORIGIN: &str =
    "not an origin: expected a scheme and a host, and a port if any, such as https://app.example";

const REQUEST_HEADERS: &str = "Content-Type, Accept, Authorization, Last-Event-ID, \
    Mcp-Session-Id, MCP-Protocol-Version, Mcp-Method, Mcp-Name";

/// Tools may name headers of their own for their parameters (MCP 2026-07-28, SEP-2243).
const PARAMETER_PREFIX: &str = "mcp-param-";

const EXPOSED_HEADERS: &str = "Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(origins: &[&str]) -> CorsPolicy {
        let section = Section {
            origins: Some(listed(origins).unwrap()),
            ..Section::default()
        };
        CorsPolicy::try_from(section).unwrap()
    }

    fn listed(origins: &[&str]) -> Result<Origins, &'static str> {
        let texts = origins.iter().map(|text| Text(text.to_string()));
        let entries: Result<Vec<_>, _> = texts.map(OriginEntry::try_from).collect();
        Origins::try_from(entries?)
    }

    fn judge(policy: &CorsPolicy, origin: &str, reach: Reach) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, origin.parse().unwrap());
        matches!(policy.judge(&headers, reach), OriginGrant::Granted(_))
    }

    #[test]
    fn by_default_loopback_pages_reach_loopback_only() {
        let policy = CorsPolicy::default();
        for origin in [
            "http://localhost",
            "http://127.0.0.1:6274",
            "https://[::1]:8443",
        ] {
            assert!(judge(&policy, origin, Reach::Loopback), "{origin}");
            assert!(!judge(&policy, origin, Reach::Network), "{origin}");
        }
        for origin in [
            "null",
            "http://localhost.attacker.example",
            "https://app.example",
            "file://localhost",
            "http://attacker.example#localhost",
            "http://localhost#attacker.example",
            "http://localhost/",
            "http://localhost?",
            "http://user@localhost:80",
            "http://localhost:port",
            "http://",
            "localhost",
        ] {
            assert!(!judge(&policy, origin, Reach::Loopback), "{origin}");
        }
    }

    #[test]
    fn listed_origins_compare_in_the_form_that_browsers_send() {
        let policy = policy(&["HTTPS://App.Example:443/", "http://localhost:6274"]);
        assert!(judge(&policy, "https://app.example", Reach::Network));
        assert!(judge(&policy, "http://localhost:6274", Reach::Network));
        assert!(!judge(&policy, "http://app.example", Reach::Network));
        assert!(!judge(&policy, "https://app.example:444", Reach::Network));
        assert!(
            !judge(&policy, "http://localhost", Reach::Loopback),
            "a list replaces the default"
        );
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "app.example",
            "https://app.example/mcp",
            "https://user@app.example",
            "null",
            "data:text/plain,x",
            "",
        ] {
            assert!(Origin::try_from(Text(text.to_string())).is_err(), "{text}");
        }
        assert!(listed(&["*", "https://app.example"]).is_err());
    }

    #[test]
    fn two_origins_in_one_request_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(header::ORIGIN, HeaderValue::from_static("http://localhost"));
        headers.append(header::ORIGIN, HeaderValue::from_static("http://localhost"));
        assert_eq!(
            CorsPolicy::default().judge(&headers, Reach::Loopback),
            OriginGrant::Denied
        );
    }

    /// `origin`, or it with one character changed, added or left out, or with more around it.
    fn near(origin: &'static str) -> impl Strategy<Value = String> {
        let position = 0..origin.len();
        prop_oneof![
            Just(origin.to_owned()),
            Just(origin.to_ascii_uppercase()),
            (position.clone(), "[ -~]").prop_map(move |(at, new)| {
                format!("{}{new}{}", &origin[..at], &origin[at + 1..])
            }),
            (position.clone(), "[ -~]")
                .prop_map(move |(at, new)| { format!("{}{new}{}", &origin[..at], &origin[at..]) }),
            position.prop_map(move |at| format!("{}{}", &origin[..at], &origin[at + 1..])),
            "[:./@#?a-z0-9]{1,9}".prop_map(move |more| format!("{origin}{more}")),
            "[:./@#?a-z0-9]{1,9}".prop_map(move |more| format!("{more}{origin}")),
        ]
    }

    fn asked_headers() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            "[Mm]cp-[Pp]aram-[ -~]{0,12}",
            "(Mcp-Name|authorization|x-evil|mcp-paramx|\\*)",
            "[ -~]{0,12}",
        ];
        proptest::collection::vec(name, 0..6).prop_map(|names| names.join(","))
    }

    proptest! {
        #[test]
        fn no_origin_off_the_list_gets_in(origin in near("https://app.example")) {
            let policy = policy(&["https://app.example"]);
            prop_assert_eq!(judge(&policy, &origin, Reach::Loopback), origin == "https://app.example");
        }

        #[test]
        fn a_preflight_never_allows_what_is_not_listed(asked in asked_headers()) {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, asked.parse().unwrap());
            let allowed = allowed_headers(&headers);
            for name in allowed.to_str().unwrap().split(", ") {
                let is_listed = REQUEST_HEADERS.split(", ").any(|listed| listed == name);
                prop_assert!(is_listed || name.to_ascii_lowercase().starts_with(PARAMETER_PREFIX));
            }
        }
    }
}
