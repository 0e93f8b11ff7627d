//! What passes from one side's header to the other's, and what does not.

use std::io::{Cursor, Write};
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http::{header, request, response};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_core::ErrorType::InvalidHTTPHeader;
use pingora_core::OrErr;

use crate::backend::{Backend, CLAIMS};
use crate::exchange::Connection;
use crate::mcp::header::{EVENT_STREAM, MCP_SESSION_ID};

/// Takes the header apart, and leaves an empty one. What is made of the parts has lost the case of
/// its names, which means nothing (RFC 9110 5.1): Pingora keeps it in a second map, which is copied
/// with the first and looked into with it, and each header that is added there costs four allocations.
pub(crate) fn take_request(request: &mut RequestHeader) -> request::Parts {
    let (empty, ()) = Request::new(()).into_parts();
    std::mem::replace(request, empty.into()).into()
}

/// The same of an answer, which loses its reason phrase too: that is not for clients to go by, and
/// HTTP/2 has none (RFC 9112 4).
pub(crate) fn take_response(response: &mut ResponseHeader) -> response::Parts {
    let (empty, ()) = Response::new(()).into_parts();
    std::mem::replace(response, empty.into()).into()
}

/// Removes what is hop by hop, as Pingora frames a request anew; what the client claims of who asked;
/// and what a CGI or WSGI backend, to which `_` in a name is `-` (RFC 3875 4.1.18), would take for a
/// header that is set or decided by here. Any other name with `_` passes, as a parameter of a tool
/// (`Mcp-Param-user_id`) may have one. What `Connection` names, Pingora has removed.
pub(crate) fn remove_untrusted(headers: &mut HeaderMap, backend: &Backend) {
    let is_pretended = |name: &str| {
        let is_lookalike =
            || name.as_bytes().contains(&b'_') && backend.is_reserved(&name.replace('_', "-"));
        CLAIMS.contains(&name) || is_lookalike()
    };
    let names = headers.keys().filter(|name| {
        *name == header::TRANSFER_ENCODING || is_hop_by_hop(name) || is_pretended(name.as_str())
    });
    for name in names.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// Says who asked, and for which `host`.
pub(crate) fn forwarded(
    headers: &mut HeaderMap,
    host: Option<HeaderValue>,
    connection: &Connection,
) {
    match connection.client {
        Some(client) => headers.insert(X_FORWARDED_FOR, address(client)),
        None => headers.remove(X_FORWARDED_FOR),
    };
    let scheme = if connection.tls { "https" } else { "http" };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    match host {
        Some(host) => headers.insert(X_FORWARDED_HOST, host),
        None => headers.remove(X_FORWARDED_HOST),
    };
}

/// As it is displayed. An IPv4 address is written without the formatter: that would be a sixth of
/// what `to_backend` costs.
fn address(client: IpAddr) -> HeaderValue {
    const LONGEST: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();
    let mut text = Cursor::new([0; LONGEST]);
    let written = match client {
        IpAddr::V4(client) => {
            let mut octets = client.octets().into_iter().enumerate();
            octets.try_for_each(|(position, octet)| {
                let dot = if position > 0 { "." } else { "" };
                text.write_all(dot.as_bytes())?;
                text.write_all(itoa::Buffer::new().format(octet).as_bytes())
            })
        }
        IpAddr::V6(client) => write!(text, "{client}"),
    };
    written.expect("it is no longer than the longest");
    let length = text.position() as usize;
    HeaderValue::from_bytes(&text.get_ref()[..length]).expect("an address is ASCII")
}

/// HTTP/2 may bring cookies apart, HTTP/1.1 takes one header (RFC 9113 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) -> pingora_core::Result<()> {
    let crumbs = headers.get_all(header::COOKIE);
    if crumbs.iter().nth(1).is_some() {
        let crumbs: Vec<_> = crumbs.iter().map(HeaderValue::as_bytes).collect();
        let joined = HeaderValue::try_from(crumbs.join(&b"; "[..]));
        let joined = joined.or_err(InvalidHTTPHeader, "the cookies cannot be joined")?;
        headers.insert(header::COOKIE, joined);
    }
    Ok(())
}

pub(crate) fn host_header(request: &RequestHeader) -> Option<HeaderValue> {
    match request.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers.get(header::HOST).cloned(),
    }
}

/// Whom the client addressed: the target's authority (RFC 9112 3.2.2), else `Host`. A `Host`
/// that is not text is no name, and allowed nowhere that names are checked.
pub(crate) fn authority(request: &RequestHeader) -> Option<&str> {
    match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => {
            let host = request.headers.get(header::HOST)?;
            Some(host.to_str().unwrap_or_default())
        }
    }
}

/// Whether nobody could read the length of an answer's body, or its session, in another way than
/// Pingora (RFC 9112 6.3, RFC 9110 8.6).
pub(crate) fn has_one_meaning(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    let is_number = |length: &HeaderValue| length.as_bytes().iter().all(u8::is_ascii_digit);
    let coding = headers.get(header::TRANSFER_ENCODING);
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    let single = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        MCP_SESSION_ID,
    ];
    let is_repeated = |name| headers.get_all(name).iter().nth(1).is_some();
    let are_repeated = headers.len() > headers.keys_len() && single.into_iter().any(is_repeated);
    length.is_none_or(is_number) && coding.is_none_or(is_chunked) && !are_repeated
}

/// Removes what is not the client's: what is hop by hop; the backend's CORS policy, as two in one
/// answer are an error to a browser; what the backend runs on, and where else it is reached.
pub(crate) fn remove_private(headers: &mut HeaderMap) {
    let connection = headers.get_all(header::CONNECTION);
    let is_nominated = |name: &HeaderName| {
        let options = connection.iter().map(HeaderValue::as_bytes);
        let mut options = options.flat_map(|value| value.split(|byte| *byte == b','));
        options.any(|option| {
            name.as_str()
                .as_bytes()
                .eq_ignore_ascii_case(option.trim_ascii())
        })
    };
    let names = headers.keys().filter(|name| match **name {
        header::CONTENT_LENGTH | header::TRANSFER_ENCODING => false,
        _ => is_private(name) || is_nominated(name),
    });
    for name in names.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

fn is_private(name: &HeaderName) -> bool {
    match *name {
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS
        | header::ACCESS_CONTROL_ALLOW_HEADERS
        | header::ACCESS_CONTROL_ALLOW_METHODS
        | header::ACCESS_CONTROL_ALLOW_ORIGIN
        | header::ACCESS_CONTROL_EXPOSE_HEADERS
        | header::ACCESS_CONTROL_MAX_AGE
        | header::ALT_SVC
        | header::SERVER => true,
        _ => is_hop_by_hop(name),
    }
}

/// What ends at the next hop in either direction, but for the framing (RFC 9110 7.6.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    match *name {
        header::CONNECTION
        | header::PROXY_AUTHENTICATE
        | header::PROXY_AUTHORIZATION
        | header::TE
        | header::TRAILER
        | header::UPGRADE => true,
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection"),
    }
}

pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| is_media_type(value.as_bytes(), EVENT_STREAM))
}

pub(crate) fn accepts_event_stream(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::ACCEPT).iter();
    values.any(|value| {
        let mut types = value.as_bytes().split(|byte| *byte == b',');
        types.any(|accepted| is_media_type(accepted, EVENT_STREAM))
    })
}

/// No `Accept`, or nothing in it but `*/*`: servers insist on both types by name.
pub(crate) fn accepts_anything(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::ACCEPT).iter();
    values.all(|value| value.as_bytes().trim_ascii() == b"*/*")
}

/// Whether `value` is `media_type`, with or without parameters.
fn is_media_type(value: &[u8], media_type: &str) -> bool {
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
    essence
        .trim_ascii()
        .eq_ignore_ascii_case(media_type.as_bytes())
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
