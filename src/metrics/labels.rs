//! What labels may say: closed sets, so that no client can make the metrics grow.

use http::{Method, StatusCode};

use crate::mcp::{Era, OTHER};
use crate::rejection::Rejection;

/// An HTTP method as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpMethod(pub(super) usize);

impl HttpMethod {
    /// The label's value: one of five, whatever a client sends.
    pub fn name(self) -> &'static str {
        METHODS[self.0]
    }
}

impl From<&Method> for HttpMethod {
    fn from(method: &Method) -> Self {
        let known = METHODS.iter().position(|name| *name == method.as_str());
        Self(known.unwrap_or(METHODS.len() - 1))
    }
}

/// Why a request is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// The answer was sent whole, whoever gave it.
    Complete,
    /// The client closed its connection.
    ClientLeft,
    /// The backend broke off, or could not be connected to.
    BackendLeft,
    /// A limit of this proxy's was reached.
    Limit(Limit),
    /// The proxy shuts down.
    Drain,
    /// This proxy failed.
    Failed,
}

impl Ending {
    /// A short stable name, used in the access log and as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientLeft => "client_left",
            Self::BackendLeft => "backend_left",
            Self::Limit(_) => "limit",
            Self::Drain => "drain",
            Self::Failed => "failed",
        }
    }
}

/// What a backend made of being told that a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reaped {
    /// It ended it.
    Ended,
    /// It knows it no more, or is itself in the configuration no more.
    Gone,
    /// It lets nobody end a session.
    Refused,
    /// It could not be told, or answered with an error.
    Failed,
    /// It was not told, as too many waited.
    Dropped,
}

impl Reaped {
    pub(super) const ALL: [Self; 5] = [
        Self::Ended,
        Self::Gone,
        Self::Refused,
        Self::Failed,
        Self::Dropped,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Gone => "gone",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// A limit that refused or ended something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// The client did not make its TLS handshake within `timeouts.tls_handshake`.
    TlsHandshake,
    /// The backend did not take a connection within `timeouts.connect`.
    Connect,
    /// The backend was silent for longer than its route allows.
    Silence,
    /// The client did not send its request in time.
    ClientRead,
    /// The client did not take the answer in time.
    ClientWrite,
    /// The stream reached `timeouts.max_stream_age`.
    StreamAge,
    /// `sessions.capacity` was reached: a new session was refused, or the oldest one forgotten.
    Sessions,
    /// `sessions.max_per_client`.
    ClientSessions,
    /// `sessions.max_new_per_client`.
    ClientSessionRate,
    /// `limits.max_connections`.
    Connections,
    /// `limits.max_requests`.
    Requests,
    /// `limits.max_streams`.
    Streams,
    /// `limits.max_streams_per_session`.
    SessionStreams,
    /// `limits.max_headers` or `max_header_size`.
    Header,
    /// `max_body` of a route.
    Body,
    /// The longest message that is judged.
    Message,
    /// `max_requests_per_backend` of a route, at each that might take the request.
    Backend,
}

impl Limit {
    pub(super) const ALL: [Self; 17] = [
        Self::TlsHandshake,
        Self::Connect,
        Self::Silence,
        Self::ClientRead,
        Self::ClientWrite,
        Self::StreamAge,
        Self::Sessions,
        Self::ClientSessions,
        Self::ClientSessionRate,
        Self::Connections,
        Self::Requests,
        Self::Streams,
        Self::SessionStreams,
        Self::Header,
        Self::Body,
        Self::Message,
        Self::Backend,
    ];

    /// The limit that is behind a refusal, if one is.
    pub fn of(rejection: Rejection) -> Option<Self> {
        match rejection {
            Rejection::TlsHandshakeTimeout => Some(Self::TlsHandshake),
            Rejection::RequestTimeout => Some(Self::ClientRead),
            Rejection::SessionsFull => Some(Self::Sessions),
            Rejection::ClientSessions => Some(Self::ClientSessions),
            Rejection::ClientSessionRate => Some(Self::ClientSessionRate),
            Rejection::ConnectionsFull => Some(Self::Connections),
            Rejection::RequestsFull => Some(Self::Requests),
            Rejection::StreamsFull => Some(Self::Streams),
            Rejection::SessionStreams => Some(Self::SessionStreams),
            Rejection::HeaderTooLarge => Some(Self::Header),
            Rejection::BodyTooLarge => Some(Self::Body),
            Rejection::MessageTooLarge => Some(Self::Message),
            Rejection::BackendFull => Some(Self::Backend),
            Rejection::MalformedRequest
            | Rejection::StreamNotAccepted
            | Rejection::SessionIdMissing
            | Rejection::MessageMalformed
            | Rejection::HeaderMismatch
            | Rejection::OriginForbidden
            | Rejection::HostForbidden
            | Rejection::MethodForbidden
            | Rejection::ToolForbidden
            | Rejection::UnknownPath
            | Rejection::UnknownSession
            | Rejection::MethodNotAllowed
            | Rejection::NoEventStream
            | Rejection::ExpectationFailed
            | Rejection::TransferCodingUnknown
            | Rejection::MessageNotJson
            | Rejection::Internal
            | Rejection::TlsHandshake
            | Rejection::BackendUnreachable
            | Rejection::BackendAnswerInvalid
            | Rejection::NoBackend
            | Rejection::StoreUnavailable
            | Rejection::BackendTimeout => None,
        }
    }

    /// A short stable name, used as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::TlsHandshake => "tls_handshake",
            Self::Connect => "connect",
            Self::Silence => "silence",
            Self::ClientRead => "client_read",
            Self::ClientWrite => "client_write",
            Self::StreamAge => "stream_age",
            Self::Sessions => "sessions",
            Self::ClientSessions => "client_sessions",
            Self::ClientSessionRate => "client_session_rate",
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Streams => "streams",
            Self::SessionStreams => "session_streams",
            Self::Header => "header",
            Self::Body => "body",
            Self::Message => "message",
            Self::Backend => "backend",
        }
    }
}

/// What the store answered to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LookupOutcome {
    /// The session's binding.
    Found,
    /// No such session.
    Missing,
    /// Nothing: it cannot be reached.
    Error,
}

/// Whether a connection to a backend was there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connected {
    /// It was opened for this request.
    New,
    /// It was idle in the pool.
    Reused,
}

/// Whether a backend takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It does.
    Up,
    /// It cannot be reached.
    Down,
    /// Those of its own sessions alone.
    Draining,
    /// Its host name has not stood for any address yet.
    Unresolved,
}

impl Standing {
    pub(super) const ALL: [Self; 4] = [Self::Up, Self::Down, Self::Draining, Self::Unresolved];

    /// A short stable name, used as a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Unresolved => "unresolved",
        }
    }
}

pub(super) fn era_index(era: Option<Era>) -> usize {
    match era {
        None => 0,
        Some(Era::Session) => 1,
        Some(Era::Stateless) => 2,
    }
}

pub(super) fn status_index(status: Option<StatusCode>) -> usize {
    let class = status.map_or(0, |status| usize::from(status.as_u16() / 100));
    // A status of no class is one of a server's errors (RFC 9110 15).
    class.min(STATUSES.len() - 1)
}

pub(super) fn error_index(ending: Ending, status: Option<StatusCode>) -> usize {
    match (ending, status_index(status)) {
        (Ending::Complete, 4) => 1,
        (Ending::Complete, 5) => 2,
        (Ending::Complete, _) => 0,
        (Ending::ClientLeft, _) => 3,
        (Ending::BackendLeft, _) => 4,
        (Ending::Limit(_), _) => 5,
        (Ending::Drain, _) => 6,
        (Ending::Failed, _) => 7,
    }
}

pub(super) const METHODS: [&str; 5] = ["GET", "POST", "DELETE", "OPTIONS", OTHER];

pub(super) const STATUSES: [&str; 6] = ["", "1xx", "2xx", "3xx", "4xx", "5xx"];

pub(super) const ERAS: [&str; 3] = ["", Era::Session.name(), Era::Stateless.name()];

pub(super) const ERRORS: [&str; 8] = [
    "",
    "4xx",
    "5xx",
    "client_left",
    "backend_left",
    "limit",
    "drain",
    "failed",
];
