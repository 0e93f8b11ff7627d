//! The handles to what is counted of a route or a backend.

use std::fmt;
use std::sync::OnceLock;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::labels::{ERAS, METHODS, STATUSES};

/// The handles of one route or of one backend of it.
pub struct Series {
    pub(super) requests: [OnceLock<IntCounter>; METHODS.len() * STATUSES.len() * ERAS.len()],
    pub(super) duration: [OnceLock<Histogram>; METHODS.len() * ERAS.len()],
    pub(super) first_byte: [OnceLock<Histogram>; METHODS.len() * ERAS.len()],
    pub(super) request_bytes: OnceLock<IntCounter>,
    pub(super) response_bytes: OnceLock<IntCounter>,
    pub(super) open_streams: OnceLock<IntGauge>,
    pub(super) connections: [OnceLock<IntCounter>; 2],
    pub(super) connect_failures: OnceLock<IntCounter>,
    pub(super) sessions_opened: OnceLock<IntCounter>,
}

/// Where a request went: its series, and the labels that these have.
#[derive(Clone, Copy, Debug)]
pub struct Target<'t> {
    /// The backend's, or the route's where there is no backend.
    pub series: &'t Series,
    /// The route's path as configured.
    pub route: &'t str,
    /// The backend's name; empty where the proxy answered itself.
    pub backend: &'t str,
}

impl Series {
    /// The GET streams and subscriptions that are open.
    pub fn open_streams(&self) -> i64 {
        self.open_streams.get().map_or(0, IntGauge::get)
    }
}

impl Default for Series {
    fn default() -> Self {
        Self {
            requests: [const { OnceLock::new() }; _],
            duration: [const { OnceLock::new() }; _],
            first_byte: [const { OnceLock::new() }; _],
            request_bytes: OnceLock::new(),
            response_bytes: OnceLock::new(),
            open_streams: OnceLock::new(),
            connections: [const { OnceLock::new() }; _],
            connect_failures: OnceLock::new(),
            sessions_opened: OnceLock::new(),
        }
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Series")
    }
}

/// A stream that counts as open until this is dropped.
#[derive(Debug)]
pub struct CountedStream(pub(super) IntGauge);

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}
