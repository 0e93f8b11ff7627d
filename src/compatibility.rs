//! What makes up for servers that do not follow the specification to the letter. All of it is off
//! until a route's configuration asks for it.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};
use pingora::http::ResponseHeader;
use serde::{Deserialize, Deserializer};

use crate::setting::{Limit, parse};

/// `compatibility` of a route in the configuration file.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compatibility {
    /// The status of a backend's answer for a session that it has forgotten.
    pub expired_session_status: ExpiredSessionStatus,
    /// How long a backend that answered a GET with 405 is not asked again.
    pub get_405_memory: Limit,
}

impl Default for Compatibility {
    fn default() -> Self {
        Self {
            expired_session_status: ExpiredSessionStatus::default(),
            get_405_memory: Limit(None),
        }
    }
}

/// How backends answer to a session that they have forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpiredSessionStatus {
    /// 404, as the specification says (MCP 2025-11-25, Session Management 3).
    #[default]
    NotFound,
    /// 400, with a body that tells it from any other 400.
    BadRequest,
}

impl<'de> Deserialize<'de> for ExpiredSessionStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<u64, _, _>(deserializer)
    }
}

impl TryFrom<u64> for ExpiredSessionStatus {
    type Error = &'static str;

    fn try_from(status: u64) -> Result<Self, Self::Error> {
        match status {
            404 => Ok(Self::NotFound),
            400 => Ok(Self::BadRequest),
            _ => Err("unknown status: expected 404 or 400"),
        }
    }
}

/// A backend's 400 of which only its body says whether the session has expired. It is held back
/// until that has arrived.
pub(crate) struct HeldAnswer {
    header: ResponseHeader,
    body: BytesMut,
}

impl HeldAnswer {
    /// `None` for an answer that is not to be held back: it is no 400, or its body is not known to
    /// be short.
    pub(crate) fn of(header: &ResponseHeader) -> Option<Self> {
        let is_candidate = header.status == StatusCode::BAD_REQUEST && is_short(&header.headers);
        is_candidate.then(|| Self {
            header: header.clone(),
            body: BytesMut::new(),
        })
    }

    /// Takes the next part of the body.
    pub(crate) fn push(&mut self, part: &[u8]) {
        self.body.extend_from_slice(part);
    }

    /// Whether the body, whole, says that the session has expired.
    pub(crate) fn is_expired_session(&self) -> bool {
        let message = match serde_json::from_slice::<JsonRpcError>(&self.body) {
            Ok(answer) => answer.error.message,
            Err(_) => String::from_utf8_lossy(&self.body).into_owned(),
        };
        message.starts_with(NO_VALID_SESSION) || message == NOT_INITIALIZED
    }

    /// The answer as the backend gave it.
    pub(crate) fn into_parts(self) -> (ResponseHeader, Bytes) {
        (self.header, self.body.freeze())
    }
}

/// Neither its header nor its body is for a log.
impl fmt::Debug for HeldAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HeldAnswer")
    }
}

#[derive(Deserialize)]
struct JsonRpcError {
    error: ErrorObject,
}

#[derive(Deserialize)]
struct ErrorObject {
    message: String,
}

/// When a backend last said that it has no GET stream.
#[derive(Debug, Default)]
pub(crate) struct GetRefusal(Mutex<Option<Instant>>);

impl GetRefusal {
    /// Notes that it says so now.
    pub(crate) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it said so within `memory`.
    pub(crate) fn is_within(&self, memory: Duration) -> bool {
        let noted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.is_some_and(|noted| noted.elapsed() < memory)
    }
}

/// Pingora frames a body by `Transfer-Encoding` where there is one (RFC 9112 6.3).
fn is_short(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| {
        let length = length.to_str().ok()?;
        length.parse::<usize>().ok()
    });
    length.is_some_and(|length| (1..=MAX_HELD).contains(&length))
        && !headers.contains_key(TRANSFER_ENCODING)
}

/// The known bodies have about a hundred bytes, and more where one echoes the request's id.
const MAX_HELD: usize = 4096;

/// The TypeScript SDK's older examples and the servers made of them: "Bad Request: No valid session
/// ID provided" (server-everything 2026.8.31, dist/transports/streamableHttp.js), and others that
/// go on in their own words. The Python SDK of 2025 says the same as plain text
/// (mcp/server/streamable_http_manager.py).
const NO_VALID_SESSION: &str = "Bad Request: No valid session ID";

/// The TypeScript SDK's transport, where a server makes a new one for each id that it does not know
/// (SDK 1.32, server/webStandardStreamableHttp.js).
const NOT_INITIALIZED: &str = "Bad Request: Server not initialized";

#[cfg(test)]
mod tests {
    use super::*;

    fn is_expired_session(body: &str) -> bool {
        let mut header = ResponseHeader::build(400, None).unwrap();
        header.insert_header("content-length", body.len()).unwrap();
        let mut held = HeldAnswer::of(&header).unwrap();
        held.push(body.as_bytes());
        held.is_expired_session()
    }

    #[test]
    fn what_known_servers_say_of_a_forgotten_session_is_understood() {
        for body in [
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":7}"#,
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID or not an initialize request"},"id":null}"#,
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Server not initialized"},"id":null}"#,
            "Bad Request: No valid session ID provided",
        ] {
            assert!(is_expired_session(body), "{body}");
        }
    }

    #[test]
    fn any_other_body_is_not() {
        for body in [
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Unsupported protocol version"},"id":null}"#,
            r#"{"jsonrpc":"2.0","error":{"code":-32602,"message":"x: Bad Request: No valid session ID provided"}}"#,
            r#"{"message":"Bad Request: No valid session ID provided"}"#,
            r#"["Bad Request: No valid session ID provided"]"#,
            "{",
        ] {
            assert!(!is_expired_session(body), "{body}");
        }
    }

    #[test]
    fn only_a_400_whose_body_is_known_to_be_short_is_held() {
        let held = |status: u16, headers: &[(&'static str, &str)]| {
            let mut header = ResponseHeader::build(status, None).unwrap();
            for (name, value) in headers {
                header.insert_header(*name, *value).unwrap();
            }
            HeldAnswer::of(&header).is_some()
        };
        assert!(held(400, &[("content-length", "4096")]));
        assert!(!held(400, &[("content-length", "4097")]));
        assert!(!held(400, &[("content-length", "0")]));
        assert!(!held(400, &[]));
        assert!(!held(
            400,
            &[("content-length", "9"), ("transfer-encoding", "chunked")]
        ));
        assert!(!held(401, &[("content-length", "9")]));
    }
}
