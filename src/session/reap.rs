//! What is kept for the reaper: sessions whose backends are to be told of their end, and the
//! authorization that they are told with.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use moka::sync::Cache;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Binding, SessionSettings};
use crate::backend::BackendName;
use crate::mcp::BackendSessionId;
use crate::route::RoutePath;
use crate::setting::{Count, refuse};

/// `mcp.sessions.reap` in the configuration file. `None` is `off`: no backend is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reap(pub Option<ReapSettings>);

/// How backends are told of sessions that have ended without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReapSettings {
    /// The most DELETEs at a time at one backend.
    pub max_per_backend: Count,
    /// The most sessions that are taken up in a second.
    pub max_per_second: Count,
    /// The most sessions that wait to be taken up, and then for one backend; the backends of others
    /// are not told.
    pub max_waiting: Count,
    /// Whether a DELETE carries the last `Authorization` of the session's client.
    pub authorization: bool,
}

impl Default for Reap {
    fn default() -> Self {
        Self(Some(ReapSettings::default()))
    }
}

impl Default for ReapSettings {
    /// Far below what a backend takes of its clients.
    fn default() -> Self {
        Self {
            max_per_backend: Count(8),
            max_per_second: Count(100),
            max_waiting: Count(10_000),
            authorization: false,
        }
    }
}

impl<'de> Deserialize<'de> for Reap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReapVisitor)
    }
}

impl Serialize for Reap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(settings) => settings.serialize(serializer),
            None => serializer.serialize_str("off"),
        }
    }
}

struct ReapVisitor;

impl<'de> Visitor<'de> for ReapVisitor {
    type Value = Reap;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a mapping, or 'off'")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Reap, E> {
        match text {
            "off" => Ok(Reap(None)),
            _ => Err(refuse("unknown value: expected a mapping, or 'off'")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Reap, A::Error> {
        let settings = ReapSettings::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Reap(Some(settings)))
    }
}

/// Sessions that wait for their backends to be told, the first first.
#[derive(Debug)]
pub(super) struct Waiting {
    sessions: Mutex<VecDeque<Binding>>,
    most: usize,
    dropped: AtomicU64,
}

impl Waiting {
    pub(super) fn new(settings: &ReapSettings) -> Self {
        Self {
            sessions: Mutex::default(),
            most: settings.max_waiting.0.try_into().unwrap_or(usize::MAX),
            dropped: AtomicU64::new(0),
        }
    }

    pub(super) fn push(&self, session: Binding) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() < self.most {
            sessions.push_back(session);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn take(&self, most: usize) -> Vec<Binding> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let most = most.min(sessions.len());
        sessions.drain(..most).collect()
    }

    /// How many found no place.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// What a gateway keeps for its reaper, beside what the store does.
#[derive(Debug)]
pub(crate) struct Reaping {
    settings: ReapSettings,
    /// Sessions that came into no store, or whose clients never had them.
    waiting: Waiting,
    /// The last of each session's client, where they are kept.
    authorizations: Option<Cache<Whose, HeaderValue>>,
}

/// A session of a backend. One of another may have the same id.
type Whose = (RoutePath, BackendName, BackendSessionId);

impl Reaping {
    pub(crate) fn new(settings: ReapSettings, sessions: &SessionSettings) -> Self {
        let authorizations = settings.authorization.then(|| {
            Cache::builder()
                .weigher(|_, authorization: &HeaderValue| {
                    u32::try_from(authorization.len() + SIZE_OF_ENTRY).unwrap_or(u32::MAX)
                })
                .max_capacity(MAX_AUTHORIZATIONS)
                .time_to_idle(sessions.idle_timeout.0 + AFTERWARDS)
                .build()
        });
        Self {
            settings,
            waiting: Waiting::new(&settings),
            authorizations,
        }
    }

    pub(crate) fn settings(&self) -> ReapSettings {
        self.settings
    }

    /// Has the backend of `session` told that nobody uses it.
    pub(crate) fn push(&self, session: Binding) {
        self.waiting.push(session);
    }

    pub(crate) fn take(&self, most: usize) -> Vec<Binding> {
        self.waiting.take(most)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.waiting.dropped()
    }

    /// The `Authorization` of a request, where it is to be kept.
    pub(crate) fn authorization_of(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        self.authorizations.as_ref()?;
        let mut authorization = headers.get(header::AUTHORIZATION)?.clone();
        authorization.set_sensitive(true);
        (authorization.len() <= MAX_AUTHORIZATION).then_some(authorization)
    }

    /// Keeps what [`authorization_of`](Self::authorization_of) gave for a request of `session`.
    pub(crate) fn keep(&self, session: &Binding, authorization: &HeaderValue) {
        let Some(kept) = &self.authorizations else {
            return;
        };
        let whose = whose(session);
        if kept.get(&whose).as_ref() == Some(authorization) {
            return;
        }
        // A copy: the value is a slice of the whole header's buffer.
        if let Ok(mut authorization) = HeaderValue::from_bytes(authorization.as_bytes()) {
            authorization.set_sensitive(true);
            kept.insert(whose, authorization);
        }
    }

    /// Keeps for longer what is kept for `session`, which is in use.
    pub(crate) fn touch(&self, session: &Binding) {
        if let Some(kept) = &self.authorizations {
            kept.get(&whose(session));
        }
    }

    /// What is kept for `session`, and from now on no more.
    pub(crate) fn take_authorization(&self, session: &Binding) -> Option<HeaderValue> {
        self.authorizations.as_ref()?.remove(&whose(session))
    }
}

fn whose(session: &Binding) -> Whose {
    let Binding {
        route,
        backend,
        session,
        opened: _,
        seal: _,
    } = session;
    (route.clone(), backend.clone(), session.clone())
}

/// The longest that is kept. A token of many claims has a few KiB.
const MAX_AUTHORIZATION: usize = 8 * 1024;

/// What all that are kept may take, in bytes.
const MAX_AUTHORIZATIONS: u64 = 64 * 1024 * 1024;

/// What one takes beside its own length, about.
const SIZE_OF_ENTRY: usize = 256;

/// How long one is kept after its session has been idle for too long, for the reaper to come.
const AFTERWARDS: Duration = Duration::from_secs(60 * 60);
