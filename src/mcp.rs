//! The protocol's words: header names, eras and session ids.
//!
//! A session has two ids that look alike on the wire and must never be mixed up: the client's,
//! minted by this proxy, and the backend's, which no client may see. They are two types without
//! a conversion between them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, Method};
use uuid::Uuid;
use uuid::fmt::{Hyphenated, Simple};

/// Header names of MCP's Streamable HTTP transport.
pub mod header {
    use http::HeaderName;

    /// Binds a request to a session (MCP 2025-11-25, Session Management).
    pub const MCP_SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
    /// The message's JSON-RPC method (MCP 2026-07-28, Standard Request Headers).
    pub const MCP_METHOD: HeaderName = HeaderName::from_static("mcp-method");
    /// What the message is about: a tool, a prompt or a resource (MCP 2026-07-28, Standard Request
    /// Headers). [`text`](super::text) reads it.
    pub const MCP_NAME: HeaderName = HeaderName::from_static("mcp-name");
    /// The revision that the message follows (MCP 2025-06-18, Protocol Version Header).
    pub const MCP_PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
    /// The media type of an event stream.
    pub const EVENT_STREAM: &str = "text/event-stream";
}

/// Methods that something is made of here. The `Mcp-Name` of the first three repeats a parameter
/// (MCP 2026-07-28, Standard Request Headers).
pub mod method {
    /// Calls the tool that `name` names.
    pub const TOOLS_CALL: &str = "tools/call";
    /// Gets the prompt that `name` names.
    pub const PROMPTS_GET: &str = "prompts/get";
    /// Reads the resource that `uri` names.
    pub const RESOURCES_READ: &str = "resources/read";
    /// Asks for a stream of changes (MCP 2026-07-28, Subscriptions).
    pub const SUBSCRIPTIONS_LISTEN: &str = "subscriptions/listen";
}

/// Which of MCP's two ways of talking over HTTP a request follows.
///
/// It is a property of each request: clients of both eras share one port, and a client of both
/// may probe with the newer before it falls back to the older.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Era {
    /// Revisions `2025-03-26` to `2025-11-25`: sessions, GET streams, DELETE.
    #[default]
    Session,
    /// Revision `2026-07-28` and later: every POST stands alone.
    Stateless,
}

impl Era {
    /// A short stable name, used in metrics and the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Stateless => "stateless",
        }
    }

    /// Reads the era from `MCP-Protocol-Version`. An absent header, and one that is no revision,
    /// is the session era's: only there may it be missing (MCP 2025-06-18, Protocol Version
    /// Header).
    pub fn of(version: Option<&HeaderValue>) -> Self {
        match version {
            Some(version) if is_stateless_revision(version.as_bytes()) => Self::Stateless,
            _ => Self::Session,
        }
    }
}

/// What a client may do at an MCP endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Call {
    /// Sends a message.
    #[default]
    Post,
    /// Sends `subscriptions/listen`: a POST whose answer is a stream that lives for as long as
    /// both sides want it (MCP 2026-07-28, Subscriptions).
    Listen,
    /// Opens a stream for the server's messages.
    Get,
    /// Ends a session.
    Delete,
    /// Reads a document of OAuth discovery. It belongs to no session.
    Discover,
}

impl Call {
    /// The call that `method` makes. `None` for a method that MCP does not use.
    pub fn of(method: &Method) -> Option<Self> {
        match *method {
            Method::POST => Some(Self::Post),
            Method::GET => Some(Self::Get),
            Method::DELETE => Some(Self::Delete),
            _ => None,
        }
    }
}

/// What a message asks for, as `Mcp-Method` says: one of those that a client of the stateless era
/// sends, or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct McpMethod(usize);

impl McpMethod {
    /// How many there are, the other included.
    pub const COUNT: usize = METHODS.len() + 1;

    /// The method of a request. `None` where its headers tell none.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let name = headers.get(header::MCP_METHOD)?.as_bytes();
        let known = METHODS.iter().position(|known| known.as_bytes() == name);
        Some(Self(known.unwrap_or(METHODS.len())))
    }

    /// Its name, or `_OTHER`: never what a client made up.
    pub fn name(self) -> &'static str {
        METHODS.get(self.0).unwrap_or(&OTHER)
    }

    /// Its position, below [`COUNT`](Self::COUNT).
    pub fn index(self) -> usize {
        self.0
    }

    /// Whether `Mcp-Name` is the name of a tool.
    pub fn calls_tool(self) -> bool {
        self.name() == method::TOOLS_CALL
    }
}

/// The session id that a client holds: 128 random bits minted here, 32 hex digits on the wire. A seal
/// of the session may follow them there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientSessionId([u8; 16]);

impl ClientSessionId {
    /// Mints an id that nobody can guess (UUID v4; MCP 2025-11-25, Session Management 1).
    pub fn mint() -> Self {
        Self(Uuid::new_v4().into_bytes())
    }

    /// The id as it goes to the client, marked sensitive so that `Debug` does not print it.
    pub fn to_header(self) -> HeaderValue {
        let mut digits = [0; DIGITS];
        let digits = Uuid::from_bytes(self.0).simple().encode_lower(&mut digits);
        let mut value = HeaderValue::from_str(digits).expect("hex digits are visible ASCII");
        value.set_sensitive(true);
        value
    }

    /// Its 128 bits.
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Reads the id that `value` begins with, and gives what follows it.
    ///
    /// # Errors
    /// It does not begin with the one form that [`to_header`](Self::to_header) writes: header values
    /// are case-sensitive, and a second spelling would be a second name for one session.
    pub(crate) fn split(value: &HeaderValue) -> Result<(Self, &[u8]), MalformedSessionId> {
        let split = value.as_bytes().split_at_checked(DIGITS);
        let (digits, rest) = split.ok_or(MalformedSessionId)?;
        if digits.iter().any(u8::is_ascii_uppercase) {
            return Err(MalformedSessionId);
        }
        let id = Uuid::try_parse_ascii(digits).map_err(|_| MalformedSessionId)?;
        Ok((Self(id.into_bytes()), rest))
    }
}

impl TryFrom<&HeaderValue> for ClientSessionId {
    type Error = MalformedSessionId;

    /// Accepts what [`to_header`](Self::to_header) writes, and nothing behind it.
    fn try_from(value: &HeaderValue) -> Result<Self, MalformedSessionId> {
        match Self::split(value)? {
            (id, []) => Ok(id),
            _ => Err(MalformedSessionId),
        }
    }
}

impl fmt::Debug for ClientSessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClientSessionId(redacted)")
    }
}

/// The session id that a backend gave, known to that backend and this proxy only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct BackendSessionId(Form);

/// The id in few bytes, as a store keeps many: the SDKs' servers give UUIDs, which have 16.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    /// In lower case and with hyphens.
    Hyphenated(Uuid),
    /// In lower case and without hyphens.
    Simple(Uuid),
    Other(Arc<[u8]>),
}

impl BackendSessionId {
    /// The longest id taken from a backend, in bytes. Real ones have 32 to 36.
    pub const MAX_LENGTH: usize = 1024;

    /// What a backend gave as an id, of any form, to be given back to it and to nobody else.
    pub(crate) fn of_any_form(value: &HeaderValue) -> Self {
        let bytes = value.as_bytes();
        let is_lower = !bytes.iter().any(u8::is_ascii_uppercase);
        Self(match (bytes.len(), Uuid::try_parse_ascii(bytes)) {
            (Hyphenated::LENGTH, Ok(uuid)) if is_lower => Form::Hyphenated(uuid),
            (Simple::LENGTH, Ok(uuid)) if is_lower => Form::Simple(uuid),
            _ => Form::Other(bytes.into()),
        })
    }

    /// The id as it goes to the backend, marked sensitive so that `Debug` does not print it.
    pub fn to_header(&self) -> HeaderValue {
        let mut value = HeaderValue::from_bytes(self.write(&mut Uuid::encode_buffer()))
            .expect("it was a header's value");
        value.set_sensitive(true);
        value
    }

    /// The id as it goes to the backend, written into `buffer` where it is not kept so.
    fn write<'b>(&'b self, buffer: &'b mut [u8]) -> &'b [u8] {
        match &self.0 {
            Form::Hyphenated(uuid) => uuid.as_hyphenated().encode_lower(buffer).as_bytes(),
            Form::Simple(uuid) => uuid.as_simple().encode_lower(buffer).as_bytes(),
            Form::Other(bytes) => bytes,
        }
    }
}

impl TryFrom<&HeaderValue> for BackendSessionId {
    type Error = MalformedSessionId;

    /// Takes what the specification allows: 0x21 to 0x7E (MCP 2025-11-25, Session Management 1).
    fn try_from(value: &HeaderValue) -> Result<Self, MalformedSessionId> {
        let bytes = value.as_bytes();
        if bytes.is_empty()
            || bytes.len() > Self::MAX_LENGTH
            || !bytes.iter().all(u8::is_ascii_graphic)
        {
            return Err(MalformedSessionId);
        }
        Ok(Self::of_any_form(value))
    }
}

impl PartialEq<HeaderValue> for BackendSessionId {
    fn eq(&self, value: &HeaderValue) -> bool {
        self.write(&mut Uuid::encode_buffer()) == value.as_bytes()
    }
}

impl fmt::Debug for BackendSessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BackendSessionId(redacted)")
    }
}

/// A session id that is not of the form its side uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session id is malformed")]
pub struct MalformedSessionId;

/// The text that `Mcp-Name` and its like stand for: the value as it is, or decoded where it is
/// `=?base64?..?=`, to the letter (MCP 2026-07-28, Value Encoding; SEP-2243).
///
/// # Errors
/// The value is not ASCII, or what is encoded in it is not UTF-8 in base64.
pub fn text(value: &HeaderValue) -> Result<Cow<'_, str>, MalformedText> {
    let value = value.to_str().map_err(|_| MalformedText)?;
    let encoded = value.strip_prefix("=?base64?");
    let Some(encoded) = encoded.and_then(|rest| rest.strip_suffix("?=")) else {
        return Ok(Cow::Borrowed(value));
    };
    let decoded = BASE64_STANDARD.decode(encoded).map_err(|_| MalformedText)?;
    let decoded = String::from_utf8(decoded).map_err(|_| MalformedText)?;
    Ok(Cow::Owned(decoded))
}

/// A header value that stands for no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header is malformed")]
pub struct MalformedText;

/// Revisions are dates, so that they compare as text (MCP, Versioning).
fn is_stateless_revision(version: &[u8]) -> bool {
    let is_date = version.len() == FIRST_STATELESS_REVISION.len()
        && version
            .iter()
            .zip(FIRST_STATELESS_REVISION)
            .all(|(byte, model)| byte.is_ascii_digit() == model.is_ascii_digit());
    is_date && version >= FIRST_STATELESS_REVISION
}

/// The methods that an endpoint takes, as `Allow` and CORS name them.
pub const ALLOWED_METHODS: &str = "GET, POST, DELETE, OPTIONS";

/// The same where the backend has no GET stream.
pub const ALLOWED_METHODS_WITHOUT_GET: &str = "POST, DELETE, OPTIONS";

/// Digits of a client's id on the wire.
const DIGITS: usize = 32;

/// What OpenTelemetry's conventions call a value outside a closed set.
pub const OTHER: &str = "_OTHER";

/// The methods that a client sends (MCP 2026-07-28, Schema; its extension for tasks).
const METHODS: [&str; 14] = [
    "completion/complete",
    "notifications/cancelled",
    method::PROMPTS_GET,
    "prompts/list",
    "resources/list",
    method::RESOURCES_READ,
    "resources/templates/list",
    "server/discover",
    method::SUBSCRIPTIONS_LISTEN,
    "tasks/cancel",
    "tasks/get",
    "tasks/update",
    method::TOOLS_CALL,
    "tools/list",
];

const FIRST_STATELESS_REVISION: &[u8] = b"2026-07-28";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_era_follows_the_version_header() {
        let eras = [
            (None, Era::Session),
            (Some("2025-03-26"), Era::Session),
            (Some("2025-11-25"), Era::Session),
            (Some("2026-07-27"), Era::Session),
            (Some("2026-07-28"), Era::Stateless),
            (Some("2027-01-01"), Era::Stateless),
            (Some("not-a-date"), Era::Session),
            (Some("9999"), Era::Session),
            (Some(""), Era::Session),
        ];
        for (version, era) in eras {
            let header = version.map(HeaderValue::from_static);
            assert_eq!(Era::of(header.as_ref()), era, "{version:?}");
        }
    }

    #[test]
    fn minted_ids_are_32_lower_case_hex_digits_and_differ() {
        let first = ClientSessionId::mint();
        let second = ClientSessionId::mint();
        assert_ne!(first, second);
        let digits = first.to_header();
        assert_eq!(digits.len(), 32);
        assert!(
            digits
                .as_bytes()
                .iter()
                .all(|b| b"0123456789abcdef".contains(b))
        );
        assert_eq!(ClientSessionId::try_from(&digits), Ok(first));
    }

    #[test]
    fn ids_never_print() {
        let client = ClientSessionId::mint();
        let digits = client.to_header();
        let backend = BackendSessionId::try_from(&HeaderValue::from_static("s3cret")).unwrap();
        let printed = format!(
            "{client:?} {backend:?} {digits:?} {:?}",
            backend.to_header()
        );
        assert!(!printed.contains(std::str::from_utf8(digits.as_bytes()).unwrap()));
        assert!(!printed.contains("s3cret"));
    }

    #[test]
    fn a_text_is_decoded_where_it_is_encoded_to_the_letter() {
        let read = |bytes: &[u8]| {
            let value = HeaderValue::from_bytes(bytes).unwrap();
            text(&value).map(Cow::into_owned)
        };
        for plain in [
            "delete_file",
            "a b",
            "",
            "=?base64?",
            "=?base64?=",
            "=?BASE64?ZWNobw==?=",
            "x=?base64?ZWNobw==?=",
            "=?base64?ZWNobw==?= ",
        ] {
            assert_eq!(read(plain.as_bytes()), Ok(plain.to_owned()));
        }
        assert_eq!(read(b"=?base64?ZWNobw==?="), Ok("echo".to_owned()));
        assert_eq!(read(b"=?base64?w6ljaG8=?="), Ok("\u{e9}cho".to_owned()));
        assert_eq!(read(b"=?base64??="), Ok(String::new()));
        for malformed in [
            b"=?base64?ZWNobw?=".as_slice(),
            b"=?base64?ZWNobw=?=",
            b"=?base64?ZWN obw==?=",
            b"=?base64?ZWNobx==?=",
            b"=?base64?_-8=?=",
            b"=?base64?/w==?=",
            b"\xc3\xa9cho",
        ] {
            assert_eq!(read(malformed), Err(MalformedText), "{malformed:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_its_encoding(original in any::<String>()) {
            let encoded = format!("=?base64?{}?=", BASE64_STANDARD.encode(&original));
            let value = HeaderValue::try_from(encoded).unwrap();
            prop_assert_eq!(text(&value), Ok(Cow::from(original)));
        }

        #[test]
        fn no_value_is_more_than_malformed(
            bytes in "(=\\?base64\\?)?[ -~]{0,40}(\\?=)?".prop_map(String::into_bytes)
                .boxed().prop_union(proptest::collection::vec(any::<u8>(), 0..40).boxed())
        ) {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            if let Ok(Cow::Borrowed(plain)) = text(&value) {
                prop_assert_eq!(plain.as_bytes(), &bytes);
            }
        }

        #[test]
        fn any_other_text_is_no_client_id(text in "([ -~]{0,64}|[0-9a-f]{30,34}|[0-9a-fA-F-]{32,36})") {
            let value = HeaderValue::from_str(&text).unwrap();
            let is_canonical = text.len() == 32
                && text.bytes().all(|b| b"0123456789abcdef".contains(&b));
            prop_assert_eq!(ClientSessionId::try_from(&value).is_ok(), is_canonical);
        }

        #[test]
        fn a_backend_id_is_kept_byte_for_byte_or_refused(
            bytes in "([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9A-Fa-f-]{32,36})"
                .prop_map(String::into_bytes).boxed()
                .prop_union(proptest::collection::vec(any::<u8>(), 0..1100).boxed())
        ) {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            let allowed = (1..=1024).contains(&bytes.len())
                && bytes.iter().all(|b| (0x21..=0x7e).contains(b));
            match BackendSessionId::try_from(&value) {
                Ok(id) => {
                    prop_assert!(allowed);
                    let kept = id.to_header();
                    prop_assert_eq!(kept.as_bytes(), &bytes);
                    prop_assert!(id == value);
                }
                Err(MalformedSessionId) => prop_assert!(!allowed),
            }
        }
    }
}
