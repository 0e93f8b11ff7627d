//! How many sessions each backend has.

use std::collections::HashMap;
use std::sync::Arc;

use super::Binding;
use crate::backend::BackendName;
use crate::route::RoutePath;

/// Where a session lives. All sessions that live there share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Home {
    pub(super) route: RoutePath,
    pub(super) backend: BackendName,
}

impl Home {
    pub(super) fn of(session: &Binding) -> Self {
        Self {
            route: session.route.clone(),
            backend: session.backend.clone(),
        }
    }
}

/// The counts of all backends. It has an entry for each that has a session, and none else, as
/// backends come and go.
#[derive(Default)]
pub(super) struct Backends(HashMap<Arc<Home>, u64>);

impl Backends {
    pub(super) fn add(&mut self, session: &Binding) -> Arc<Home> {
        let count = self.0.entry(Arc::new(Home::of(session)));
        let home = Arc::clone(count.key());
        *count.or_default() += 1;
        home
    }

    pub(super) fn remove(&mut self, home: &Home) {
        if let Some(count) = self.0.get_mut(home) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(home);
            }
        }
    }

    pub(super) fn at(&self, route: &RoutePath, backend: &BackendName) -> u64 {
        let (route, backend) = (route.clone(), backend.clone());
        self.0.get(&Home { route, backend }).copied().unwrap_or(0)
    }
}
