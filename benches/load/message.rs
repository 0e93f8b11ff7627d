//! What clients send and what has to come back, byte for byte: both ends of the load go by it.

use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

/// A request that the backend knows, and the one right answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Opens a session.
    Initialize,
    /// Calls a tool in a session.
    Call,
    /// Calls a tool in the stateless era.
    StatelessCall,
    /// Calls a tool that tells its progress: [`EVENTS`] events.
    CallWithEvents,
    /// Calls a tool with 1 MiB of arguments.
    Upload,
    /// Calls a tool that answers with 1 MiB.
    Download,
    /// Opens the stream of a session.
    Listen,
    /// Ends a session.
    End,
}

impl Message {
    /// What the backend has read, if it is a message of these.
    pub(crate) fn read(method: &Method, body: &[u8]) -> Option<Self> {
        let fits = |message: &Self| message.method() == *method && message.body() == body;
        ALL.into_iter().find(fits)
    }

    pub(crate) fn method(self) -> Method {
        match self {
            Self::Listen => Method::GET,
            Self::End => Method::DELETE,
            Self::Initialize
            | Self::Call
            | Self::StatelessCall
            | Self::CallWithEvents
            | Self::Upload
            | Self::Download => Method::POST,
        }
    }

    pub(crate) fn body(self) -> Bytes {
        match self {
            Self::Initialize => Bytes::from_static(INITIALIZE),
            Self::Call => Bytes::from_static(CALL),
            Self::StatelessCall => Bytes::from_static(STATELESS_CALL),
            Self::CallWithEvents => Bytes::from_static(CALL_WITH_EVENTS),
            Self::Upload => LARGE.clone(),
            Self::Download => Bytes::from_static(DOWNLOAD),
            Self::Listen | Self::End => Bytes::new(),
        }
    }

    /// The headers beside the session's id and what HTTP itself asks for, as the SDKs' clients send
    /// them.
    pub(crate) fn headers(self) -> &'static [(HeaderName, HeaderValue)] {
        match self {
            Self::Initialize => &INITIALIZE_HEADERS,
            Self::StatelessCall => &STATELESS_HEADERS,
            Self::Call
            | Self::CallWithEvents
            | Self::Upload
            | Self::Download
            | Self::Listen
            | Self::End => &SESSION_HEADERS,
        }
    }

    pub(crate) fn is_of_a_session(self) -> bool {
        !matches!(self, Self::Initialize | Self::StatelessCall)
    }

    /// The body of the answer, which is a 200. Of a stream that does not end: nothing.
    pub(crate) fn answer(self) -> Bytes {
        match self {
            Self::Initialize => Bytes::from_static(INITIALIZED),
            Self::Call | Self::StatelessCall | Self::Upload => Bytes::from_static(RESULT),
            Self::CallWithEvents => ALL_EVENTS.clone(),
            Self::Download => LARGE.clone(),
            Self::Listen | Self::End => Bytes::new(),
        }
    }

    pub(crate) fn content_type(self) -> Option<HeaderValue> {
        match self {
            Self::CallWithEvents | Self::Listen => {
                Some(HeaderValue::from_static("text/event-stream"))
            }
            Self::End => None,
            Self::Initialize | Self::Call | Self::StatelessCall | Self::Upload | Self::Download => {
                Some(HeaderValue::from_static("application/json"))
            }
        }
    }
}

/// The events that a [`Message::CallWithEvents`] is answered by.
pub(crate) const EVENTS: usize = 20;

/// One of these events.
pub(crate) fn progress(number: usize) -> Bytes {
    format!(
        "event: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\
         \"params\":{{\"progressToken\":7,\"progress\":{number},\"total\":{EVENTS}}}}}\n\n"
    )
    .into()
}

/// The event on an open stream: its number there, and when it was sent, in nanoseconds of the clock
/// that both ends share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick {
    pub(crate) number: u64,
    pub(crate) sent: u64,
}

impl Tick {
    pub(crate) fn write(self) -> Bytes {
        let Self { number, sent } = self;
        format!("{TICK}{number},\"sent\":{sent}{TICK_END}").into()
    }

    pub(crate) fn read(event: &str) -> Option<Self> {
        let (number, sent) = event
            .strip_prefix(TICK)?
            .strip_suffix(TICK_END)?
            .split_once(",\"sent\":")?;
        Some(Self {
            number: number.parse().ok()?,
            sent: sent.parse().ok()?,
        })
    }
}

pub(crate) const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

/// What the stateless era's intermediaries go by. The backend asks for them.
pub(crate) const METHOD: HeaderName = HeaderName::from_static("mcp-method");
pub(crate) const NAME: HeaderName = HeaderName::from_static("mcp-name");

const ALL: [Message; 8] = [
    Message::Call,
    Message::StatelessCall,
    Message::Initialize,
    Message::CallWithEvents,
    Message::Upload,
    Message::Download,
    Message::Listen,
    Message::End,
];

const INITIALIZE: &[u8] = br#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"load","version":"1"}}}"#;
const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"backend","version":"1"}}}"#;
const CALL: &[u8] = br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"add","arguments":{"a":1,"b":2}}}"#;
const STATELESS_CALL: &[u8] = br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"add","arguments":{"a":1,"b":2},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
const CALL_WITH_EVENTS: &[u8] = br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"count","arguments":{},"_meta":{"progressToken":7}}}"#;
const DOWNLOAD: &[u8] =
    br#"{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{"uri":"file:///large"}}"#;
const RESULT: &[u8] = br#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"The sum of 1 and 2 is 3."}],"structuredContent":{"sum":3},"isError":false}}"#;

const TICK: &str = "event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\
                    \"params\":{\"level\":\"info\",\"data\":{\"number\":";
const TICK_END: &str = "}}}\n\n";

static LARGE: LazyLock<Bytes> = LazyLock::new(|| {
    let (before, after) = (r#"{"jsonrpc":"2.0","id":7,"blob":""#, r#""}"#);
    let filling = "0123456789abcdef".repeat(LARGE_SIZE / 16);
    let filling = &filling[before.len() + after.len()..];
    format!("{before}{filling}{after}").into()
});
const LARGE_SIZE: usize = 1024 * 1024;

static ALL_EVENTS: LazyLock<Bytes> =
    LazyLock::new(|| (0..EVENTS).flat_map(progress).collect::<Vec<_>>().into());

const fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    )
}

static INITIALIZE_HEADERS: [(HeaderName, HeaderValue); 3] = [
    header("content-type", "application/json"),
    header("accept", "application/json, text/event-stream"),
    header("user-agent", "load"),
];

static SESSION_HEADERS: [(HeaderName, HeaderValue); 4] = [
    header("content-type", "application/json"),
    header("accept", "application/json, text/event-stream"),
    header("user-agent", "load"),
    header("mcp-protocol-version", "2025-11-25"),
];

static STATELESS_HEADERS: [(HeaderName, HeaderValue); 6] = [
    header("content-type", "application/json"),
    header("accept", "application/json, text/event-stream"),
    header("user-agent", "load"),
    header("mcp-protocol-version", "2026-07-28"),
    header("mcp-method", "tools/call"),
    header("mcp-name", "add"),
];
