//! The metrics: their names, labels and buckets, and the handles to what is counted.
//!
//! What every request counts is looked up by its labels once, kept in the [`Series`] of its route or
//! backend, and from then on found by an index. No label has a value that a client chooses, but for
//! the names of tools, where the configuration asks for them.

mod labels;
mod series;
mod tools;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode};
use prometheus::core::Collector;
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use serde::Deserialize;

pub use labels::{Connected, Ending, HttpMethod, Limit, LookupOutcome, Reaped, Standing};
pub use series::{CountedStream, Series, Target};

use self::labels::{ERAS, ERRORS, METHODS, STATUSES, era_index, error_index, status_index};
use self::tools::{Operation, Tools};
use crate::mcp::{Era, McpMethod};
use crate::rejection::Rejection;

/// All metrics of one proxy, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    operations: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    open_streams: IntGaugeVec,
    connections: IntCounterVec,
    connect_failures: IntCounterVec,
    backend_addresses: IntGaugeVec,
    backend_sessions: IntGaugeVec,
    sessions_opened: IntCounterVec,
    sessions_ended: IntCounterVec,
    sessions_reaped: IntCounterVec,
    sessions_live: IntGauge,
    open_connections: IntGauge,
    open_requests: IntGauge,
    limits: IntGaugeVec,
    certificates_expire: IntGauge,
    store_lookups: HistogramVec,
    refusals: IntCounterVec,
    limits_hit: IntCounterVec,
    log_lines_dropped: IntCounter,
    /// Of requests that no route takes.
    unrouted: Series,
    /// By method.
    by_operation: [Operation; McpMethod::COUNT],
    by_lookup: [OnceLock<Histogram>; 3],
    tools: Tools,
    /// What others had counted at the last scrape.
    scraped: Mutex<Totals>,
}

/// `mcp.metrics` in the configuration file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSettings {
    /// How many tools of the stateless era are told apart by name; zero is none.
    pub tool_names: usize,
}

/// A request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Finished {
    /// What it asked.
    pub method: HttpMethod,
    /// `None` where it had none: a preflight, or a request that was refused before.
    pub era: Option<Era>,
    /// Of the answer, if there was one.
    pub status: Option<StatusCode>,
    /// From the request's header to the answer's, where a backend gave it.
    pub first_byte: Option<Duration>,
    /// From the request's header to the end.
    pub duration: Duration,
    /// The bytes of the request's body that were read.
    pub received: u64,
    /// The bytes of the answer's body that were sent.
    pub sent: u64,
    /// How it ended.
    pub ending: Ending,
}

/// What others have counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sessions that were not used for `sessions.idle_timeout`.
    pub idle: u64,
    /// Sessions that were as old as `sessions.lifetime`.
    pub lifetime: u64,
    /// Sessions that made room for others.
    pub capacity: u64,
    /// Sessions whose backends were not told that they ended, as too many waited.
    pub reaps_dropped: u64,
    /// Lines that were not written.
    pub log_lines_dropped: u64,
    /// Connections that were refused before there was a request, by reason.
    pub refused_connections: Vec<(Rejection, u64)>,
}

/// What there is at the moment of a scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Sessions that are kept. `None` where the store does not know.
    pub sessions: Option<u64>,
    /// Connections of clients that are open.
    pub connections: usize,
    /// Requests at backends, or on their way there.
    pub requests: usize,
    /// The most that there may be of what has a bound.
    pub limits: Vec<(Limit, u64)>,
    /// When the first certificate of a listener expires. `None` without TLS.
    pub certificates_expire: Option<SystemTime>,
    /// All backends, each of their addresses for itself.
    pub backends: Vec<BackendNow>,
}

/// A backend at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendNow {
    /// The route's path as configured.
    pub route: String,
    /// The backend's name as configured.
    pub backend: String,
    /// Whether it takes requests.
    pub standing: Standing,
    /// Its sessions that are kept, as far as is known.
    pub sessions: u64,
}

impl Metrics {
    /// Metrics of which none has been counted.
    ///
    /// # Errors
    /// A name is taken twice or is none; it is not, as all are constants of this file.
    pub fn new(settings: MetricsSettings) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let new = Families(&registry);
        let target = ["route", "backend"];
        let by_method = ["route", "backend", "method", "era"];
        new.gauges(
            "pingora_mcp_build_info",
            "1 for the version that runs.",
            &["version"],
        )?
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
        // Not the crate's own, which is 0 where `/proc/stat` is hidden, as by the unit for systemd.
        new.gauge(
            START_TIME,
            "Start time of the process since unix epoch in seconds.",
        )?
        .set(unix_seconds(SystemTime::now()));
        let metrics = Self {
            requests: new.counters(
                "pingora_mcp_requests_total",
                "Requests that are over.",
                &["route", "backend", "method", "status", "era"],
            )?,
            duration: new.histograms(
                "pingora_mcp_request_duration_seconds",
                "Time from a request's header to its end, streams included.",
                &by_method,
                &REQUEST_BUCKETS,
            )?,
            first_byte: new.histograms(
                "pingora_mcp_time_to_first_byte_seconds",
                "Time from a request's header to that of its backend's answer.",
                &by_method,
                &REQUEST_BUCKETS,
            )?,
            operations: new.histograms(
                "mcp_server_operation_duration_seconds",
                "Duration of a request or notification of the stateless era.",
                &["mcp_method_name", "gen_ai_tool_name", "error_type"],
                &OPERATION_BUCKETS,
            )?,
            request_bytes: new.counters(
                "pingora_mcp_request_body_bytes_total",
                "Bytes of bodies read from clients.",
                &target,
            )?,
            response_bytes: new.counters(
                "pingora_mcp_response_body_bytes_total",
                "Bytes of bodies sent to clients.",
                &target,
            )?,
            open_streams: new.gauges(
                "pingora_mcp_open_streams",
                "GET streams and subscriptions at a backend.",
                &target,
            )?,
            connections: new.counters(
                "pingora_mcp_backend_connections_total",
                "Requests that got a connection to a backend: a new one, or one that was idle.",
                &["route", "backend", "connection"],
            )?,
            connect_failures: new.counters(
                "pingora_mcp_backend_connect_failures_total",
                "Attempts to connect to a backend that failed.",
                &target,
            )?,
            backend_addresses: new.gauges(
                "pingora_mcp_backend_addresses",
                "Addresses of a backend, by what is known of them.",
                &["route", "backend", "state"],
            )?,
            backend_sessions: new.gauges(
                "pingora_mcp_backend_sessions",
                "Sessions of a backend that this process knows to be kept.",
                &target,
            )?,
            sessions_opened: new.counters(
                "pingora_mcp_sessions_opened_total",
                "Sessions that a backend opened.",
                &target,
            )?,
            sessions_ended: new.counters(
                "pingora_mcp_sessions_ended_total",
                "Sessions that ended.",
                &["cause"],
            )?,
            sessions_reaped: new.counters(
                "pingora_mcp_sessions_reaped_total",
                "Sessions that ended without their backends, which were told or not.",
                &["outcome"],
            )?,
            sessions_live: new.gauge("pingora_mcp_sessions_live", "Sessions that are kept.")?,
            open_connections: new.gauge(
                "pingora_mcp_open_connections",
                "Connections of clients that are open.",
            )?,
            open_requests: new.gauge(
                "pingora_mcp_open_requests",
                "Requests at backends, or on their way there.",
            )?,
            limits: new.gauges(
                "pingora_mcp_limit",
                "The most that there may be at a time.",
                &["limit"],
            )?,
            certificates_expire: new.gauge(
                "pingora_mcp_certificate_expiry_timestamp_seconds",
                "When the first certificate of a listener expires, as Unix time.",
            )?,
            store_lookups: new.histograms(
                "pingora_mcp_store_lookup_duration_seconds",
                "Time that the session store took to find a session.",
                &["outcome"],
                &LOOKUP_BUCKETS,
            )?,
            refusals: new.counters(
                "pingora_mcp_refusals_total",
                "Requests and connections that the proxy refused.",
                &["reason"],
            )?,
            limits_hit: new.counters(
                "pingora_mcp_limits_hit_total",
                "What a limit refused or ended.",
                &["limit"],
            )?,
            log_lines_dropped: new.counter(
                "pingora_mcp_access_log_lines_dropped_total",
                "Lines that were not written to the access log.",
            )?,
            unrouted: Series::default(),
            by_operation: [const { [const { OnceLock::new() }; ERRORS.len()] }; _],
            by_lookup: [const { OnceLock::new() }; _],
            tools: Tools::new(settings.tool_names),
            scraped: Mutex::default(),
            registry,
        };
        metrics.begin();
        Ok(metrics)
    }

    /// Has what alerts ask for begin at zero: a series that begins with its first burst has not risen.
    fn begin(&self) {
        for rejection in Rejection::ALL {
            self.refusals.with_label_values(&[rejection.name()]);
        }
        for limit in Limit::ALL {
            self.limits_hit.with_label_values(&[limit.name()]);
        }
        for cause in [DELETED, LOST, IDLE, LIFETIME, CAPACITY] {
            self.sessions_ended.with_label_values(&[cause]);
        }
        for outcome in Reaped::ALL {
            self.sessions_reaped.with_label_values(&[outcome.name()]);
        }
    }

    /// Shows what others measure, too.
    ///
    /// # Errors
    /// A name is taken already.
    pub fn add(&self, collectors: Vec<Box<dyn Collector>>) -> prometheus::Result<()> {
        let mut collectors = collectors.into_iter();
        collectors.try_for_each(|collector| self.registry.register(collector))
    }

    /// The target of a request that no route takes.
    pub fn unrouted(&self) -> Target<'_> {
        Target {
            series: &self.unrouted,
            route: "",
            backend: "",
        }
    }

    /// Counts a request that is over.
    pub fn finished(&self, target: Target<'_>, request: &Finished) {
        let Target {
            series,
            route,
            backend,
        } = target;
        let (method, era) = (request.method.0, era_index(request.era));
        let status = status_index(request.status);
        let by_method = method * ERAS.len() + era;
        let labels = || [route, backend, METHODS[method], ERAS[era]];
        let of_target = |counters: &IntCounterVec| counters.with_label_values(&[route, backend]);

        series.requests[by_method * STATUSES.len() + status]
            .get_or_init(|| {
                let labels = [route, backend, METHODS[method], STATUSES[status], ERAS[era]];
                self.requests.with_label_values(&labels)
            })
            .inc();
        series.duration[by_method]
            .get_or_init(|| self.duration.with_label_values(&labels()))
            .observe(request.duration.as_secs_f64());
        if let Some(first_byte) = request.first_byte {
            series.first_byte[by_method]
                .get_or_init(|| self.first_byte.with_label_values(&labels()))
                .observe(first_byte.as_secs_f64());
        }
        series
            .request_bytes
            .get_or_init(|| of_target(&self.request_bytes))
            .inc_by(request.received);
        series
            .response_bytes
            .get_or_init(|| of_target(&self.response_bytes))
            .inc_by(request.sent);
        if let Ending::Limit(limit) = request.ending {
            self.limit_hit(limit, 1);
        }
    }

    /// Counts a request of the stateless era by what it asks for. `name` is its `Mcp-Name`.
    pub fn operation(&self, method: McpMethod, name: Option<&HeaderValue>, request: &Finished) {
        let error = error_index(request.ending, request.status);
        let observe = |tool: &str, slots: &Operation| {
            slots[error]
                .get_or_init(|| {
                    let labels = [method.name(), tool, ERRORS[error]];
                    self.operations.with_label_values(&labels)
                })
                .observe(request.duration.as_secs_f64());
        };
        match name.and_then(|name| name.to_str().ok()) {
            Some(tool) if self.tools.most > 0 && method.calls_tool() => {
                self.tools.with(tool, ERRORS[error], observe);
            }
            _ => observe("", &self.by_operation[method.index()]),
        }
    }

    /// Counts an answer of the proxy's own.
    pub fn refused(&self, rejection: Rejection) {
        self.refusals.with_label_values(&[rejection.name()]).inc();
    }

    /// Counts a lookup of the store's.
    pub fn looked_up(&self, outcome: LookupOutcome, took: Duration) {
        let name = match outcome {
            LookupOutcome::Found => "found",
            LookupOutcome::Missing => "missing",
            LookupOutcome::Error => "error",
        };
        self.by_lookup[outcome as usize]
            .get_or_init(|| self.store_lookups.with_label_values(&[name]))
            .observe(took.as_secs_f64());
    }

    /// Counts a request that got a connection to its backend.
    pub fn connected(&self, target: Target<'_>, connected: Connected) {
        let name = match connected {
            Connected::New => "new",
            Connected::Reused => "reused",
        };
        let series = target.series;
        series.connections[connected as usize]
            .get_or_init(|| {
                let labels = [target.route, target.backend, name];
                self.connections.with_label_values(&labels)
            })
            .inc();
    }

    /// Counts an attempt to connect that failed.
    pub fn connect_failed(&self, target: Target<'_>) {
        let failures = &target.series.connect_failures;
        let labels = [target.route, target.backend];
        failures
            .get_or_init(|| self.connect_failures.with_label_values(&labels))
            .inc();
    }

    /// Counts a GET stream or a subscription for as long as what is returned lives.
    pub fn stream_opened(&self, target: Target<'_>) -> CountedStream {
        let labels = [target.route, target.backend];
        let streams = &target.series.open_streams;
        let open = streams.get_or_init(|| self.open_streams.with_label_values(&labels));
        open.inc();
        CountedStream(open.clone())
    }

    /// Counts a session that a backend opened.
    pub fn session_opened(&self, target: Target<'_>) {
        let labels = [target.route, target.backend];
        target
            .series
            .sessions_opened
            .get_or_init(|| self.sessions_opened.with_label_values(&labels))
            .inc();
    }

    /// Counts a session that its client ended.
    pub fn session_deleted(&self) {
        self.sessions_ended.with_label_values(&[DELETED]).inc();
    }

    /// Counts a session that its backend knows no more.
    pub fn session_lost(&self) {
        self.sessions_ended.with_label_values(&[LOST]).inc();
    }

    /// Counts a session that its backend was told to end.
    pub fn session_reaped(&self, outcome: Reaped) {
        let reaped = &self.sessions_reaped;
        reaped.with_label_values(&[outcome.name()]).inc();
    }

    /// All metrics in Prometheus's text format.
    ///
    /// # Errors
    /// A metric cannot be written; each can, as all were registered.
    pub fn scrape(&self, now: Now, totals: Totals) -> prometheus::Result<String> {
        // Held to the end: what two scrapes at a time add must not be added twice.
        let mut scraped = self.scraped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = now.sessions {
            self.sessions_live
                .set(i64::try_from(live).unwrap_or(i64::MAX));
        }
        self.open_connections
            .set(i64::try_from(now.connections).unwrap_or(i64::MAX));
        self.open_requests
            .set(i64::try_from(now.requests).unwrap_or(i64::MAX));
        self.limits.reset();
        for &(limit, most) in &now.limits {
            self.limits
                .with_label_values(&[limit.name()])
                .set(i64::try_from(most).unwrap_or(i64::MAX));
        }
        if let Some(expire) = now.certificates_expire {
            self.certificates_expire.set(unix_seconds(expire));
        }
        self.set_backends(&now.backends);
        let capacity = totals.capacity.saturating_sub(scraped.capacity);
        for (cause, more) in [
            (IDLE, totals.idle.saturating_sub(scraped.idle)),
            (LIFETIME, totals.lifetime.saturating_sub(scraped.lifetime)),
            (CAPACITY, capacity),
        ] {
            self.sessions_ended.with_label_values(&[cause]).inc_by(more);
        }
        if capacity > 0 {
            self.limit_hit(Limit::Sessions, capacity);
        }
        for &(reason, total) in &totals.refused_connections {
            let mut before = scraped.refused_connections.iter();
            let before = before.find(|(counted, _)| *counted == reason);
            let more = total.saturating_sub(before.map_or(0, |(_, total)| *total));
            if more > 0 {
                let refusals = self.refusals.with_label_values(&[reason.name()]);
                refusals.inc_by(more);
                if let Some(limit) = Limit::of(reason) {
                    self.limit_hit(limit, more);
                }
            }
        }
        self.sessions_reaped
            .with_label_values(&[Reaped::Dropped.name()])
            .inc_by(totals.reaps_dropped.saturating_sub(scraped.reaps_dropped));
        let dropped = totals.log_lines_dropped;
        self.log_lines_dropped
            .inc_by(dropped.saturating_sub(scraped.log_lines_dropped));
        *scraped = totals;
        let mut families = self.registry.gather();
        families.extend(of_process());
        TextEncoder::new().encode_to_string(&families)
    }

    /// Those that the configuration has no more are told no more.
    fn set_backends(&self, backends: &[BackendNow]) {
        self.backend_addresses.reset();
        self.backend_sessions.reset();
        for now in backends {
            let (route, backend) = (now.route.as_str(), now.backend.as_str());
            for standing in Standing::ALL {
                let labels = [route, backend, standing.name()];
                let addresses = self.backend_addresses.with_label_values(&labels);
                addresses.add(i64::from(standing == now.standing));
            }
            let sessions = self.backend_sessions.with_label_values(&[route, backend]);
            sessions.add(i64::try_from(now.sessions).unwrap_or(i64::MAX));
        }
    }

    fn limit_hit(&self, limit: Limit, times: u64) {
        self.limits_hit
            .with_label_values(&[limit.name()])
            .inc_by(times);
    }
}

/// Memory, descriptors and the like. Looked at anew each time: in the background, this process is
/// another than the one that has started.
#[cfg(target_os = "linux")]
fn of_process() -> impl Iterator<Item = MetricFamily> {
    let families = ProcessCollector::for_self().collect().into_iter();
    families.filter(|family| family.name() != START_TIME)
}

#[cfg(not(target_os = "linux"))]
fn of_process() -> impl Iterator<Item = MetricFamily> {
    std::iter::empty()
}

fn unix_seconds(moment: SystemTime) -> i64 {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Makes metrics and registers them.
struct Families<'r>(&'r Registry);

impl Families<'_> {
    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(options, labels)?)
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }
}

const START_TIME: &str = "process_start_time_seconds";

// Why a session ended.
const DELETED: &str = "deleted";
const LOST: &str = "lost";
const IDLE: &str = "idle";
const LIFETIME: &str = "lifetime";
const CAPACITY: &str = "capacity";

/// A call takes milliseconds, a tool minutes, a stream hours.
const REQUEST_BUCKETS: [f64; 19] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0, 14_400.0, 86_400.0,
];

/// OpenTelemetry's semantic conventions for MCP, `mcp.server.operation.duration`.
const OPERATION_BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

/// Memory takes microseconds, another machine milliseconds.
const LOOKUP_BUCKETS: [f64; 12] = [
    0.000_001, 0.000_005, 0.000_025, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.01, 0.05, 0.25, 1.0, 5.0,
];
