//! Tools, prompts and resources that always say the same.

use std::sync::Arc;

use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::*;
use rmcp::schemars::{self, JsonSchema};
use rmcp::{object, prompt, prompt_router, tool, tool_router};
use serde::Deserialize;

use super::Fixture;

#[derive(Deserialize, JsonSchema)]
struct Region {
    /// Also in the header `Mcp-Param-Region`, for which no body has to be read.
    #[schemars(extend("x-mcp-header" = "Region"))]
    region: String,
}

#[derive(Deserialize, JsonSchema)]
struct TwoArguments {
    arg1: String,
    arg2: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Embed {
    resource_uri: String,
}

#[tool_router(router = content_tools, vis = "pub(super)")]
impl Fixture {
    /// Returns a text.
    #[tool]
    async fn test_simple_text(&self) -> String {
        "This is a simple text response for testing.".to_owned()
    }

    /// Returns an image.
    #[tool]
    async fn test_image_content(&self) -> ContentBlock {
        ContentBlock::image(RED_DOT, "image/png")
    }

    /// Returns a sound.
    #[tool]
    async fn test_audio_content(&self) -> ContentBlock {
        ContentBlock::audio(SILENCE, "audio/wav")
    }

    /// Returns a resource.
    #[tool]
    async fn test_embedded_resource(&self) -> ContentBlock {
        let text = "This is an embedded resource content.";
        ContentBlock::resource(plain(text, "test://embedded-resource"))
    }

    /// Returns a text, an image and a resource.
    #[tool]
    async fn test_multiple_content_types(&self) -> CallToolResult {
        let resource = json(
            r#"{"test":"data","value":123}"#,
            "test://mixed-content-resource",
        );
        CallToolResult::success(vec![
            ContentBlock::text("Multiple content types test:"),
            ContentBlock::image(RED_DOT, "image/png"),
            ContentBlock::resource(resource),
        ])
    }

    /// Fails, and says so in its result.
    #[tool]
    async fn test_error_handling(&self) -> CallToolResult {
        let text = "This tool intentionally returns an error for testing";
        CallToolResult::error(vec![ContentBlock::text(text)])
    }

    /// Has a schema of many keywords, of which none may be lost.
    #[tool(input_schema = rich_schema())]
    async fn json_schema_2020_12_tool(&self) -> String {
        "any arguments will do".to_owned()
    }

    /// Takes an argument that is in a header as well, and returns it.
    #[tool]
    async fn test_header_parameter(
        &self,
        Parameters(Region { region }): Parameters<Region>,
    ) -> String {
        region
    }
}

#[prompt_router(router = "content_prompts", vis = "pub(super)")]
impl Fixture {
    /// A text.
    #[prompt]
    async fn test_simple_prompt(&self) -> Vec<PromptMessage> {
        vec![says(ContentBlock::text(
            "This is a simple prompt for testing.",
        ))]
    }

    /// A text with two arguments in it.
    #[prompt]
    async fn test_prompt_with_arguments(
        &self,
        Parameters(TwoArguments { arg1, arg2 }): Parameters<TwoArguments>,
    ) -> Vec<PromptMessage> {
        let text = format!("Prompt with arguments: arg1='{arg1}', arg2='{arg2}'");
        vec![says(ContentBlock::text(text))]
    }

    /// A resource, and what to do with it.
    #[prompt]
    async fn test_prompt_with_embedded_resource(
        &self,
        Parameters(Embed { resource_uri }): Parameters<Embed>,
    ) -> Vec<PromptMessage> {
        let resource = plain("Embedded resource content for testing.", &resource_uri);
        let text = "Please process the embedded resource above.";
        vec![
            says(ContentBlock::resource(resource)),
            says(ContentBlock::text(text)),
        ]
    }

    /// An image, and what to do with it.
    #[prompt]
    async fn test_prompt_with_image(&self) -> Vec<PromptMessage> {
        let text = "Please analyze the image above.";
        vec![
            says(ContentBlock::image(RED_DOT, "image/png")),
            says(ContentBlock::text(text)),
        ]
    }
}

pub(super) fn resources() -> Vec<Resource> {
    vec![
        Resource::new(STATIC_TEXT, "text")
            .with_description("A text.")
            .with_mime_type("text/plain"),
        Resource::new(STATIC_BINARY, "image")
            .with_description("An image.")
            .with_mime_type("image/png"),
        Resource::new(WATCHED, "watched")
            .with_description("A text to be subscribed to.")
            .with_mime_type("text/plain"),
    ]
}

pub(super) fn resource_template() -> ResourceTemplate {
    ResourceTemplate::new("test://template/{id}/data", "data")
        .with_description("The data of an id.")
        .with_mime_type("application/json")
}

pub(super) fn read_resource(uri: &str) -> Option<ResourceContents> {
    match uri {
        STATIC_TEXT => Some(plain(
            "This is the content of the static text resource.",
            uri,
        )),
        STATIC_BINARY => Some(ResourceContents::blob(RED_DOT, uri).with_mime_type("image/png")),
        WATCHED => Some(plain("This never changes.", uri)),
        _ => {
            let id = uri
                .strip_prefix("test://template/")?
                .strip_suffix("/data")?;
            let data = serde_json::json!({
                "id": id,
                "templateTest": true,
                "data": format!("Data for ID: {id}"),
            });
            Some(json(&data.to_string(), uri))
        }
    }
}

fn rich_schema() -> Arc<JsonObject> {
    Arc::new(object!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": { "street": { "type": "string" }, "city": { "type": "string" } },
            },
        },
        "properties": {
            "name": { "type": "string" },
            "address": { "$ref": "#/$defs/address" },
            "contactMethod": { "type": "string", "enum": ["phone", "email"] },
            "phone": { "type": "string" },
            "email": { "type": "string" },
        },
        "allOf": [{ "anyOf": [{ "required": ["phone"] }, { "required": ["email"] }] }],
        "if": {
            "properties": { "contactMethod": { "const": "phone" } },
            "required": ["contactMethod"],
        },
        "then": { "required": ["phone"] },
        "else": { "required": ["email"] },
        "additionalProperties": false,
    }))
}

fn plain(text: &str, uri: &str) -> ResourceContents {
    ResourceContents::text(text, uri).with_mime_type("text/plain")
}

fn json(text: &str, uri: &str) -> ResourceContents {
    ResourceContents::text(text, uri).with_mime_type("application/json")
}

fn says(content: ContentBlock) -> PromptMessage {
    PromptMessage::new(Role::User, content)
}

const STATIC_TEXT: &str = "test://static-text";
const STATIC_BINARY: &str = "test://static-binary";
const WATCHED: &str = "test://watched-resource";
/// One pixel, as a PNG.
const RED_DOT: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSuQmCC";
/// No samples at all, as a WAV.
const SILENCE: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAIA+AAACABAAZGF0YQAAAAA=";
