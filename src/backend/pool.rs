//! The backends of a route, and which of them takes a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Backend, BackendName};
use crate::rejection::Rejection;

/// All backends of a route, in the order of the configuration.
#[derive(Debug)]
pub struct Pool {
    backends: Vec<Arc<Backend>>,
    /// Where the next search begins, so that backends with equal load take turns.
    next: AtomicUsize,
}

impl Pool {
    pub(crate) fn new(backends: Vec<Backend>) -> Self {
        Self {
            backends: backends.into_iter().map(Arc::new).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// The backend with the fewest requests in flight, but for those that were tried already.
    ///
    /// # Errors
    /// All were tried, or those that were not have as many requests as they may.
    pub fn pick(&self, tried: &[BackendName]) -> Result<Lease, Rejection> {
        let start = self.next.fetch_add(1, Ordering::Relaxed) % self.backends.len();
        let (after, before) = (&self.backends[start..], &self.backends[..start]);
        after
            .iter()
            .chain(before)
            .filter(|backend| !tried.contains(&backend.name))
            .min_by_key(|backend| backend.in_flight.held())
            .ok_or(Rejection::NoBackend)
            .and_then(Lease::new)
    }

    /// The backend of this name.
    ///
    /// # Errors
    /// The configuration has it no more, so that its sessions are unknown; or it has as many
    /// requests as it may.
    pub fn get(&self, name: &BackendName) -> Result<Lease, Rejection> {
        let mut backends = self.backends.iter();
        backends
            .find(|backend| backend.name == *name)
            .ok_or(Rejection::UnknownSession)
            .and_then(Lease::new)
    }

    /// Counts on where `former` counts the requests of backends that both have.
    pub(crate) fn succeed(&mut self, former: &Self) {
        for backend in &mut self.backends {
            let mut formers = former.backends.iter();
            let same = formers.find(|former| former.name == backend.name);
            if let (Some(backend), Some(former)) = (Arc::get_mut(backend), same) {
                backend.in_flight.succeed(&former.in_flight);
                backend.series = Arc::clone(&former.series);
            }
        }
    }

    /// All of them, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.backends.iter().map(Arc::as_ref)
    }
}

/// A backend that a request is at. While it is held, the request counts as in flight.
#[derive(Debug)]
pub struct Lease(Arc<Backend>);

impl Lease {
    fn new(backend: &Arc<Backend>) -> Result<Self, Rejection> {
        match backend.in_flight.enter() {
            true => Ok(Self(Arc::clone(backend))),
            false => Err(Rejection::BackendFull),
        }
    }
}

impl std::ops::Deref for Lease {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.in_flight.leave();
    }
}
