//! What the gateway's functions cost a request, with the binary's allocator. `instructions.rs` counts the
//! allocations of the same work: to count them takes time.
//!
//! ```text
//! cargo bench --bench gateway
//! ```

mod support;

use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use http::StatusCode;
use mimalloc::MiMalloc;
use pingora_mcp::Exchange;
use pingora_mcp::metrics::{Connected, Metrics, MetricsSettings};
use pingora_mcp::observe::{AccessLog, AccessLogSettings, Observer, Transfer};
use support::gateway::{measure, new_gateway, open_session, request, routed};
use support::{CALLS, Meter, prepared, time};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

criterion_group! {
    name = benches;
    config = time::criterion();
    targets = measure, observer
}
criterion_main!(benches);

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
        let arrived = || routed(gateway, request);
        criterion.measure(name, arrived, |exchange| {
            observed(&observer, exchange);
        });
    }
    let observer = Observer::new(metrics(), log());
    let mut exchanges = prepared(|| routed(gateway, request));
    observed(&observer, &mut exchanges[0]);
    let begun = Instant::now();
    for exchange in &mut exchanges {
        observed(&observer, exchange);
    }
    println!("observe both: {:?} a call", begun.elapsed() / CALLS as u32);
}
