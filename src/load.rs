//! What clients have now, for those who watch: connections, requests, streams, and what was refused of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::{Bound, ClientLimits};
use crate::rejection::Rejection;
use crate::streams::Streams;

/// How much clients have of what [`ClientLimits`] bounds.
#[derive(Clone, Debug)]
pub struct Load {
    pub(crate) connections: Arc<Bound>,
    pub(crate) requests: Arc<Bound>,
    refused: Arc<[AtomicU64; REFUSED_CONNECTIONS.len()]>,
    pub(crate) streams: Arc<Streams>,
}

impl Load {
    /// Nothing is held yet.
    pub fn new(limits: &ClientLimits) -> Self {
        Self {
            connections: Arc::new(Bound::new(limits.max_connections)),
            requests: Arc::new(Bound::new(limits.max_requests)),
            refused: Arc::default(),
            streams: Arc::new(Streams::new(limits.max_streams)),
        }
    }

    /// Bounds it by `limits` from now on. What is held beyond them stays.
    pub(crate) fn limit(&self, limits: &ClientLimits) {
        self.connections.limit(limits.max_connections);
        self.requests.limit(limits.max_requests);
        self.streams.limit(limits.max_streams);
    }

    /// Open connections of clients.
    pub fn connections(&self) -> usize {
        self.connections.held()
    }

    /// Requests at backends, or on their way there.
    pub fn requests(&self) -> usize {
        self.requests.held()
    }

    /// How many connections were refused before there was a request, by reason. No filter of
    /// Pingora's hears of these.
    pub fn refused_connections(&self) -> impl Iterator<Item = (Rejection, u64)> {
        let counts = self.refused.iter();
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        REFUSED_CONNECTIONS.into_iter().zip(counts)
    }

    /// Counts a connection that is refused for `reason`.
    pub(crate) fn note_refused_connection(&self, reason: Rejection) {
        let mut reasons = REFUSED_CONNECTIONS.iter();
        if let Some(position) = reasons.position(|counted| *counted == reason) {
            self.refused[position].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Open GET streams and subscriptions.
    pub fn streams(&self) -> usize {
        self.streams.open_now()
    }

    /// Ends all open streams in order: a client sees its body complete, and may come back. One
    /// that is opened later ends at once.
    pub fn end_streams(&self) {
        self.streams.end();
    }
}

/// Why a connection is refused before there is a request.
const REFUSED_CONNECTIONS: [Rejection; 5] = [
    Rejection::TlsHandshake,
    Rejection::TlsHandshakeTimeout,
    Rejection::ConnectionsFull,
    Rejection::HeaderTooLarge,
    Rejection::RequestTimeout,
];
