//! What the official conformance suite asks of a server, in both eras, at `/conformance`.
//!
//! The suite (`@modelcontextprotocol/conformance`) calls tools, prompts and resources by fixed
//! names, and expects of each what its scenario describes. Any server may answer any stateless
//! request; what a trigger changes is told to all who listen, where the servers share a broker.

mod changes;
mod content;
mod questions;
mod streams;

use std::sync::atomic::{AtomicU8, Ordering};

use axum::{Router, middleware};
use rmcp::handler::server::prompt::PromptContext;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::model::*;
use rmcp::service::SubscriptionContext;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ServerHandler, tool_handler};
use serde_json::json;

use self::changes::Change;
use super::{Context, failed, hang_up};

pub(super) use self::changes::Changes;

/// One of these serves each session, and one each request that has no session.
struct Fixture {
    /// The lowest level that the session wants to hear of.
    log_level: AtomicU8,
    changes: Changes,
}

pub(super) fn router(config: StreamableHttpServerConfig, changes: Changes) -> Router {
    let fixture = move || {
        Ok(Fixture {
            log_level: AtomicU8::new(LoggingLevel::Debug as u8),
            changes: changes.clone(),
        })
    };
    let service =
        StreamableHttpService::new(fixture, LocalSessionManager::default().into(), config);
    Router::new()
        .route_service("/conformance", service)
        .layer(middleware::from_fn_with_state(
            hang_up::resumed(),
            hang_up::when_asked,
        ))
}

impl Fixture {
    fn tools() -> ToolRouter<Self> {
        Self::content_tools() + Self::stream_tools() + Self::question_tools()
    }
}

#[tool_handler(router = Self::tools())]
impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_logging()
            .enable_completions()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_tools()
            .enable_tool_list_changed()
            .build();
        let name = Implementation::new("conformance", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(name)
    }

    async fn set_level(&self, request: SetLevelRequestParams, _: Context) -> Result<(), ErrorData> {
        let level = request.level as u8;
        self.log_level.store(level, Ordering::Relaxed);
        Ok(())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: Context,
    ) -> Result<CompleteResult, ErrorData> {
        let begun = request.argument.value;
        let fitting = PLACES.iter().filter(|place| place.starts_with(&begun));
        let values = fitting.map(|place| (*place).to_owned()).collect();
        let completion = CompletionInfo::with_all_values(values).map_err(failed)?;
        Ok(CompleteResult::new(completion))
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListPromptsResult, ErrorData> {
        let mut prompts = Self::content_prompts().list_all();
        prompts.push(questions::prompt());
        Ok(ListPromptsResult::with_all_items(prompts))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name == questions::PROMPT {
            // The SDK's router gives prompts no answers, as it does tools.
            return questions::get_prompt(request.input_responses);
        }
        let prompt = PromptContext::new(self, request.name, request.arguments, context);
        Self::content_prompts().get_prompt(prompt).await
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(content::resources()))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        let templates = vec![content::resource_template()];
        Ok(ListResourceTemplatesResult::with_all_items(templates))
    }

    async fn read_resource(
        &self,
        ReadResourceRequestParams { uri, .. }: ReadResourceRequestParams,
        _: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let Some(contents) = content::read_resource(&uri) else {
            let data = Some(json!({ "uri": uri }));
            return Err(ErrorData::resource_not_found("no such resource", data));
        };
        Ok(ReadResourceResult::new(vec![contents]).into())
    }

    // No resource ever changes: to be subscribed to one is to hear nothing.
    async fn subscribe(&self, _: SubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(&self, _: UnsubscribeRequestParams, _: Context) -> Result<(), ErrorData> {
        Ok(())
    }

    fn accepted_subscription_filter(
        &self,
        wanted: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(wanted.clone()) // the SDK leaves out what the capabilities do not declare
    }

    async fn listen(&self, subscription: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.changes.listen();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change.map_err(failed)?,
                () = subscription.cancelled() => return Ok(()),
            };
            let (accepted, sink) = (subscription.accepted(), subscription.sink());
            let told = match change {
                Change::Tools if accepted.tools_list_changed == Some(true) => {
                    sink.notify_tool_list_changed().await
                }
                Change::Prompts if accepted.prompts_list_changed == Some(true) => {
                    sink.notify_prompt_list_changed().await
                }
                Change::Tools | Change::Prompts => continue,
            };
            told.map_err(failed)?;
        }
    }
}

const PLACES: [&str; 3] = ["paris", "park", "party"];
