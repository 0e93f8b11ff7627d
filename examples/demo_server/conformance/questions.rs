//! What takes more than one round in the stateless era: the question is the result, and the answer
//! comes as the same request again, perhaps at another server (MCP 2026-07-28, `input_required`).

use rmcp::handler::server::tool::{InputResponses as Answers, RequestState};
use rmcp::model::*;
use rmcp::{tool, tool_router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::{Context, failed, greeting, malformed, takes_forms, text};
use super::Fixture;

#[tool_router(router = question_tools, vis = "pub(super)")]
impl Fixture {
    /// Asks the user's name, and greets.
    #[tool]
    async fn test_input_required_result_elicitation(
        &self,
        Answers(answers): Answers,
    ) -> Result<CallToolResponse, ErrorData> {
        match answer(&answers, "user_name")? {
            Some(answer) => greeting(answer),
            None => Ok(ask([("user_name", name_form()?)]).into()),
        }
    }

    /// Asks the user's name on a stream on which no request may be.
    #[tool]
    async fn test_streaming_elicitation(
        &self,
        answers: Answers,
    ) -> Result<CallToolResponse, ErrorData> {
        self.test_input_required_result_elicitation(answers).await
    }

    /// Asks the client's model.
    #[tool]
    async fn test_input_required_result_sampling(
        &self,
        Answers(answers): Answers,
    ) -> Result<CallToolResponse, ErrorData> {
        match answer::<CreateMessageResult>(&answers, "capital_question")? {
            Some(answer) => Ok(text(format!("{} answered", answer.model))),
            None => {
                let question = sampling("What is the capital of France?", 100);
                Ok(ask([("capital_question", question)]).into())
            }
        }
    }

    /// Asks the client for its roots.
    #[tool]
    async fn test_input_required_result_list_roots(
        &self,
        Answers(answers): Answers,
    ) -> Result<CallToolResponse, ErrorData> {
        match answer::<ListRootsResult>(&answers, "client_roots")? {
            Some(answer) => {
                let roots = answer.roots.into_iter().map(|root| root.uri);
                Ok(text(roots.collect::<Vec<_>>().join(" ")))
            }
            None => Ok(ask([("client_roots", roots())]).into()),
        }
    }

    /// Asks three questions at a time.
    #[tool]
    async fn test_input_required_result_multiple_inputs(
        &self,
        Answers(answers): Answers,
        RequestState(state): RequestState,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = answer::<ElicitResult>(&answers, "user_name")?;
        let line = answer::<CreateMessageResult>(&answers, "greeting")?;
        let roots_there = answer::<ListRootsResult>(&answers, "client_roots")?;
        let (Some(_), Some(_), Some(_)) = (name, line, roots_there) else {
            let questions = [
                ("user_name", name_form()?),
                ("greeting", sampling("Generate a greeting", 50)),
                ("client_roots", roots()),
            ];
            return Ok(with_state(ask(questions), ASKED).into());
        };
        check(state.as_deref(), ASKED)?;
        Ok(text("all three answered"))
    }

    /// Asks for a word of confirmation, and carries a state.
    #[tool]
    async fn test_input_required_result_request_state(
        &self,
        Answers(answers): Answers,
        RequestState(state): RequestState,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(_) = answer::<ElicitResult>(&answers, "confirm")? else {
            let properties = json!({ "ok": { "type": "boolean" } });
            let question = form("Please confirm", properties)?;
            return Ok(with_state(ask([("confirm", question)]), ASKED).into());
        };
        check(state.as_deref(), ASKED)?;
        Ok(text("state-ok"))
    }

    /// The same, for a client that changes the state.
    #[tool]
    async fn test_input_required_result_tampered_state(
        &self,
        answers: Answers,
        state: RequestState,
    ) -> Result<CallToolResponse, ErrorData> {
        self.test_input_required_result_request_state(answers, state)
            .await
    }

    /// Asks two questions, one after the other.
    #[tool]
    async fn test_input_required_result_multi_round(
        &self,
        Answers(answers): Answers,
        RequestState(state): RequestState,
    ) -> Result<CallToolResponse, ErrorData> {
        if answer::<ElicitResult>(&answers, "step2")?.is_some() {
            check(state.as_deref(), ASKED_AGAIN)?;
            return Ok(text("both answered"));
        }
        if answer::<ElicitResult>(&answers, "step1")?.is_some() {
            check(state.as_deref(), ASKED)?;
            let properties = json!({ "color": { "type": "string" } });
            let question = form("Step 2: What is your favorite color?", properties)?;
            return Ok(with_state(ask([("step2", question)]), ASKED_AGAIN).into());
        }
        let properties = json!({ "name": { "type": "string" } });
        let question = form("Step 1: What is your name?", properties)?;
        Ok(with_state(ask([("step1", question)]), ASKED).into())
    }

    /// Asks only what the client can answer.
    #[tool]
    async fn test_input_required_result_capabilities(
        &self,
        Answers(answers): Answers,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let mut questions = Vec::new();
        if takes_forms(&context) {
            questions.push(("user_name", name_form()?));
        }
        if samples(&context) {
            questions.push(("greeting", sampling("Generate a greeting", 50)));
        }
        if questions.is_empty() || answers.is_some() {
            return Ok(text("nothing more to ask"));
        }
        Ok(ask(questions).into())
    }

    /// Is of no use to a client that has no model.
    #[tool]
    async fn test_missing_capability(&self, context: Context) -> Result<String, ErrorData> {
        if !samples(&context) {
            let required = ClientCapabilities::builder().enable_sampling().build();
            return Err(ErrorData::missing_required_client_capability(required));
        }
        Ok("this client has a model".to_owned())
    }
}

pub(super) fn prompt() -> Prompt {
    Prompt::new(PROMPT, Some("Asks the user for its context."), None)
}

pub(super) fn get_prompt(answers: Option<InputResponses>) -> Result<GetPromptResponse, ErrorData> {
    let Some(answer) = answer::<ElicitResult>(&answers, "user_context")? else {
        let properties = json!({ "context": { "type": "string" } });
        let question = form("What context should the prompt use?", properties)?;
        return Ok(ask([("user_context", question)]).into());
    };
    let context = answer.content.unwrap_or_default();
    let text = format!("Consider {context}.");
    Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]).into())
}

fn ask(questions: impl IntoIterator<Item = (&'static str, InputRequest)>) -> InputRequiredResult {
    let questions = questions.into_iter();
    let questions = questions.map(|(name, question)| (name.to_owned(), question));
    InputRequiredResult::from_input_requests(questions.collect())
}

fn with_state(result: InputRequiredResult, state: &str) -> InputRequiredResult {
    InputRequiredResult::new(result.input_requests, Some(state.to_owned()))
}

fn form(message: &str, properties: Value) -> Result<InputRequest, ErrorData> {
    let names = properties.as_object().map(|properties| properties.keys());
    let required: Vec<_> = names.into_iter().flatten().collect();
    let schema = json!({ "type": "object", "properties": properties, "required": required });
    let form = ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: message.to_owned(),
        requested_schema: ElicitationSchema::deserialize(schema).map_err(failed)?,
    };
    Ok(InputRequest::Elicitation(ElicitRequest::new(form)))
}

fn name_form() -> Result<InputRequest, ErrorData> {
    let properties = json!({ "name": { "type": "string" } });
    form("What is your name?", properties)
}

fn sampling(question: &str, max_tokens: u32) -> InputRequest {
    let question = vec![SamplingMessage::user_text(question)];
    let question = CreateMessageRequestParams::new(question, max_tokens);
    InputRequest::CreateMessage(CreateMessageRequest::new(question))
}

fn roots() -> InputRequest {
    InputRequest::ListRoots(ListRootsRequest::default())
}

/// `None` where there is none yet; an error where it is not what was asked for.
fn answer<A: DeserializeOwned>(
    answers: &Option<InputResponses>,
    question: &str,
) -> Result<Option<A>, ErrorData> {
    let answer = answers.as_ref().and_then(|answers| answers.get(question));
    answer.map(A::deserialize).transpose().map_err(malformed)
}

/// A state that says more than these two would have to be signed: it comes from the client.
fn check(state: Option<&str>, expected: &str) -> Result<(), ErrorData> {
    if state != Some(expected) {
        return Err(malformed("requestState is not what this server gave"));
    }
    Ok(())
}

fn samples(context: &Context) -> bool {
    let capabilities = context.client_capabilities();
    capabilities.is_some_and(|capabilities| capabilities.sampling.is_some())
}

pub(super) const PROMPT: &str = "test_input_required_result_prompt";
const ASKED: &str = "asked";
const ASKED_AGAIN: &str = "asked-again";
