//! How many sessions each backend has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::Binding;
use crate::backend::BackendName;
use crate::route::RoutePath;

/// The counts of all backends. It has an entry for each that has a session, and none else, as
/// backends come and go.
#[derive(Default)]
pub(super) struct Backends(HashMap<(RoutePath, BackendName), u64>);

impl Backends {
    pub(super) fn add(&mut self, session: &Binding) {
        *self.0.entry(whose(session)).or_default() += 1;
    }

    pub(super) fn remove(&mut self, session: &Binding) {
        if let Entry::Occupied(mut count) = self.0.entry(whose(session)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    pub(super) fn at(&self, route: &RoutePath, backend: &BackendName) -> u64 {
        let whose = (route.clone(), backend.clone());
        self.0.get(&whose).copied().unwrap_or(0)
    }
}

fn whose(session: &Binding) -> (RoutePath, BackendName) {
    (session.route.clone(), session.backend.clone())
}
