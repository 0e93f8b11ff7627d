//! What the gateway's functions cost a request: time, and allocations.
//!
//! ```text
//! cargo bench --bench gateway
//! ```

use std::alloc::System;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures::FutureExt;
use http::StatusCode;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora_mcp::metrics::{Connected, Metrics, MetricsSettings};
use pingora_mcp::observe::{AccessLog, AccessLogSettings, Observer, Transfer};
use pingora_mcp::{Connection, Exchange, Gateway, Settings, server};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

criterion_group!(benches, gateway, observer);
criterion_main!(benches);

fn gateway(criterion: &mut Criterion) {
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
    measure(criterion, "admit", Exchange::default, |exchange| {
        admit(gateway, bound, exchange)
    });
    measure(
        criterion,
        "route",
        || admitted(gateway, bound),
        |exchange| {
            gateway.route(exchange).unwrap();
        },
    );
    let sent = || (routed(gateway, bound), bound.clone());
    measure(criterion, "to_backend", sent, |(exchange, request)| {
        gateway.to_backend(request, exchange).unwrap();
    });
    let received = || (routed(gateway, bound), answer(None));
    measure(criterion, "from_backend", received, |(exchange, answer)| {
        from_backend(gateway, answer, exchange);
    });
    measure(criterion, "to_client", received, |(exchange, answer)| {
        gateway.to_client(answer, exchange);
    });

    // What a route with a policy adds to it.
    let guarded = &new_gateway("tools: { deny: [delete] }");
    let called = || admitted(guarded, stateless_call);
    measure(criterion, "judge", called, |exchange| {
        let judged = guarded.judge(stateless_call, Some(CALL), exchange);
        let judged = judged.now_or_never().expect("memory answers at once");
        judged.unwrap();
    });

    // All five in turn.
    for (name, request, given) in [
        ("session POST", bound, None),
        ("session POST of a page", from_page, None),
        ("stateless POST", stateless, None),
        ("POST that opens a session", unbound, Some(BACKEND_ID)),
    ] {
        let arrived = || (Exchange::default(), request.clone(), answer(given));
        measure(criterion, name, arrived, |(exchange, sent, answer)| {
            admit(gateway, request, exchange);
            gateway.route(exchange).unwrap();
            gateway.to_backend(sent, exchange).unwrap();
            from_backend(gateway, answer, exchange);
            gateway.to_client(answer, exchange);
        });
    }
    measure(criterion, "preflight", Exchange::default, |exchange| {
        admit(gateway, preflight, exchange);
        let mut answer = gateway.preflight(preflight).unwrap();
        gateway.to_client(&mut answer, exchange);
    });
}

/// What an observer costs a request beside the gateway.
fn observer(criterion: &mut Criterion) {
    let gateway = &new_gateway("");
    let session = open_session(gateway);
    let request = &request("POST", &[("mcp-session-id", &session)]);
    let observed = |observer: &Observer, exchange: &mut Exchange| {
        observer.arrived(exchange);
        observer.connected(exchange, Connected::Reused);
        observer.answered(exchange);
        let transfer = Transfer {
            request,
            status: Some(StatusCode::OK),
            received: 104,
            sent: 162,
        };
        observer.finished(exchange, transfer, None);
    };
    let metrics = || Some(Arc::new(Metrics::new(MetricsSettings::default()).unwrap()));
    let settings = serde_json::json!({ "format": "json", "path": "/dev/null" });
    let settings: AccessLogSettings = serde_json::from_value(settings).unwrap();
    let log = || AccessLog::open(settings.clone()).unwrap();
    for (name, observer) in [
        ("observe nothing", Observer::default()),
        ("observe metrics", Observer::new(metrics(), None)),
        // Beyond what its queue takes, lines are dropped, so that the time is that of a full queue.
        ("observe an access log", Observer::new(None, log())),
    ] {
        let prepared = || routed(gateway, request);
        measure(criterion, name, prepared, |exchange| {
            observed(&observer, exchange);
        });
    }
    let observer = Observer::new(metrics(), log());
    let mut exchanges: Vec<_> = (0..CALLS).map(|_| routed(gateway, request)).collect();
    observed(&observer, &mut exchanges[0]);
    let begun = Instant::now();
    for exchange in &mut exchanges {
        observed(&observer, exchange);
    }
    println!("observe both: {:?} a call", begun.elapsed() / CALLS as u32);
}

/// Prints the allocations of `work` on what `prepare` makes, then its time.
fn measure<P>(
    criterion: &mut Criterion,
    name: &str,
    prepare: impl Fn() -> P,
    work: impl Fn(&mut P),
) {
    work(&mut prepare());
    let mut prepared: Vec<P> = (0..CALLS).map(|_| prepare()).collect();
    let region = Region::new(ALLOCATOR);
    prepared.iter_mut().for_each(&work);
    let change = region.change();
    drop(prepared);
    println!(
        "{name}: {:.1} allocations of {:.0} bytes a call",
        (change.allocations + change.reallocations) as f64 / CALLS as f64,
        change.bytes_allocated as f64 / CALLS as f64,
    );
    criterion.bench_function(name, |bencher| {
        bencher.iter_batched_ref(&prepare, &work, BatchSize::SmallInput);
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

fn routed(gateway: &Gateway, request: &RequestHeader) -> Exchange {
    let mut exchange = admitted(gateway, request);
    gateway.route(&mut exchange).unwrap();
    exchange
}

fn open_session(gateway: &Gateway) -> String {
    let mut exchange = routed(gateway, &request("POST", &[]));
    let mut opened = answer(Some(BACKEND_ID));
    from_backend(gateway, &mut opened, &mut exchange);
    gateway.to_client(&mut opened, &exchange);
    opened.headers["mcp-session-id"]
        .to_str()
        .unwrap()
        .to_owned()
}

fn request(method: &str, more: &[(&'static str, &str)]) -> RequestHeader {
    let mut request = RequestHeader::build(method, b"/mcp", Some(12)).unwrap();
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
    for (name, value) in usual.iter().chain(more) {
        request.insert_header(*name, *value).unwrap();
    }
    request
}

fn answer(session: Option<&str>) -> ResponseHeader {
    let mut answer = ResponseHeader::build(200, Some(12)).unwrap();
    for (name, value) in [
        ("content-type", "application/json"),
        ("content-length", "162"),
        ("date", "Tue, 24 Nov 2026 04:00:00 GMT"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=5"),
    ] {
        answer.insert_header(name, value).unwrap();
    }
    // The SDKs' servers repeat the id on each answer.
    let session = session.unwrap_or(BACKEND_ID);
    answer.insert_header("mcp-session-id", session).unwrap();
    answer
}

/// A gateway of one route, which has `key`.
fn new_gateway(key: &str) -> Gateway {
    let yaml = format!(
        "
mcp:
  listeners: [{{ address: \"127.0.0.1:8080\" }}]
  routes:
    - path: /mcp
      backends: [{{ name: local, url: \"http://127.0.0.1:3000/mcp\" }}]
      {key}
  sessions: {{ evict: oldest, max_per_client: none, max_new_per_client: none }}
"
    );
    let settings = Settings::parse("bench.yaml", &yaml, HashMap::new()).unwrap();
    server::gateway(settings.mcp)
}

const BACKEND_ID: &str = "2d5df1c5-a35d-40b2-82da-3102eae0d427";
const CALL: &[u8] = br#"{"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello, world"}},"jsonrpc":"2.0","id":2}"#;
const CALLS: usize = 1000;
