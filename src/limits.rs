//! What a client may take: how long each of its steps may last, and how much of everything it may
//! have. What a route bounds is in [`route`](crate::route), what a session store bounds in
//! [`session`](crate::session).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::setting::{Count, Limit, Most, Period, Size};

/// `mcp.timeouts` in the configuration file: the longest that is waited for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTimeouts {
    /// The TLS handshake of a new connection.
    pub tls_handshake: Period,
    /// From a new connection, its TLS handshake done, to the first byte of its first request.
    pub first_byte: Period,
    /// From the first byte of a request to the end of its header.
    pub header: Period,
    /// The longest silence within a request's body.
    pub body: Limit,
    /// The longest that a client may take for a part of an answer: what came from the backend at
    /// a time, of 256 KiB at most. While a write is blocked, its leaving is not noticed.
    pub write: Period,
    /// How long the rest of a refused request's body is read, to keep the connection.
    pub drain: Period,
    /// How long an idle connection is kept for the next request.
    pub keep_alive: Period,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self {
            tls_handshake: Period(Duration::from_secs(10)),
            first_byte: Period(Duration::from_secs(30)),
            header: Period(Duration::from_secs(10)),
            body: Limit(Some(Duration::from_secs(60))),
            write: Period(Duration::from_secs(60)),
            drain: Period(Duration::from_secs(5)),
            keep_alive: Period(Duration::from_secs(75)),
        }
    }
}

/// `mcp.limits` in the configuration file: the most that clients may have at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientLimits {
    /// Connections of all clients.
    pub max_connections: Most,
    /// Requests at all backends, open streams included.
    pub max_requests: Most,
    /// Open GET streams and subscriptions of all clients.
    pub max_streams: Most,
    /// Open GET streams of one session.
    pub max_streams_per_session: Most,
    /// Headers of one request.
    pub max_headers: Count,
    /// The size of a request's header, in bytes.
    pub max_header_size: Size,
}

impl Default for ClientLimits {
    /// Fewer streams than connections and requests, so that streams never keep requests out.
    fn default() -> Self {
        Self {
            max_connections: Most(Some(8_000)),
            max_requests: Most(Some(8_000)),
            max_streams: Most(Some(6_000)),
            max_streams_per_session: Most(Some(16)),
            max_headers: Count(100),
            max_header_size: Size(64 * 1024),
        }
    }
}

impl ClientLimits {
    /// Takes no more connections and requests than there are `descriptors` for: each has one, a
    /// connection to its client, a request to its backend.
    pub(crate) fn fit(&mut self, descriptors: Most) {
        let Most(Some(descriptors)) = descriptors else {
            return;
        };
        let connections = fitting("max_connections", self.max_connections, descriptors / 2);
        let rest = descriptors - connections;
        self.max_connections = Most(Some(connections));
        self.max_requests = Most(Some(fitting("max_requests", self.max_requests, rest)));
    }
}

/// How many of what `key` bounds there may be, where there are descriptors for `most`.
fn fitting(key: &str, Most(wanted): Most, most: usize) -> usize {
    match wanted {
        Some(wanted) if wanted <= most => wanted,
        Some(_) => {
            log::warn!("{key} is {most}: there are descriptors for no more");
            most
        }
        None => most,
    }
}

/// How many there are of something, and how many there may be.
#[derive(Debug)]
pub struct Bound {
    count: Arc<Counter>,
    most: AtomicUsize,
}

#[derive(Debug, Default)]
struct Counter {
    held: AtomicUsize,
    /// Notified when nothing is held any more.
    emptied: Notify,
}

impl Bound {
    /// Nothing is held yet.
    pub fn new(most: Most) -> Self {
        Self {
            count: Arc::default(),
            most: AtomicUsize::new(number(most)),
        }
    }

    /// Lets there be `most` from now on. What is held beyond it stays.
    pub(crate) fn limit(&self, most: Most) {
        self.most.store(number(most), Ordering::Relaxed);
    }

    /// Goes on with what `former` counts.
    pub(crate) fn succeed(&mut self, former: &Self) {
        self.count = Arc::clone(&former.count);
    }

    /// One more, until what is returned is dropped. `None` where there are as many as there may be.
    pub fn hold(self: &Arc<Self>) -> Option<Held> {
        self.enter().then(|| Held(Arc::clone(self)))
    }

    /// How many are held now.
    pub fn held(&self) -> usize {
        self.count.held.load(Ordering::Relaxed)
    }

    /// Returns when nothing is held.
    pub async fn emptied(&self) {
        loop {
            // Hears of it from here on, so that it is not missed between the look and the wait.
            let emptied = self.count.emptied.notified();
            if self.held() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Whether there may be one more.
    pub(crate) fn has_room(&self) -> bool {
        self.held() < self.most.load(Ordering::Relaxed)
    }

    /// Counts one more if there may be. Each must [`leave`](Self::leave).
    pub(crate) fn enter(&self) -> bool {
        let order = Ordering::Relaxed;
        let most = self.most.load(order);
        let more = |held| (held < most).then_some(held + 1);
        self.count.held.fetch_update(order, order, more).is_ok()
    }

    pub(crate) fn leave(&self) {
        if self.count.held.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.count.emptied.notify_waiters();
        }
    }
}

/// One of what a [`Bound`] counts.
#[derive(Debug)]
pub struct Held(Arc<Bound>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn number(most: Most) -> usize {
    most.0.unwrap_or(usize::MAX)
}
