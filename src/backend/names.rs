//! Host names of backends, and the addresses that they stand for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;

/// Looks host names up. The default is the system's own way.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of `host`, each with `port`.
    ///
    /// # Errors
    /// Nothing is known of it now, which is not that it has none.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// As the system is configured: hosts file, DNS, and whatever else it asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// A host name and a port.
pub(crate) type HostName = (String, u16);

/// All addresses of each of `names`, looked up at the same time: a name server that is silent takes as
/// long for many as for one. A name that does not resolve is left out.
pub(crate) fn look_up(names: HashSet<HostName>) -> HashMap<HostName, Vec<SocketAddr>> {
    thread::scope(|scope| {
        let lookups = names.into_iter().map(|name| {
            let lookup = move || {
                let (host, port) = &name;
                let found = (host.as_str(), *port).to_socket_addrs().ok()?;
                Some((name, distinct(found.collect())))
            };
            thread::Builder::new().spawn_scoped(scope, lookup)
        });
        // Before the first is waited for, all are begun.
        let lookups: Vec<_> = lookups.flatten().collect();
        let found = lookups.into_iter().flat_map(|lookup| lookup.join());
        found.flatten().collect()
    })
}

/// Each address once, and all in an order that does not change from one lookup to the next.
pub(super) fn distinct(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort();
    addresses.dedup();
    addresses
}

/// When a name is looked up, and what came of it.
pub(super) struct Lookup(Mutex<State>);

struct State {
    is_under_way: bool,
    /// `None` before the first.
    last: Option<Instant>,
    /// Whether it ever had an address.
    is_known: bool,
    has_failed: bool,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Lookup")
    }
}

impl Lookup {
    pub(super) fn new(found: &[SocketAddr]) -> Self {
        let is_known = !found.is_empty();
        Self(Mutex::new(State {
            is_under_way: false,
            last: is_known.then(Instant::now),
            is_known,
            has_failed: false,
        }))
    }

    pub(super) fn is_known(&self) -> bool {
        self.state(|state| state.is_known)
    }

    /// Whether it is to be looked up now, as that is longer ago than `period`. Then
    /// [`ended`](Self::ended) must follow.
    pub(super) fn is_due(&self, period: Duration) -> bool {
        self.state(|state| {
            let is_due = state.last.is_none_or(|last| last.elapsed() >= period);
            let begins = is_due && !state.is_under_way;
            state.is_under_way |= begins;
            begins
        })
    }

    /// It came to something or to nothing. Says whether that is new.
    pub(super) fn ended(&self, has_failed: bool) -> bool {
        self.state(|state| {
            state.is_under_way = false;
            state.last = Some(Instant::now());
            state.is_known |= !has_failed;
            std::mem::replace(&mut state.has_failed, has_failed) != has_failed
        })
    }

    fn state<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
