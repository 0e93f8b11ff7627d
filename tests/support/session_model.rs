//! What every session store must do: a map says after each of any steps which answers are right.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::HeaderValue;
use pingora_mcp::mcp::{BackendSessionId, ClientSessionId};
use pingora_mcp::session::{Binding, Opened, SessionStore};
use proptest::prelude::*;

/// An operation on one of a few sessions.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Insert(usize, usize),
    Find(usize),
    Remove(usize),
    Wait(Duration),
}

/// How long a store keeps sessions.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub idle: Duration,
    /// A store may be told of a use late, and then keeps a session for longer than `idle`.
    pub latest_idle: Duration,
    pub lifetime: Duration,
}

impl Limits {
    /// Their keys of `sessions`, with a comma between.
    pub fn yaml(self) -> String {
        let Self { idle, lifetime, .. } = self;
        format!("idle_timeout: {idle:?}, lifetime: {lifetime:?}")
    }

    /// Any step. A few short waits are a lifetime, of a session that is used in between.
    pub fn step(self) -> impl Strategy<Value = Step> {
        let waits = prop_oneof![3 => Just(self.idle / 2), 1 => Just(self.idle * 2)];
        prop_oneof![
            3 => (0..SESSIONS, 0..100usize).prop_map(|(session, to)| Step::Insert(session, to)),
            5 => (0..SESSIONS).prop_map(Step::Find),
            2 => (0..SESSIONS).prop_map(Step::Remove),
            2 => waits.prop_map(Step::Wait),
        ]
    }
}

/// A store, and what is known of the sessions in it.
pub struct Model<'s> {
    store: &'s dyn SessionStore,
    limits: Limits,
    ids: [ClientSessionId; SESSIONS],
    entries: HashMap<usize, Entry>,
}

/// What the model knows of a session: where it goes, and between which two moments its idle time
/// and its lifetime began. Between the two answers that these allow, either is right.
struct Entry {
    binding: Binding,
    opened: (Instant, Instant),
    used: (Instant, Instant),
}

impl Entry {
    fn must_be_gone(&self, now: Instant, limits: Limits) -> bool {
        now >= self.used.1 + limits.latest_idle || now >= self.opened.1 + limits.lifetime
    }

    fn may_be_gone(&self, now: Instant, limits: Limits) -> bool {
        // The stores count in milliseconds, and begin with the one that has begun.
        let now = now + Duration::from_millis(1);
        now >= self.used.0 + limits.idle || now >= self.opened.0 + limits.lifetime
    }
}

impl<'s> Model<'s> {
    /// Of a `store` in which there is nothing yet.
    pub fn of(store: &'s dyn SessionStore, limits: Limits) -> Self {
        Self {
            store,
            limits,
            ids: [(); SESSIONS].map(|()| ClientSessionId::mint()),
            entries: HashMap::new(),
        }
    }

    /// Has the store do `step`, and panics where its answer is wrong.
    pub async fn take(&mut self, step: Step) {
        match step {
            Step::Insert(session, to) => self.insert(session, binding(to)).await,
            Step::Find(session) => self.find(session).await,
            Step::Remove(session) => {
                self.store.remove(self.ids[session]).await.unwrap();
                self.entries.remove(&session);
            }
            Step::Wait(time) => tokio::time::sleep(time).await,
        }
    }

    async fn insert(&mut self, session: usize, binding: Binding) {
        let before = Instant::now();
        let inserted = self.store.insert(self.ids[session], binding.clone());
        inserted.await.unwrap();
        let span = (before, Instant::now());
        // Bound anew, it lives no longer. Of one that may have been over, it is not known whether
        // it began anew.
        let opened = match self.entries.remove(&session) {
            Some(entry) if entry.must_be_gone(span.0, self.limits) => span,
            Some(entry) if entry.may_be_gone(span.1, self.limits) => (entry.opened.0, span.1),
            Some(entry) => entry.opened,
            None => span,
        };
        let entry = Entry {
            binding,
            opened,
            used: span,
        };
        self.entries.insert(session, entry);
    }

    async fn find(&mut self, session: usize) {
        let before = Instant::now();
        let found = self.store.find(self.ids[session]).await.unwrap();
        // Its idle time may begin anew a moment later, by a question before these.
        for _ in 0..2 {
            tokio::task::yield_now().await;
            assert_eq!(self.store.find(ClientSessionId::mint()).await, Ok(None));
        }
        let after = Instant::now();
        match (found, self.entries.get_mut(&session)) {
            (Some(found), Some(entry)) => {
                assert!(
                    !entry.must_be_gone(before, self.limits),
                    "{session} is over, and found"
                );
                assert_eq!(found, entry.binding);
                entry.used = (before, after);
            }
            (None, Some(entry)) => {
                assert!(
                    entry.may_be_gone(after, self.limits),
                    "{session} is alive, and lost"
                );
                self.entries.remove(&session);
            }
            (found, None) => assert_eq!(found, None, "{session}"),
        }
    }
}

/// A binding to the session that a backend gave the number `position`.
pub fn binding(position: usize) -> Binding {
    let id = HeaderValue::try_from(format!("backend-session-{position}")).unwrap();
    Binding {
        route: "/mcp".parse().unwrap(),
        backend: "local".parse().unwrap(),
        session: BackendSessionId::try_from(&id).unwrap(),
        opened: Opened::from_milliseconds(0),
        seal: None,
    }
}

const SESSIONS: usize = 3;
