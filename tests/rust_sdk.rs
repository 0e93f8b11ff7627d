//! The official Rust SDK on both sides: its client talks through the proxy to the demo server.

#![expect(
    deprecated,
    reason = "only 2026-07-28 deprecates logging, which the session era needs"
)]

mod support;

#[path = "support/demo.rs"]
mod demo;

use std::time::Duration;

use demo::demo_server;
use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult,
    ElicitationAction, ErrorData, GetPromptRequestParams, Implementation,
    LoggingMessageNotificationParam, ProgressNotificationParam, ProtocolVersion,
    ReadResourceRequestParams,
};
use rmcp::service::{NotificationContext, RequestContext, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::json;
use support::Proxy;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

#[tokio::test]
async fn a_session_era_client_uses_everything_that_the_server_has() {
    let proxy = Proxy::to(&[demo_server("demo").await]);
    let (client, mut heard) = connect(&proxy, ClientLifecycleMode::Initialize).await;
    uses_everything(&client, &mut heard).await;

    let announced = call(&client, "announce", json!({ "message": "dinner" })).await;
    assert!(
        announced.contains("announced on the GET stream"),
        "{announced}"
    );
    assert_eq!(next(&mut heard).await, Heard::Log("\"dinner\"".to_owned()));
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn a_stateless_era_client_uses_everything_that_the_server_has() {
    let proxy = Proxy::to(&[demo_server("demo").await]);
    let (client, mut heard) = connect(&proxy, stateless()).await;
    uses_everything(&client, &mut heard).await;
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn each_session_stays_with_its_server_and_all_servers_get_some() {
    let proxy = Proxy::to(&[demo_server("alpha").await, demo_server("beta").await]);
    let mut servers = Vec::new();
    for _ in 0..6 {
        let (client, _heard) = connect(&proxy, ClientLifecycleMode::Initialize).await;
        let first = call(&client, "whoami", json!({})).await;
        for _ in 0..5 {
            assert_eq!(call(&client, "whoami", json!({})).await, first);
        }
        servers.push(first);
        client.cancel().await.unwrap();
    }
    servers.sort();
    servers.dedup();
    assert_eq!(servers.len(), 2);
}

#[tokio::test]
async fn a_tool_that_the_policy_denies_is_an_error_at_once_and_the_client_goes_on() {
    let policy = "      tools:\n        deny: [whoami]\n";
    let backend = demo_server("demo").await;
    let proxy = Proxy::with(&(support::route(&[backend]) + policy));
    for lifecycle in [ClientLifecycleMode::Initialize, stateless()] {
        let (client, mut heard) = connect(&proxy, lifecycle).await;
        uses_everything(&client, &mut heard).await;
        let denied = client.call_tool(CallToolRequestParams::new("whoami"));
        let error = support::within("the error", denied).await.unwrap_err();
        assert!(error.to_string().contains("403"), "{error}");
        uses_everything(&client, &mut heard).await;
        client.cancel().await.unwrap();
    }
}

async fn uses_everything(client: &Session, heard: &mut UnboundedReceiver<Heard>) {
    assert_eq!(client.list_all_tools().await.unwrap().len(), 5);
    assert!(
        call(client, "echo", json!({ "text": "hello" }))
            .await
            .contains("hello")
    );

    // The server's question comes while the call is open, and its answer is another request.
    assert!(call(client, "ask", json!({})).await.contains("Hello, Ada!"));
    assert_eq!(
        next(heard).await,
        Heard::Question("What is your name?".to_owned())
    );

    let counted = call(client, "count", json!({ "steps": 3, "interval_ms": 50 })).await;
    assert!(counted.contains("counted to 3"));
    for step in [1.0, 2.0, 3.0] {
        assert_eq!(next(heard).await, Heard::Progress(step));
    }

    let greeting = ReadResourceRequestParams::new("demo://greeting");
    assert_eq!(
        client.read_resource(greeting).await.unwrap().contents.len(),
        1
    );
    let mut greet = GetPromptRequestParams::new("greet");
    greet.arguments = json!({ "name": "Ada" }).as_object().cloned();
    assert_eq!(client.get_prompt(greet).await.unwrap().messages.len(), 1);
}

type Session = RunningService<RoleClient, Client>;

/// A client that answers every question, and tells the test what the server said on its own
/// account.
struct Client {
    heard: UnboundedSender<Heard>,
}

#[derive(Debug, PartialEq)]
enum Heard {
    Question(String),
    Progress(f64),
    Log(String),
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let capabilities = ClientCapabilities::builder().enable_elicitation().build();
        ClientConfig::new(capabilities, Implementation::new("test", "1"))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let ElicitRequestParams::FormElicitationParams { message, .. } = request else {
            return Ok(ElicitResult::new(ElicitationAction::Decline));
        };
        self.heard.send(Heard::Question(message)).unwrap();
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({ "name": "Ada" })))
    }

    async fn on_progress(
        &self,
        progress: ProgressNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        self.heard.send(Heard::Progress(progress.progress)).unwrap();
    }

    async fn on_logging_message(
        &self,
        log: LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        self.heard.send(Heard::Log(log.data.to_string())).unwrap();
    }
}

async fn connect(
    proxy: &Proxy,
    lifecycle: ClientLifecycleMode,
) -> (Session, UnboundedReceiver<Heard>) {
    let transport = StreamableHttpClientTransport::from_uri(proxy.url("/mcp"));
    let (heard, receiver) = unbounded_channel();
    let client = Client { heard };
    let session = client.serve_with_lifecycle(transport, lifecycle).await;
    (session.unwrap(), receiver)
}

fn stateless() -> ClientLifecycleMode {
    ClientLifecycleMode::Discover {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
    }
}

async fn call(client: &Session, tool: &'static str, arguments: serde_json::Value) -> String {
    let mut call = CallToolRequestParams::new(tool);
    call.arguments = arguments.as_object().cloned();
    let result = client.call_tool(call).await.unwrap();
    serde_json::to_string(&result.content).unwrap()
}

async fn next(heard: &mut UnboundedReceiver<Heard>) -> Heard {
    let heard = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
    heard
        .expect("the server says something")
        .expect("the client runs")
}
