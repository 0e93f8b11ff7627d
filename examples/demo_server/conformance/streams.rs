//! Tools that say something before they answer: logs, progress and the server's own requests.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::request::Parts;
use rmcp::handler::server::tool::Extension;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::*;
use rmcp::schemars::{self, JsonSchema};
use rmcp::{tool, tool_router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{Context, failed, is_stateless};
use super::changes::Change;
use super::{Fixture, hang_up};

#[derive(Deserialize, JsonSchema)]
struct Sample {
    prompt: String,
}

#[derive(Deserialize, JsonSchema)]
struct Elicit {
    message: String,
}

#[tool_router(router = stream_tools, vis = "pub(super)")]
impl Fixture {
    /// Logs three times.
    #[tool]
    async fn test_tool_with_logging(&self, context: Context) -> Result<String, ErrorData> {
        self.log(&context, "Tool execution started").await?;
        tokio::time::sleep(PAUSE).await;
        self.log(&context, "Tool processing data").await?;
        tokio::time::sleep(PAUSE).await;
        self.log(&context, "Tool execution completed").await?;
        Ok("logged three times".to_owned())
    }

    /// Logs once, if the request wants logs.
    #[tool]
    async fn test_logging_tool(&self, context: Context) -> Result<String, ErrorData> {
        self.log(&context, "Tool executed").await?;
        Ok("logged to those who asked for it".to_owned())
    }

    /// Reports progress three times.
    #[tool]
    async fn test_tool_with_progress(&self, context: Context) -> Result<String, ErrorData> {
        let token = context.meta.get_progress_token();
        for progress in [0.0, 50.0, 100.0] {
            if let Some(token) = token.clone() {
                let progress = ProgressNotificationParam::new(token, progress).with_total(100.0);
                let sent = context.peer.notify_progress(progress).await;
                sent.map_err(failed)?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok("done".to_owned())
    }

    /// Ends its stream, and answers on the one that resumes it.
    #[tool]
    async fn test_reconnection(
        &self,
        Extension(request): Extension<Parts>,
        context: Context,
    ) -> String {
        if is_stateless(&context) {
            return "revision 2026-07-28 has no resumption".to_owned();
        }
        hang_up::until_resumed(&request).await;
        "answered on a resumed stream".to_owned()
    }

    /// Asks the client's model, and returns its answer.
    #[tool]
    async fn test_sampling(
        &self,
        Parameters(Sample { prompt }): Parameters<Sample>,
        context: Context,
    ) -> Result<String, ErrorData> {
        let question = vec![SamplingMessage::user_text(prompt)];
        let question = CreateMessageRequestParams::new(question, 100);
        let answer = context.peer.create_message(question).await;
        let message = answer.map_err(failed)?.message;
        let content = message.content.first();
        let text = content.and_then(|content| content.as_text());
        let text = text.map_or("nothing in words", |text| &text.text);
        Ok(format!("LLM response: {text}"))
    }

    /// Asks the user for a name and an address.
    #[tool]
    async fn test_elicitation(
        &self,
        Parameters(Elicit { message }): Parameters<Elicit>,
        context: Context,
    ) -> Result<String, ErrorData> {
        let schema = json!({
            "type": "object",
            "properties": {
                "username": { "type": "string", "description": "User's response" },
                "email": { "type": "string", "description": "User's email address" },
            },
            "required": ["username", "email"],
        });
        ask(&context, message, schema).await
    }

    /// Asks the user with a form in which everything has a default.
    #[tool]
    async fn test_elicitation_sep1034_defaults(
        &self,
        context: Context,
    ) -> Result<String, ErrorData> {
        let status = ["active", "inactive", "pending"];
        let schema = json!({
            "type": "object",
            "properties": {
                "name": { "type": "string", "default": "John Doe" },
                "age": { "type": "integer", "default": 30 },
                "score": { "type": "number", "default": 95.5 },
                "status": { "type": "string", "enum": status, "default": "active" },
                "verified": { "type": "boolean", "default": true },
            },
        });
        ask(&context, "Is this right?".to_owned(), schema).await
    }

    /// Asks the user with a form that has every kind of choice.
    #[tool]
    async fn test_elicitation_sep1330_enums(&self, context: Context) -> Result<String, ErrorData> {
        let options = ["option1", "option2", "option3"];
        let titled = json!([
            { "const": "value1", "title": "First" },
            { "const": "value2", "title": "Second" },
            { "const": "value3", "title": "Third" },
        ]);
        let schema = json!({
            "type": "object",
            "properties": {
                "untitledSingle": { "type": "string", "enum": options },
                "titledSingle": { "type": "string", "oneOf": titled },
                "legacyEnum": {
                    "type": "string",
                    "enum": ["opt1", "opt2", "opt3"],
                    "enumNames": ["Option One", "Option Two", "Option Three"],
                },
                "untitledMulti": {
                    "type": "array",
                    "items": { "type": "string", "enum": options },
                },
                "titledMulti": { "type": "array", "items": { "anyOf": titled } },
            },
        });
        ask(&context, "Which?".to_owned(), schema).await
    }

    /// Tells those who want to know that the list of tools changed.
    #[tool]
    async fn test_trigger_tool_change(&self, context: Context) -> Result<String, ErrorData> {
        self.tell(&context, Change::Tools).await
    }

    /// Tells those who want to know that the list of prompts changed.
    #[tool]
    async fn test_trigger_prompt_change(&self, context: Context) -> Result<String, ErrorData> {
        self.tell(&context, Change::Prompts).await
    }
}

impl Fixture {
    async fn log(&self, context: &Context, message: &str) -> Result<(), ErrorData> {
        // MCP 2026-07-28: a request that names no level wants no logs.
        let wanted = if is_stateless(context) {
            context.meta.log_level().map(|level| level as u8)
        } else {
            Some(self.log_level.load(Ordering::Relaxed))
        };
        if wanted.is_none_or(|wanted| wanted > LoggingLevel::Info as u8) {
            return Ok(());
        }
        let log = LoggingMessageNotificationParam::new(LoggingLevel::Info, message.into());
        let sent = context.peer.notify_logging_message(log).await;
        sent.map_err(failed)
    }

    async fn tell(&self, context: &Context, change: Change) -> Result<String, ErrorData> {
        if is_stateless(context) {
            self.changes.tell(change).await.map_err(failed)?;
            return Ok("told those who listen".to_owned());
        }
        let sent = match change {
            Change::Tools => context.peer.notify_tool_list_changed().await,
            Change::Prompts => context.peer.notify_prompt_list_changed().await,
        };
        sent.map_err(failed)?;
        Ok("told on the GET stream".to_owned())
    }
}

/// A request of the server's own, on the stream of the call.
async fn ask(context: &Context, message: String, schema: Value) -> Result<String, ErrorData> {
    let question = ElicitRequestParams::FormElicitationParams {
        meta: None,
        message,
        requested_schema: ElicitationSchema::deserialize(schema).map_err(failed)?,
    };
    let answer = context.peer.create_elicitation(question).await;
    let answer = serde_json::to_string(&answer.map_err(failed)?).map_err(failed)?;
    Ok(format!("User response: {answer}"))
}

const PAUSE: Duration = Duration::from_millis(50);
