//! Who may come in: what is let in is what is configured, as a browser reads it.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ORIGIN,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora_mcp::cors::{CorsPolicy, OriginGrant};
use pingora_mcp::host::{HostPolicy, Reach};
use serde_json::json;
use url::{Host, Url};

use super::input::{first_line, headers, text};

/// `input`: the configured origins, with spaces between them, `credentials` among them where that is
/// true, or nothing for the default; then the headers of a request.
pub fn origin(input: &[u8]) {
    let (configured, request) = first_line(input);
    let Some(configured) = text(configured) else {
        return;
    };
    let (flags, origins): (Vec<_>, Vec<_>) = configured
        .split_ascii_whitespace()
        .partition(|word| *word == "credentials");
    let mut section = json!({ "credentials": !flags.is_empty() });
    if !origins.is_empty() {
        section["origins"] = json!(origins);
    }
    let Ok(policy) = serde_json::from_value::<CorsPolicy>(section) else {
        return;
    };
    let lines: Vec<_> = request.split(|byte| *byte == b'\n').collect();
    let request = headers(&lines);
    for reach in [Reach::Loopback, Reach::Network] {
        let grant = policy.judge(&request, reach);
        check_grant(&grant, &origins, &request, reach);
        let answer = policy.preflight(&request).expect("no header is refused");
        let mut answer = answer.headers.clone();
        policy.apply(&grant, &mut answer);
        check_answer(&answer, &grant, &origins, !flags.is_empty());
    }
}

/// `input`: the configured names, with spaces between them; then a `Host`.
pub fn host(input: &[u8]) {
    let (configured, authority) = first_line(input);
    let (Some(configured), Some(authority)) = (text(configured), text(authority)) else {
        return;
    };
    let names: Vec<_> = configured.split_ascii_whitespace().collect();
    let Ok(policy) = serde_json::from_value::<HostPolicy>(json!(names)) else {
        return;
    };
    for reach in [Reach::Loopback, Reach::Network] {
        assert!(policy.allows(None, reach));
        let is_open = names.is_empty() && reach == Reach::Network;
        if is_open || !policy.allows(Some(authority), reach) {
            assert!(!is_open || policy.allows(Some(authority), reach));
            continue;
        }
        // A browser names in `Host` what it has parsed.
        let Some(asked) = browser_host(&format!("http://{authority}/")) else {
            continue;
        };
        let mut listed = names.iter();
        assert!(
            (reach == Reach::Loopback && is_loopback(&asked))
                || listed
                    .any(|name| browser_host(&format!("http://{name}/")) == Some(asked.clone())),
            "{authority} is let in as {asked}"
        );
    }
}

fn check_grant(grant: &OriginGrant, origins: &[&str], request: &HeaderMap, reach: Reach) {
    let asked: Vec<_> = request.get_all(ORIGIN).iter().collect();
    let OriginGrant::Granted(origin) = grant else {
        assert_eq!(*grant == OriginGrant::NotAsked, asked.is_empty());
        return;
    };
    assert_eq!(asked, [origin]);
    if origins == ["*"] {
        return;
    }
    let page = origin.to_str().expect("an origin is text");
    if origins.is_empty() {
        assert_eq!(reach, Reach::Loopback);
        let (_, authority) = page.split_once("://").expect("a scheme");
        assert!(!authority.contains(['/', '?', '#', '@']), "{page}");
        let host = browser_host(page);
        assert!(host.is_some_and(|host| is_loopback(&host)), "{page}");
    } else {
        let is_configured = |origin: &&str| {
            let url = Url::parse(origin).expect("what is configured is a URL");
            url.origin().ascii_serialization() == page
        };
        assert!(origins.iter().any(is_configured), "{page}");
    }
}

fn check_answer(answer: &HeaderMap, grant: &OriginGrant, origins: &[&str], has_credentials: bool) {
    let values = |name: HeaderName| answer.get_all(name).iter().collect::<Vec<_>>();
    let any = HeaderValue::from_static("*");
    let allowed = match grant {
        OriginGrant::NotAsked | OriginGrant::Granted(_) if origins == ["*"] => vec![&any],
        OriginGrant::Granted(origin) => vec![origin],
        _ => vec![],
    };
    assert_eq!(values(ACCESS_CONTROL_ALLOW_ORIGIN), allowed);
    let is_with_credentials = !values(ACCESS_CONTROL_ALLOW_CREDENTIALS).is_empty();
    assert_eq!(is_with_credentials, has_credentials && !allowed.is_empty());
    assert!(!is_with_credentials || allowed != [&any]);
    let names = answer[ACCESS_CONTROL_ALLOW_HEADERS].to_str();
    for name in names.expect("names are text").split(", ") {
        let name = HeaderName::try_from(name).expect("a name").to_string();
        assert!(
            name.starts_with("mcp-param-") || REQUEST_HEADERS.contains(&name.as_str()),
            "{name}"
        );
    }
}

fn browser_host(url: &str) -> Option<Host> {
    let url = Url::parse(url).ok()?;
    Some(url.host()?.to_owned())
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
    }
}

/// What MCP's clients send.
const REQUEST_HEADERS: [&str; 8] = [
    "accept",
    "authorization",
    "content-type",
    "last-event-id",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
];
