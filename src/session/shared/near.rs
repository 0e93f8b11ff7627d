//! The near cache: what this proxy knows of sessions without asking, and how many it opened.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::RandomState;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::backend::BackendName;
use crate::mcp::ClientSessionId;
use crate::route::RoutePath;
use crate::session::backends::{Backends, Home};
use crate::session::client::{ClientNetwork, Clients};
use crate::session::moment::Moment;
use crate::session::{Binding, OpenError, SessionSettings};

/// Sessions that were used here of late.
#[derive(Debug)]
pub(super) struct Near {
    cache: Cache<ClientSessionId, Arc<Entry>, RandomState>,
    counts: Arc<Mutex<Counts>>,
    /// What moments are counted from.
    began: Instant,
    /// Before this, removals may have been missed.
    listening_since: AtomicU64,
    /// How often a session was removed, of those whose ids begin with the same byte.
    removals: [AtomicU32; 256],
}

/// What is known of a session.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) binding: Binding,
    /// When the store last said so. It refreshed the session's idle time then.
    pub(super) refreshed: Moment,
    /// When its lifetime is over.
    pub(super) ends: Moment,
    /// Whether the store is being asked.
    pub(super) is_asking: AtomicBool,
    /// Where it was opened here, and so counts here.
    opened_here: Option<Opener>,
}

/// Whose session it is. One on a Unix socket has no network.
#[derive(Clone, Copy, Debug)]
struct Opener(Option<ClientNetwork>);

/// Sessions that are near.
struct Counts {
    /// Of those that were opened here.
    clients: Clients,
    backends: Backends,
}

impl fmt::Debug for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.clients.total().fmt(formatter)
    }
}

impl Near {
    pub(super) fn new(settings: &SessionSettings) -> Self {
        let counts = Arc::new(Mutex::new(Counts {
            clients: Clients::new(settings),
            backends: Backends::default(),
        }));
        let counted = Arc::clone(&counts);
        let cache = Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(settings.capacity.0)
            // A session that is away with its store goes on for as long as it is used.
            .time_to_idle(settings.idle_timeout.0)
            .eviction_listener(move |_, entry: Arc<Entry>, _: RemovalCause| {
                let mut counts = lock(&counted);
                counts.backends.remove(&Home::of(&entry.binding));
                if let Some(Opener(client)) = entry.opened_here {
                    counts.clients.remove(client);
                }
            })
            .build_with_hasher(RandomState::new());
        Self {
            cache,
            counts,
            began: Instant::now(),
            listening_since: AtomicU64::new(0),
            removals: [const { AtomicU32::new(0) }; 256],
        }
    }

    pub(super) fn now(&self) -> Moment {
        Moment::since(self.began)
    }

    pub(super) fn get(&self, id: ClientSessionId) -> Option<Arc<Entry>> {
        self.cache.get(&id)
    }

    /// Whether the store would have told of `entry`'s removal.
    pub(super) fn is_told_of(&self, entry: &Entry) -> bool {
        entry.refreshed.0 >= self.listening_since.load(Ordering::Relaxed)
    }

    /// From now on, removals at other proxies are heard of.
    pub(super) fn listens(&self) {
        // An entry that is of this very millisecond may be from before.
        let since = self.now().0.saturating_add(1);
        self.listening_since.store(since, Ordering::Relaxed);
    }

    /// Changes with each removal that `id` may be of.
    pub(super) fn removals(&self, id: ClientSessionId) -> u32 {
        self.slot(id).load(Ordering::SeqCst)
    }

    /// Keeps what the store said at `refreshed`, unless the session was removed since `removals`
    /// was read.
    pub(super) fn keep(
        &self,
        id: ClientSessionId,
        binding: Binding,
        (refreshed, left): (Moment, Duration),
        removals: u32,
    ) {
        let former = self.cache.get(&id);
        let opened_here = former.and_then(|entry| entry.opened_here);
        if let Some(Opener(client)) = opened_here {
            lock(&self.counts).clients.add(client);
        }
        self.put(id, binding, (refreshed, left), opened_here);
        if self.removals(id) != removals {
            self.cache.invalidate(&id);
        }
    }

    fn put(
        &self,
        id: ClientSessionId,
        binding: Binding,
        (refreshed, left): (Moment, Duration),
        opened_here: Option<Opener>,
    ) {
        lock(&self.counts).backends.add(&binding);
        let entry = Entry {
            binding,
            refreshed,
            ends: refreshed.after(left),
            is_asking: AtomicBool::new(false),
            opened_here,
        };
        self.cache.insert(id, Arc::new(entry));
    }

    /// Forgets a session that is removed here or elsewhere.
    pub(super) fn remove(&self, id: ClientSessionId) {
        self.slot(id).fetch_add(1, Ordering::SeqCst);
        self.cache.invalidate(&id);
    }

    fn slot(&self, id: ClientSessionId) -> &AtomicU32 {
        &self.removals[usize::from(id.to_bytes()[0])]
    }

    /// Whether there is room for one more session of `client`.
    pub(super) fn check(&self, client: Option<ClientNetwork>) -> Result<(), OpenError> {
        if lock(&self.counts).clients.check(client).is_err() {
            self.sweep();
            return lock(&self.counts).clients.check(client);
        }
        Ok(())
    }

    /// Counts one more session of `client`, if there is room for it.
    pub(super) fn reserve(
        &self,
        client: Option<ClientNetwork>,
    ) -> Result<Reservation<'_>, OpenError> {
        self.check(client)?;
        let mut counts = lock(&self.counts);
        counts.clients.check(client)?;
        counts.clients.open(client);
        Ok(Reservation::new(self, client))
    }

    /// Counts out what has expired, which moka does only as the cache is used.
    pub(super) fn sweep(&self) {
        self.cache.run_pending_tasks();
    }

    /// How many of `backend` on `route` are near.
    pub(super) fn sessions_at(&self, route: &RoutePath, backend: &BackendName) -> u64 {
        lock(&self.counts).backends.at(route, backend)
    }

    /// Counts one more session of `client` that was opened before, if there is room for it.
    pub(super) fn reserve_for_adopted(
        &self,
        client: Option<ClientNetwork>,
    ) -> Result<Reservation<'_>, OpenError> {
        let mut counts = lock(&self.counts);
        counts.clients.check_held(client)?;
        counts.clients.add(client);
        Ok(Reservation::new(self, client))
    }
}

/// Room for a session of `client`. It is free again unless one is kept in it: who opens one may leave
/// before the store has answered.
pub(super) struct Reservation<'n> {
    near: &'n Near,
    client: Option<ClientNetwork>,
    is_kept: bool,
}

impl<'n> Reservation<'n> {
    /// Of a session that is counted.
    fn new(near: &'n Near, client: Option<ClientNetwork>) -> Self {
        Self {
            near,
            client,
            is_kept: false,
        }
    }

    /// Keeps what the store said of a session that was opened here.
    pub(super) fn keep(mut self, id: ClientSessionId, binding: Binding, said: (Moment, Duration)) {
        self.is_kept = true;
        let opener = Some(Opener(self.client));
        self.near.put(id, binding, said, opener);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            lock(&self.near.counts).clients.remove(self.client);
        }
    }
}

/// Counts are whole between any two statements, also where a panic came between.
fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
