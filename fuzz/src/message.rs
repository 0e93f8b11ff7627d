//! Messages that a policy judges: what is let through is the same to whoever reads it, and allowed.

use http::HeaderMap;
use pingora_mcp::Rejection;
use pingora_mcp::mcp::header::{MCP_METHOD, MCP_NAME, MCP_PROTOCOL_VERSION};
use pingora_mcp::mcp::{Era, text};
use pingora_mcp::message::{Body, Message};
use pingora_mcp::policy::Policy;
use serde_json::json;
use serde_json::value::RawValue;

use super::input::{head, headers};

/// `input`: the headers of a request and, after an empty line, its body.
pub fn message(input: &[u8]) {
    let (lines, body) = head(input);
    let headers = headers(&lines);
    let Ok(parsed) = Body::parse(body) else {
        return;
    };
    let json = std::str::from_utf8(body).expect("JSON is UTF-8");
    let values: Vec<&RawValue> = match &parsed {
        Body::Message(_) => vec![serde_json::from_str(json).expect("what was parsed is JSON")],
        _ => serde_json::from_str(json).expect("a batch is a list"),
    };
    assert_eq!(values.len(), parsed.messages().len());
    for (message, value) in parsed.messages().iter().zip(&values) {
        check_members(message, value);
        check_answer(message, value);
    }
    let era = Era::of(headers.get(MCP_PROTOCOL_VERSION));
    if policy().judge(&parsed, era, &headers).is_ok() {
        for message in parsed.messages() {
            check_allowed(message);
        }
        if let (Era::Stateless, Body::Message(message)) = (era, &parsed) {
            check_headers(message, &headers);
        }
    }
}

fn policy() -> Policy {
    let names = |names: &[&str]| json!({ "allow": names });
    let methods = serde_json::from_value(names(&METHODS)).expect("a list of names");
    let tools = serde_json::from_value(names(&TOOLS)).expect("a list of names");
    Policy::new(methods, tools).expect("not everything is allowed")
}

/// Reads an object as one who takes the first of two keys, or the last, in any case, would.
fn check_members(message: &Message, json: &RawValue) {
    let members = members(json);
    assert_eq!(
        message.method(),
        string(only(&members, "method")).as_deref()
    );
    if let Some(id) = message.id() {
        assert_eq!(Some(&*id.to_string()), only(&members, "id"));
    }
    let params = members.iter().find(|(key, _)| key == "params");
    let params = params.filter(|(_, params)| params.get().starts_with('{'));
    let params = params.map_or(Vec::new(), |(_, params)| self::members(params));
    let key = match message.method() {
        Some("tools/call" | "prompts/get") => "name",
        Some("resources/read") => "uri",
        _ => return assert_eq!(message.name(), None),
    };
    assert_eq!(message.name(), string(only(&params, key)).as_deref());
}

/// The client must find its own id in what it gets.
fn check_answer(message: &Message, json: &RawValue) {
    let answer = Rejection::HeaderMismatch.answer_to(message.id());
    let (_, body) = answer.expect("no header is refused");
    let answer: &RawValue = serde_json::from_slice(&body).expect("an answer is JSON");
    let asked = members(json);
    let asked = message.id().and_then(|_| only(&asked, "id"));
    assert_eq!(only(&members(answer), "id"), asked);
}

fn check_allowed(message: &Message) {
    let Some(method) = message.method() else {
        return;
    };
    assert!(METHODS.contains(&method), "{method} is let through");
    if method == "tools/call" {
        let tool = message.name().expect("a tool is named");
        assert!(TOOLS.contains(&tool), "{tool} is let through");
    }
}

/// Others may go by the headers alone.
fn check_headers(message: &Message, headers: &HeaderMap) {
    for (name, said) in [(MCP_METHOD, message.method()), (MCP_NAME, message.name())] {
        let values: Vec<_> = headers.get_all(&name).iter().collect();
        let is_named = name == MCP_METHOD
            || matches!(
                message.method(),
                Some("tools/call" | "prompts/get" | "resources/read")
            );
        match (values.as_slice(), said) {
            _ if !is_named => {}
            ([value], Some(said)) => assert_eq!(text(value).as_deref(), Ok(said)),
            ([], Some(_)) => assert!(message.id().is_none(), "a request lacks {name}"),
            ([], None) => {}
            _ => panic!("{name}: {values:?}, and the body says {said:?}"),
        }
    }
    assert!(headers.get_all(MCP_PROTOCOL_VERSION).iter().count() > 0);
}

/// The members of an object in their order, each as often as it is there.
fn members(json: &RawValue) -> Vec<(String, Box<RawValue>)> {
    struct Members;
    impl<'de> serde::de::Visitor<'de> for Members {
        type Value = Vec<(String, Box<RawValue>)>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut map: A,
        ) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }
    use serde::Deserializer as _;
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    let members = deserializer.deserialize_map(Members);
    members.expect("a message is an object")
}

/// The value of the one member that anybody may take for `name`, as it is written.
fn only<'m>(members: &'m [(String, Box<RawValue>)], name: &str) -> Option<&'m str> {
    let is_like = |key: &str| {
        key.to_lowercase() == name.to_lowercase() || key.to_uppercase() == name.to_uppercase()
    };
    let mut like = members.iter().filter(|(key, _)| is_like(key));
    let (key, value) = like.next()?;
    assert!(like.next().is_none(), "{name} is there twice");
    assert_eq!(key, name);
    Some(value.get())
}

/// `None` where it is no string that everybody can read.
fn string(json: Option<&str>) -> Option<String> {
    serde_json::from_str(json?).ok()
}

const METHODS: [&str; 4] = ["tools/call", "tools/list", "resources/read", "ping"];
const TOOLS: [&str; 2] = ["echo", "\u{e9}cho"];
