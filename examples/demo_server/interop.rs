//! What the interoperability matrix (tests/interop) asks of each server, at `/interop`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::request::Parts;
use axum::middleware;
use rmcp::handler::server::tool::{Extension, InputResponses};
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::*;
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::SubscriptionContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ServerHandler, tool, tool_handler, tool_router};
use serde::Deserialize;
use tokio::sync::{Notify, broadcast};

use super::{Context, DemoServer, Echo, failed, hang_up, is_stateless, malformed, text};

/// One of these serves each session, and one each request that has no session.
struct Matrix {
    demo: DemoServer,
    calls: Arc<Mutex<HashMap<String, HeldCall>>>,
    tools_changed: broadcast::Sender<()>,
}

#[derive(Clone)]
struct HeldCall {
    fate: &'static str,
    opened: Arc<Notify>,
}

#[derive(Deserialize, JsonSchema)]
struct Gate {
    gate: String,
}

pub(super) fn router(config: StreamableHttpServerConfig) -> Router {
    let calls = Arc::default();
    let tools_changed = broadcast::Sender::new(CHANGES);
    let matrix = move || {
        Ok(Matrix {
            demo: DemoServer {
                name: "interop".to_owned(),
            },
            calls: Arc::clone(&calls),
            tools_changed: tools_changed.clone(),
        })
    };
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.sse_retry = Some(RETRY);
    let service = StreamableHttpService::new(matrix, sessions.into(), config);
    Router::new()
        .route_service("/interop", service)
        .layer(middleware::from_fn_with_state(
            hang_up::resumed(),
            hang_up::when_asked,
        ))
}

#[tool_router]
impl Matrix {
    #[tool]
    async fn echo(&self, text: Parameters<Echo>) -> String {
        self.demo.echo(text).await
    }

    /// Reports progress three times, then waits until its gate is opened or it is cancelled.
    #[tool]
    async fn hold(
        &self,
        Parameters(Gate { gate }): Parameters<Gate>,
        context: Context,
    ) -> Result<String, ErrorData> {
        let opened = Arc::new(Notify::new());
        let held = HeldCall {
            fate: "held",
            opened: Arc::clone(&opened),
        };
        self.calls().insert(gate.clone(), held.clone());
        if let Some(token) = context.meta.get_progress_token() {
            for step in 1..=3 {
                let progress = ProgressNotificationParam::new(token.clone(), step.into());
                let sent = context.peer.notify_progress(progress).await;
                sent.map_err(failed)?;
            }
        }
        let fate = tokio::select! {
            () = opened.notified() => "opened",
            () = context.ct.cancelled() => "cancelled",
        };
        self.calls().insert(gate, HeldCall { fate, ..held });
        Ok(fate.to_owned())
    }

    /// Lets a held call end.
    #[tool]
    async fn open(&self, Parameters(Gate { gate }): Parameters<Gate>) -> String {
        let calls = self.calls();
        let Some(call) = calls.get(&gate) else {
            return UNKNOWN.to_owned();
        };
        call.opened.notify_one();
        "opened".to_owned()
    }

    /// Tells what became of a held call.
    #[tool]
    async fn fate(&self, Parameters(Gate { gate }): Parameters<Gate>) -> String {
        let calls = self.calls();
        let fate = calls.get(&gate).map_or(UNKNOWN, |call| call.fate);
        fate.to_owned()
    }

    #[tool]
    async fn ask(
        &self,
        answers: InputResponses,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        self.demo.ask(answers, context).await
    }

    /// Asks the client's model, and tells what it says.
    #[tool]
    async fn sample(
        &self,
        InputResponses(answers): InputResponses,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let messages = vec![SamplingMessage::user_text("Say something.")];
        let question = CreateMessageRequestParams::new(messages, 10);
        let answer = if !is_stateless(&context) {
            let answer = context.peer.create_message(question).await;
            answer.map_err(failed)?
        } else if let Some(answer) = answers.and_then(|mut answers| answers.remove(ANSWER)) {
            CreateMessageResult::deserialize(answer).map_err(malformed)?
        } else {
            let question = InputRequest::CreateMessage(CreateMessageRequest::new(question));
            let questions = [(ANSWER.to_owned(), question)].into();
            return Ok(InputRequiredResult::from_input_requests(questions).into());
        };
        let said = answer.message.content.first();
        let said = said.and_then(|content| content.as_text());
        let said = said.map_or("nothing in words", |said| &said.text);
        Ok(text(format!("The model says {said}.")))
    }

    /// Tells the client that the list of tools changed.
    #[tool]
    async fn announce(&self, context: Context) -> Result<String, ErrorData> {
        if is_stateless(&context) {
            let _nobody_listens = self.tools_changed.send(());
        } else {
            let sent = context.peer.notify_tool_list_changed().await;
            sent.map_err(failed)?;
        }
        Ok("announced".to_owned())
    }

    /// Ends its stream, and answers on the one that resumes it.
    #[tool]
    async fn hang_up(&self, Extension(request): Extension<Parts>) -> String {
        hang_up::until_resumed(&request).await;
        "answered on a resumed stream".to_owned()
    }

    /// Tells the id of the session, as this server knows it.
    #[tool]
    async fn session(&self, Extension(request): Extension<Parts>) -> String {
        let id = request.headers.get("mcp-session-id");
        id.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned())
            .unwrap_or_default()
    }
}

impl Matrix {
    fn calls(&self) -> MutexGuard<'_, HashMap<String, HeldCall>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tool_handler]
impl ServerHandler for Matrix {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_tool_list_changed()
            .build();
        let name = Implementation::new("interop", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(name)
    }

    fn accepted_subscription_filter(
        &self,
        wanted: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(wanted.clone()) // the SDK leaves out what the capabilities do not declare
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.tools_changed.subscribe();
        loop {
            tokio::select! {
                change = changes.recv() => change.map_err(failed)?,
                () = subscription.cancelled() => return Ok(()),
            }
            let told = subscription.sink().notify_tool_list_changed().await;
            told.map_err(failed)?;
        }
    }
}

const ANSWER: &str = "answer";
/// How many changes a listener may lag behind.
const CHANGES: usize = 16;
/// How soon a client is to resume a stream.
const RETRY: Duration = Duration::from_millis(10);
const UNKNOWN: &str = "unknown";
