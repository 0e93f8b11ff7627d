//! The demo server in this process: a real MCP server on the official Rust SDK.

#[expect(dead_code, reason = "its main is not what is tested")]
#[path = "../../examples/demo_server/main.rs"]
mod demo_server;

use std::net::SocketAddr;

use rmcp::transport::StreamableHttpServerConfig;

/// Starts one that calls itself `name`.
#[allow(dead_code, reason = "one test has its own address")]
pub(crate) async fn demo_server(name: &str) -> SocketAddr {
    demo_server_at("127.0.0.1:0", name).await
}

/// The same, on `address`.
pub(crate) async fn demo_server_at(address: &str, name: &str) -> SocketAddr {
    let router = demo_server::router(name.to_owned(), StreamableHttpServerConfig::default());
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}
