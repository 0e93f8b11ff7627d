//! Where a client's session lives: the store that binds its id to a backend and the backend's id.
//!
//! The store remembers, it does not decide: whether a session lives is the backend's to say, and
//! an entry that outlives its session goes when the backend answers 404. Where ids are sealed, the
//! client brings the binding along, and the store spares its opening.

mod backends;
mod client;
mod memory;
mod moment;
mod reap;
mod seal;
mod secret;
mod shared;

use std::fmt::Debug;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use client::ClientNetwork;
pub use memory::MemoryStore;
pub(crate) use reap::Reaping;
pub use reap::{Reap, ReapSettings};
pub use seal::{Seal, SealError, SealKey, SealSettings, Seals};
pub use secret::Secret;
pub use shared::{RedisSettings, SharedStore};

use crate::backend::BackendName;
use crate::mcp::{BackendSessionId, ClientSessionId};
use crate::rejection::Rejection;
use crate::route::RoutePath;
use crate::setting::{Count, Most, Period};

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
    /// When the backend opened it.
    pub opened: Opened,
    /// What its client's id is sealed with. `None`: with nothing.
    pub seal: Option<Seal>,
}

impl Binding {
    /// Whether `seal` is what follows the digits of its client's id. The digits are what nobody can
    /// guess: it gives nothing away how long this takes.
    pub(crate) fn is_sealed_with(&self, seal: &[u8]) -> bool {
        let own = self.seal.as_ref().map_or("", Seal::as_str);
        own.as_bytes() == seal
    }
}

/// When a session was opened, by the clock that several proxies share: in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opened(u64);

impl Opened {
    /// This moment.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let milliseconds = since.unwrap_or_default().as_millis();
        Self(milliseconds.try_into().unwrap_or(u64::MAX))
    }

    /// The moment that [`milliseconds`](Self::milliseconds) tells.
    pub fn from_milliseconds(milliseconds: u64) -> Self {
        Self(milliseconds)
    }

    /// In milliseconds since 1970.
    pub fn milliseconds(self) -> u64 {
        self.0
    }

    /// How long ago it was; no time at all where that moment is to come, as clocks differ.
    pub fn age(self) -> Duration {
        Duration::from_millis(Self::now().0.saturating_sub(self.0))
    }
}

/// Keeps bindings for as long as [`SessionSettings`] says.
#[async_trait]
pub trait SessionStore: Debug + Send + Sync + 'static {
    /// Binds `id`. What it returns from is found by every later [`find`](Self::find).
    ///
    /// # Errors
    /// The store cannot be reached; then nothing is bound.
    async fn insert(&self, id: ClientSessionId, binding: Binding) -> Result<(), StoreError>;

    /// Binds the `id` of a new session of `client`, as [`insert`](Self::insert) does, within the
    /// bounds of the store. Without an override there are none.
    ///
    /// # Errors
    /// The store cannot be reached, or a bound is met; then nothing is bound.
    async fn open(
        &self,
        id: ClientSessionId,
        binding: Binding,
        _client: Option<ClientNetwork>,
    ) -> Result<(), OpenError> {
        Ok(self.insert(id, binding).await?)
    }

    /// Binds the `id` of a session that `client` brought along, sealed in its id. Its lifetime counts
    /// from its [opening](Binding::opened), and it may be refused as a new one is: it is served all
    /// the same. Without an override it is as if it were new.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    async fn adopt(
        &self,
        id: ClientSessionId,
        binding: Binding,
        client: Option<ClientNetwork>,
    ) -> Result<(), OpenError> {
        self.open(id, binding, client).await
    }

    /// Whether [`open`](Self::open) would find room now, before a backend is asked for a session.
    ///
    /// # Errors
    /// As `open`.
    async fn check_room(&self, _client: Option<ClientNetwork>) -> Result<(), OpenError> {
        Ok(())
    }

    /// The binding of `id`, and restarts its idle time. It is looked for at once, within a runtime, and
    /// not only when it is awaited.
    ///
    /// # Errors
    /// The store cannot be reached: whether `id` is bound is not known, which is not `None`.
    fn find(&self, id: ClientSessionId) -> Find<'_>;

    /// The same for a session that is in use without a request, as a stream is open: what
    /// [`find`](Self::find) may leave for later is done when this returns.
    ///
    /// # Errors
    /// As `find`.
    async fn touch(&self, id: ClientSessionId) -> Result<Option<Binding>, StoreError> {
        self.find(id).await
    }

    /// Forgets `id`. One that is not bound is no error.
    ///
    /// # Errors
    /// The store cannot be reached; `id` may still be bound.
    async fn remove(&self, id: ClientSessionId) -> Result<(), StoreError>;

    /// Takes sessions, `most` at the most, that the store has forgotten by itself, for their
    /// backends to be told. Each goes to one caller, of all that share the store, and is kept until
    /// it is [`settled`](Self::settle): a caller that dies before has another one follow.
    ///
    /// # Errors
    /// The store cannot be reached.
    async fn abandoned(&self, _most: usize) -> Result<Vec<Abandoned>, StoreError> {
        Ok(Vec::new())
    }

    /// The backend of what [`abandoned`](Self::abandoned) gave was told, or never will be.
    ///
    /// # Errors
    /// The store cannot be reached.
    async fn settle(&self, _claim: Claim) -> Result<(), StoreError> {
        Ok(())
    }

    /// How many sessions of `backend` on `route` are alive, as far as this process knows; zero
    /// where that is nothing. Asked for each backend before a session is opened.
    fn sessions_at(&self, _route: &RoutePath, _backend: &BackendName) -> u64 {
        0
    }

    /// What the store knows of its sessions. One that is shared may know nothing.
    async fn census(&self) -> Census {
        Census::default()
    }

    /// Whether it can be reached, as far as is known without asking it.
    fn is_reached(&self) -> bool {
        true
    }
}

/// What [`SessionStore::find`] comes to. Most sessions are at hand: their requests wait for nothing.
pub struct Find<'s>(Answer<'s>);

enum Answer<'s> {
    Known(Ready<Found>),
    Asked(Pin<Box<dyn Future<Output = Found> + Send + 's>>),
}

/// The binding, if there is one; or the store cannot be reached.
pub type Found = Result<Option<Binding>, StoreError>;

impl<'s> Find<'s> {
    /// It is known.
    pub fn known(found: Found) -> Self {
        Self(Answer::Known(ready(found)))
    }

    /// It has to be asked for.
    pub fn asked(found: impl Future<Output = Found> + Send + 's) -> Self {
        Self(Answer::Asked(Box::pin(found)))
    }
}

impl Future for Find<'_> {
    type Output = Found;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Found> {
        match &mut self.get_mut().0 {
            Answer::Known(found) => Pin::new(found).poll(context),
            Answer::Asked(found) => found.as_mut().poll(context),
        }
    }
}

/// A session that its store has forgotten, and that its backend may still keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// What it is to be settled by.
    pub claim: Claim,
    /// Whose it was.
    pub binding: Binding,
}

/// The store's own name for a session that it has forgotten. It is no session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim(pub(crate) [u8; 16]);

/// How many sessions there are, and how many the store forgot by itself since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Census {
    /// Sessions that are kept. `None` where that is not known.
    pub live: Option<u64>,
    /// Forgotten after `idle_timeout`.
    pub idle: u64,
    /// Forgotten after `lifetime`.
    pub lifetime: u64,
    /// Forgotten to make room for another.
    pub capacity: u64,
    /// Of the forgotten, those that [`SessionStore::abandoned`] will never give, as too many waited.
    pub dropped: u64,
}

/// The store cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session store is unavailable")]
pub struct StoreError;

/// Why a session is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store cannot be reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are as many sessions as there may be.
    #[error("there are as many sessions as there may be")]
    Full,
    /// The client's network has as many sessions as it may.
    #[error("the client has as many sessions as it may")]
    ClientFull,
    /// The client's network has opened as many sessions in this second as it may.
    #[error("the client opens sessions faster than it may")]
    ClientRate,
}

impl From<OpenError> for Rejection {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Store(StoreError) => Self::StoreUnavailable,
            OpenError::Full => Self::SessionsFull,
            OpenError::ClientFull => Self::ClientSessions,
            OpenError::ClientRate => Self::ClientSessionRate,
        }
    }
}

/// What happens at [`SessionSettings::capacity`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Evict {
    /// A new session is refused.
    #[default]
    None,
    /// The session that was used least recently goes, so that one that is in use stays.
    Oldest,
}

/// Where sessions are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum StoreSettings {
    /// In this process, for as long as it runs.
    #[default]
    Memory,
    /// In Redis or Valkey, for all proxies that use the same.
    Redis(Box<RedisSettings>),
}

/// `mcp.sessions` in the configuration file: how many sessions are kept and for how long. What holds
/// secrets is not written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSettings {
    /// Where they are kept.
    #[serde(skip_serializing)]
    pub store: StoreSettings,
    /// The most sessions kept at a time.
    pub capacity: Count,
    /// What goes at capacity, for a new session.
    pub evict: Evict,
    /// The most sessions kept at a time of one client's network.
    pub max_per_client: Most,
    /// The most sessions that one client's network may open in a second.
    pub max_new_per_client: Most,
    /// A session that is not used for this long is forgotten.
    pub idle_timeout: Period,
    /// A session is forgotten this long after it was opened, used or not.
    pub lifetime: Period,
    /// Sessions of a backend that has been down for this long count as lost.
    pub lost_after: Period,
    /// How the backends of forgotten sessions are told.
    pub reap: Reap,
    /// What ids are sealed with.
    #[serde(skip_serializing)]
    pub seal: SealSettings,
}

impl Default for SessionSettings {
    /// Losing a session is something that a person sees, as few clients start over by
    /// themselves: the defaults outlast a closed laptop's night and a long weekend.
    fn default() -> Self {
        Self {
            store: StoreSettings::default(),
            capacity: Count(100_000),
            evict: Evict::None,
            max_per_client: Most(Some(10_000)),
            max_new_per_client: Most(Some(500)),
            idle_timeout: Period(Duration::from_secs(24 * 60 * 60)),
            lifetime: Period(Duration::from_secs(7 * 24 * 60 * 60)),
            // A machine is back from its restart by then.
            lost_after: Period(Duration::from_secs(5 * 60)),
            reap: Reap::default(),
            seal: SealSettings::default(),
        }
    }
}
