//! The backends of a route, and which of them takes a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Backend, BackendName};

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
    /// `None` when all were.
    pub fn pick(&self, tried: &[BackendName]) -> Option<Lease> {
        let start = self.next.fetch_add(1, Ordering::Relaxed) % self.backends.len();
        let (after, before) = (&self.backends[start..], &self.backends[..start]);
        after
            .iter()
            .chain(before)
            .filter(|backend| !tried.contains(&backend.name))
            .min_by_key(|backend| backend.in_flight.load(Ordering::Relaxed))
            .map(Lease::new)
    }

    /// The backend of this name. `None` when the configuration has it no more.
    pub fn get(&self, name: &BackendName) -> Option<Lease> {
        let mut backends = self.backends.iter();
        backends
            .find(|backend| backend.name == *name)
            .map(Lease::new)
    }

    /// Counts on where `former` counts the requests of backends that both have.
    pub(crate) fn succeed(&mut self, former: &Self) {
        for backend in &mut self.backends {
            let mut formers = former.backends.iter();
            let same = formers.find(|former| former.name == backend.name);
            if let (Some(backend), Some(former)) = (Arc::get_mut(backend), same) {
                backend.in_flight = Arc::clone(&former.in_flight);
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
    fn new(backend: &Arc<Backend>) -> Self {
        backend.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(backend))
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
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
