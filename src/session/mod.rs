//! Where a client's session lives: the store that binds its id to a backend and the backend's id.
//!
//! The store remembers, it does not decide: whether a session lives is the backend's to say, and
//! an entry that outlives its session goes when the backend answers 404.

mod memory;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;

pub use memory::MemoryStore;

use crate::backend::BackendName;
use crate::mcp::{BackendSessionId, ClientSessionId};
use crate::route::RoutePath;
use crate::setting::{Count, Period};

/// What a client's session id stands for.
///
/// Names, as they survive a restart and a change of configuration; positions do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The route that the session was opened on; on any other it is unknown.
    pub route: RoutePath,
    /// The one backend that knows the session.
    pub backend: BackendName,
    /// The id that this backend gave it.
    pub session: BackendSessionId,
}

/// Keeps bindings for as long as [`SessionSettings`] says.
#[async_trait]
pub trait SessionStore: Debug + Send + Sync + 'static {
    /// Binds `id`. What it returns from is found by every later [`find`](Self::find).
    ///
    /// # Errors
    /// The store cannot be reached; then nothing is bound.
    async fn insert(&self, id: ClientSessionId, binding: Binding) -> Result<(), StoreError>;

    /// The binding of `id`, and restarts its idle time.
    ///
    /// # Errors
    /// The store cannot be reached: whether `id` is bound is not known, which is not `None`.
    async fn find(&self, id: ClientSessionId) -> Result<Option<Binding>, StoreError>;

    /// Forgets `id`. One that is not bound is no error.
    ///
    /// # Errors
    /// The store cannot be reached; `id` may still be bound.
    async fn remove(&self, id: ClientSessionId) -> Result<(), StoreError>;
}

/// The store cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session store is unavailable")]
pub struct StoreError;

/// `mcp.sessions` in the configuration file: how many sessions are kept and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSettings {
    /// The most sessions kept at a time; beyond it the one that was used least recently goes.
    pub capacity: Count,
    /// A session that is not used for this long is forgotten.
    pub idle_timeout: Period,
    /// A session is forgotten this long after it was opened, used or not.
    pub lifetime: Period,
}

impl Default for SessionSettings {
    /// Losing a session is something that a person sees, as few clients start over by
    /// themselves: the defaults outlast a closed laptop's night and a long weekend.
    fn default() -> Self {
        Self {
            capacity: Count(100_000),
            idle_timeout: Period(Duration::from_secs(24 * 60 * 60)),
            lifetime: Period(Duration::from_secs(7 * 24 * 60 * 60)),
        }
    }
}
