//! How the process ends: listeners close, what is under way finishes, and it leaves as soon as
//! nothing is left.
//!
//! Pingora's own way is to sleep for a fixed time after SIGTERM, deaf to other signals, and to end
//! what is left. Here the signals are heard by [`Drain`], which closes the listeners itself by the
//! watch that its [`Drained`] services listen to, and tells Pingora to end when they are empty.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::ServerApp;
use pingora_core::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora_core::services::listening::Service;
use pingora_core::services::{ServiceReadyNotifier, ServiceWithDependents};
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::handover::{self, Successor};
use crate::load::Load;
use crate::setting::Period;

/// The end of a process: who is told of its beginning, and what it waits for.
pub struct Drain {
    settings: DrainSettings,
    begun: watch::Sender<bool>,
    /// Whether a new process has the listening sockets.
    handed_over: watch::Sender<bool>,
    load: Load,
    /// Where a new process takes the listening sockets over, and the sockets.
    upgrade_sock: String,
    sockets: ListenFds,
}

/// `mcp.drain` in the configuration file: how the process ends on SIGTERM, and after an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainSettings {
    /// How long open GET streams and subscriptions go on. Then each ends in order, so that its client
    /// comes back, to another process.
    pub streams_after: Period,
    /// The longest that the requests under way may take to end.
    pub deadline: Period,
}

impl Default for DrainSettings {
    /// Below the 30 s after which Kubernetes kills.
    fn default() -> Self {
        Self {
            streams_after: Period(Duration::from_secs(5)),
            deadline: Period(Duration::from_secs(25)),
        }
    }
}

impl Drain {
    /// Of a server whose connections are in `load`, and that hands the `sockets` that it listens on
    /// over at `upgrade_sock`.
    pub fn new(
        settings: DrainSettings,
        load: Load,
        upgrade_sock: String,
        sockets: ListenFds,
    ) -> Self {
        Self {
            settings,
            begun: watch::Sender::new(false),
            handed_over: watch::Sender::new(false),
            load,
            upgrade_sock,
            sockets,
        }
    }

    /// Turns true when the process is to end.
    pub fn begun(&self) -> watch::Receiver<bool> {
        self.begun.subscribe()
    }

    /// Returns when all that is under way has finished, or, of the streams, has been ended.
    async fn finished(&self) {
        // Before the deadline, which breaks off what is left.
        let deadline = self.settings.deadline.0;
        let streams_after = self.settings.streams_after.0.min(deadline / 2);
        let emptied = || self.load.connections.emptied();
        if timeout(streams_after, emptied()).await.is_err() {
            self.load.end_streams();
            emptied().await;
        }
    }

    /// Gives the listening sockets to a new process, and returns when that one serves in the place of
    /// this one. Where it does not, this one still has the sockets: to end would leave nobody at all.
    async fn give_way(&self) -> Result<(), String> {
        let successor = Successor::with(&self.sockets, self.upgrade_sock.clone()).await?;
        log::info!("listening sockets handed over");
        successor.begun().await?;
        self.handed_over.send_replace(true);
        Ok(())
    }
}

/// Hears the process's signals, and says when it may end.
pub struct Signals {
    /// What ends by them.
    pub drain: Arc<Drain>,
    /// Logged once they are heard.
    pub started: String,
    /// Whether SIGQUIT has come before that.
    pub quit: Arc<AtomicBool>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    /// Always a fast shutdown: what had to be waited for has been.
    async fn recv(&self) -> ShutdownSignal {
        let drain = &self.drain;
        let (Some(mut interrupt), Some(mut terminate), Some(mut quit)) = (
            listen(SignalKind::interrupt()),
            listen(SignalKind::terminate()),
            listen(SignalKind::quit()),
        ) else {
            return ShutdownSignal::FastShutdown;
        };
        log::info!("{}", self.started);
        handover::begin(&drain.sockets);
        let mut is_asked = self.quit.load(Ordering::Relaxed);
        loop {
            if !is_asked {
                tokio::select! {
                    _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                    _ = terminate.recv() => break,
                    _ = quit.recv() => {}
                }
            }
            is_asked = false;
            tokio::select! {
                _ = interrupt.recv() => return ShutdownSignal::FastShutdown,
                _ = terminate.recv() => break,
                given = drain.give_way() => match given {
                    Ok(()) => break,
                    Err(error) => log::error!("this process goes on: {error}"),
                },
            }
        }
        let deadline = drain.settings.deadline.0;
        log::info!(
            "ending: waiting at most {deadline:?} for {} connections",
            drain.load.connections()
        );
        drain.begun.send_replace(true);
        tokio::select! {
            _ = interrupt.recv() => (),
            finished = timeout(deadline, drain.finished()) => if finished.is_err() {
                log::warn!("ending with {} connections open", drain.load.connections());
            },
        }
        ShutdownSignal::FastShutdown
    }
}

/// A service that closes its listeners when its [`Drain`] says so.
pub struct Drained<A> {
    service: Service<A>,
    closes: watch::Receiver<bool>,
    drain: Arc<Drain>,
}

impl<A> Drained<A> {
    /// Serves until the drain begins, which waits for the connections in its load.
    pub fn new(service: Service<A>, drain: Arc<Drain>) -> Self {
        Self {
            service,
            closes: drain.begun(),
            drain,
        }
    }

    /// Serves to the end of the process, or until a new one listens in its place. Nothing waits for
    /// its connections.
    pub fn to_the_end(service: Service<A>, drain: Arc<Drain>) -> Self {
        Self {
            service,
            closes: drain.handed_over.subscribe(),
            drain,
        }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> ServiceWithDependents for Drained<A> {
    async fn start_service(
        &mut self,
        _: Option<ListenFds>,
        _: ShutdownWatch,
        listeners_per_fd: usize,
        ready: ServiceReadyNotifier,
    ) {
        let sockets = Some(Arc::clone(&self.drain.sockets));
        let closes = self.closes.clone();
        let service: &mut dyn ServiceWithDependents = &mut self.service;
        service
            .start_service(sockets, closes, listeners_per_fd, ready)
            .await;
    }

    fn name(&self) -> &str {
        ServiceWithDependents::name(&self.service)
    }

    fn threads(&self) -> Option<usize> {
        ServiceWithDependents::threads(&self.service)
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        ServiceWithDependents::listen_addresses(&self.service)
    }
}

fn listen(kind: SignalKind) -> Option<Signal> {
    let listened = signal(kind);
    listened
        .inspect_err(|error| log::error!("a signal cannot be listened to: {error}"))
        .ok()
}
