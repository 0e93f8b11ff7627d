//! What MCP asks of an intermediary, rule by rule, where no other file of tests is about it. Each
//! test names its rule: the page of the specification's revision, its section, and the paragraph.

mod support;

use support::{Backend, Proxy, answer, post, raw, route};

// RFC 3875 4.1.18: CGI, and WSGI after it, read `_` in a name as `-`. What the proxy sets, or
// decides by, must not come to such a backend from the client under another spelling.
#[tokio::test]
async fn a_name_that_cgi_reads_as_one_of_ours_stops_here() {
    let backend = Backend::start(|_| answer(200, &[], "")).await;
    let headers = "          headers: { X-Api-Key: ours }\n";
    let proxy = Proxy::with(&(route(&[backend.address]) + headers));
    let lookalikes = [
        "Mcp_Session_Id",
        "mcp_session-id",
        "MCP_Protocol_Version",
        "Mcp_Method",
        "Mcp_Name",
        "X_Forwarded_For",
        "X-Forwarded_Host",
        "X_Api_Key",
        "Content_Length",
        "Transfer_Encoding",
    ];
    let mut request = post(&proxy.url("/mcp"));
    for name in lookalikes {
        request = request.header(name, "1");
    }
    let others = ["x_unknown", "mcp-param-user_id", "_"];
    for name in others {
        request = request.header(name, "2");
    }
    request.send().await.unwrap();
    let seen = backend.last();
    for name in lookalikes {
        assert_eq!(seen.header(name), None, "{name}");
    }
    for name in others {
        assert_eq!(seen.header(name), Some("2"), "{name}");
    }
    assert_eq!(seen.header("x-api-key"), Some("ours"));
}

// Fetch, CORS protocol: a preflight carries neither id nor authorization, and a page reads no
// answer whose preflight was not 2xx, not even the 404 of a wrong path.
#[tokio::test]
async fn options_is_200_on_every_path_and_in_both_eras() {
    let backend = Backend::start(|_| answer(500, &[], "")).await;
    let proxy = Proxy::to(&[backend.address]);
    for path in [
        "/mcp",
        "/mcp/below",
        "/other",
        "/.well-known/oauth-protected-resource/other",
        "*",
    ] {
        for version in VERSIONS {
            let request = format!(
                "OPTIONS {path} HTTP/1.1\r\nHost: localhost\r\n{version}\
                 Origin: http://localhost:6274\r\nAccess-Control-Request-Method: POST\r\n\r\n"
            );
            let answered = raw(proxy.address, &request).await.to_ascii_lowercase();
            assert!(answered.starts_with("http/1.1 200 "), "{path}: {answered}");
            let allowed = "access-control-allow-origin: http://localhost:6274\r\n";
            assert!(answered.contains(allowed), "{path}: {answered}");
        }
    }
    assert_eq!(backend.seen().len(), 0);
}

/// The version's header line: none, of the session era, of the stateless era.
const VERSIONS: [&str; 3] = [
    "",
    "MCP-Protocol-Version: 2025-11-25\r\n",
    "MCP-Protocol-Version: 2026-07-28\r\n",
];
