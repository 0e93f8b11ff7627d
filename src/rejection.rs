//! What the proxy refuses itself: one enum, one table, one form on the wire.
//!
//! A refusal is `application/problem+json` (RFC 9457), so that no client takes it for the answer
//! to a JSON-RPC request. There are two exceptions. Clients of an unknown session look for exactly
//! the JSON-RPC error that the SDKs' servers send, and start over when they see it. Where headers
//! and body disagree, the specification asks for a JSON-RPC error, and the request's id is known.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use pingora::http::ResponseHeader;
use pingora_core::{Error, ErrorSource, ErrorType};

use crate::mcp::{ALLOWED_METHODS, ALLOWED_METHODS_WITHOUT_GET};
use crate::message::RequestId;

/// Why a request is answered by the proxy and not by a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// The message is not HTTP that can be forwarded.
    MalformedRequest,
    /// `GET` without `text/event-stream` in `Accept`.
    StreamNotAccepted,
    /// `DELETE` without `Mcp-Session-Id`.
    SessionIdMissing,
    /// The body is not JSON-RPC that can be judged, and the route has a policy.
    MessageMalformed,
    /// The headers do not say of the message what it says itself, and the route has a policy.
    HeaderMismatch,
    /// `Origin` is present and not allowed.
    OriginForbidden,
    /// `Host` is not a name that this server is reached by.
    HostForbidden,
    /// The route's policy does not allow the message's method.
    MethodForbidden,
    /// The route's policy does not allow the tool.
    ToolForbidden,
    /// No route has this path.
    UnknownPath,
    /// The session is unknown, expired or ended: the client is to start over.
    UnknownSession,
    /// A method that MCP does not use.
    MethodNotAllowed,
    /// The backend said a while ago that it has no GET stream.
    NoEventStream,
    /// `Expect` asks for more than `100-continue`.
    ExpectationFailed,
    /// `Transfer-Encoding` is not `chunked` alone.
    TransferCodingUnknown,
    /// The client did not send its request in time.
    RequestTimeout,
    /// The body is larger than what is judged, and the route has a policy.
    MessageTooLarge,
    /// The body is not said to be JSON in UTF-8, or is compressed, and the route has a policy.
    MessageNotJson,
    /// The request's body is longer than the route takes.
    BodyTooLarge,
    /// The session has as many streams open as it may.
    SessionStreams,
    /// The client's address has as many sessions as it may.
    ClientSessions,
    /// The client's address opens sessions faster than it may.
    ClientSessionRate,
    /// The request has more headers than are taken, or longer ones.
    HeaderTooLarge,
    /// This proxy failed.
    Internal,
    /// The backend cannot be connected to, or broke off before it answered.
    BackendUnreachable,
    /// The backend answered with something that is not HTTP or not MCP.
    BackendAnswerInvalid,
    /// No backend can take the request now.
    NoBackend,
    /// The backend, or each that might take the request, has as many requests as it may.
    BackendFull,
    /// The TLS handshake failed: nobody hears of it but the metrics.
    TlsHandshake,
    /// The client did not make its TLS handshake in time: the same.
    TlsHandshakeTimeout,
    /// There are as many connections as there may be.
    ConnectionsFull,
    /// There are as many requests at backends as there may be.
    RequestsFull,
    /// There are as many open streams as there may be.
    StreamsFull,
    /// There are as many sessions as there may be.
    SessionsFull,
    /// The session store does not answer: whether the session lives is not known.
    StoreUnavailable,
    /// The backend did not answer in time.
    BackendTimeout,
}

impl Rejection {
    /// Each of them.
    pub(crate) const ALL: [Self; 36] = [
        Self::MalformedRequest,
        Self::StreamNotAccepted,
        Self::SessionIdMissing,
        Self::MessageMalformed,
        Self::HeaderMismatch,
        Self::OriginForbidden,
        Self::HostForbidden,
        Self::MethodForbidden,
        Self::ToolForbidden,
        Self::UnknownPath,
        Self::UnknownSession,
        Self::MethodNotAllowed,
        Self::NoEventStream,
        Self::ExpectationFailed,
        Self::TransferCodingUnknown,
        Self::RequestTimeout,
        Self::MessageTooLarge,
        Self::MessageNotJson,
        Self::BodyTooLarge,
        Self::SessionStreams,
        Self::ClientSessions,
        Self::ClientSessionRate,
        Self::HeaderTooLarge,
        Self::Internal,
        Self::BackendUnreachable,
        Self::BackendAnswerInvalid,
        Self::NoBackend,
        Self::BackendFull,
        Self::TlsHandshake,
        Self::TlsHandshakeTimeout,
        Self::ConnectionsFull,
        Self::RequestsFull,
        Self::StreamsFull,
        Self::SessionsFull,
        Self::StoreUnavailable,
        Self::BackendTimeout,
    ];

    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        self.entry().status
    }

    /// A short stable name, used in `type`, in logs and in metrics.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The whole answer but for the headers that every answer gets.
    ///
    /// # Errors
    /// Pingora refuses the header; it does not, as every value is a constant.
    pub fn answer(self) -> pingora_core::Result<(ResponseHeader, Bytes)> {
        self.answer_to(None)
    }

    /// The same, to the request of this id: one SDK's client waits for ever where a JSON-RPC error
    /// lacks it.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn answer_to(
        self,
        id: Option<&RequestId>,
    ) -> pingora_core::Result<(ResponseHeader, Bytes)> {
        let entry = self.entry();
        let (content_type, body) = match entry.form {
            Form::Problem => ("application/problem+json", problem(&entry)),
            Form::SessionNotFound => ("application/json", Bytes::from_static(SESSION_NOT_FOUND)),
            Form::HeaderMismatch => ("application/json", header_mismatch(&entry, id)),
        };
        let mut answer = ResponseHeader::build(entry.status, Some(8))?;
        answer.insert_header(header::CONTENT_TYPE, HeaderValue::from_static(content_type))?;
        answer.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()))?;
        answer.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        if entry.status == StatusCode::METHOD_NOT_ALLOWED {
            let allowed = if self == Self::NoEventStream {
                ALLOWED_METHODS_WITHOUT_GET
            } else {
                ALLOWED_METHODS
            };
            answer.insert_header(header::ALLOW, HeaderValue::from_static(allowed))?;
        }
        if let Some(seconds) = self.retry_after() {
            answer.insert_header(header::RETRY_AFTER, HeaderValue::from_static(seconds))?;
        }
        Ok((answer, body))
    }

    /// What a client is told of an error of Pingora's.
    pub fn of(error: &Error) -> Self {
        match error.esource() {
            ErrorSource::Downstream => match error.etype() {
                ErrorType::ReadTimedout => Self::RequestTimeout,
                _ => Self::MalformedRequest,
            },
            ErrorSource::Internal | ErrorSource::Unset => Self::Internal,
            ErrorSource::Upstream => match error.etype() {
                ErrorType::ReadTimedout | ErrorType::WriteTimedout => Self::BackendTimeout,
                ErrorType::InvalidHTTPHeader => Self::BackendAnswerInvalid,
                _ => Self::BackendUnreachable,
            },
        }
    }

    /// After how many seconds the same request may be answered.
    fn retry_after(self) -> Option<&'static str> {
        if matches!(self, Self::ClientSessions | Self::SessionsFull) {
            // Sessions end one by one, in their own time.
            return Some("60");
        }
        let is_passing = matches!(
            self.status(),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        is_passing.then_some("1")
    }

    fn entry(self) -> Entry {
        let (status, name, title, detail) = match self {
            Self::MalformedRequest => (
                StatusCode::BAD_REQUEST,
                "malformed-request",
                "Malformed request",
                "The request is not valid HTTP. Check its framing and headers.",
            ),
            Self::StreamNotAccepted => (
                StatusCode::BAD_REQUEST,
                "stream-not-accepted",
                "Event stream not accepted",
                "GET opens an event stream here. Send 'Accept: text/event-stream', or POST a \
                 JSON-RPC message.",
            ),
            Self::SessionIdMissing => (
                StatusCode::BAD_REQUEST,
                "session-id-missing",
                "Session id missing",
                "DELETE ends a session. Send the session's id in 'Mcp-Session-Id'.",
            ),
            Self::MessageMalformed => (
                StatusCode::BAD_REQUEST,
                "message-malformed",
                "Malformed message",
                "The body is not one JSON-RPC message that reads the same to everybody. Send each \
                 key once, in lower case.",
            ),
            Self::HeaderMismatch => (
                StatusCode::BAD_REQUEST,
                "header-mismatch",
                "Header mismatch",
                "'Mcp-Method', 'Mcp-Name' or 'MCP-Protocol-Version' is missing, malformed, or not \
                 what the body says",
            ),
            Self::OriginForbidden => (
                StatusCode::FORBIDDEN,
                "origin-forbidden",
                "Origin not allowed",
                "Pages of this origin may not use this server. Its operator can add the origin \
                 to 'mcp.cors.origins'.",
            ),
            Self::HostForbidden => (
                StatusCode::FORBIDDEN,
                "host-forbidden",
                "Host not allowed",
                "This server is not reached by this host name. Its operator can add the name to \
                 'mcp.allowed_hosts'.",
            ),
            Self::MethodForbidden => (
                StatusCode::FORBIDDEN,
                "method-forbidden",
                "MCP method not allowed",
                "The message's JSON-RPC method may not be used here. The server's operator can \
                 change the route's 'methods'.",
            ),
            Self::ToolForbidden => (
                StatusCode::FORBIDDEN,
                "tool-forbidden",
                "Tool not allowed",
                "This tool may not be called here. The server's operator can change the route's \
                 'tools'.",
            ),
            Self::UnknownPath => (
                StatusCode::NOT_FOUND,
                "unknown-path",
                "Unknown path",
                "No MCP server is at this path. Check the URL.",
            ),
            Self::UnknownSession => (
                StatusCode::NOT_FOUND,
                "unknown-session",
                "Session not found",
                "The session has ended. Start a new one with 'initialize'.",
            ),
            Self::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
                "MCP uses POST, GET and DELETE.",
            ),
            Self::NoEventStream => (
                StatusCode::METHOD_NOT_ALLOWED,
                "no-event-stream",
                "No event stream",
                "The MCP server sends messages only in answer to POST.",
            ),
            Self::ExpectationFailed => (
                StatusCode::EXPECTATION_FAILED,
                "expectation-failed",
                "Unknown expectation",
                "Of 'Expect', only '100-continue' is known here.",
            ),
            Self::TransferCodingUnknown => (
                StatusCode::NOT_IMPLEMENTED,
                "transfer-coding-unknown",
                "Unknown transfer coding",
                "Of 'Transfer-Encoding', only 'chunked' is known here.",
            ),
            Self::RequestTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "request-timeout",
                "Request too slow",
                "The request did not arrive in time. Send it again.",
            ),
            Self::MessageTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "message-too-large",
                "Message too large",
                "A message of at most 64 KiB can be sent here, as it is checked first.",
            ),
            Self::MessageNotJson => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "message-not-json",
                "Message not readable",
                "The message is checked first. Send it as 'application/json' in UTF-8, without \
                 'Content-Encoding'.",
            ),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "Request body too large",
                "The request's body is longer than this server takes. Send less at a time. Its \
                 operator can raise 'max_body' of the route.",
            ),
            Self::SessionStreams => (
                StatusCode::TOO_MANY_REQUESTS,
                "session-streams",
                "Too many streams",
                "The session has as many streams open as it may. Close one first.",
            ),
            Self::ClientSessions => (
                StatusCode::TOO_MANY_REQUESTS,
                "client-sessions",
                "Too many sessions",
                "Your address has as many sessions as it may. End those that are not needed.",
            ),
            Self::ClientSessionRate => (
                StatusCode::TOO_MANY_REQUESTS,
                "client-session-rate",
                "Too many new sessions",
                "Your address opens sessions too fast. Try again later.",
            ),
            Self::HeaderTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "header-too-large",
                "Request header too large",
                "The request has more headers than this server takes, or longer ones. Send fewer.",
            ),
            Self::Internal => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Proxy error",
                "The proxy failed to handle the request. Its log says more.",
            ),
            Self::BackendUnreachable => (
                StatusCode::BAD_GATEWAY,
                "backend-unreachable",
                "MCP server unreachable",
                "The MCP server cannot be reached. Try again later.",
            ),
            Self::BackendAnswerInvalid => (
                StatusCode::BAD_GATEWAY,
                "backend-answer-invalid",
                "Invalid answer from the MCP server",
                "The MCP server sent an answer that cannot be passed on. Its operator must look.",
            ),
            Self::NoBackend => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no-backend",
                "No MCP server available",
                "No MCP server can take the request now. Try again later.",
            ),
            Self::BackendFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "backend-full",
                "MCP server busy",
                "The MCP server has as many requests as it may. Try again later.",
            ),
            Self::TlsHandshake => (
                StatusCode::BAD_REQUEST,
                "tls-handshake",
                "TLS handshake failed",
                "The connection cannot be made secure.",
            ),
            Self::TlsHandshakeTimeout => (
                StatusCode::REQUEST_TIMEOUT,
                "tls-handshake-timeout",
                "TLS handshake too slow",
                "The connection was not made secure in time.",
            ),
            Self::ConnectionsFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "connections-full",
                "Too many connections",
                "This server has as many connections as it may. Try again later.",
            ),
            Self::RequestsFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "requests-full",
                "Too many requests",
                "This server has as many requests under way as it may. Try again later.",
            ),
            Self::StreamsFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "streams-full",
                "Too many streams",
                "This server has as many streams open as it may. Try again later.",
            ),
            Self::SessionsFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                "sessions-full",
                "Too many sessions",
                "This server has as many sessions as it may. Try again later.",
            ),
            Self::StoreUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "store-unavailable",
                "Session store unavailable",
                "Whether the session lives is not known now. Try again later with the same id.",
            ),
            Self::BackendTimeout => (
                StatusCode::GATEWAY_TIMEOUT,
                "backend-timeout",
                "MCP server too slow",
                "The MCP server did not answer in time.",
            ),
        };
        let form = if self == Self::UnknownSession {
            Form::SessionNotFound
        } else if self == Self::HeaderMismatch {
            Form::HeaderMismatch
        } else {
            Form::Problem
        };
        Entry {
            status,
            name,
            title,
            detail,
            form,
        }
    }
}

/// A refusal within a filter of Pingora's ends it with an error of the type [`REFUSED`]. Which one
/// it is stays in the [`Exchange`](crate::Exchange), for the filter that answers errors.
impl From<Rejection> for Box<Error> {
    fn from(rejection: Rejection) -> Self {
        Error::explain(REFUSED, rejection.name())
    }
}

struct Entry {
    status: StatusCode,
    name: &'static str,
    title: &'static str,
    detail: &'static str,
    form: Form,
}

/// The form of the body.
enum Form {
    Problem,
    SessionNotFound,
    HeaderMismatch,
}

/// RFC 9457. The texts are constants of this file without a character that JSON escapes.
fn problem(entry: &Entry) -> Bytes {
    let Entry {
        status,
        name,
        title,
        detail,
        form: _,
    } = entry;
    let status = status.as_u16();
    Bytes::from(format!(
        r#"{{"type":"urn:pingora-mcp:problem:{name}","title":"{title}","status":{status},"detail":"{detail}"}}"#
    ))
}

/// MCP 2026-07-28, Server Validation. The texts are constants as those of a problem.
fn header_mismatch(entry: &Entry, id: Option<&RequestId>) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!(r#","id":{id}"#));
    let Entry { title, detail, .. } = entry;
    Bytes::from(format!(
        r#"{{"jsonrpc":"2.0","error":{{"code":-32020,"message":"{title}: {detail}"}}{id}}}"#
    ))
}

/// What the SDKs' servers send, to the letter of its fields.
const SESSION_NOT_FOUND: &[u8] =
    br#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}"#;

/// The type of the error that a [`Rejection`] becomes.
pub const REFUSED: ErrorType = ErrorType::Custom("Refused");
