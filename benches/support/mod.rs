//! What is measured, each piece of work once, whatever it is measured by.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each benchmark is a program of its own and uses a part of this"
)]

pub mod gateway;
pub mod store;
pub mod time;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region};

/// What work is measured by.
pub trait Meter {
    /// Measures `work`, each time on what `prepare` makes anew.
    fn measure<P>(&mut self, name: &str, prepare: impl FnMut() -> P, work: impl Fn(&mut P));
}

/// How much a call allocates.
pub struct Allocations {
    pub count: f64,
    pub bytes: f64,
}

impl Allocations {
    /// The average of many calls, after as many. The process allocates by `INSTRUMENTED_SYSTEM`.
    pub fn of<P>(mut prepare: impl FnMut() -> P, work: impl Fn(&mut P)) -> Self {
        prepared(&mut prepare).iter_mut().for_each(&work);
        let mut prepared = prepared(prepare);
        let region = Region::new(&INSTRUMENTED_SYSTEM);
        prepared.iter_mut().for_each(work);
        let change = region.change();
        Self {
            count: (change.allocations + change.reallocations) as f64 / CALLS as f64,
            bytes: change.bytes_allocated as f64 / CALLS as f64,
        }
    }
}

/// What [`CALLS`] calls work on.
pub fn prepared<P>(mut prepare: impl FnMut() -> P) -> Vec<P> {
    (0..CALLS).map(|_| prepare()).collect()
}

pub const CALLS: usize = 1000;
