//! The gateway's functions, on the headers that the SDKs' clients and servers send.

use std::collections::HashMap;

use bytes::Bytes;
use futures::FutureExt;
use http::HeaderValue;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_mcp::cors::CorsPolicy;
use pingora_mcp::host::Reach;
use pingora_mcp::mcp::header::MCP_SESSION_ID;
use pingora_mcp::mcp::{BackendSessionId, ClientSessionId};
use pingora_mcp::{Connection, Exchange, Gateway, Settings, server};

use super::Meter;

pub fn measure(meter: &mut impl Meter) {
    let gateway = &new_gateway("");
    let session = open_session(gateway);
    let bound = &request("POST", &[("mcp-session-id", &session)]);
    let unbound = &request("POST", &[]);
    let stateless = &request("POST", &[("mcp-protocol-version", "2026-07-28")]);
    let stateless_call = &request(
        "POST",
        &[
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", "echo"),
        ],
    );
    let origin = ("origin", "http://localhost:6274");
    let from_page = &request("POST", &[("mcp-session-id", &session), origin]);
    let preflight = &request("OPTIONS", &[origin]);

    // Each function alone, on a POST of a session.
    meter.measure("admit", Exchange::default, |exchange| {
        admit(gateway, bound, exchange)
    });
    meter.measure(
        "route",
        || admitted(gateway, bound),
        |exchange| {
            gateway.route(exchange).unwrap();
        },
    );
    let sent = || (routed(gateway, bound), bound.clone());
    meter.measure("to_backend", sent, |(exchange, request)| {
        gateway.to_backend(request, exchange).unwrap();
    });
    let received = || (routed(gateway, bound), answer(Some(BACKEND_ID)));
    meter.measure("from_backend", received, |(exchange, answer)| {
        from_backend(gateway, answer, exchange);
    });
    meter.measure("to_client", received, |(exchange, answer)| {
        gateway.to_client(answer, exchange);
    });

    // What a route with a policy adds to it.
    let guarded = &new_gateway("tools: { deny: [delete] }");
    let called = || admitted(guarded, stateless_call);
    meter.measure("judge", called, |exchange| {
        let judged = guarded.judge(stateless_call, Some(CALL), exchange);
        let judged = judged.now_or_never().expect("memory answers at once");
        judged.unwrap();
    });

    // All five in turn.
    for (name, request, given) in [
        ("session POST", bound, Some(BACKEND_ID)),
        ("session POST of a page", from_page, Some(BACKEND_ID)),
        ("stateless POST", stateless, None),
        ("POST that opens a session", unbound, Some(BACKEND_ID)),
    ] {
        let arrived = || (Exchange::default(), request.clone(), answer(given));
        meter.measure(name, arrived, |(exchange, sent, answer)| {
            admit(gateway, request, exchange);
            gateway.route(exchange).unwrap();
            gateway.to_backend(sent, exchange).unwrap();
            from_backend(gateway, answer, exchange);
            gateway.to_client(answer, exchange);
        });
    }
    meter.measure("preflight", Exchange::default, |exchange| {
        admit(gateway, preflight, exchange);
        let mut answer = gateway.preflight(preflight).unwrap();
        gateway.to_client(&mut answer, exchange);
    });

    // Parts of these.
    let cors = &CorsPolicy::default();
    let page = &from_page.headers;
    let answered = || answer(Some(BACKEND_ID)).headers.clone();
    meter.measure("CORS", answered, |answer| {
        let grant = cors.judge(page, Reach::Loopback);
        cors.apply(&grant, answer);
    });
    let given = HeaderValue::from_static(BACKEND_ID);
    let ids = &(
        ClientSessionId::mint(),
        BackendSessionId::try_from(&given).unwrap(),
    );
    let both = || (bound.headers.clone(), answered());
    meter.measure("header swap", both, |(sent, answer)| {
        let (client, backend) = ids;
        ClientSessionId::try_from(&sent[MCP_SESSION_ID]).unwrap();
        sent.insert(MCP_SESSION_ID, backend.to_header());
        assert!(*backend == answer[MCP_SESSION_ID]);
        answer.insert(MCP_SESSION_ID, client.to_header());
    });
}

fn admit(gateway: &Gateway, request: &RequestHeader, exchange: &mut Exchange) {
    let connection = Connection {
        client: Some([127, 0, 0, 1].into()),
        ..Connection::default()
    };
    let admitted = gateway.admit(request, connection, exchange);
    admitted
        .now_or_never()
        .expect("memory answers at once")
        .unwrap();
}

fn from_backend(gateway: &Gateway, answer: &mut ResponseHeader, exchange: &mut Exchange) {
    let taken = gateway.from_backend(answer, exchange);
    taken
        .now_or_never()
        .expect("memory answers at once")
        .unwrap();
}

fn admitted(gateway: &Gateway, request: &RequestHeader) -> Exchange {
    let mut exchange = Exchange::default();
    admit(gateway, request, &mut exchange);
    exchange
}

pub fn routed(gateway: &Gateway, request: &RequestHeader) -> Exchange {
    let mut exchange = admitted(gateway, request);
    gateway.route(&mut exchange).unwrap();
    exchange
}

pub fn open_session(gateway: &Gateway) -> String {
    let mut exchange = routed(gateway, &request("POST", &[]));
    let mut opened = answer(Some(BACKEND_ID));
    from_backend(gateway, &mut opened, &mut exchange);
    gateway.to_client(&mut opened, &exchange);
    opened.headers["mcp-session-id"]
        .to_str()
        .unwrap()
        .to_owned()
}

/// As [`begin`](pingora_mcp::proxy::begin) leaves it: the case of the names is forgotten.
pub fn request(method: &str, more: &[(&'static str, &str)]) -> RequestHeader {
    let mut request = RequestHeader::build_no_case(method, b"/mcp", Some(12)).unwrap();
    let usual = [
        ("host", "127.0.0.1:8080"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("content-length", "104"),
        ("user-agent", "node"),
        ("accept-encoding", "gzip, deflate"),
        (
            "authorization",
            "Bearer eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9",
        ),
        ("mcp-protocol-version", "2025-11-25"),
    ];
    for (name, value) in read(&[&usual, more].concat()) {
        request.insert_header(name, value).unwrap();
    }
    request
}

fn answer(session: Option<&str>) -> ResponseHeader {
    let mut answer = ResponseHeader::build(200, Some(12)).unwrap();
    let usual = [
        ("content-type", "application/json"),
        ("content-length", "162"),
        ("date", "Tue, 24 Nov 2026 04:00:00 GMT"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
    ];
    // The SDKs' servers repeat the id on each answer of a session.
    let id = session.map(|id| ("mcp-session-id", id));
    for (name, value) in read(&usual.into_iter().chain(id).collect::<Vec<_>>()) {
        answer.append_header(name, value).unwrap();
    }
    answer
}

/// Names and values as Pingora reads them: parts of one buffer.
fn read(lines: &[(&str, &str)]) -> impl Iterator<Item = (Bytes, HeaderValue)> {
    let texts = lines.iter().map(|(name, value)| [*name, *value].concat());
    let mut buffer = Bytes::from(texts.collect::<String>());
    lines.iter().map(move |(name, value)| {
        let name = buffer.split_to(name.len());
        let value = HeaderValue::from_maybe_shared(buffer.split_to(value.len()));
        (name, value.unwrap())
    })
}

/// A gateway of one route, which has `key`.
pub fn new_gateway(key: &str) -> Gateway {
    let yaml = format!(
        "
mcp:
  listeners: [{{ address: \"127.0.0.1:8080\" }}]
  routes:
    - path: /mcp
      backends: [{{ name: local, url: \"http://127.0.0.1:3000/mcp\" }}]
      limits: {{ max_requests_per_backend: none }}
      {key}
  sessions: {{ evict: oldest, max_per_client: none, max_new_per_client: none }}
"
    );
    let settings = Settings::parse("bench.yaml", &yaml, HashMap::new()).unwrap();
    server::gateway(settings.mcp)
}

const BACKEND_ID: &str = "2d5df1c5-a35d-40b2-82da-3102eae0d427";
const CALL: &[u8] = br#"{"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello, world"}},"jsonrpc":"2.0","id":2}"#;
