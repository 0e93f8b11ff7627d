//! The official Rust SDK as a client, with the steps and the protocol of matrix.mjs.

#![expect(
    deprecated,
    reason = "only 2026-07-28 deprecates sampling, which the session era needs"
)]

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, ClientConfig, ContentBlock,
    CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams, ElicitResult,
    ElicitationAction, ErrorData, Implementation, ProgressNotificationParam, ProtocolVersion,
    SamplingMessage, SubscriptionFilter,
};
use rmcp::service::{NotificationContext, RequestContext, RunningService};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::{HttpStatusError, StreamableHttpError};
use rmcp::{ClientHandler, ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::peers::Era;

/// What came of a step that is not ok, as a fact.
struct Fact(String);

type Checked = Result<(), Fact>;

struct Client {
    session: RunningService<RoleClient, Handler>,
    heard: UnboundedReceiver<Heard>,
}

/// Answers every question, and tells what the server says on its own account.
struct Handler {
    heard: UnboundedSender<Heard>,
}

#[derive(Debug, PartialEq)]
enum Heard {
    Progress(f64),
    ToolsChanged,
}

/// Goes through all steps, each with its fact on standard output.
///
/// In one thread, as the SDK hands each notification to a task of its own: in more, they overtake
/// each other.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(url: &str, era: Era) {
    let connected = Client::connect(url, era).await;
    let (mut client, connected) = match connected {
        Ok(client) => (Some(client), Ok(())),
        Err(fact) => (None, Err(fact)),
    };
    print("connect", connected, "");
    let Some(client) = &mut client else { return };

    fact("list", client.list()).await;
    fact("call", client.echo("through and back ✓")).await;
    fact("progress", client.progress()).await;
    fact("elicitation", client.is("Hello, Ada!", "ask")).await;
    fact("sampling", client.is("The model says hello.", "sample")).await;
    fact("notification", client.notification(era)).await;
    fact("resumption", client.resumption(era)).await;
    let session = client.call("session", json!({})).await.unwrap_or_default();
    fact("cancellation", client.cancellation(era, &session)).await;
    let ended = limited(end(client)).await;
    print("end", ended, &session);

    for (step, event) in [("404", "restart"), ("502", "stop"), ("503", "refuse")] {
        fact(step, fault(url, era, event)).await;
        need("start").await;
    }
}

/// What is answered, or not, in the place of a backend that was there a moment ago.
async fn fault(url: &str, era: Era, event: &str) -> Checked {
    let mut client = Client::connect(url, era).await?;
    client.echo("before").await?;
    need(event).await;
    let after = client.echo("after").await;
    let ended = end(&mut client).await;
    after.and(ended)
}

impl Client {
    async fn connect(url: &str, era: Era) -> Result<Self, Fact> {
        let transport = StreamableHttpClientTransport::from_uri(url);
        let (heard, receiver) = unbounded_channel();
        let lifecycle = match era {
            Era::Session => ClientLifecycleMode::Initialize,
            Era::Stateless => ClientLifecycleMode::Discover {
                preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            },
        };
        let session = Handler { heard }.serve_with_lifecycle(transport, lifecycle);
        Ok(Self {
            session: session.await.map_err(|error| class_of(&error))?,
            heard: receiver,
        })
    }

    async fn call(&self, tool: &'static str, arguments: Value) -> Result<String, Fact> {
        let mut call = CallToolRequestParams::new(tool);
        call.arguments = arguments.as_object().cloned();
        let result = self.session.call_tool(call).await;
        let result = result.map_err(|error| class_of(&error))?;
        let texts = result.content.iter().filter_map(ContentBlock::as_text);
        let text = texts.map(|text| text.text.as_str()).collect::<String>();
        match (result.is_error, text.as_str()) {
            (Some(true), _) => {
                eprintln!("{text}");
                Err(Fact("error: the tool failed".to_owned()))
            }
            (_, "unsupported") => Err(Fact("unsupported by server".to_owned())),
            _ => Ok(text),
        }
    }

    async fn is(&self, wanted: &str, tool: &'static str) -> Checked {
        expect(wanted, &self.call(tool, json!({})).await?)
    }

    async fn echo(&self, text: &str) -> Checked {
        expect(text, &self.call("echo", json!({ "text": text })).await?)
    }

    async fn list(&self) -> Checked {
        let tools = self.session.list_all_tools().await;
        let tools = tools.map_err(|error| class_of(&error))?;
        let mut names: Vec<_> = tools.iter().map(|tool| tool.name.as_ref()).collect();
        names.sort_unstable();
        expect(TOOLS, &names.join(" "))
    }

    async fn progress(&mut self) -> Checked {
        let gate = json!({ "gate": "progress" });
        let mut heard = std::mem::replace(&mut self.heard, unbounded_channel().1);
        let seen = async {
            let mut seen = Vec::new();
            while seen.len() < 3 {
                seen.extend(heard.recv().await);
            }
            // The call ends only after this, so that all progress has come before its result.
            self.until("opened", "open", &gate).await?;
            Ok(seen)
        };
        let (result, seen) = tokio::try_join!(self.call("hold", gate.clone()), seen)?;
        self.heard = heard;
        expect("opened", &result)?;
        expect(&[1.0, 2.0, 3.0].map(Heard::Progress)[..], &seen)
    }

    async fn notification(&mut self, era: Era) -> Checked {
        let mut subscription = None;
        if era == Era::Stateless {
            let filter = SubscriptionFilter::builder().tools_list_changed().build();
            let listening = self.session.listen(filter).await;
            subscription = Some(listening.map_err(|error| class_of(&error))?);
        }
        let mut heard = std::mem::replace(&mut self.heard, unbounded_channel().1);
        let changed = async {
            match &mut subscription {
                Some(subscription) => subscription.next().await.map(drop),
                None => {
                    while heard.recv().await != Some(Heard::ToolsChanged) {}
                    Ok(())
                }
            }
        };
        let announce = async {
            loop {
                self.one_answers("announced", "announce", &json!({}))
                    .await?;
                tokio::time::sleep(AGAIN).await;
            }
        };
        let told = tokio::select! {
            changed = changed => changed.map_err(|error| class_of(&error)),
            failed = announce => failed,
        };
        self.heard = heard;
        told
    }

    async fn resumption(&self, era: Era) -> Checked {
        if era == Era::Stateless {
            return Err(Fact("unsupported by era".to_owned()));
        }
        self.is("answered on a resumed stream", "hang_up").await
    }

    async fn cancellation(&mut self, era: Era, session: &str) -> Checked {
        if era == Era::Session && session.is_empty() {
            return Err(Fact("unsupported by server".to_owned()));
        }
        let gate = json!({ "gate": "cancellation" });
        let mut heard = std::mem::replace(&mut self.heard, unbounded_channel().1);
        let started = async { while !matches!(heard.recv().await, Some(Heard::Progress(_))) {} };
        // A call that nobody waits for any more is cancelled.
        tokio::select! {
            ended = self.call("hold", gate.clone()) => drop(ended?),
            () = started => (),
        }
        self.until("cancelled", "fate", &gate).await
    }

    /// Asks until the answer is this.
    async fn until(&self, wanted: &str, tool: &'static str, gate: &Value) -> Checked {
        while !self.one_answers(wanted, tool, gate).await? {
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Whether one of several calls at once has this answer; matrix.mjs says why.
    async fn one_answers(
        &self,
        wanted: &str,
        tool: &'static str,
        arguments: &Value,
    ) -> Result<bool, Fact> {
        let calls = [(); 4].map(|()| self.call(tool, arguments.clone()));
        let found = futures::future::try_join_all(calls).await?;
        Ok(found.iter().any(|found| found == wanted))
    }
}

async fn end(client: &mut Client) -> Checked {
    let closed = client.session.close().await;
    closed.map(drop).map_err(|error| class_of(&error))
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let capabilities = ClientCapabilities::builder()
            .enable_elicitation()
            .enable_sampling()
            .build();
        ClientConfig::new(capabilities, Implementation::new("rmcp", "1"))
    }

    async fn create_elicitation(
        &self,
        _: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(json!({ "name": "Ada" })))
    }

    async fn create_message(
        &self,
        _: CreateMessageRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let message = SamplingMessage::assistant_text("hello");
        Ok(CreateMessageResult::new(message, "stand-in".to_owned()))
    }

    async fn on_progress(
        &self,
        progress: ProgressNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        let _nobody_waits = self.heard.send(Heard::Progress(progress.progress));
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        let _nobody_waits = self.heard.send(Heard::ToolsChanged);
    }
}

async fn fact(step: &str, check: impl Future<Output = Checked>) {
    print(step, limited(check).await, "");
}

async fn limited(check: impl Future<Output = Checked>) -> Checked {
    let limited = tokio::time::timeout(LIMIT, check).await;
    limited.unwrap_or_else(|_| Err(Fact(format!("no answer within {} s", LIMIT.as_secs()))))
}

fn print(step: &str, checked: Checked, session: &str) {
    let fact = checked.map_or_else(|Fact(fact)| fact, |()| "ok".to_owned());
    println!(
        "{}",
        json!({ "step": step, "fact": fact, "session": session })
    );
}

/// Has the runner do something to the server.
async fn need(what: &str) {
    println!("{}", json!({ "need": what }));
    let answer = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    answer.await.unwrap().unwrap();
}

fn expect<T: PartialEq + Debug + ?Sized>(wanted: &T, found: &T) -> Checked {
    if found != wanted {
        return Err(Fact(format!("error: {found:?} is not {wanted:?}")));
    }
    Ok(())
}

/// What is the same each time in an error: a status or a code.
fn class_of(error: &(dyn Error + 'static)) -> Fact {
    eprintln!("{error:?}");
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    let class = causes.find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<ErrorData>() {
            return Some(format!("error: JSON-RPC {}", error.code.0));
        }
        if let Some(error) = cause.downcast_ref::<HttpStatusError>() {
            return Some(format!("error: HTTP {}", error.status));
        }
        if let Some(rmcp::ServiceError::McpError(error)) = cause.downcast_ref() {
            return Some(format!("error: JSON-RPC {}", error.code.0));
        }
        match cause.downcast_ref::<StreamableHttpError<reqwest::Error>>()? {
            StreamableHttpError::Client(error) if error.is_connect() => {
                Some("error: connection refused".to_owned())
            }
            StreamableHttpError::HttpStatus(error) => Some(format!("error: HTTP {}", error.status)),
            StreamableHttpError::SessionExpired => Some("error: HTTP 404".to_owned()),
            other => Some(format!("error: {}", variant(other))),
        }
    });
    Fact(class.unwrap_or_else(|| format!("error: {}", variant(error))))
}

/// The name that `Debug` begins with.
fn variant(error: &(impl Debug + ?Sized)) -> String {
    let debug = format!("{error:?}");
    let end = debug.find(|c: char| !c.is_alphanumeric());
    debug[..end.unwrap_or(debug.len())].to_owned()
}

const TOOLS: &str = "announce ask echo fate hang_up hold open sample session";
const LIMIT: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(20);
