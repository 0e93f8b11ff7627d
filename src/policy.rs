//! Which methods and which tools clients may use on a route.

use std::borrow::Borrow;
use std::collections::HashSet;

use http::HeaderMap;
use serde::{Deserialize, Deserializer};

use crate::mcp::Era;
use crate::mcp::method::TOOLS_CALL;
use crate::message::{Body, MAX_BODY, Message, is_plain_json};
use crate::rejection::Rejection;
use crate::setting::{Text, parse};

/// The policy of a route that has one: each message to it is judged by its body.
#[derive(Debug)]
pub struct Policy {
    methods: MethodPolicy,
    tools: ToolPolicy,
}

/// `methods` of a route in the configuration file: the JSON-RPC methods of what clients send.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct MethodPolicy(Names);

/// `tools` of a route in the configuration file: the tools of `tools/call`.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct ToolPolicy(Names);

impl Policy {
    /// The policy of both. `None` where neither refuses anything.
    pub fn new(methods: MethodPolicy, tools: ToolPolicy) -> Option<Self> {
        let is_open = methods.0.is_open() && tools.0.is_open();
        (!is_open).then_some(Self { methods, tools })
    }

    /// Whether a body with these headers can be judged.
    ///
    /// # Errors
    /// It is too large, or not plain JSON.
    pub fn judge_headers(&self, headers: &HeaderMap, length: Option<u64>) -> Result<(), Rejection> {
        if !is_plain_json(headers) {
            return Err(Rejection::MessageNotJson);
        }
        match length {
            Some(length) if length > MAX_BODY as u64 => Err(Rejection::MessageTooLarge),
            _ => Ok(()),
        }
    }

    /// Judges each message of a body, and in the stateless era what the headers say of it, as
    /// others may go by them.
    ///
    /// # Errors
    /// The first refusal.
    pub fn judge(&self, body: &Body, era: Era, headers: &HeaderMap) -> Result<(), Rejection> {
        if era == Era::Stateless {
            let Body::Message(message) = body else {
                return Err(Rejection::MessageMalformed);
            };
            if !message.agrees_with(headers) {
                return Err(Rejection::HeaderMismatch);
            }
        }
        body.messages()
            .iter()
            .try_for_each(|message| self.judge_message(message))
    }

    fn judge_message(&self, message: &Message) -> Result<(), Rejection> {
        let Some(method) = message.method() else {
            return Ok(());
        };
        if !self.methods.0.allows(method) {
            return Err(Rejection::MethodForbidden);
        }
        if method != TOOLS_CALL || self.tools.0.is_open() {
            return Ok(());
        }
        match message.name() {
            Some(tool) if self.tools.0.allows(tool) => Ok(()),
            Some(_) => Err(Rejection::ToolForbidden),
            // A server might take the name from where none belongs.
            None => Err(Rejection::MessageMalformed),
        }
    }
}

/// The names that are allowed, and those that are not.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Names {
    /// Those that are allowed. `None`: all.
    allow: Option<HashSet<Name>>,
    /// Those that are not, whatever `allow` says.
    deny: HashSet<Name>,
}

impl Names {
    fn allows(&self, name: &str) -> bool {
        let is_listed = |allow: &HashSet<Name>| allow.contains(name);
        !self.deny.contains(name) && self.allow.as_ref().is_none_or(is_listed)
    }

    fn is_open(&self) -> bool {
        self.allow.is_none() && self.deny.is_empty()
    }
}

/// The exact name of a method or a tool.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Name(String);

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for Name {
    type Error = &'static str;

    fn try_from(Text(name): Text) -> Result<Self, Self::Error> {
        if name.is_empty() || name.trim() != name {
            return Err("not a name: expected one that is not empty, without spaces around it");
        }
        if name.contains('*') {
            return Err("'*' in a name: expected a whole name, as there are no patterns");
        }
        Ok(Self(name))
    }
}
