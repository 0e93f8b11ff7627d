//! Work measured by criterion.

use std::time::Duration;

use criterion::{BatchSize, Criterion};

use super::Meter;

impl Meter for Criterion {
    fn measure<P>(&mut self, name: &str, mut prepare: impl FnMut() -> P, work: impl Fn(&mut P)) {
        self.bench_function(name, |bencher| {
            bencher.iter_batched_ref(&mut prepare, &work, BatchSize::SmallInput);
        });
    }
}

/// A second and two for each, so that all take minutes.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
}
