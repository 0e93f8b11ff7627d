//! Sessions in Redis or Valkey, which several proxies share, with a near cache in front.

mod link;
mod near;
mod script;
mod sealed;
mod servers;
mod settings;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use prometheus::core::Collector;
use tokio::sync::Semaphore;

pub use settings::RedisSettings;

use self::link::{Failure, Link, Listener, Operation};
use self::near::{Near, Reservation};
use self::script::{Place, cause};
use self::sealed::{Keys, Name, SHARDS, Unopened, read, write};
use super::moment::Moment;
use super::{
    Abandoned, Binding, Census, Claim, ClientNetwork, Find, OpenError, SessionSettings,
    SessionStore, StoreError,
};
use crate::backend::BackendName;
use crate::mcp::ClientSessionId;
use crate::route::RoutePath;

/// A [`SessionStore`] in Redis or Valkey. Each clone is the same.
///
/// A session that was used here of late is found without asking the server; its idle time there is
/// refreshed in the background, at most every quarter of `idle_timeout`. A session that is removed
/// through one store is forgotten by all.
///
/// As a [`BackgroundService`] it keeps its connection in a runtime of its own. Where it is not run
/// so, the first operation starts a task for that.
#[derive(Clone, Debug)]
pub struct SharedStore(Arc<Shared>);

struct Shared {
    link: Link,
    near: Arc<Near>,
    codec: Arc<Codec>,
    /// Whether it was ever said that a key is missing.
    is_key_missing: AtomicBool,
    /// Questions that nobody waits for.
    refreshes: Arc<Semaphore>,
    next_shard: AtomicUsize,
    /// Until when the server's memory is taken to be full.
    full_until: Mutex<Option<Moment>>,
    idle: AtomicU64,
    lifetime: AtomicU64,
    /// After this, an entry that is used is refreshed; and after four of it, asked for.
    quarter: Duration,
}

/// Where all is, and how it is sealed.
struct Codec {
    keys: Keys,
    place: Place,
    /// Which store a removal was told by.
    sender: [u8; 16],
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut store = formatter.debug_struct("SharedStore");
        store.field("link", &self.link).field("near", &self.near);
        store.finish_non_exhaustive()
    }
}

impl SharedStore {
    /// The store that `redis` describes, not connected yet.
    pub fn new(redis: RedisSettings, settings: &SessionSettings) -> Self {
        let near = Arc::new(Near::new(settings));
        let codec = Arc::new(Codec {
            keys: Keys::new(&redis.keys),
            place: Place::new(&redis.prefix.0, settings),
            sender: ClientSessionId::mint().to_bytes(),
        });
        let listener = Arc::new(Ear {
            near: Arc::clone(&near),
            codec: Arc::clone(&codec),
        });
        let place = &codec.place;
        let link = Link::new(redis, (place.channel(), place.nothing()), listener);
        Self(Arc::new(Shared {
            link,
            near,
            codec,
            is_key_missing: AtomicBool::new(false),
            refreshes: Arc::new(Semaphore::new(REFRESHES)),
            next_shard: AtomicUsize::new(0),
            full_until: Mutex::new(None),
            idle: AtomicU64::new(0),
            lifetime: AtomicU64::new(0),
            quarter: settings.idle_timeout.0 / 4,
        }))
    }

    /// What is measured of its operations and its connection.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.0.link.collectors()
    }

    /// The link, which somebody keeps.
    fn link(&self) -> &Link {
        if self.0.link.is_unkept() {
            let store = self.clone();
            tokio::spawn(async move { store.0.link.keep().await });
        }
        &self.0.link
    }

    fn full_until(&self) -> MutexGuard<'_, Option<Moment>> {
        let full_until = self.0.full_until.lock();
        full_until.unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, id: ClientSessionId) -> Result<Option<Binding>, StoreError> {
        let Shared { near, codec, .. } = &*self.0;
        let name = Name::of(id);
        let (asked, removals) = (near.now(), near.removals(id));
        let find = codec.place.find(name);
        let found = self.link().run(Operation::Find, &find).await;
        let found: Option<(Vec<u8>, u64)> = found.map_err(|_| StoreError)?;
        let opened = match &found {
            Some((value, left)) => self.open_sealed(name, value)?.zip(Some(*left)),
            None => None,
        };
        let Some((binding, left)) = opened else {
            near.remove(id);
            return Ok(None);
        };
        let said = (asked, Duration::from_millis(left));
        near.keep(id, binding.clone(), said, removals);
        Ok(Some(binding))
    }

    /// What is known without asking. `None`: the store is to be asked.
    fn find_near(&self, id: ClientSessionId) -> Option<Binding> {
        let near = &self.0.near;
        let entry = near.get(id)?;
        let now = near.now();
        let quarter = self.0.quarter;
        if now >= entry.ends {
            return None;
        }
        let is_due = now >= entry.refreshed.after(quarter) || !near.is_told_of(&entry);
        // A session that is in use goes on while the store is away; moka has seen to its idle time.
        if is_due && !self.0.link.is_away() {
            if now >= entry.refreshed.after(quarter * 4) {
                return None;
            }
            self.refresh(id, &entry.is_asking);
        }
        Some(entry.binding.clone())
    }

    /// Asks without anybody who waits.
    fn refresh(&self, id: ClientSessionId, is_asking: &AtomicBool) {
        if is_asking.swap(true, Ordering::Relaxed) {
            return;
        }
        let Ok(turn) = Arc::clone(&self.0.refreshes).try_acquire_owned() else {
            return is_asking.store(false, Ordering::Relaxed);
        };
        let store = self.clone();
        tokio::spawn(async move {
            if store.ask(id).await.is_err()
                && let Some(entry) = store.0.near.get(id)
            {
                entry.is_asking.store(false, Ordering::Relaxed);
            }
            drop(turn);
        });
    }

    /// What is in `value`. One that was changed is as good as gone.
    fn open_sealed(&self, name: Name, value: &[u8]) -> Result<Option<Binding>, StoreError> {
        let codec = &self.0.codec;
        match codec.keys.open(&codec.place.key(name), value) {
            Ok(bytes) => Ok(read(&bytes)),
            Err(Unopened::Broken) => Ok(None),
            Err(Unopened::Unknown) => {
                if !self.0.is_key_missing.swap(true, Ordering::Relaxed) {
                    log::error!("a session is sealed with a key that 'keys' does not have");
                }
                Err(StoreError)
            }
        }
    }

    /// Stores the binding of a session that is `age` old, in `room`.
    async fn put(
        &self,
        room: Reservation<'_>,
        id: ClientSessionId,
        binding: Binding,
        age: Duration,
    ) -> Result<(), OpenError> {
        match self.store(id, &binding, age).await {
            Ok(said) => {
                room.keep(id, binding, said);
                Ok(())
            }
            Err(Failure::Full) => {
                *self.full_until() = Some(self.0.near.now().after(FULL));
                Err(OpenError::Full)
            }
            Err(Failure::Unreached) => Err(OpenError::Store(StoreError)),
        }
    }

    /// Stores a binding, and says what the near cache is to know of it.
    async fn store(
        &self,
        id: ClientSessionId,
        binding: &Binding,
        age: Duration,
    ) -> Result<(Moment, Duration), Failure> {
        let Shared { near, codec, .. } = &*self.0;
        let name = Name::of(id);
        let value = codec.keys.seal(&codec.place.key(name), &write(binding));
        let insert = codec.place.insert(name, &value, age, &codec.told(id));
        let asked = near.now();
        let left = self.link().run(Operation::Insert, &insert).await?;
        Ok((asked, Duration::from_millis(left)))
    }
}

#[async_trait]
impl SessionStore for SharedStore {
    async fn insert(&self, id: ClientSessionId, binding: Binding) -> Result<(), StoreError> {
        let removals = self.0.near.removals(id);
        let said = self.store(id, &binding, Duration::ZERO).await;
        let said = said.map_err(|_| StoreError)?;
        self.0.near.keep(id, binding, said, removals);
        Ok(())
    }

    async fn open(
        &self,
        id: ClientSessionId,
        binding: Binding,
        client: Option<ClientNetwork>,
    ) -> Result<(), OpenError> {
        let room = self.0.near.reserve(client)?;
        self.put(room, id, binding, Duration::ZERO).await
    }

    async fn adopt(
        &self,
        id: ClientSessionId,
        binding: Binding,
        client: Option<ClientNetwork>,
    ) -> Result<(), OpenError> {
        let room = self.0.near.reserve_for_adopted(client)?;
        let age = binding.opened.age();
        self.put(room, id, binding, age).await
    }

    async fn check_room(&self, client: Option<ClientNetwork>) -> Result<(), OpenError> {
        if self.link().is_away() {
            return Err(OpenError::Store(StoreError));
        }
        let full_until = *self.full_until();
        if full_until.is_some_and(|moment| self.0.near.now() < moment) {
            return Err(OpenError::Full);
        }
        self.0.near.check(client)
    }

    fn find(&self, id: ClientSessionId) -> Find<'_> {
        match self.find_near(id) {
            Some(binding) => Find::known(Ok(Some(binding))),
            None => Find::asked(self.ask(id)),
        }
    }

    async fn touch(&self, id: ClientSessionId) -> Result<Option<Binding>, StoreError> {
        match self.0.near.get(id) {
            Some(entry) if self.0.link.is_away() => Ok(Some(entry.binding.clone())),
            Some(_) | None => self.ask(id).await,
        }
    }

    async fn remove(&self, id: ClientSessionId) -> Result<(), StoreError> {
        let Shared { near, codec, .. } = &*self.0;
        near.remove(id);
        let remove = codec.place.remove(Name::of(id), &codec.told(id));
        let removed = self.link().run::<()>(Operation::Remove, &remove).await;
        // Who has found it in the meantime must not keep it.
        near.remove(id);
        removed.map_err(|_| StoreError)
    }

    async fn abandoned(&self, most: usize) -> Result<Vec<Abandoned>, StoreError> {
        let place = &self.0.codec.place;
        let mut abandoned = Vec::new();
        for _ in 0..SHARDS {
            if abandoned.len() >= most {
                break;
            }
            let shard = self.0.next_shard.fetch_add(1, Ordering::Relaxed);
            let claim = place.claim(shard, most - abandoned.len());
            let given = self.link().run(Operation::Claim, &claim).await;
            let given: Vec<(Vec<u8>, Vec<u8>, u8)> = match given {
                Ok(given) => given,
                // What was claimed is not to be lost for what was not.
                Err(_) if !abandoned.is_empty() => break,
                Err(_) => return Err(StoreError),
            };
            for (digits, value, why) in given {
                let ended = match why {
                    cause::IDLE => Some(&self.0.idle),
                    cause::LIFETIME => Some(&self.0.lifetime),
                    _ => None,
                };
                if let Some(ended) = ended {
                    ended.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(name) = Name::from_digits(&digits)
                    && let Ok(Some(binding)) = self.open_sealed(name, &value)
                {
                    abandoned.push(Abandoned {
                        claim: name.to_claim(),
                        binding,
                    });
                }
            }
        }
        Ok(abandoned)
    }

    async fn settle(&self, claim: Claim) -> Result<(), StoreError> {
        let settle = self.0.codec.place.settle(Name::of_claim(claim));
        let settled = self.link().run::<()>(Operation::Settle, &settle).await;
        settled.map_err(|_| StoreError)
    }

    /// Those that this proxy has used of late.
    fn sessions_at(&self, route: &RoutePath, backend: &BackendName) -> u64 {
        self.0.near.sessions_at(route, backend)
    }

    async fn census(&self) -> Census {
        self.0.near.sweep();
        Census {
            live: None,
            idle: self.0.idle.load(Ordering::Relaxed),
            lifetime: self.0.lifetime.load(Ordering::Relaxed),
            ..Census::default()
        }
    }

    fn is_reached(&self) -> bool {
        !self.0.link.is_away()
    }
}

#[async_trait]
impl BackgroundService for SharedStore {
    /// Goes on to the end of the runtime: requests that are under way need it.
    async fn start(&self, _: ShutdownWatch) {
        self.0.link.keep().await;
    }
}

impl Codec {
    /// What others are told of the removal of `id`.
    fn told(&self, id: ClientSessionId) -> Vec<u8> {
        let message = [self.sender, id.to_bytes()].concat();
        self.keys.seal(&self.place.channel(), &message)
    }

    /// Whose removal `message` tells, if another store did.
    fn heard(&self, message: &[u8]) -> Option<ClientSessionId> {
        let message = self.keys.open(&self.place.channel(), message).ok()?;
        let (sender, id) = message.split_first_chunk::<16>()?;
        if *sender == self.sender {
            return None;
        }
        Some(ClientSessionId::from_bytes(id.try_into().ok()?))
    }
}

/// Hears of removals.
struct Ear {
    near: Arc<Near>,
    codec: Arc<Codec>,
}

#[async_trait]
impl Listener for Ear {
    fn listens(&self) {
        self.near.listens();
    }

    async fn hear(&self, message: Vec<u8>) {
        if let Some(id) = self.codec.heard(&message) {
            self.near.remove(id);
        }
    }
}

/// After the server had no memory for a session, this long no backend is asked for another.
const FULL: Duration = Duration::from_secs(1);

/// Questions at a time that nobody waits for.
const REFRESHES: usize = 64;
