//! Files that are read again when they change. What cannot be read leaves what is there in place.
//!
//! Their contents are compared, every few seconds: that holds for a file that is written over, one
//! that is renamed into place, and a link of a folder that is exchanged, as Kubernetes does.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use pingora_core::server::ShutdownWatch;
use pingora_core::services::background::BackgroundService;
use tokio::task::spawn_blocking;

use super::{Problem, read};

/// What may be good until some time only.
pub(crate) trait Expires {
    /// Until when clients take it for good. `None` where that is not known, or no client sees it.
    fn expires(&self) -> Option<SystemTime> {
        None
    }
}

/// What is made of some files.
pub(crate) struct Watched<T> {
    paths: Vec<PathBuf>,
    make: fn(&[Vec<u8>]) -> Result<T, Problem>,
    current: RwLock<Arc<T>>,
    /// Of what the files held when they were last looked at, good or not.
    fingerprint: AtomicU64,
}

impl<T> Watched<T> {
    /// Reads `paths` and makes of their contents, in this order, what `make` does.
    pub(crate) fn new(
        paths: Vec<PathBuf>,
        make: fn(&[Vec<u8>]) -> Result<T, Problem>,
    ) -> Result<Self, Problem> {
        let contents = contents(&paths);
        let fingerprint = AtomicU64::new(fingerprint(&contents));
        let current = RwLock::new(Arc::new(make(&contents?)?));
        Ok(Self {
            paths,
            make,
            current,
            fingerprint,
        })
    }

    /// What the files held when they were last good.
    pub(crate) fn current(&self) -> Arc<T> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }
}

/// By the files, whatever is in them now.
impl<T> PartialEq for Watched<T> {
    fn eq(&self, other: &Self) -> bool {
        self.paths == other.paths
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.paths).finish()
    }
}

/// A [`Watched`] of any type.
pub(crate) trait WatchedFiles: Send + Sync {
    /// Looks at the files, and at what is in them if they have changed since the last look.
    fn look(&self);

    /// Logs that what they hold has expired, or is about to.
    fn warn(&self);
}

impl<T: Expires + Send + Sync> WatchedFiles for Watched<T> {
    fn look(&self) {
        let contents = contents(&self.paths);
        let fingerprint = fingerprint(&contents);
        if self.fingerprint.swap(fingerprint, Ordering::Relaxed) == fingerprint {
            return;
        }
        match contents.and_then(|contents| (self.make)(&contents)) {
            Ok(made) => {
                let current = self.current.write();
                *current.unwrap_or_else(PoisonError::into_inner) = Arc::new(made);
                log::info!("certificate files read again: {self:?}");
                self.warn();
            }
            Err(problem) => {
                log::error!("certificate files changed, the old ones stay: {self:?}: {problem}");
            }
        }
    }

    fn warn(&self) {
        let Some(expires) = self.current().expires() else {
            return;
        };
        let now = SystemTime::now();
        if expires > now + SOON {
            return;
        }
        let verb = if expires > now { "expires" } else { "expired" };
        let at = humantime::format_rfc3339_seconds(expires);
        log::warn!("certificate {verb} at {at}: {self:?}");
    }
}

/// Reads the files of certificates and keys again when they change, as a service of Pingora's.
#[derive(Clone)]
pub struct CertificateWatch(Arc<dyn Fn() -> Vec<Arc<dyn WatchedFiles>> + Send + Sync>);

impl CertificateWatch {
    /// Of what `files` says at each look, as a reload of the configuration may change it.
    pub(crate) fn new(
        files: impl Fn() -> Vec<Arc<dyn WatchedFiles>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(files))
    }

    /// Looks at all files once. What is new holds from the next connection on.
    pub fn look(&self) {
        for files in (self.0)() {
            files.look();
        }
    }
}

#[async_trait]
impl BackgroundService for CertificateWatch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        for files in (self.0)() {
            files.warn();
        }
        while tokio::time::timeout(INTERVAL, shutdown.changed())
            .await
            .is_err()
        {
            let watch = self.clone();
            // In a thread that the end of the process does not wait for: a file may take for ever.
            let _ = spawn_blocking(move || watch.look()).await;
        }
    }
}

fn contents(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, Problem> {
    paths.iter().map(read).collect()
}

/// Kept in place of what it is of, which may be secret.
pub(crate) fn fingerprint(contents: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    hasher.finish()
}

/// Issuers renew weeks before this.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

const INTERVAL: Duration = Duration::from_secs(2);
