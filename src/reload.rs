//! Reads the configuration file again, on SIGHUP or as the admin listener is asked, and has the
//! gateway go by it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

use crate::config::{Config, ConfigError, Settings};
use crate::drain::DrainSettings;
use crate::gateway::Gateway;
use crate::listener::Listeners;
use crate::metrics::MetricsSettings;
use crate::observe::{AccessLogSettings, AdminSettings, Reloads};
use crate::session::{SealSettings, SessionSettings};
use crate::setting::Most;

/// Has a running gateway go by a configuration file that has changed: by all of it but [`Fixed`].
/// Clones do the same.
#[derive(Clone, Debug)]
pub struct Reload(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    fixed: Fixed,
    descriptors: Most,
    gateway: Arc<Gateway>,
    /// Held while the gateway changes over, as a signal and a request may ask for it at a time.
    changing: Mutex<()>,
    /// Whether SIGHUP has come, also before there was a runtime to hear it.
    asked: Arc<AtomicBool>,
}

/// What a running process keeps: its listeners, its session store, what watches it, and Pingora's own
/// settings.
#[derive(Debug)]
pub struct Fixed {
    listeners: Listeners,
    sessions: SessionSettings,
    drain: DrainSettings,
    admin: AdminSettings,
    metrics: MetricsSettings,
    access_log: AccessLogSettings,
    /// As a value, since Pingora's own type cannot be copied.
    server: serde_json::Value,
}

impl Reload {
    /// For a server that was started by what stands in `file`, `fixed` of it, that has so many
    /// `descriptors` for connections and requests, and that serves `gateway`. SIGHUP may have been
    /// `asked` for already.
    pub fn new(
        file: impl Into<PathBuf>,
        fixed: Fixed,
        descriptors: Most,
        gateway: Arc<Gateway>,
        asked: Arc<AtomicBool>,
    ) -> Self {
        let file = file.into();
        Self(Arc::new(Shared {
            // A server in the background changes its directory.
            file: std::path::absolute(&file).unwrap_or(file),
            fixed,
            descriptors,
            gateway,
            changing: Mutex::default(),
            asked,
        }))
    }

    /// Reads the file and goes by it from the next request on. Returns the keys whose change is
    /// not taken up, as it takes a restart. The log has the outcome too.
    ///
    /// # Errors
    /// The first thing that is wrong with the file; then nothing has changed.
    pub fn reload(&self) -> Result<Vec<&'static str>, ConfigError> {
        let reloaded = self.0.change_over();
        match &reloaded {
            Ok(kept) if kept.is_empty() => log::info!("configuration reloaded"),
            Ok(kept) => {
                let kept = kept.join(", ");
                log::warn!("configuration reloaded, but what needs a restart: {kept}");
            }
            Err(error) => log::error!("configuration not reloaded: {error}"),
        }
        reloaded
    }
}

impl Shared {
    fn change_over(&self) -> Result<Vec<&'static str>, ConfigError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Settings { server, mut mcp } = Settings::load(&self.file)?;
        let kept = self.fixed.differences(&Fixed::of(&server, &mcp));
        mcp.limits.fit(self.descriptors);
        self.gateway.replace(mcp.into());
        Ok(kept)
    }
}

impl Reloads for Reload {
    fn reload(&self) -> Result<Vec<&'static str>, String> {
        Reload::reload(self).map_err(|error| error.to_string())
    }
}

#[async_trait]
impl BackgroundService for Reload {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return log::error!("SIGHUP is not listened to: {error}"),
        };
        // By a signal that came before: from here on, they are heard.
        let mut is_asked = self.0.asked.load(Ordering::Relaxed);
        loop {
            if !is_asked {
                tokio::select! {
                    _ = hangup.recv() => (),
                    _ = shutdown.changed() => return,
                }
            }
            is_asked = false;
            let reload = self.clone();
            // In a thread that the end of the process does not wait for, as it does for this one: a
            // file may take for ever, or names be looked up. The log says how it went.
            let _ = spawn_blocking(move || reload.reload()).await;
        }
    }
}

impl Fixed {
    /// What of a configuration it is.
    pub fn of(server: &ServerConf, mcp: &Config) -> Self {
        Self {
            listeners: mcp.listeners.clone(),
            // The keys are among the gateway's rules.
            sessions: SessionSettings {
                seal: SealSettings::default(),
                ..mcp.sessions.clone()
            },
            drain: mcp.drain,
            admin: mcp.admin.clone(),
            metrics: mcp.metrics,
            access_log: mcp.access_log.clone(),
            server: serde_json::to_value(server).unwrap_or_default(),
        }
    }

    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let differences = [
            (self.listeners != other.listeners, "mcp.listeners"),
            (self.sessions != other.sessions, "mcp.sessions"),
            (self.drain != other.drain, "mcp.drain"),
            (self.admin != other.admin, "mcp.admin"),
            (self.metrics != other.metrics, "mcp.metrics"),
            (self.access_log != other.access_log, "mcp.access_log"),
            (self.server != other.server, "Pingora's keys"),
        ];
        let differing = differences.into_iter().filter(|(differs, _)| *differs);
        differing.map(|(_, key)| key).collect()
    }
}
