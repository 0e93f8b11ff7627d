//! Sessions in this process's memory: a bounded moka cache.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::RandomState;
use async_trait::async_trait;
use moka::notification::RemovalCause;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use uuid::Uuid;

use super::backends::{Backends, Home};
use super::client::{ClientNetwork, Clients};
use super::moment::Moment;
use super::reap::Waiting;
use super::{
    Abandoned, Binding, Census, Claim, Evict, Find, OpenError, Opened, Seal, SessionSettings,
    SessionStore, StoreError,
};
use crate::backend::BackendName;
use crate::mcp::{BackendSessionId, ClientSessionId};
use crate::route::RoutePath;

/// The default [`SessionStore`]: it is always reached, and forgets everything when the process
/// ends.
///
/// Every operation is O(1). It never holds more sessions than its capacity.
#[derive(Debug)]
pub struct MemoryStore {
    cache: Cache<ClientSessionId, Entry, RandomState>,
    counts: Arc<Mutex<Counts>>,
    lifetime: Duration,
    /// What moments are counted from.
    began: Instant,
    /// Forgotten sessions whose backends are to be told, where they are.
    waiting: Option<Arc<Waiting>>,
}

/// What is kept of a session, in few bytes: there are many.
#[derive(Clone, Debug)]
struct Entry {
    home: Arc<Home>,
    session: BackendSessionId,
    opened: Opened,
    seal: Option<Seal>,
    client: Option<ClientNetwork>,
    /// When its lifetime is over. To moka, a session that is adopted, or whose backend gave it
    /// another id, begins anew.
    ends: Moment,
}

impl Entry {
    fn new(home: Arc<Home>, binding: Binding, client: Option<ClientNetwork>, ends: Moment) -> Self {
        Self {
            home,
            session: binding.session,
            opened: binding.opened,
            seal: binding.seal,
            client,
            ends,
        }
    }

    fn into_binding(self) -> Binding {
        Binding {
            route: self.home.route.clone(),
            backend: self.home.backend.clone(),
            session: self.session,
            opened: self.opened,
            seal: self.seal,
        }
    }
}

/// Why a session was forgotten.
#[derive(Clone, Copy)]
enum Cause {
    Idle,
    Lifetime,
    Capacity,
}

/// What is in the cache right now, as moka's own count lags behind, and what it forgot.
struct Counts {
    backends: Backends,
    clients: Clients,
    idle: u64,
    lifetime: u64,
    capacity: u64,
}

impl Counts {
    /// Counts a session that takes the place of one that will be counted out.
    fn add(&mut self, binding: &Binding, client: Option<ClientNetwork>) -> Arc<Home> {
        self.clients.add(client);
        self.backends.add(binding)
    }

    /// Counts a session out. `None` where it was removed, or goes on. moka does not tell the two
    /// reasons to expire apart; whether the lifetime is over `now` does.
    fn remove(&mut self, entry: &Entry, cause: RemovalCause, now: Moment) -> Option<Cause> {
        self.clients.remove(entry.client);
        self.backends.remove(&entry.home);
        let cause = match cause {
            RemovalCause::Expired if now >= entry.ends => Cause::Lifetime,
            RemovalCause::Expired => Cause::Idle,
            RemovalCause::Size => Cause::Capacity,
            RemovalCause::Explicit | RemovalCause::Replaced => return None,
        };
        self.note(cause);
        Some(cause)
    }

    fn note(&mut self, cause: Cause) {
        match cause {
            Cause::Idle => self.idle += 1,
            Cause::Lifetime => self.lifetime += 1,
            Cause::Capacity => self.capacity += 1,
        }
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.clients.total().fmt(formatter)
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new(settings: SessionSettings) -> Self {
        let counts = Arc::new(Mutex::new(Counts {
            backends: Backends::default(),
            clients: Clients::new(&settings),
            idle: 0,
            lifetime: 0,
            capacity: 0,
        }));
        let counted = Arc::clone(&counts);
        let (lifetime, began) = (settings.lifetime.0, Instant::now());
        let waiting = settings.reap.0.as_ref().map(Waiting::new).map(Arc::new);
        let told = waiting.clone();
        let mut cache = Cache::builder()
            // moka's default policy may turn the newest entry away; a session that was just
            // opened must be found.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(settings.idle_timeout.0)
            .time_to_live(lifetime)
            .eviction_listener(move |_, entry: Entry, cause| {
                let cause = lock(&counted).remove(&entry, cause, Moment::since(began));
                // A sealed session that is forgotten here may be in use at another proxy.
                let is_over = match cause {
                    Some(Cause::Lifetime) => true,
                    Some(Cause::Idle | Cause::Capacity) => entry.seal.is_none(),
                    None => false,
                };
                if let (Some(told), true) = (&told, is_over) {
                    told.push(entry.into_binding());
                }
            });
        if settings.evict == Evict::Oldest {
            cache = cache.max_capacity(settings.capacity.0);
        }
        Self {
            cache: cache.build_with_hasher(RandomState::new()),
            counts,
            lifetime,
            began,
            waiting,
        }
    }

    /// How many sessions are held, expired ones that have not been swept yet included.
    pub fn len(&self) -> u64 {
        lock(&self.counts).clients.total()
    }

    /// Whether no session is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn now(&self) -> Moment {
        Moment::since(self.began)
    }

    /// Counts a session of `client` where there is room for it.
    fn reserve(&self, client: Option<ClientNetwork>) -> Result<(), OpenError> {
        let mut counts = lock(&self.counts);
        counts.clients.check(client)?;
        counts.clients.open(client);
        Ok(())
    }

    fn put(&self, id: ClientSessionId, entry: Entry) {
        self.cache.insert(id, entry);
        // moka evicts in batches; at capacity it is made to do so now, to hold the bound.
        if lock(&self.counts).clients.are_too_many() {
            self.sweep();
        }
    }

    /// Forgets a session that is here still, in use or not, and whose lifetime is over.
    fn forget_outlived(&self, id: ClientSessionId) {
        let judged = self.cache.entry(id).and_compute_with(|held| match held {
            Some(held) if self.now() >= held.value().ends => Op::Remove,
            Some(_) | None => Op::Nop,
        });
        let CompResult::Removed(entry) = judged else {
            return;
        };
        lock(&self.counts).note(Cause::Lifetime);
        if let Some(waiting) = &self.waiting {
            waiting.push(entry.into_value().into_binding());
        }
    }

    /// Gives the places of expired sessions free.
    fn sweep(&self) {
        self.cache.run_pending_tasks();
    }
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn insert(&self, id: ClientSessionId, binding: Binding) -> Result<(), StoreError> {
        self.forget_outlived(id);
        let (client, ends) = match self.cache.get(&id) {
            Some(known) => (known.client, known.ends),
            None => (None, self.now().after(self.lifetime)),
        };
        let home = lock(&self.counts).add(&binding, client);
        self.put(id, Entry::new(home, binding, client, ends));
        Ok(())
    }

    async fn open(
        &self,
        id: ClientSessionId,
        binding: Binding,
        client: Option<ClientNetwork>,
    ) -> Result<(), OpenError> {
        if self.reserve(client).is_err() {
            self.sweep();
            self.reserve(client)?;
        }
        let ends = self.now().after(self.lifetime);
        let home = lock(&self.counts).backends.add(&binding);
        self.put(id, Entry::new(home, binding, client, ends));
        Ok(())
    }

    /// A session of another moment is none that its client opens now: it does not count in the rate.
    async fn adopt(
        &self,
        id: ClientSessionId,
        binding: Binding,
        client: Option<ClientNetwork>,
    ) -> Result<(), OpenError> {
        let left = self.lifetime.saturating_sub(binding.opened.age());
        let ends = self.now().after(left);
        let home = {
            let mut counts = lock(&self.counts);
            counts.clients.check_held(client)?;
            counts.add(&binding, client)
        };
        self.put(id, Entry::new(home, binding, client, ends));
        Ok(())
    }

    async fn check_room(&self, client: Option<ClientNetwork>) -> Result<(), OpenError> {
        if lock(&self.counts).clients.check(client).is_err() {
            self.sweep();
            return lock(&self.counts).clients.check(client);
        }
        Ok(())
    }

    fn find(&self, id: ClientSessionId) -> Find<'_> {
        let found = match self.cache.get(&id) {
            Some(entry) if self.now() >= entry.ends => {
                self.forget_outlived(id);
                None
            }
            found => found,
        };
        Find::known(Ok(found.map(Entry::into_binding)))
    }

    async fn remove(&self, id: ClientSessionId) -> Result<(), StoreError> {
        self.cache.invalidate(&id);
        Ok(())
    }

    fn sessions_at(&self, route: &RoutePath, backend: &BackendName) -> u64 {
        lock(&self.counts).backends.at(route, backend)
    }

    /// Sweeps what has expired, as moka does so only while it is used. What is taken is settled: no
    /// other process has this memory.
    async fn abandoned(&self, most: usize) -> Result<Vec<Abandoned>, StoreError> {
        let Some(waiting) = &self.waiting else {
            return Ok(Vec::new());
        };
        self.sweep();
        let abandoned = |binding| Abandoned {
            claim: Claim(*Uuid::new_v4().as_bytes()),
            binding,
        };
        Ok(waiting.take(most).into_iter().map(abandoned).collect())
    }

    /// Sweeps, as [`abandoned`](Self::abandoned) does.
    async fn census(&self) -> Census {
        self.sweep();
        let counts = lock(&self.counts);
        Census {
            live: Some(counts.clients.total()),
            idle: counts.idle,
            lifetime: counts.lifetime,
            capacity: counts.capacity,
            dropped: self.waiting.as_ref().map_or(0, |waiting| waiting.dropped()),
        }
    }
}

/// Counts are whole between any two statements, also where a panic came between.
fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}
