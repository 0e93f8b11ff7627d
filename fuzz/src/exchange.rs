//! One exchange through all of the gateway's functions: what each side gets of the other's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_LENGTH, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_mcp::host::Reach;
use pingora_mcp::mcp::header::{EVENT_STREAM, MCP_SESSION_ID};
use pingora_mcp::mcp::{Call, ClientSessionId, Era};
use pingora_mcp::{
    Admission, Connection, Exchange, Gateway, Rejection, SessionOutcome, Settings, server,
};
use serde_json::Value;

use super::input::{head, header, text};

/// `input`: a request's method and target on a line, its headers; after an empty line, the status of
/// its answer and headers; after another, the body of both. `{session}` in a request's header is the
/// id of a client's open session.
pub fn exchange(input: &[u8]) {
    let gateway = &*GATEWAY;
    let session = open_session(gateway);
    let (request, rest) = head(input);
    let (answer, body) = head(rest);
    let (Some(request), Some(answer)) = (parse_request(&request, &session), parse_answer(&answer))
    else {
        return close(gateway, &session);
    };
    let mut exchange = Exchange::default();
    let admitted = now(gateway.admit(&request, connection(), &mut exchange));
    let (mut to_client, is_local) = match admitted {
        Ok(Admission::Preflight) => (gateway.preflight(&request).expect("it is built"), true),
        Ok(admitted) => {
            let is_judged = admitted == Admission::Judge;
            let forwarded = forward(&request, answer.clone(), body, is_judged, &mut exchange);
            match forwarded {
                Ok(header) => (header, false),
                Err(rejection) => (refusal(rejection, &exchange), true),
            }
        }
        Err(rejection) => (refusal(rejection, &exchange), true),
    };
    gateway.to_client(&mut to_client, &exchange);
    check_session_of_client(&to_client, &exchange, &session);
    check_cors(&request.headers, &to_client);
    if !is_local {
        check_passed_to_client(&answer, &to_client, &exchange);
    }
    if let SessionOutcome::Opened(id) = exchange.outcome() {
        now(gateway.store().remove(id)).expect("memory is there");
    }
    drop(exchange);
    close(gateway, &session);
    assert_eq!(gateway.load().streams(), 0);
    let rules = gateway.rules();
    let backends = rules.routes.iter().flat_map(|route| route.pool.iter());
    assert!(backends.into_iter().all(|backend| backend.in_flight() == 0));
}

/// To the backend and back, up to the header of the answer.
fn forward(
    request: &RequestHeader,
    mut answer: ResponseHeader,
    body: &[u8],
    is_judged: bool,
    exchange: &mut Exchange,
) -> Result<ResponseHeader, Rejection> {
    let gateway = &*GATEWAY;
    if is_judged {
        assert!(gateway.route(exchange).is_err(), "it is not judged yet");
        now(gateway.judge(request, Some(body), exchange))?;
    }
    gateway.route(exchange)?;
    let mut sent = request.clone();
    let target_fits = request.uri.to_string().len() < 32 * 1024;
    if gateway.to_backend(&mut sent, exchange).is_err() {
        assert!(!target_fits);
        return Err(Rejection::Internal);
    }
    check_sent(request, &sent, exchange);
    let given = answer.clone();
    now(gateway.from_backend(&mut answer, exchange))?;
    if given.status.is_informational() {
        assert!(!exchange.is_held());
        return Ok(answer);
    }
    let mut passed = Some(Bytes::copy_from_slice(body));
    gateway.body_from_backend(&mut passed, true, exchange);
    if exchange.is_held() {
        assert_eq!(given.status, StatusCode::BAD_REQUEST);
        let held = now(gateway.held_answer(exchange)).expect("no header is refused");
        if exchange.outcome() != SessionOutcome::Lost {
            assert_eq!(held.1, body);
        }
        return Ok(held.0);
    }
    if exchange.call() != Call::Discover {
        assert_eq!(passed.as_deref().unwrap_or_default(), body);
    }
    Ok(answer)
}

fn refusal(rejection: Rejection, exchange: &Exchange) -> ResponseHeader {
    assert!(rejection.status().is_client_error() || rejection.status().is_server_error());
    let answer = rejection.answer_to(exchange.request_id());
    let (header, body) = answer.expect("no header is refused");
    assert!(serde_json::from_slice::<Value>(&body).is_ok());
    header
}

fn check_sent(request: &RequestHeader, sent: &RequestHeader, exchange: &Exchange) {
    let values = |name: &str| sent.headers.get_all(name).iter().collect::<Vec<_>>();
    let is_bound =
        exchange.era() == Some(Era::Session) && request.headers.contains_key(MCP_SESSION_ID);
    let expected: &[&str] = if is_bound { &[BACKEND_ID] } else { &[] };
    assert_eq!(values("mcp-session-id"), expected);
    let backend = exchange.backend().expect("it was routed");
    for (name, value) in backend.headers() {
        assert_eq!(values(name.as_str()), [value]);
    }
    assert_eq!(values("x-forwarded-for"), [CLIENT.to_string().as_str()]);
    assert_eq!(values("x-forwarded-proto"), ["https"]);
    assert!(values("x-forwarded-host").len() <= 1);
    assert!(values("cookie").len() <= 1);
    if backend.name().as_str() != "client-host" {
        assert_eq!(values("host"), [backend.host()]);
    }
    let path = sent.uri.path();
    let is_document = path.starts_with("/.well-known/");
    assert!(
        path == "/base" || path.starts_with("/base/") || is_document,
        "{path}"
    );
    assert!(!is_document || exchange.call() == Call::Discover);
    let is_reserved = |name: &str| {
        backend.headers().iter().any(|(ours, _)| *ours == name) || RESERVED.contains(&name)
    };
    // Pingora frames the request anew.
    let ends_at_proxy =
        |name: &HeaderName| is_hop_by_hop(name) || name.as_str() == "transfer-encoding";
    let is_lookalike = |name: &HeaderName| {
        name.as_str().contains('_') && is_reserved(&name.as_str().replace('_', "-"))
    };
    for name in sent.headers.keys() {
        let is_claim = CLAIMS.contains(&name.as_str());
        assert!(
            !is_claim && !ends_at_proxy(name) && !is_lookalike(name),
            "{name}"
        );
    }
    // All else is as it came, in its order.
    for name in request.headers.keys() {
        let is_changed = backend.headers().iter().any(|(ours, _)| ours == name)
            || CLAIMS.contains(&name.as_str())
            || ends_at_proxy(name)
            || CHANGED_TO_BACKEND.contains(&name.as_str())
            || is_lookalike(name);
        let came = request.headers.get_all(name).iter();
        assert!(is_changed || came.eq(sent.headers.get_all(name)), "{name}");
    }
}

/// The client sees its own id, or the one of the session that was opened for it, or none.
fn check_session_of_client(to_client: &ResponseHeader, exchange: &Exchange, session: &HeaderValue) {
    if to_client.status.is_informational() {
        return assert!(!to_client.headers.contains_key(MCP_SESSION_ID));
    }
    let shown: Vec<_> = to_client.headers.get_all(MCP_SESSION_ID).iter().collect();
    match exchange.outcome() {
        SessionOutcome::Opened(id) => assert_eq!(shown, [id.to_header()]),
        SessionOutcome::None => assert!(shown.is_empty() || shown == [session]),
        _ => assert_eq!(shown, [session]),
    }
}

/// What ends here in either direction (RFC 9110 7.6.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str())
}

fn check_cors(request: &HeaderMap, to_client: &ResponseHeader) {
    if to_client.status.is_informational() {
        return;
    }
    let origins: Vec<_> = request.get_all(ORIGIN).iter().collect();
    let allowed = to_client.headers.get_all(ACCESS_CONTROL_ALLOW_ORIGIN);
    let allowed: Vec<_> = allowed.iter().collect();
    match origins.as_slice() {
        [origin] if *origin == PAGE => assert_eq!(allowed, [PAGE]),
        _ => assert!(allowed.is_empty(), "{origins:?} {allowed:?}"),
    }
}

fn check_passed_to_client(given: &ResponseHeader, to_client: &ResponseHeader, exchange: &Exchange) {
    let nominated = given.headers.get_all("connection").iter();
    let nominated = nominated.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let nominated: Vec<_> = nominated
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let is_dropped =
        |name: &HeaderName| is_hop_by_hop(name) || matches!(name.as_str(), "alt-svc" | "server");
    for name in to_client.headers.keys() {
        assert!(!is_dropped(name), "{name}");
    }
    let is_stream = to_client
        .headers
        .get("content-type")
        .is_some_and(|media_type| {
            let media_type = media_type.as_bytes().to_ascii_lowercase();
            media_type == EVENT_STREAM.as_bytes()
        });
    if is_stream && !to_client.status.is_informational() {
        assert!(!to_client.headers.contains_key(CONTENT_LENGTH));
        assert!(to_client.headers.contains_key("x-accel-buffering"));
        assert!(to_client.headers.contains_key(CACHE_CONTROL));
    }
    if exchange.rejection().is_some() {
        return;
    }
    assert_eq!(given.status, to_client.status);
    for name in given.headers.keys() {
        let is_changed = nominated.contains(name)
            || is_dropped(name)
            || ADDED_TO_ANSWER.contains(&name.as_str());
        let came = given.headers.get_all(name).iter();
        assert!(
            is_changed || came.eq(to_client.headers.get_all(name)),
            "{name}"
        );
    }
}

fn parse_request(lines: &[&[u8]], session: &HeaderValue) -> Option<RequestHeader> {
    let (first, lines) = lines.split_first()?;
    let space = first.iter().position(|byte| *byte == b' ')?;
    let (method, target) = (&first[..space], &first[space + 1..]);
    let mut request = RequestHeader::build(method, b"/", None).ok()?;
    match target {
        // As HTTP/2 brings it.
        [b'h', ..] => request.set_uri(Uri::try_from(target).ok()?),
        _ => request.set_raw_path(target).ok()?,
    }
    for line in lines {
        let (name, value) = header(line)?;
        let value = if value == "{session}" {
            session.clone()
        } else {
            value
        };
        request.append_header(name, value).ok()?;
    }
    Some(request)
}

fn parse_answer(lines: &[&[u8]]) -> Option<ResponseHeader> {
    let (status, lines) = lines.split_first()?;
    let status: u16 = text(status)?.parse().ok()?;
    let mut answer = ResponseHeader::build(status, None).ok()?;
    for line in lines {
        let (name, value) = header(line)?;
        answer.append_header(name, value).ok()?;
    }
    Some(answer)
}

fn open_session(gateway: &Gateway) -> HeaderValue {
    let lines = [b"POST /mcp".as_slice(), b"host: mcp.example"];
    let request = parse_request(&lines, &PAGE.parse().expect("text")).expect("a request");
    let mut exchange = Exchange::default();
    let admitted = now(gateway.admit(&request, connection(), &mut exchange));
    assert_eq!(admitted, Ok(Admission::Forward));
    gateway.route(&mut exchange).expect("a backend is free");
    let lines = [b"200".as_slice(), b"mcp-session-id: the-backends-own"];
    let mut answer = parse_answer(&lines).expect("an answer");
    now(gateway.from_backend(&mut answer, &mut exchange)).expect("there is room");
    gateway.to_client(&mut answer, &exchange);
    answer.headers[MCP_SESSION_ID].clone()
}

fn close(gateway: &Gateway, session: &HeaderValue) {
    let id = ClientSessionId::try_from(session).expect("it was minted");
    now(gateway.store().remove(id)).expect("memory is there");
}

fn connection() -> Connection {
    Connection {
        client: Some(CLIENT),
        reach: Reach::Network,
        tls: true,
    }
}

/// Sessions in memory are never waited for.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory answers at once")
}

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let settings = Settings::parse("edge.yaml", CONFIGURATION, HashMap::new());
    server::gateway(settings.expect("the configuration is good").mcp)
});

const CONFIGURATION: &str = "
mcp:
  listeners: [{ address: \"127.0.0.1:8080\" }]
  sessions: { evict: oldest, max_per_client: none, max_new_per_client: none }
  allowed_hosts: [mcp.example]
  cors: { origins: [\"https://app.example\"] }
  routes:
    - path: /mcp
      public_url: https://mcp.example/mcp
      compatibility: { expired_session_status: 400 }
      backends:
        - name: own-host
          url: http://127.0.0.1:3000/base
          headers: { authorization: Bearer configured, x-api-key: configured }
    - path: /guarded
      tools: { allow: [echo] }
      backends: [{ name: guarded, url: \"http://127.0.0.1:3001/base\" }]
    - path: /client-host
      host: client
      backends: [{ name: client-host, url: \"http://127.0.0.1:3002/base\" }]
";

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PAGE: &str = "https://app.example";
const BACKEND_ID: &str = "the-backends-own";

/// What a client cannot say of itself.
const CLAIMS: [&str; 5] = [
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-real-ip",
];

const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

const CHANGED_TO_BACKEND: [&str; 8] = [
    "accept",
    "accept-encoding",
    "cookie",
    "host",
    "mcp-session-id",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
];

/// What a client may not say in another spelling.
const RESERVED: [&str; 18] = [
    "connection",
    "content-length",
    "forwarded",
    "host",
    "keep-alive",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];

/// What the proxy puts in place of a backend's own, or adds to it.
const ADDED_TO_ANSWER: [&str; 11] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "content-length",
    "mcp-session-id",
    "vary",
    "www-authenticate",
    "cache-control",
];
