//! The fields of a request's header that decide on it, found in one pass: to look for each would
//! cost several times as much, and this is done for every request.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use pingora::http::RequestHeader;

use crate::limits::ClientLimits;
use crate::mcp::Era;
use crate::mcp::method::SUBSCRIPTIONS_LISTEN;
use crate::rejection::Rejection;

/// What is read of a request's header before it is known where the request goes.
pub(crate) struct Fields<'r> {
    request: &'r RequestHeader,
    /// The bytes of all lines, the first one and the last one included.
    size: usize,
    /// Whether `Connection` names a header that the request was read by.
    nominates: bool,
    content_length: Field<'r>,
    expect: Field<'r>,
    host: Field<'r>,
    mcp_method: Field<'r>,
    protocol_version: Field<'r>,
    session_id: Field<'r>,
    transfer_encoding: Field<'r>,
}

/// How often a field is there, and its first value.
#[derive(Clone, Copy)]
enum Field<'r> {
    Absent,
    Once(&'r HeaderValue),
    Repeated(&'r HeaderValue),
}

impl<'r> Fields<'r> {
    pub(crate) fn of(request: &'r RequestHeader) -> Self {
        let mut fields = Self {
            request,
            size: first_and_last_line(request),
            nominates: false,
            content_length: Field::Absent,
            expect: Field::Absent,
            host: Field::Absent,
            mcp_method: Field::Absent,
            protocol_version: Field::Absent,
            session_id: Field::Absent,
            transfer_encoding: Field::Absent,
        };
        for (name, value) in &request.headers {
            fields.note(name, value);
        }
        fields
    }

    /// All of them, also those that decide on few requests.
    pub(crate) fn all(&self) -> &'r HeaderMap {
        &self.request.headers
    }

    fn note(&mut self, name: &HeaderName, value: &'r HeaderValue) {
        // What separates a name from its value, and ends the line.
        const AROUND: usize = ": \r\n".len();
        let name = name.as_str();
        self.size += name.len() + value.len() + AROUND;
        let field = match name {
            "connection" => {
                self.nominates |= nominates(value);
                return;
            }
            "content-length" => &mut self.content_length,
            "expect" => &mut self.expect,
            "host" => &mut self.host,
            "mcp-method" => &mut self.mcp_method,
            "mcp-protocol-version" => &mut self.protocol_version,
            "mcp-session-id" => &mut self.session_id,
            "transfer-encoding" => &mut self.transfer_encoding,
            _ => return,
        };
        *field = match *field {
            Field::Absent => Field::Once(value),
            Field::Once(first) | Field::Repeated(first) => Field::Repeated(first),
        };
    }

    /// Refuses what a backend might read in another way than this proxy.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub(crate) fn have_one_meaning(&self) -> Result<(), Rejection> {
        // RFC 9112 3.2.
        let lacks_host = self.request.version == Version::HTTP_11 && self.host.first().is_none();
        // `2, 2` is one length to some and none to others (RFC 9110 8.6).
        let length = self.content_length.first();
        let is_list = length.is_some_and(|length| length.as_bytes().contains(&b','));
        let single = [self.content_length, self.protocol_version, self.mcp_method];
        let is_repeated = single.iter().any(Field::is_repeated);
        if lacks_host || is_list || is_repeated || self.nominates {
            return Err(Rejection::MalformedRequest);
        }
        // Pingora knows the chunks, and would drop the name of what is in them (RFC 9112 6.1).
        if !self.transfer_encoding.is_only(b"chunked") {
            return Err(Rejection::TransferCodingUnknown);
        }
        // RFC 9110 10.1.1. With the one that is known, it is the backend that says 100.
        if !self.expect.is_only(b"100-continue") {
            return Err(Rejection::ExpectationFailed);
        }
        Ok(())
    }

    /// Refuses a header that is longer than `limits` say.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub(crate) fn are_within(&self, limits: &ClientLimits) -> Result<(), Rejection> {
        let count = self.all().len() as u64;
        if count > limits.max_headers.0 || self.size as u64 > limits.max_header_size.0 {
            return Err(Rejection::HeaderTooLarge);
        }
        Ok(())
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        let length = self.content_length.first()?;
        length.to_str().ok()?.parse().ok()
    }

    pub(crate) fn era(&self) -> Era {
        Era::of(self.protocol_version.first())
    }

    /// Whether a request of the stateless era asks for a stream without an end.
    pub(crate) fn is_listen(&self) -> bool {
        let method = self.mcp_method.first();
        self.request.method == Method::POST
            && method.is_some_and(|name| name == SUBSCRIPTIONS_LISTEN)
    }

    /// The session id, if any.
    ///
    /// # Errors
    /// There are several: none of them is known.
    pub(crate) fn session_id(&self) -> Result<Option<&'r HeaderValue>, Rejection> {
        match self.session_id {
            Field::Absent => Ok(None),
            Field::Once(id) => Ok(Some(id)),
            Field::Repeated(_) => Err(Rejection::UnknownSession),
        }
    }
}

fn first_and_last_line(request: &RequestHeader) -> usize {
    let target = request.uri.path_and_query();
    let target = target.map_or(0, |target| target.as_str().len());
    request.method.as_str().len() + target + "  HTTP/1.1\r\n\r\n".len()
}

/// Whether a `Connection` takes away what says of which era a request is and what it asks for, for its
/// backend to read it in another way than was done here. The session's id is given anew.
fn nominates(connection: &HeaderValue) -> bool {
    let mut options = connection.as_bytes().split(|byte| *byte == b',');
    options.any(|option| {
        let option = option.trim_ascii();
        let is_of_protocol = option
            .get(..4)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"mcp-"));
        is_of_protocol && !option.eq_ignore_ascii_case(b"mcp-session-id")
    })
}

impl<'r> Field<'r> {
    fn first(&self) -> Option<&'r HeaderValue> {
        match self {
            Self::Absent => None,
            Self::Once(value) | Self::Repeated(value) => Some(value),
        }
    }

    fn is_repeated(&self) -> bool {
        matches!(self, Self::Repeated(_))
    }

    /// Whether it is absent, or there once with this value.
    fn is_only(&self, value: &[u8]) -> bool {
        match self {
            Self::Absent => true,
            Self::Once(only) => only.as_bytes().eq_ignore_ascii_case(value),
            Self::Repeated(_) => false,
        }
    }
}
