//! Sessions in this process's memory: a bounded moka cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use moka::future::Cache;
use moka::policy::EvictionPolicy;

use super::{Binding, SessionSettings, SessionStore, StoreError};
use crate::mcp::ClientSessionId;

/// The default [`SessionStore`]: it never fails, and forgets everything when the process ends.
///
/// Every operation is O(1). At capacity the least recently used session goes, so that one that
/// is in use stays.
#[derive(Debug)]
pub struct MemoryStore {
    cache: Cache<ClientSessionId, Binding>,
    capacity: u64,
    /// Entries in the cache right now. moka's own count lags behind.
    live: Arc<AtomicU64>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new(settings: SessionSettings) -> Self {
        let live = Arc::new(AtomicU64::new(0));
        let removed = Arc::clone(&live);
        let cache = Cache::builder()
            .max_capacity(settings.capacity.0)
            // moka's default policy may turn the newest entry away; a session that was just
            // opened must be found.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(settings.idle_timeout.0)
            .time_to_live(settings.lifetime.0)
            .eviction_listener(move |_, _, _| {
                removed.fetch_sub(1, Ordering::Relaxed);
            })
            .build();
        Self {
            cache,
            capacity: settings.capacity.0,
            live,
        }
    }

    /// How many sessions are held, expired ones that have not been swept yet included.
    pub fn len(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Whether no session is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[async_trait]
impl SessionStore for MemoryStore {
    async fn insert(&self, id: ClientSessionId, binding: Binding) -> Result<(), StoreError> {
        self.live.fetch_add(1, Ordering::Relaxed);
        self.cache.insert(id, binding).await;
        // moka evicts in batches; at capacity it is made to do so now, to hold the bound.
        if self.len() > self.capacity {
            self.cache.run_pending_tasks().await;
        }
        Ok(())
    }

    async fn find(&self, id: ClientSessionId) -> Result<Option<Binding>, StoreError> {
        Ok(self.cache.get(&id).await)
    }

    async fn remove(&self, id: ClientSessionId) -> Result<(), StoreError> {
        self.cache.invalidate(&id).await;
        Ok(())
    }
}
