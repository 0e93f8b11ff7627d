//! A request's body, as far as it is judged by: whose method it is, and what that is about.
//!
//! What is judged must be what the backend reads. So what parsers are known to read in several
//! ways is refused: a key that is there twice, or in another case, as some take `Method` for
//! `method`; text that is not UTF-8.

use std::fmt;

use http::{HeaderMap, HeaderName, header};
use serde::de::{self, DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::mcp;
use crate::mcp::header::{MCP_METHOD, MCP_NAME, MCP_PROTOCOL_VERSION};
use crate::mcp::method::{PROMPTS_GET, RESOURCES_READ, TOOLS_CALL};

/// The longest body that is judged, in bytes: what Pingora keeps of one that is read before it is
/// sent on.
pub const MAX_BODY: usize = 64 * 1024;

/// What a POST carries.
#[derive(Debug)]
#[non_exhaustive]
pub enum Body {
    /// One message.
    Message(Message),
    /// Several, as revision 2025-03-26 alone allows.
    Batch(Vec<Message>),
}

/// A request, a notification, or the answer to a request of the server's.
#[derive(Debug)]
pub struct Message {
    method: Option<String>,
    id: Option<RequestId>,
    name: Option<String>,
    revision: Option<String>,
}

/// The id of a JSON-RPC request, as it stands in the body.
#[derive(Clone, Debug)]
pub struct RequestId(Box<RawValue>);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.get())
    }
}

/// A body that is not JSON-RPC, or that some parser may read differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is malformed")]
pub struct MalformedBody;

impl From<serde_json::Error> for MalformedBody {
    fn from(_: serde_json::Error) -> Self {
        Self
    }
}

impl Body {
    /// Reads a whole body. Only the keys that matter are looked at; all else is skipped, however
    /// deep.
    ///
    /// # Errors
    /// It is no JSON-RPC message, and no batch of at least one.
    pub fn parse(body: &[u8]) -> Result<Self, MalformedBody> {
        let text = std::str::from_utf8(body).map_err(|_| MalformedBody)?;
        let json: &RawValue = serde_json::from_str(text)?;
        if !json.get().starts_with('[') {
            return Message::parse(json).map(Self::Message);
        }
        let batch: Vec<&RawValue> = serde_json::from_str(json.get())?;
        if batch.is_empty() {
            return Err(MalformedBody);
        }
        let messages = batch.into_iter().map(Message::parse);
        messages.collect::<Result<_, _>>().map(Self::Batch)
    }

    /// The messages, in their order.
    pub fn messages(&self) -> &[Message] {
        match self {
            Self::Message(message) => std::slice::from_ref(message),
            Self::Batch(messages) => messages,
        }
    }
}

impl Message {
    fn parse(json: &RawValue) -> Result<Self, MalformedBody> {
        let [method, id, params] = members(json, ["method", "id", "params"])?;
        let method = match method.map(string) {
            Some(None) => return Err(MalformedBody),
            method => method.flatten(),
        };
        let [name, uri, meta] = members_of_object(params, ["name", "uri", "_meta"])?;
        let [revision] = members_of_object(meta, [REVISION])?;
        let name = match method.as_deref().and_then(name_key) {
            Some(NameKey::Name) => name,
            Some(NameKey::Uri) => uri,
            None => None,
        };
        // The id of an answer is the server's: nothing that goes to the client may have it.
        let id = id.filter(|_| method.is_some());
        Ok(Self {
            method,
            id: id.and_then(request_id),
            name: name.and_then(string),
            revision: revision.and_then(string),
        })
    }

    /// Its method. `None` for the answer to a request of the server's.
    pub fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    /// The id that its answer must have. `None` for what is not answered.
    pub fn id(&self) -> Option<&RequestId> {
        self.id.as_ref()
    }

    /// What it is about: a tool's or a prompt's name, a resource's URI. `None` for any other
    /// method.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether the headers of a stateless-era request say of this message what it says itself. A
    /// request must have them; what is not answered may lack them (MCP 2026-07-28, Standard
    /// Request Headers; SEP-2243).
    pub fn agrees_with(&self, headers: &HeaderMap) -> bool {
        let agrees = |header: HeaderName, said: Option<&str>| {
            let mut values = headers.get_all(header).iter();
            match (values.next(), said) {
                (Some(value), Some(said)) => {
                    values.next().is_none() && mcp::text(value).is_ok_and(|text| text == said)
                }
                (Some(_), None) => false,
                (None, Some(_)) => self.id.is_none(),
                (None, None) => true,
            }
        };
        let is_named = self.method().and_then(name_key).is_some();
        agrees(MCP_METHOD, self.method())
            && (!is_named || agrees(MCP_NAME, self.name()))
            && (self.revision.is_none() || agrees(MCP_PROTOCOL_VERSION, self.revision.as_deref()))
    }
}

/// Whether what `headers` say of a body leaves one way to read it: JSON in UTF-8, and not
/// compressed.
pub fn is_plain_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    types.all(|value| is_json_in_utf8(value.as_bytes()))
        && codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The charset is the one parameter that changes how JSON is read, and the one that is let in.
fn is_json_in_utf8(media_type: &[u8]) -> bool {
    let mut parts = media_type.split(|byte| *byte == b';');
    let is_json = |essence: &[u8]| {
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/json")
    };
    let is_utf8 = |parameter: &[u8]| {
        let allowed = [b"charset=utf-8".as_slice(), b"charset=\"utf-8\""];
        let parameter = parameter.trim_ascii();
        allowed
            .iter()
            .any(|allowed| parameter.eq_ignore_ascii_case(allowed))
    };
    parts.next().is_some_and(is_json) && parts.all(is_utf8)
}

/// The parameter that `Mcp-Name` repeats.
enum NameKey {
    Name,
    Uri,
}

fn name_key(method: &str) -> Option<NameKey> {
    match method {
        TOOLS_CALL | PROMPTS_GET => Some(NameKey::Name),
        RESOURCES_READ => Some(NameKey::Uri),
        _ => None,
    }
}

/// Numbers and strings are ids (MCP, Requests).
fn request_id(json: &RawValue) -> Option<RequestId> {
    let is_id = |first: char| matches!(first, '"' | '-' | '0'..='9');
    let id = json.get().starts_with(is_id).then(|| json.to_owned());
    id.map(RequestId)
}

/// The string that `json` is. `None` where it is something else, or a string that is no text.
fn string(json: &RawValue) -> Option<String> {
    serde_json::from_str(json.get()).ok()
}

/// The members of an object as [`members`], none of anything else.
fn members_of_object<'j, const N: usize>(
    json: Option<&'j RawValue>,
    keys: [&'static str; N],
) -> Result<[Option<&'j RawValue>; N], MalformedBody> {
    match json {
        Some(json) if json.get().starts_with('{') => members(json, keys),
        _ => Ok([None; N]),
    }
}

/// The members of the object `json` that have these keys.
fn members<'j, const N: usize>(
    json: &'j RawValue,
    keys: [&'static str; N],
) -> Result<[Option<&'j RawValue>; N], MalformedBody> {
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    Ok(deserializer.deserialize_map(Members(keys))?)
}

struct Members<const N: usize>([&'static str; N]);

impl<'j, const N: usize> Visitor<'j> for Members<N> {
    type Value = [Option<&'j RawValue>; N];

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'j>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = [None; N];
        while let Some(position) = map.next_key_seed(Key(&self.0))? {
            let Some(position) = position else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if members[position].replace(map.next_value()?).is_some() {
                return Err(de::Error::duplicate_field(self.0[position]));
            }
        }
        Ok(members)
    }
}

/// Reads a key as its position among those that are looked for.
struct Key<'k>(&'k [&'static str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Option<usize>, E> {
        let position = self
            .0
            .iter()
            .position(|name| is_same_in_any_case(name, key));
        match position {
            Some(position) if self.0[position] != key => Err(E::custom("a key in another case")),
            position => Ok(position),
        }
    }
}

/// In upper case, as the long `s` is then one too, and is to parsers that fold cases.
fn is_same_in_any_case(name: &str, key: &str) -> bool {
    let name = name.chars().flat_map(char::to_uppercase);
    name.eq(key.chars().flat_map(char::to_uppercase))
}

/// Where a message of the stateless era says its revision (MCP 2026-07-28, Versioning).
const REVISION: &str = "io.modelcontextprotocol/protocolVersion";
