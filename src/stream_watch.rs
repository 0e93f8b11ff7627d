//! Keeps the sessions of open streams: a client that listens uses its session, and sends nothing.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::gateway::Gateway;
use crate::session::{SessionSettings, StoreError};

/// Restarts the idle time of each session that has a stream open, as a service of Pingora's.
#[derive(Debug)]
pub struct StreamWatch {
    gateway: Arc<Gateway>,
    idle_timeout: Duration,
}

impl StreamWatch {
    /// Of the streams of `gateway`, whose sessions are kept as `sessions` say.
    pub fn new(sessions: &SessionSettings, gateway: Arc<Gateway>) -> Self {
        Self {
            gateway,
            idle_timeout: sessions.idle_timeout.0,
        }
    }

    async fn run(&self) {
        let mut turns = interval((self.idle_timeout / 4).max(SHORTEST_TURN));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let mut touched = JoinSet::new();
            for session in self.gateway.load().streams.sessions_now() {
                if touched.len() == AT_A_TIME {
                    touched.join_next().await;
                }
                let gateway = Arc::clone(&self.gateway);
                touched.spawn(async move {
                    if let Err(StoreError) = gateway.touch(session).await {
                        log::debug!("the session of a stream not kept: the store is away");
                    }
                });
            }
            while touched.join_next().await.is_some() {}
        }
    }
}

#[async_trait]
impl BackgroundService for StreamWatch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        tokio::select! {
            () = self.run() => (),
            _ = shutdown.changed() => (),
        }
    }
}

/// A shared store that is slow has others to answer, too.
const AT_A_TIME: usize = 64;

/// A session whose idle time is shorter than four of these ends in spite of its stream.
const SHORTEST_TURN: Duration = Duration::from_millis(10);
