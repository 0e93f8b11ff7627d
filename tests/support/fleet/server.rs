//! A real MCP server behind a fleet, that tells whose session it is asked in.

use std::env;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use rmcp::model::{Implementation, ServerCapabilities, ServerConfig};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ServerHandler, tool, tool_handler, tool_router};
use tokio::net::TcpListener;

use crate::support::process::{Program, ignored_test, listen_again};

/// A process of its own, until it is dropped: this program again, whose test `the_server` is [`serve`].
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) program: Program,
}

impl Server {
    pub(super) async fn at(address: SocketAddr, number: usize) -> Self {
        let mut command = ignored_test("the_server");
        command.env("SERVER_ADDRESS", address.to_string());
        command.env("SERVER_NUMBER", number.to_string());
        let (address, program) = Program::serving(&mut command).await;
        Self { address, program }
    }

    /// How many sessions it has.
    pub(super) async fn sessions(&self) -> usize {
        let page = format!("http://{}/sessions", self.address);
        let page = reqwest::get(page).await.unwrap();
        page.text().await.unwrap().parse().unwrap()
    }
}

/// Is one, until it is killed. Returns at once where this process is none.
pub(crate) async fn serve() {
    let Ok(address) = env::var("SERVER_ADDRESS") else {
        return;
    };
    let name = format!(
        "{}/{}",
        env::var("SERVER_NUMBER").unwrap(),
        std::process::id()
    );
    let sessions = Arc::new(LocalSessionManager::default());
    let opened = AtomicUsize::new(0);
    let service = StreamableHttpService::new(
        move || {
            let number = opened.fetch_add(1, Ordering::Relaxed);
            Ok(WhoAmI(format!("{name}/{number}")))
        },
        Arc::clone(&sessions),
        StreamableHttpServerConfig::default(),
    );
    let count = async move || sessions.sessions.read().await.len().to_string();
    let router = Router::new().route_service("/mcp", service);
    let router = router.route("/sessions", get(count));
    let listener = listen_again(&address);
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    println!("listening on http://{}/mcp", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// One of these serves each session, and knows which.
struct WhoAmI(String);

#[tool_router]
impl WhoAmI {
    /// Tells whose session this is.
    #[tool]
    async fn whoami(&self) -> String {
        self.0.clone()
    }
}

#[tool_handler]
impl ServerHandler for WhoAmI {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().build();
        ServerConfig::new(capabilities).with_server_info(Implementation::new(&self.0, "1"))
    }
}
