//! What MCP asks of an intermediary, rule by rule, where no other file of tests is about it. Each
//! test names its rule: the page of the specification's revision, its section, and the paragraph.

mod support;

use support::{Backend, Proxy, answer, raw};

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
