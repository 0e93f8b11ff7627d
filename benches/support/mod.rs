//! What is measured, each piece of work once, whatever it is measured by.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each benchmark is a program of its own and uses a part of this"
)]

pub mod gateway;
pub mod store;
pub mod time;

/// What work is measured by.
pub trait Meter {
    /// Measures `work`, each time on what `prepare` makes anew.
    fn measure<P>(&mut self, name: &str, prepare: impl FnMut() -> P, work: impl Fn(&mut P));
}

/// What [`CALLS`] calls work on.
pub fn prepared<P>(mut prepare: impl FnMut() -> P) -> Vec<P> {
    (0..CALLS).map(|_| prepare()).collect()
}

pub const CALLS: usize = 1000;
