//! Paths: a request goes to the most specific route, and stays below the path of its backend's URL.

use http::Uri;
use pingora_mcp::discovery::WellKnown;
use pingora_mcp::route::RouteTable;
use serde_json::json;
use url::Url;

use super::input::{head, text};

/// `input`: lines of a route's path and of its backend's path, then after an empty one a request's
/// target.
pub fn path(input: &[u8]) {
    let (lines, target) = head(input);
    let routes: Option<Vec<_>> = lines.iter().map(|line| route(line)).collect();
    let Some(routes) = routes else {
        return;
    };
    let Ok(table) = serde_json::from_value::<RouteTable>(json!(routes)) else {
        return;
    };
    let Ok(uri) = Uri::try_from(target) else {
        return;
    };
    let Some(route) = table.find(uri.path()) else {
        return;
    };
    let (document, endpoint) = match WellKnown::parse(uri.path()) {
        Some(WellKnown { document, endpoint }) => (document, endpoint),
        None => ("", uri.path()),
    };
    let mut paths = table.iter().map(|route| route.path.as_str());
    let longest = paths.find(|path| is_below(endpoint, path));
    assert!(
        endpoint.is_empty() || longest == Some(route.path.as_str()),
        "{endpoint} is of {longest:?}, and goes to {}",
        route.path
    );
    for backend in route.pool.iter() {
        let Some(sent) = route.backend_uri(&uri, &backend) else {
            // A URI is shorter than 64 KiB.
            assert!(target.len() > 32 * 1024);
            return;
        };
        assert_eq!(sent.query(), uri.query());
        assert!(sent.authority().is_none());
        match (document, endpoint) {
            ("", _) => assert_stays_below(&sent, backend.uri().path()),
            // The whole server's document is at no endpoint.
            (_, "") => assert_eq!(sent.path(), document),
            _ => assert_stays_below(&sent, &format!("{document}{}", backend.uri().path())),
        }
    }
}

fn route(line: &[u8]) -> Option<serde_json::Value> {
    let (path, backend) = text(line)?.split_once(' ')?;
    // An address, as a name would be looked up.
    let url = format!("http://127.0.0.1:3000/{}", backend.strip_prefix('/')?);
    Some(json!({ "path": path, "backends": [{ "name": "b", "url": url }] }))
}

/// Whoever reads `sent`: who takes it as it is, who resolves dots as browsers do, and who decodes
/// it first and drops parameters.
fn assert_stays_below(sent: &Uri, base: &str) {
    let path = sent.path();
    assert!(is_below(path, base), "{path} is not below {base}");
    let resolved = |path: &str| {
        let url = Url::parse("http://backend").and_then(|url| url.join(path));
        url.expect("a path is a URL's").path().to_owned()
    };
    // Two leading slashes would be a host.
    if !path.starts_with("//") && !base.starts_with("//") {
        let (path, base) = (resolved(path), resolved(base));
        assert!(is_below(&path, &base), "{path} is not below {base}");
    }
    let rest = &path[base.trim_end_matches('/').len()..];
    let decoded = decode(rest.as_bytes());
    let mut depth = 0;
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        let name = segment.split(|byte| *byte == b';').next();
        match name.unwrap_or_default() {
            b"" | b"." => {}
            b".." => depth -= 1,
            _ => depth += 1,
        }
        assert!(depth >= 0, "{path} leaves {base}");
    }
}

/// By whole segments.
fn is_below(path: &str, base: &str) -> bool {
    let rest = path.strip_prefix(base.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, escaped) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}
