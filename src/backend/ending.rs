//! Streams that can be ended from here, silent ones too.
//!
//! Pingora wakes a filter when a byte comes, and a stream may have none for hours. What waits for
//! the byte is the connection, so that is where the end is made: for whoever reads it, the backend
//! has closed. The proxy then closes the client's body in order.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pingora_core::upstreams::peer::HttpPeer;
use tokio::sync::watch;
use tokio::time::Instant;

use super::watched::{Watch, connect_watched};

/// What ends all streams of a process at once.
#[derive(Debug)]
pub struct Ending(watch::Sender<bool>);

impl Default for Ending {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Ending {
    /// Ends all streams, and each new one at once.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }

    /// When one stream ends: with all, or at the age of `most`.
    pub fn stream(&self, most: Option<Duration>) -> Ends {
        Ends {
            with_all: self.0.subscribe(),
            at: most.map(|age| Instant::now() + age),
            ended: Arc::default(),
        }
    }
}

/// When one stream is ended, and whether it was.
#[derive(Clone, Debug)]
pub struct Ends {
    with_all: watch::Receiver<bool>,
    at: Option<Instant>,
    ended: Arc<AtomicBool>,
}

impl Ends {
    /// Whether the proxy has ended the stream, and not one of its sides.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// Whether all streams are to end.
    pub(crate) fn with_all(&self) -> bool {
        *self.with_all.borrow()
    }

    /// Has `peer` connected to by a connection that ends with the stream. It is none of the pool,
    /// neither before nor after.
    pub(crate) fn attach(&self, peer: &mut HttpPeer) {
        let ends = self.clone();
        connect_watched(peer, move || StreamEnd {
            end: Box::pin(tokio::task::unconstrained(ends.clone().wait())),
        });
    }

    async fn wait(mut self) {
        let all = async {
            if self.with_all.wait_for(|begun| *begun).await.is_err() {
                // Nobody is left to say so.
                std::future::pending::<()>().await;
            }
        };
        match self.at {
            None => all.await,
            Some(at) => drop(tokio::time::timeout_at(at, all).await),
        }
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// The end of one stream, as its connection awaits it.
struct StreamEnd {
    end: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Watch for StreamEnd {
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end.as_mut().poll(context).map(Ok)
    }
}
