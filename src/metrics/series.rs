//! The handles to what is counted of a route or a backend.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

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
    last_connect: AtomicU8,
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

/// What the last attempt to connect to a backend came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastConnect {
    /// There was none yet.
    Untried,
    /// It succeeded.
    Connected,
    /// It failed.
    Failed,
}

impl Series {
    /// What the last attempt to connect came to.
    pub fn last_connect(&self) -> LastConnect {
        match self.last_connect.load(Ordering::Relaxed) {
            value if value == LastConnect::Connected as u8 => LastConnect::Connected,
            value if value == LastConnect::Failed as u8 => LastConnect::Failed,
            _ => LastConnect::Untried,
        }
    }

    /// The GET streams and subscriptions that are open.
    pub fn open_streams(&self) -> i64 {
        self.open_streams.get().map_or(0, IntGauge::get)
    }

    pub(super) fn set_last_connect(&self, last: LastConnect) {
        self.last_connect.store(last as u8, Ordering::Relaxed);
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
            last_connect: AtomicU8::new(LastConnect::Untried as u8),
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
