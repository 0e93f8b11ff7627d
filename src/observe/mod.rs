//! What is told of the requests: metrics, the access log, and the pages that show them.
//!
//! It reads the [`Exchange`]s and changes nothing but the facts that only an observer needs. Without
//! metrics and access log it does nothing at all.
//!
//! ```
//! use std::sync::Arc;
//!
//! use pingora_mcp::metrics::Metrics;
//! use pingora_mcp::observe::{AccessLog, Observer};
//! use pingora_mcp::{McpProxy, Settings, server};
//!
//! let mcp = Settings::load("conf/edge.yaml")?.mcp;
//! let metrics = Arc::new(Metrics::new(mcp.metrics)?);
//! let access_log = AccessLog::open(mcp.access_log.clone())?;
//! let observer = Observer::new(Some(metrics), access_log);
//! let proxy = McpProxy::new(server::gateway(mcp)).with_observer(observer);
//! # drop(proxy);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access_log;
mod admin;
mod status;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use pingora::http::RequestHeader;
use pingora_core::{Error, ErrorSource, ErrorType};

pub use access_log::{AccessLog, AccessLogSettings, Format};
pub use admin::{Admin, AdminSettings, BoundedAdmin, Reloads};

use crate::exchange::{Exchange, SessionOutcome};
use crate::gateway::Gateway;
use crate::limits::ClientLimits;
use crate::listener::Listeners;
use crate::mcp::{Era, McpMethod, header::MCP_NAME};
use crate::metrics::{
    BackendNow, Connected, Ending, Finished, HttpMethod, Limit, Metrics, Now, Standing, Target,
    Totals,
};
use crate::rejection::{REFUSED, Rejection};
use crate::session::{Reaping, SessionSettings};
use crate::setting::Most;

/// Where the facts of each request go. The default is nowhere.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    metrics: Option<Arc<Metrics>>,
    access_log: Option<AccessLog>,
    listeners: Option<Listeners>,
}

/// What only the one who spoke to the client knows of a request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'r> {
    /// The request's header.
    pub request: &'r RequestHeader,
    /// The status that was sent.
    pub status: Option<StatusCode>,
    /// The bytes of the request's body that were read.
    pub received: u64,
    /// The bytes of the answer's body that were sent.
    pub sent: u64,
}

impl Observer {
    /// An observer that counts in `metrics` and writes to `access_log`.
    pub fn new(metrics: Option<Arc<Metrics>>, access_log: Option<AccessLog>) -> Self {
        Self {
            metrics,
            access_log,
            listeners: None,
        }
    }

    /// Tells when the certificates of `listeners` expire, too.
    #[must_use]
    pub fn with_listeners(self, listeners: Listeners) -> Self {
        Self {
            listeners: Some(listeners),
            ..self
        }
    }

    /// Notes when a request's header has come. Call it first.
    pub fn arrived(&self, exchange: &mut Exchange) {
        if self.metrics.is_some() || self.access_log.is_some() {
            exchange.arrived = Some(Instant::now());
        }
    }

    /// A backend has been chosen for the request, be it in place of another.
    pub fn routed(&self, exchange: &mut Exchange) {
        if let (Some(metrics), Some(_)) = (&self.metrics, &exchange.stream) {
            exchange.counted_stream = Some(metrics.stream_opened(target(metrics, exchange)));
        }
    }

    /// The request got a connection to its backend.
    pub fn connected(&self, exchange: &Exchange, connected: Connected) {
        if let Some(metrics) = &self.metrics {
            metrics.connected(target(metrics, exchange), connected);
        }
    }

    /// The backend that the request is at could not be connected to.
    pub fn connect_failed(&self, exchange: &Exchange) {
        if let Some(metrics) = &self.metrics {
            metrics.connect_failed(target(metrics, exchange));
        }
    }

    /// The backend's answer goes to the client.
    pub fn answered(&self, exchange: &mut Exchange) {
        exchange.first_byte = exchange.arrived.map(|arrived| arrived.elapsed());
    }

    /// The request is over. `error` is what ended it, if it did not end well.
    pub fn finished(&self, exchange: &Exchange, transfer: Transfer<'_>, error: Option<&Error>) {
        let Some(arrived) = exchange.arrived else {
            return;
        };
        let request = Finished {
            method: HttpMethod::from(&transfer.request.method),
            era: exchange.era,
            status: transfer.status,
            first_byte: exchange.first_byte,
            duration: arrived.elapsed(),
            received: transfer.received,
            sent: transfer.sent,
            ending: ending(exchange, error),
        };
        let headers = &transfer.request.headers;
        let method = McpMethod::of(headers);
        if let Some(metrics) = &self.metrics {
            count(metrics, exchange, &request);
            if let (Some(Era::Stateless), Some(method)) = (exchange.era, method) {
                metrics.operation(method, headers.get(MCP_NAME), &request);
            }
        }
        if let Some(access_log) = &self.access_log {
            access_log.write(exchange, method, &request);
        }
    }

    /// All metrics, and what `gateway`'s store counts, which keeps sessions as `sessions` say, in
    /// Prometheus's text format. Empty without metrics.
    ///
    /// # Errors
    /// As [`Metrics::scrape`].
    pub async fn scrape(
        &self,
        gateway: &Gateway,
        sessions: &SessionSettings,
    ) -> prometheus::Result<String> {
        let Some(metrics) = &self.metrics else {
            return Ok(String::new());
        };
        let census = gateway.store().census().await;
        let load = gateway.load();
        let now = Now {
            sessions: census.live,
            connections: load.connections(),
            requests: load.requests(),
            limits: limits(&gateway.rules().limits, sessions),
            certificates_expire: self.listeners.as_ref().and_then(Listeners::expire),
            backends: backends(gateway),
        };
        let totals = Totals {
            idle: census.idle,
            lifetime: census.lifetime,
            capacity: census.capacity,
            reaps_dropped: census.dropped + gateway.reaping().map_or(0, Reaping::dropped),
            log_lines_dropped: self.access_log.as_ref().map_or(0, AccessLog::dropped),
            refused_connections: load.refused_connections().collect(),
        };
        metrics.scrape(now, totals)
    }
}

/// Those that hold now, without what has none.
fn limits(limits: &ClientLimits, sessions: &SessionSettings) -> Vec<(Limit, u64)> {
    let of_clients = [
        (Limit::Connections, limits.max_connections),
        (Limit::Requests, limits.max_requests),
        (Limit::Streams, limits.max_streams),
    ];
    let of_clients = of_clients.into_iter();
    let of_clients = of_clients.filter_map(|(limit, Most(most))| Some((limit, most? as u64)));
    let of_store = (Limit::Sessions, sessions.capacity.0);
    of_clients.chain([of_store]).collect()
}

fn backends(gateway: &Gateway) -> Vec<BackendNow> {
    let rules = gateway.rules();
    let routes = rules.routes.iter();
    let backends = routes.flat_map(|route| {
        let backends = route.pool.iter().map(|backend| BackendNow {
            route: route.path.to_string(),
            backend: backend.configured_name().to_owned(),
            standing: backend.standing(),
            sessions: gateway.store().sessions_at(&route.path, backend.name()),
        });
        let unresolved = route.pool.unresolved().map(|profile| BackendNow {
            route: route.path.to_string(),
            backend: profile.name.to_string(),
            standing: Standing::Unresolved,
            sessions: 0,
        });
        backends.chain(unresolved)
    });
    backends.collect()
}

fn count(metrics: &Metrics, exchange: &Exchange, request: &Finished) {
    let target = target(metrics, exchange);
    metrics.finished(target, request);
    if let Some((outcome, took)) = exchange.lookup {
        metrics.looked_up(outcome, took);
    }
    if let Some(rejection) = exchange.rejection() {
        metrics.refused(rejection);
    }
    match exchange.outcome() {
        SessionOutcome::None | SessionOutcome::Kept => {}
        SessionOutcome::Opened(_) => metrics.session_opened(target),
        SessionOutcome::Ended => metrics.session_deleted(),
        SessionOutcome::Lost => metrics.session_lost(),
    }
}

fn target<'t>(metrics: &'t Metrics, exchange: &'t Exchange) -> Target<'t> {
    let Some(route) = &exchange.route else {
        return metrics.unrouted();
    };
    let (series, backend) = match exchange.backend() {
        Some(backend) => (&backend.series, backend.configured_name()),
        None => (&route.series, ""),
    };
    Target {
        series,
        route: route.path.as_str(),
        backend,
    }
}

/// How a request ended, with `error` or well. A refusal is an answer, as any other, unless a limit is
/// behind it.
fn ending(exchange: &Exchange, error: Option<&Error>) -> Ending {
    if exchange.is_drained() {
        return Ending::Drain;
    }
    if exchange.is_ended() {
        return Ending::Limit(Limit::StreamAge);
    }
    if exchange.is_stalled() {
        return Ending::Limit(Limit::ClientRead);
    }
    if let Some(limit) = exchange.rejection().and_then(Limit::of) {
        return Ending::Limit(limit);
    }
    let is_of_backend = matches!(
        exchange.rejection(),
        Some(Rejection::BackendUnreachable | Rejection::BackendAnswerInvalid)
    );
    // Also one that is known to be down, and was not asked.
    if is_of_backend && error.is_none_or(|error| *error.etype() == REFUSED) {
        return Ending::BackendLeft;
    }
    ending_with(error)
}

fn ending_with(error: Option<&Error>) -> Ending {
    use ErrorType::{
        BindError, ConnectTimedout, ConnectionClosed, H2Error, InternalError, ReadError,
        ReadTimedout, SocketError, WriteError, WriteTimedout,
    };
    let Some(error) = error else {
        return Ending::Complete;
    };
    match (error.esource(), error.etype()) {
        (_, etype) if *etype == REFUSED => Ending::Complete,
        (ErrorSource::Downstream, ReadTimedout) => Ending::Limit(Limit::ClientRead),
        (ErrorSource::Downstream, WriteTimedout) => Ending::Limit(Limit::ClientWrite),
        (ErrorSource::Downstream, _) if is_timed_out(error) => Ending::Limit(Limit::ClientWrite),
        (ErrorSource::Downstream, ConnectionClosed | H2Error | ReadError | WriteError) => {
            Ending::ClientLeft
        }
        // What the client sent is malformed, and it was told so.
        (ErrorSource::Downstream, _) => Ending::Complete,
        (ErrorSource::Upstream, ConnectTimedout) => Ending::Limit(Limit::Connect),
        (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => Ending::Limit(Limit::Silence),
        // For want of something on this machine, as descriptors.
        (ErrorSource::Upstream, BindError | InternalError | SocketError) => Ending::Failed,
        (ErrorSource::Upstream, _) => Ending::BackendLeft,
        (ErrorSource::Internal | ErrorSource::Unset, _) => Ending::Failed,
    }
}

/// Whether the client's connection failed a write that took too long. Its reads are limited elsewhere.
fn is_timed_out(error: &Error) -> bool {
    let cause = error.root_cause();
    let of_http_2 = || cause.downcast_ref::<h2::Error>()?.get_io();
    let io = cause.downcast_ref::<io::Error>().or_else(of_http_2);
    io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use pingora_core::BError;

    use super::*;

    #[test]
    fn an_ending_tells_whose_it_was() {
        let new = |etype: ErrorType| Error::new(etype);
        let down = |etype| new(etype).into_down();
        let up = |etype| new(etype).into_up();
        let late = io::Error::from(io::ErrorKind::TimedOut);
        let late = Error::because(ErrorType::WriteError, "a header", late);
        let endings: [(BError, Ending); 10] = [
            (Rejection::NoBackend.into(), Ending::Complete),
            (down(ErrorType::ConnectionClosed), Ending::ClientLeft),
            (down(ErrorType::H2Error), Ending::ClientLeft),
            (late.into_down(), Ending::Limit(Limit::ClientWrite)),
            (down(ErrorType::InvalidHTTPHeader), Ending::Complete),
            (
                down(ErrorType::WriteTimedout),
                Ending::Limit(Limit::ClientWrite),
            ),
            (
                up(ErrorType::ConnectTimedout),
                Ending::Limit(Limit::Connect),
            ),
            (up(ErrorType::ReadTimedout), Ending::Limit(Limit::Silence)),
            (up(ErrorType::ConnectionClosed), Ending::BackendLeft),
            (new(ErrorType::InternalError).into_in(), Ending::Failed),
        ];
        assert_eq!(ending_with(None), Ending::Complete);
        for (error, expected) in endings {
            assert_eq!(ending_with(Some(&error)), expected, "{error}");
        }
    }
}
