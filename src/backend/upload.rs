//! A body that is on its way from its client, whose silence is limited here where Pingora does not:
//! over HTTP/2.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pingora_core::upstreams::peer::HttpPeer;
use tokio::time::{Instant, Sleep, sleep};

use super::watched::{Watch, connect_watched};

/// The rest of one body, which may be silent for a while only.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    silence: Duration,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    has_begun: AtomicBool,
    is_whole: AtomicBool,
    is_stalled: AtomicBool,
}

impl Upload {
    /// One whose client may send nothing for as long as `silence`.
    pub(crate) fn new(silence: Duration) -> Self {
        Self {
            silence,
            state: Arc::default(),
        }
    }

    /// A part of it has come, the last one if `is_end`.
    pub(crate) fn note_part(&self, is_end: bool) {
        self.state.has_begun.store(true, Ordering::Relaxed);
        self.state.is_whole.store(is_end, Ordering::Relaxed);
    }

    /// Whether the request was ended as its client was silent for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        self.state.is_stalled.load(Ordering::Relaxed)
    }

    /// Has `peer` connected to by a connection that fails when the client is silent for too long. It
    /// is none of the pool, neither before nor after.
    pub(crate) fn attach(&self, peer: &mut HttpPeer) {
        let upload = self.clone();
        connect_watched(peer, move || Silence {
            deadline: Box::pin(sleep(upload.silence)),
            upload: upload.clone(),
        });
    }
}

/// How long nothing has come from the client that could be sent on.
struct Silence {
    upload: Upload,
    deadline: Pin<Box<Sleep>>,
}

impl Watch for Silence {
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.deadline.as_mut().poll(context));
        let State {
            has_begun,
            is_whole,
            is_stalled,
        } = &*self.upload.state;
        // Before, in a TLS handshake, and after, it is the backend's silence, which Pingora limits.
        if !has_begun.load(Ordering::Relaxed) || is_whole.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        is_stalled.store(true, Ordering::Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn note_sent(&mut self) {
        let deadline = Instant::now() + self.upload.silence;
        self.deadline.as_mut().reset(deadline);
    }
}
