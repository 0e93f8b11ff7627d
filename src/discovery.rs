//! OAuth discovery: which backend answers for a `/.well-known/` path, and the public URL in what
//! it says.
//!
//! A client that gets 401 looks for the protected resource's metadata at the server that it knows,
//! which is this proxy (RFC 9728 3; MCP 2025-11-25, Authorization). The metadata must name the URL
//! that the client used, but the backend knows only its own: a route's `public_url` is put in its
//! place.

use http::{HeaderValue, Uri};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use url::{Position, Url};

use crate::setting::{Text, is_bare, parse};

/// A discovery path, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WellKnown<'p> {
    /// Which document, such as `/.well-known/openid-configuration`.
    pub document: &'static str,
    /// The path of the endpoint that it is asked for; empty for the whole server.
    pub endpoint: &'p str,
}

impl<'p> WellKnown<'p> {
    /// Takes `path` apart. `None` where it is no discovery path.
    pub fn parse(path: &'p str) -> Option<Self> {
        DOCUMENTS.into_iter().find_map(|document| {
            let endpoint = path.strip_prefix(document)?;
            let is_whole = endpoint.is_empty() || endpoint.starts_with('/');
            is_whole.then_some(Self { document, endpoint })
        })
    }
}

/// The URL by which clients know a route: `public_url` in the configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    resource: String,
    metadata: String,
}

impl<'de> Deserialize<'de> for PublicUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl PublicUrl {
    /// The document with this URL as its `resource` (RFC 9728 3.3). `None` where it is no
    /// protected resource's metadata: then it passes as it is.
    pub fn rewrite_document(&self, document: &[u8]) -> Option<Vec<u8>> {
        let mut metadata: serde_json::Map<String, Value> = serde_json::from_slice(document).ok()?;
        *metadata.get_mut("resource")? = Value::String(self.resource.clone());
        serde_json::to_vec(&metadata).ok()
    }

    /// The challenge with the metadata's URL at this proxy in place of the backend's (RFC 9728
    /// 5.1). `None` where it names none.
    pub fn rewrite_challenge(&self, challenge: &HeaderValue) -> Option<HeaderValue> {
        let (before, _, after) = split_challenge(challenge)?;
        HeaderValue::try_from(format!("{before}{}{after}", self.metadata)).ok()
    }

    /// Where a backend's challenge says that it keeps its metadata, as the target of a request: that
    /// may be anywhere (RFC 9728 5.1). `None` where it does not say, or names this proxy.
    pub(crate) fn metadata_target(&self, challenge: &HeaderValue) -> Option<Uri> {
        let (_, url, _) = split_challenge(challenge)?;
        if url == self.metadata {
            return None;
        }
        let url = Url::parse(url).ok().filter(Url::has_host)?;
        Uri::try_from(&url[Position::BeforePath..Position::AfterQuery]).ok()
    }
}

/// What stands before the metadata's URL, the URL, and what stands after it.
fn split_challenge(challenge: &HeaderValue) -> Option<(&str, &str, &str)> {
    let text = challenge.to_str().ok()?;
    let start = text.find(METADATA_PARAMETER)? + METADATA_PARAMETER.len();
    let (before, rest) = text.split_at(start);
    let (url, after) = rest.split_at(rest.find('"')?);
    Some((before, url, after))
}

impl TryFrom<Text> for PublicUrl {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        const EXPECTED: &str =
            "not the URL of an endpoint: expected one such as https://mcp.example/mcp";
        let url = Url::parse(&text).map_err(|_| EXPECTED)?;
        if !matches!(url.scheme(), "http" | "https") || !is_bare(&url) {
            return Err(EXPECTED);
        }
        // RFC 8707 2, as MCP 2025-11-25 (Authorization, Canonical Server URI) reads it: no
        // trailing slash.
        let path = url.path().trim_end_matches('/');
        let origin = url.origin().ascii_serialization();
        // It would end the quotes of a challenge.
        if origin.contains('"') {
            return Err(EXPECTED);
        }
        Ok(Self {
            resource: format!("{origin}{path}"),
            metadata: format!("{origin}{PROTECTED_RESOURCE}{path}"),
        })
    }
}

/// RFC 9728 3.1.
pub(crate) const PROTECTED_RESOURCE: &str = "/.well-known/oauth-protected-resource";

/// Clients ask a server for these; the last two although they are an authorization server's, as
/// servers of 2025-03-26 were both.
const DOCUMENTS: [&str; 3] = [
    PROTECTED_RESOURCE,
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
];

const METADATA_PARAMETER: &str = "resource_metadata=\"";

#[cfg(test)]
mod tests {
    use super::*;

    fn public_url(text: &str) -> PublicUrl {
        PublicUrl::try_from(Text(text.to_owned())).unwrap()
    }

    #[test]
    fn discovery_paths_end_at_a_segment() {
        let parse = |path| WellKnown::parse(path).map(|found| found.endpoint);
        assert_eq!(parse("/.well-known/oauth-protected-resource"), Some(""));
        assert_eq!(
            parse("/.well-known/oauth-protected-resource/mcp"),
            Some("/mcp")
        );
        assert_eq!(parse("/.well-known/openid-configuration/a/b"), Some("/a/b"));
        assert_eq!(parse("/.well-known/oauth-protected-resources"), None);
        assert_eq!(parse("/.well-known/security.txt"), None);
        assert_eq!(parse("/mcp/.well-known/openid-configuration"), None);
    }

    #[test]
    fn only_the_resource_is_rewritten() {
        let document = br#"{"resource":"http://10.0.0.1:3000/mcp","authorization_servers":["http://10.0.0.1:3000/mcp"],"x":1}"#;
        let rewritten = public_url("HTTPS://MCP.example/mcp/").rewrite_document(document);
        assert_eq!(
            String::from_utf8(rewritten.unwrap()).unwrap(),
            r#"{"resource":"https://mcp.example/mcp","authorization_servers":["http://10.0.0.1:3000/mcp"],"x":1}"#
        );
    }

    #[test]
    fn what_is_no_metadata_passes() {
        let url = public_url("https://mcp.example/mcp");
        for document in ["", "not found", "[]", "{}", r#"{"error":"x"}"#] {
            assert_eq!(
                url.rewrite_document(document.as_bytes()),
                None,
                "{document}"
            );
        }
    }

    #[test]
    fn a_challenge_names_the_metadata_at_the_proxy() {
        let url = public_url("https://mcp.example/mcp");
        let challenge = HeaderValue::from_static(
            r#"Bearer error="invalid_token", resource_metadata="http://10.0.0.1/x", scope="a""#,
        );
        assert_eq!(
            url.rewrite_challenge(&challenge).unwrap(),
            r#"Bearer error="invalid_token", resource_metadata="https://mcp.example/.well-known/oauth-protected-resource/mcp", scope="a""#
        );
        assert_eq!(
            url.rewrite_challenge(&HeaderValue::from_static("Bearer")),
            None
        );
    }

    #[test]
    fn a_challenge_tells_where_the_backend_keeps_its_metadata() {
        let url = public_url("https://mcp.example/mcp");
        let target = |challenge| url.metadata_target(&HeaderValue::from_static(challenge));
        let own =
            target(r#"Bearer resource_metadata="http://10.0.0.1:3000/a/../b?c#d", scope="a""#);
        assert_eq!(own.unwrap(), "/b?c");
        for challenge in [
            "Bearer",
            r#"Bearer resource_metadata="/b""#,
            r#"Bearer resource_metadata="mailto:a@b.example""#,
            r#"Bearer resource_metadata="https://mcp.example/.well-known/oauth-protected-resource/mcp""#,
        ] {
            assert_eq!(target(challenge), None, "{challenge}");
        }
    }
}
