//! What is to be known of backends without waiting for a request: the addresses of host names, and
//! the answers to probes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::background::BackgroundService;
use tokio::task::JoinSet;

use crate::backend::{Prober, Resolver, SystemResolver};
use crate::gateway::Gateway;

/// Looks host names up and sends probes, as a service of Pingora's.
pub struct BackendWatch {
    gateway: Arc<Gateway>,
    resolver: Arc<dyn Resolver>,
    prober: Arc<Prober>,
}

impl BackendWatch {
    /// Of the backends that `gateway` has at each look, as a reload of the configuration may change
    /// them.
    pub fn new(conf: &ServerConf, gateway: Arc<Gateway>) -> Self {
        Self {
            gateway,
            resolver: Arc::new(SystemResolver),
            prober: Arc::new(Prober::new(conf)),
        }
    }

    /// Has `resolver` look host names up in place of the system.
    #[must_use]
    pub fn with_resolver(self, resolver: Arc<dyn Resolver>) -> Self {
        Self { resolver, ..self }
    }

    /// Begins all lookups and probes that are due. Each is a task of its own, so that one that hangs
    /// holds no other up.
    pub fn look(&self, tasks: &mut JoinSet<()>) {
        for route in self.gateway.rules().routes.iter() {
            for entry in route.pool.entries() {
                let Some((host, port)) = entry.due_name() else {
                    continue;
                };
                let host = host.to_owned();
                let (route, entry) = (Arc::clone(route), Arc::clone(entry));
                let (resolver, prober) = (Arc::clone(&self.resolver), Arc::clone(&self.prober));
                tasks.spawn(async move {
                    let found = resolver.resolve(&host, port).await;
                    // An address that is gone may be asked for nothing ever again, and would stay.
                    for backend in route.pool.gone(&entry) {
                        match prober.probe(&backend).await {
                            Ok(()) => backend.connected(),
                            Err(_) => backend.failed(),
                        }
                    }
                    route.pool.resolved(&entry, found);
                });
            }
            for backend in route.pool.iter().filter(|backend| backend.is_probe_due()) {
                let prober = Arc::clone(&self.prober);
                tasks.spawn(async move {
                    let outcome = prober.probe(&backend).await;
                    backend.probed(outcome);
                });
            }
        }
    }
}

#[async_trait]
impl BackgroundService for BackendWatch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut tasks = JoinSet::new();
        loop {
            self.look(&mut tasks);
            while tasks.try_join_next().is_some() {}
            if tokio::time::timeout(INTERVAL, shutdown.changed())
                .await
                .is_ok()
            {
                return;
            }
        }
    }
}

impl fmt::Debug for BackendWatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BackendWatch")
    }
}

/// How often it is looked whether something is due.
const INTERVAL: Duration = Duration::from_millis(100);
