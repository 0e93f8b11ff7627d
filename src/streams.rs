//! The open streams of all clients: how many there are, how many there may be, and their end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::backend::{Ending, Ends};
use crate::limits::{Bound, Held};
use crate::mcp::ClientSessionId;
use crate::rejection::Rejection;
use crate::setting::Most;

/// Counts GET streams and subscriptions, and ends them.
#[derive(Debug)]
pub struct Streams {
    all: Arc<Bound>,
    /// How many a session has. One that has none is not in it.
    sessions: Mutex<HashMap<ClientSessionId, usize>>,
    ending: Ending,
}

impl Streams {
    /// No stream is open, and `most` may be.
    pub fn new(most: Most) -> Self {
        Self {
            all: Arc::new(Bound::new(most)),
            sessions: Mutex::default(),
            ending: Ending::default(),
        }
    }

    /// Lets `most` be open from now on. What is open beyond it stays.
    pub(crate) fn limit(&self, most: Most) {
        self.all.limit(most);
    }

    /// How many are open now.
    pub fn open_now(&self) -> usize {
        self.all.held()
    }

    /// The sessions that have any.
    pub(crate) fn sessions_now(&self) -> Vec<ClientSessionId> {
        self.sessions().keys().copied().collect()
    }

    /// Ends all open streams in order: a client sees its body complete, and may come back. One
    /// that is opened later ends at once.
    pub fn end(&self) {
        self.ending.begin();
    }

    /// Counts a stream, of `session` if it is of one, which may have `most`, that ends at the age of
    /// `max_age`.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub(crate) fn open(
        self: &Arc<Self>,
        session: Option<ClientSessionId>,
        most: Most,
        max_age: Option<Duration>,
    ) -> Result<OpenStream, Rejection> {
        let held = self.all.hold().ok_or(Rejection::StreamsFull)?;
        if let Some(session) = session {
            let mut sessions = self.sessions();
            let open = sessions.entry(session).or_default();
            if most.0.is_some_and(|most| *open >= most) {
                return Err(Rejection::SessionStreams);
            }
            *open += 1;
        }
        Ok(OpenStream {
            streams: Arc::clone(self),
            session,
            ends: self.ending.stream(max_age),
            _held: held,
        })
    }

    /// Each change of it is one statement, so that it is whole also after a panic.
    fn sessions(&self) -> MutexGuard<'_, HashMap<ClientSessionId, usize>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    streams: Arc<Streams>,
    session: Option<ClientSessionId>,
    pub(crate) ends: Ends,
    _held: Held,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let Some(session) = self.session else {
            return;
        };
        let mut sessions = self.streams.sessions();
        match sessions.get_mut(&session) {
            Some(open) if *open > 1 => *open -= 1,
            _ => drop(sessions.remove(&session)),
        }
    }
}
