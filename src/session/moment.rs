//! Moments of a store's own, in eight bytes.

use std::time::{Duration, Instant};

/// A moment since a store was made, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(pub(super) u64);

impl Moment {
    /// This moment, in a store that was made when it `began`.
    pub(super) fn since(began: Instant) -> Self {
        Self(milliseconds(began.elapsed()))
    }

    pub(super) fn after(self, period: Duration) -> Self {
        Self(self.0.saturating_add(milliseconds(period)))
    }
}

pub(super) fn milliseconds(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}
