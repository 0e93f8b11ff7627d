//! A real MCP server on the official Rust SDK, to see every kind of stream pass the proxy.
//!
//! ```text
//! cargo run --example demo_server [ADDRESS] [NAME] [BROKER]      default: 127.0.0.1:3000 demo
//! ```
//!
//! Port 0 takes a free port; the one line on stdout says which. Start it twice with two names, and
//! the tool `whoami` tells which backend answered. Both eras are served at `/mcp`: sessions for the
//! revisions up to 2025-11-25, and none for 2026-07-28. `/conformance` is a second server, with
//! what the official conformance suite asks for, and `/interop` a third, for tests/interop. BROKER is
//! the address of what tells several such servers of each other's changes: it sends each byte that it
//! gets to all of them.

#![expect(
    deprecated,
    reason = "only 2026-07-28 deprecates logging and sampling, which the session era needs"
)]

mod conformance;
mod hang_up;
mod interop;

use std::io::{self, Write};
use std::time::Duration;

use axum::Router;
use axum::http::request::Parts;
use rmcp::handler::server::tool::{Extension, InputResponses};
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::*;
use rmcp::schemars::{self, JsonSchema};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{Json, RoleServer, ServerHandler};
use rmcp::{prompt, prompt_handler, prompt_router, tool, tool_handler, tool_router};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

use conformance::Changes;

type Context = RequestContext<RoleServer>;

/// One of these serves each session, and one each request that has no session.
struct DemoServer {
    name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(default)]
struct Count {
    steps: u32,
    interval_ms: u64,
}

#[derive(Deserialize, JsonSchema)]
struct Echo {
    text: String,
}

#[derive(Deserialize, JsonSchema)]
struct Announce {
    message: String,
}

// Both the form that `ask` sends and the argument of the prompt `greet`.
#[derive(Deserialize, JsonSchema)]
struct Person {
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct WhoAmI {
    /// The backend that answered.
    server: String,
    /// The request header `x-demo-user`.
    user: Option<String>,
    /// Whether the request had an `authorization` header; never what was in it.
    authorization: bool,
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or(DEFAULT_ADDRESS.to_owned());
    let name = arguments.next().unwrap_or(DEFAULT_NAME.to_owned());

    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;

    // The SDK's own defaults: a loopback `Host` only, a priming event, a comment every 15 s.
    let mut config = StreamableHttpServerConfig::default();
    if bound.ip().is_unspecified() {
        // In a container, it cannot know by which names it is reached.
        config = config.disable_allowed_hosts();
    }
    let stop = config.cancellation_token.clone(); // ends the open streams, too
    let changes = match arguments.next() {
        Some(broker) => Changes::of_all(TcpStream::connect(broker).await?),
        None => Changes::of_this_server(),
    };
    let conformance = conformance::router(config.clone(), changes);
    let router = router(name, config).merge(conformance);

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    writeln!(io::stdout(), "listening on http://{bound}/mcp")?;

    let server =
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    let stopped = async {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
        stop.cancel();
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = server.into_future() => ended,
        () = stopped => Ok(()), // a client stalled in the middle of a request
    }
}

pub(crate) fn router(name: String, config: StreamableHttpServerConfig) -> Router {
    let interop = interop::router(config.clone());
    let service = StreamableHttpService::new(
        move || Ok(DemoServer { name: name.clone() }),
        LocalSessionManager::default().into(),
        config,
    );
    Router::new().route_service("/mcp", service).merge(interop)
}

#[tool_router]
impl DemoServer {
    /// Counts, and reports each step as progress if the request carries a progress token.
    #[tool]
    async fn count(
        &self,
        Parameters(Count { steps, interval_ms }): Parameters<Count>,
        context: Context,
    ) -> Result<String, ErrorData> {
        let token = context.meta.get_progress_token();
        for step in 1..=steps {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(interval_ms)) => (),
                () = context.ct.cancelled() => return Ok(format!("cancelled before step {step}")),
            }
            let Some(token) = &token else { continue };
            let progress = ProgressNotificationParam::new(token.clone(), step.into())
                .with_total(steps.into())
                .with_message(format!("step {step} of {steps}"));
            let sent = context.peer.notify_progress(progress).await;
            sent.map_err(failed)?;
        }
        Ok(format!("counted to {steps}"))
    }

    /// Asks the user's name by elicitation, and greets.
    #[tool]
    async fn ask(
        &self,
        InputResponses(answers): InputResponses,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        if !takes_forms(&context) {
            return Ok(text("this client does not support elicitation"));
        }
        let question = ElicitRequestParams::FormElicitationParams {
            meta: None,
            message: "What is your name?".to_owned(),
            requested_schema: ElicitationSchema::from_type::<Person>().map_err(failed)?,
        };
        if !is_stateless(&context) {
            // A request of the server's own, on the stream of this call.
            let answer = context.peer.create_elicitation(question).await;
            return greeting(answer.map_err(failed)?);
        }
        // MCP 2026-07-28: the question is the result; the answer comes as the same call again.
        let Some(answer) = answers.and_then(|mut answers| answers.remove(QUESTION)) else {
            let question = InputRequest::Elicitation(ElicitRequest::new(question));
            let questions = [(QUESTION.to_owned(), question)].into();
            return Ok(InputRequiredResult::from_input_requests(questions).into());
        };
        greeting(ElicitResult::deserialize(answer).map_err(malformed)?)
    }

    /// Returns the text.
    #[tool]
    async fn echo(&self, Parameters(Echo { text }): Parameters<Echo>) -> String {
        text
    }

    /// Sends a log message on the session's GET stream, not on the stream of this call.
    #[tool]
    async fn announce(
        &self,
        Parameters(Announce { message }): Parameters<Announce>,
        context: Context,
    ) -> Result<String, ErrorData> {
        if is_stateless(&context) {
            return Ok("nothing announced: revision 2026-07-28 has no GET stream".to_owned());
        }
        // The SDK sends all but progress, cancellation and its own requests to the GET stream, and
        // keeps the last few for a stream that opens later. The highest level passes any filter.
        let log = LoggingMessageNotificationParam::new(LoggingLevel::Emergency, message.into());
        let sent = context.peer.notify_logging_message(log).await;
        sent.map_err(failed)?;
        Ok("announced on the GET stream".to_owned())
    }

    /// Tells which server answered, and what it sees of the caller.
    #[tool]
    async fn whoami(&self, Extension(request): Extension<Parts>) -> Json<WhoAmI> {
        let user = request.headers.get("x-demo-user");
        Json(WhoAmI {
            server: self.name.clone(),
            user: user.map(|user| String::from_utf8_lossy(user.as_bytes()).into_owned()),
            authorization: request.headers.contains_key("authorization"),
        })
    }
}

#[prompt_router]
impl DemoServer {
    /// Asks the model to greet someone.
    #[prompt]
    async fn greet(&self, Parameters(Person { name }): Parameters<Person>) -> Vec<PromptMessage> {
        let text = format!("Please greet {name}.");
        vec![PromptMessage::new_text(Role::User, text)]
    }
}

#[tool_handler]
#[prompt_handler]
impl ServerHandler for DemoServer {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_logging()
            .enable_prompts()
            .enable_resources()
            .enable_tools()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new(&self.name, env!("CARGO_PKG_VERSION")))
    }

    async fn set_level(&self, _: SetLevelRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(()) // `announce` uses the highest level, which none hides
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        let greeting = Resource::new(GREETING, "greeting").with_mime_type("text/plain");
        Ok(ListResourcesResult::with_all_items(vec![greeting]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if request.uri != GREETING {
            return Err(ErrorData::resource_not_found(request.uri, None));
        }
        let text = format!("Hello from {}.", self.name);
        let greeting = ResourceContents::text(text, GREETING).with_mime_type("text/plain");
        Ok(ReadResourceResult::new(vec![greeting]).into())
    }
}

fn is_stateless(context: &Context) -> bool {
    context.protocol_version() >= Some(ProtocolVersion::V_2026_07_28)
}

fn takes_forms(context: &Context) -> bool {
    let capabilities = context.client_capabilities().unwrap_or_default();
    // MCP 2025-11-25, Elicitation: an empty object means forms.
    capabilities
        .elicitation
        .is_some_and(|modes| modes.form.is_some() || modes.url.is_none())
}

fn greeting(answer: ElicitResult) -> Result<CallToolResponse, ErrorData> {
    match (answer.action, answer.content) {
        (ElicitationAction::Accept, Some(form)) => {
            let Person { name } = Person::deserialize(form).map_err(malformed)?;
            Ok(text(format!("Hello, {name}!")))
        }
        _ => Ok(text("the question was declined")),
    }
}

fn text(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(text)]).into()
}

fn malformed(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::invalid_params(error.to_string(), None)
}

fn failed(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

impl Default for Count {
    fn default() -> Self {
        Self {
            steps: 5,
            interval_ms: 500,
        }
    }
}

const DEFAULT_ADDRESS: &str = "127.0.0.1:3000";
const DEFAULT_NAME: &str = "demo";
const GREETING: &str = "demo://greeting";
/// How long a client has to take what is left for it, once the server is told to end.
const GRACE: Duration = Duration::from_secs(1);
const QUESTION: &str = "name";
