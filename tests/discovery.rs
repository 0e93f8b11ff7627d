//! OAuth discovery through the proxy (RFC 9728; MCP 2025-11-25, Authorization).

mod support;

use http::Method;
use support::{Backend, Proxy, Seen, answer, header, post};

#[tokio::test]
async fn discovery_reaches_the_routes_backend() {
    let backend = Backend::start(metadata).await;
    let proxy = Proxy::with(&routes(&backend, ""));
    for (asked, expected) in [
        (
            "/.well-known/oauth-protected-resource/mcp",
            "/.well-known/oauth-protected-resource/api",
        ),
        (
            "/.well-known/oauth-protected-resource",
            "/.well-known/oauth-protected-resource",
        ),
        (
            "/.well-known/oauth-authorization-server/mcp",
            "/.well-known/oauth-authorization-server/api",
        ),
        (
            "/.well-known/openid-configuration/mcp/x?y",
            "/.well-known/openid-configuration/api/x?y",
        ),
        (
            "/mcp/.well-known/openid-configuration",
            "/api/.well-known/openid-configuration",
        ),
    ] {
        let answered = reqwest::get(proxy.url(asked)).await.unwrap();
        assert_eq!(answered.status(), 200, "{asked}");
        assert_eq!(answered.text().await.unwrap(), DOCUMENT);
        assert_eq!(backend.last().uri.to_string(), expected);
    }
}

#[tokio::test]
async fn a_discovery_path_of_no_route_is_404() {
    let backend = Backend::start(metadata).await;
    let proxy = Proxy::with(&routes(&backend, ""));
    for path in [
        "/.well-known/oauth-protected-resource/other",
        "/.well-known/oauth-protected-resources",
        "/.well-known/security.txt",
    ] {
        assert_eq!(
            reqwest::get(proxy.url(path)).await.unwrap().status(),
            404,
            "{path}"
        );
    }
    assert_eq!(backend.seen().len(), 0);
}

#[tokio::test]
async fn a_discovery_path_takes_get_and_preflights_only_and_opens_no_session() {
    let backend = Backend::start(|_| answer(200, &[("mcp-session-id", "stray")], "{}")).await;
    let proxy = Proxy::with(&routes(&backend, ""));
    let url = proxy.url("/.well-known/oauth-protected-resource/mcp");
    assert_eq!(post(&url).send().await.unwrap().status(), 405);
    let client = reqwest::Client::new();
    let preflight = client
        .request(Method::OPTIONS, &url)
        .header("origin", "http://localhost");
    let answered = preflight.send().await.unwrap();
    assert_eq!(answered.status(), 200);
    let origin = header(answered.headers(), "access-control-allow-origin");
    assert_eq!(origin, Some("http://localhost"));
    assert_eq!(backend.seen().len(), 0);

    let answered = client
        .get(&url)
        .header("mcp-session-id", "unknown")
        .send()
        .await
        .unwrap();
    assert_eq!(answered.status(), 200);
    assert_eq!(header(answered.headers(), "mcp-session-id"), None);
    assert_eq!(backend.last().header("mcp-session-id"), None);
}

#[tokio::test]
async fn the_document_names_the_public_url() {
    let backend = Backend::start(metadata).await;
    let proxy = Proxy::with(&routes(&backend, PUBLIC));
    let url = proxy.url("/.well-known/oauth-protected-resource/mcp");
    let request = reqwest::Client::new()
        .get(url)
        .header("accept-encoding", "gzip");
    let document = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(
        document,
        DOCUMENT.replacen("http://10.0.0.1:3000/api", "https://mcp.example/mcp", 1)
    );
    assert_eq!(backend.last().header("accept-encoding"), None);
}

#[tokio::test]
async fn what_is_no_small_document_passes_as_it_is() {
    let large = format!(
        "{{\"resource\":\"x\",\"large\":\"{}\"}}",
        "x".repeat(100_000)
    );
    let body = large.clone();
    let backend = Backend::start(move |_| answer(200, &[], body.clone())).await;
    let proxy = Proxy::with(&routes(&backend, PUBLIC));
    let url = proxy.url("/.well-known/oauth-protected-resource/mcp");
    assert_eq!(
        reqwest::get(url).await.unwrap().text().await.unwrap(),
        large
    );

    let backend = Backend::start(|_| answer(404, &[("content-type", "text/plain")], "none")).await;
    let proxy = Proxy::with(&routes(&backend, PUBLIC));
    let url = proxy.url("/.well-known/oauth-protected-resource/mcp");
    let answered = reqwest::get(url).await.unwrap();
    assert_eq!(answered.status(), 404);
    assert_eq!(answered.text().await.unwrap(), "none");
}

#[tokio::test]
async fn a_challenge_passes_and_names_the_public_url_where_there_is_one() {
    let challenge = "Bearer resource_metadata=\"http://10.0.0.1:3000/.well-known/x\", scope=\"a\"";
    let backend = Backend::start(move |_| {
        let headers = [
            ("www-authenticate", challenge),
            ("www-authenticate", "Basic"),
        ];
        answer(401, &headers, "")
    })
    .await;
    let proxy = Proxy::with(&routes(&backend, ""));
    let answered = post(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(answered.status(), 401);
    let challenges: Vec<_> = answered
        .headers()
        .get_all("www-authenticate")
        .iter()
        .collect();
    assert_eq!(challenges, [challenge, "Basic"]);

    let proxy = Proxy::with(&routes(&backend, PUBLIC));
    let answered = post(&proxy.url("/mcp")).send().await.unwrap();
    let challenges: Vec<_> = answered
        .headers()
        .get_all("www-authenticate")
        .iter()
        .collect();
    let public = "Bearer resource_metadata=\"https://mcp.example/.well-known/oauth-protected-resource/mcp\", scope=\"a\"";
    assert_eq!(challenges, [public, "Basic"]);
}

// RFC 9728 5.1: the challenge may name any URL.
#[tokio::test]
async fn metadata_are_asked_for_where_the_endpoints_challenge_said_that_they_are() {
    let backend = Backend::start(|seen| {
        let path = seen.uri.path();
        if path.starts_with("/api") {
            let challenge =
                format!("Bearer resource_metadata=\"http://10.0.0.1:3000/own{path}.json?a=b\"");
            return answer(401, &[("www-authenticate", &challenge)], "");
        }
        metadata(seen)
    })
    .await;
    let proxy = Proxy::with(&routes(&backend, PUBLIC));
    let asked = async || {
        let url = proxy.url("/.well-known/oauth-protected-resource/mcp");
        assert_eq!(reqwest::get(url).await.unwrap().status(), 200);
        backend.last().uri.to_string()
    };
    let usual = "/.well-known/oauth-protected-resource/api";
    assert_eq!(asked().await, usual);
    // What a client put into the path is nobody else's metadata.
    post(&proxy.url("/mcp/below")).send().await.unwrap();
    assert_eq!(asked().await, usual);
    post(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(asked().await, "/own/api.json?a=b");

    let other = proxy.url("/.well-known/oauth-authorization-server/mcp");
    reqwest::get(other).await.unwrap();
    let other = "/.well-known/oauth-authorization-server/api";
    assert_eq!(backend.last().uri.to_string(), other);
}

const DOCUMENT: &str = r#"{"resource":"http://10.0.0.1:3000/api","authorization_servers":["http://10.0.0.1:3000/api"]}"#;
const PUBLIC: &str = "      public_url: https://mcp.example/mcp\n";

fn metadata(_: Seen) -> axum::response::Response {
    answer(200, &[("content-type", "application/json")], DOCUMENT)
}

fn routes(backend: &Backend, more: &str) -> String {
    let address = backend.address;
    format!(
        "  routes:
    - path: /mcp
      backends:
        - {{ name: b, url: \"http://{address}/api\" }}
{more}"
    )
}
