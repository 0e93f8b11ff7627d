//! What each side sees of the other's headers: hygiene, forwarding, CORS.

mod support;

use http::Method;
use pingora_mcp::host::Reach;
use pingora_mcp::mcp::Era;
use pingora_mcp::{Connection, Exchange, Rejection, Settings, server};
use support::{Backend, Proxy, answer, header, initialize, open_session, post, route};

#[tokio::test]
async fn the_backend_sees_its_own_host_and_who_asked() {
    let (backend, proxy) = one_backend("").await;
    let request = post(&proxy.url("/mcp"))
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "attacker.example")
        .header("forwarded", "for=203.0.113.7")
        .header("x-real-ip", "203.0.113.7")
        .header("x-forwarded-port", "443");
    request.send().await.unwrap();
    let seen = backend.last();
    assert_eq!(seen.header("host"), Some(&*backend.address.to_string()));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(
        seen.header("x-forwarded-host"),
        Some(&*proxy.address.to_string())
    );
    for claim in ["forwarded", "x-real-ip", "x-forwarded-port"] {
        assert_eq!(seen.header(claim), None, "{claim}");
    }
}

#[tokio::test]
async fn host_client_keeps_the_clients_host() {
    let (backend, proxy) = one_backend("      host: client\n").await;
    post(&proxy.url("/mcp"))
        .header("host", "localhost:4711")
        .send()
        .await
        .unwrap();
    assert_eq!(backend.last().header("host"), Some("localhost:4711"));
}

#[tokio::test]
async fn hop_by_hop_headers_stop_here_on_the_way_in() {
    let (backend, proxy) = one_backend("").await;
    let request = post(&proxy.url("/mcp"))
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .header("te", "trailers")
        .header("keep-alive", "timeout=9")
        .header("proxy-authorization", "Basic c2VjcmV0")
        .header("proxy-authenticate", "Basic")
        .header("proxy-connection", "keep-alive")
        .header("trailer", "x-checksum")
        .header("http2-settings", "AAMAAABk")
        .header("upgrade", "websocket");
    request.send().await.unwrap();
    let seen = backend.last();
    for name in [
        "connection",
        "x-hop",
        "te",
        "keep-alive",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy-connection",
        "trailer",
        "http2-settings",
        "upgrade",
    ] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn hop_by_hop_headers_and_the_servers_name_stop_here_on_the_way_out() {
    let backend = Backend::start(|_| {
        let headers = [
            ("connection", "x-hop, Content-Length"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("server", "SecretServer/1.0"),
            ("proxy-connection", "keep-alive"),
            ("x-other", "passes"),
        ];
        answer(200, &headers, "body")
    })
    .await;
    let proxy = Proxy::to(&[backend.address]);
    let answered = post(&proxy.url("/mcp")).send().await.unwrap();
    for name in ["x-hop", "keep-alive", "server", "proxy-connection"] {
        assert_eq!(header(answered.headers(), name), None, "{name}");
    }
    assert_eq!(header(answered.headers(), "x-other"), Some("passes"));
    assert_eq!(answered.text().await.unwrap(), "body");
}

// MCP 2026-07-28, Streamable HTTP, Request Headers: the values are compared with the body, and so
// must arrive as they were sent. RFC 9110 5.1: what nobody knows is forwarded.
#[tokio::test]
async fn what_the_protocol_names_and_what_nobody_knows_passes_as_it_is() {
    let (backend, proxy) = one_backend("").await;
    let headers = [
        ("authorization", "Bearer token"),
        ("mcp-protocol-version", "2025-06-18"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "=?base64?w6k=?="),
        ("mcp-param-region", "  two  words"),
        ("last-event-id", "7"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("tracestate", "vendor=1"),
        ("baggage", "a=b"),
        ("x-unknown", "value"),
        ("origin", "http://localhost:6274"),
    ];
    let mut request = post(&proxy.url("/mcp"));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.send().await.unwrap();
    let seen = backend.last();
    for (name, value) in headers {
        assert_eq!(seen.header(name), Some(value.trim_start()), "{name}");
    }
}

// MCP 2025-06-18, Transports, Protocol Version Header: none means 2025-03-26, or `initialize`.
#[tokio::test]
async fn no_version_is_invented() {
    let (backend, proxy) = one_backend("").await;
    initialize(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(backend.last().header("mcp-protocol-version"), None);
}

#[tokio::test]
async fn configured_headers_are_added_to_every_request_and_win() {
    let headers = "          headers: { Authorization: Bearer ours, X-Added: yes indeed }\n";
    let (backend, proxy) = one_backend(headers).await;
    let id = open_session(&proxy.url("/mcp")).await;
    let request = post(&proxy.url("/mcp")).header("mcp-session-id", &id);
    request
        .header("authorization", "Bearer theirs")
        .send()
        .await
        .unwrap();
    for seen in backend.seen() {
        assert_eq!(seen.header("authorization"), Some("Bearer ours"));
        assert_eq!(seen.header("x-added"), Some("yes indeed"));
    }
}

// MCP 2025-11-25, Transports, Sending Messages 2.
#[tokio::test]
async fn a_post_that_accepts_anything_accepts_what_mcp_servers_insist_on() {
    let (backend, proxy) = one_backend("").await;
    for (sent, expected) in [
        (None, "application/json, text/event-stream"),
        (Some("*/*"), "application/json, text/event-stream"),
        (Some("application/json"), "application/json"),
        (Some("text/event-stream, */*"), "text/event-stream, */*"),
    ] {
        let accept = sent
            .map(|accept| format!("Accept: {accept}\r\n"))
            .unwrap_or_default();
        let request = format!("POST /mcp HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n");
        support::raw(proxy.address, &request).await;
        assert_eq!(backend.last().header("accept"), Some(expected));
    }
}

// Fetch, CORS protocol.
#[tokio::test]
async fn every_answer_to_an_allowed_page_can_be_read_by_it() {
    let (_backend, proxy) = one_backend("").await;
    let dead = Proxy::with(&route(&["127.0.0.1:1".parse().unwrap()]));
    let origin = "http://localhost:6274";
    let cases = [
        (proxy.url("/mcp"), Method::POST, 200),
        (proxy.url("/mcp"), Method::OPTIONS, 200),
        (proxy.url("/mcp"), Method::GET, 400),
        (proxy.url("/mcp"), Method::DELETE, 400),
        (proxy.url("/mcp"), Method::PUT, 405),
        (proxy.url("/other"), Method::POST, 404),
        (dead.url("/mcp"), Method::POST, 502),
    ];
    for (url, method, status) in cases {
        let request = reqwest::Client::new().request(method.clone(), &url);
        let answered = request.header("origin", origin).send().await.unwrap();
        assert_eq!(answered.status(), status, "{method} {url}");
        let headers = answered.headers();
        assert_eq!(
            header(headers, "access-control-allow-origin"),
            Some(origin),
            "{method}"
        );
        let exposed = "Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, Retry-After";
        assert_eq!(
            header(headers, "access-control-expose-headers"),
            Some(exposed)
        );
        assert!(
            headers.get_all("vary").iter().any(|vary| vary == "Origin"),
            "{method}"
        );
        assert_eq!(header(headers, "access-control-allow-credentials"), None);
    }
}

#[tokio::test]
async fn the_backends_cors_headers_are_replaced_and_its_vary_kept() {
    let backend = Backend::start(|_| {
        let headers = [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "X-Backend"),
            ("access-control-allow-methods", "PUT"),
            ("vary", "Accept-Encoding"),
        ];
        answer(200, &headers, "")
    })
    .await;
    let yaml = route(&[backend.address])
        + "  cors: { origins: [\"https://app.example\"], credentials: true }\n";
    let proxy = Proxy::with(&yaml);
    let request = post(&proxy.url("/mcp")).header("origin", "https://app.example");
    let answered = request.send().await.unwrap();
    let headers = answered.headers();
    assert_eq!(
        header(headers, "access-control-allow-origin"),
        Some("https://app.example")
    );
    assert_eq!(
        header(headers, "access-control-allow-credentials"),
        Some("true")
    );
    assert_eq!(header(headers, "access-control-allow-methods"), None);
    let vary: Vec<_> = headers.get_all("vary").iter().collect();
    assert_eq!(vary, ["Accept-Encoding", "Origin"]);

    let without_origin = post(&proxy.url("/mcp")).send().await.unwrap();
    assert_eq!(
        header(without_origin.headers(), "access-control-allow-origin"),
        None
    );
    let vary: Vec<_> = without_origin.headers().get_all("vary").iter().collect();
    assert_eq!(
        vary,
        ["Accept-Encoding", "Origin"],
        "a cache must not serve it to a page"
    );
}

#[tokio::test]
async fn any_origin_is_a_star_and_depends_on_nothing() {
    let (_backend, proxy) = one_backend("  cors: { origins: ['*'] }\n").await;
    for origin in [Some("https://anyone.example"), Some("null"), None] {
        let mut request = post(&proxy.url("/mcp"));
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let answered = request.send().await.unwrap();
        assert_eq!(answered.status(), 200);
        assert_eq!(
            header(answered.headers(), "access-control-allow-origin"),
            Some("*")
        );
        assert_eq!(header(answered.headers(), "vary"), None);
    }
}

// Fetch, CORS protocol: `*` would not cover `Authorization`. Practice: a client of both eras whose
// preflight lacks `mcp-method` or `mcp-name` falls back to the session era without a word.
#[tokio::test]
async fn a_preflight_allows_what_mcp_clients_send() {
    let (_backend, proxy) = one_backend("  cors: { max_age: 10m }\n").await;
    let request = reqwest::Client::new()
        .request(Method::OPTIONS, proxy.url("/mcp"))
        .header("origin", "http://localhost:6274")
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "content-type,mcp-method,mcp-name,Mcp-Param-Region,mcp-param-bad name,x-evil",
        );
    let answered = request.send().await.unwrap();
    assert_eq!(answered.status(), 200);
    let headers = answered.headers();
    assert_eq!(
        header(headers, "access-control-allow-methods"),
        Some("GET, POST, DELETE, OPTIONS")
    );
    assert_eq!(
        header(headers, "access-control-allow-headers"),
        Some(
            "Content-Type, Accept, Authorization, Last-Event-ID, Mcp-Session-Id, \
             MCP-Protocol-Version, Mcp-Method, Mcp-Name, Mcp-Param-Region"
        )
    );
    assert_eq!(header(headers, "access-control-max-age"), Some("600"));
    assert_eq!(answered.text().await.unwrap(), "");
}

#[tokio::test]
async fn on_a_network_address_pages_need_to_be_listed_and_hosts_do_not() {
    let yaml = "mcp:\n  listeners: [{ address: \"0.0.0.0:8080\" }]\n  routes:\n    - path: /mcp\n      \
                backends: [{ name: b, url: \"http://127.0.0.1:1\" }]\n";
    let settings = Settings::parse("test.yaml", yaml, Default::default()).unwrap();
    let gateway = server::gateway(settings.mcp);
    let connection = Connection {
        reach: Reach::Network,
        ..Connection::default()
    };
    for (origin, host, expected) in [
        (None, "mcp.example", Ok(())),
        (None, "localhost", Ok(())),
        (
            Some("http://localhost"),
            "mcp.example",
            Err(Rejection::OriginForbidden),
        ),
        (
            Some("https://mcp.example"),
            "mcp.example",
            Err(Rejection::OriginForbidden),
        ),
    ] {
        let mut request = pingora::http::RequestHeader::build("POST", b"/mcp", None).unwrap();
        request.insert_header("host", host).unwrap();
        if let Some(origin) = origin {
            request.insert_header("origin", origin).unwrap();
        }
        let mut exchange = Exchange::default();
        let admitted = gateway.admit(&request, connection, &mut exchange).await;
        assert_eq!(admitted.map(|_| ()), expected, "{origin:?} {host}");
        assert_eq!(exchange.era(), expected.ok().map(|()| Era::Session));
    }
}

/// A proxy to one backend, `more` following it in the YAML.
async fn one_backend(more: &str) -> (Backend, Proxy) {
    let backend = Backend::with_session("the-backends-own-id").await;
    let proxy = Proxy::with(&(route(&[backend.address]) + more));
    (backend, proxy)
}
