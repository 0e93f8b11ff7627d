//! Whether a backend can be reached: what requests and probes find out of it, and what a backend
//! gets that was away.
//!
//! Every request reads this, and few change it: what is read is in atomics, and a change takes a
//! lock.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::probe::ProbeSettings;
use crate::setting::{Count, Limit, Period};

/// `health` of a route in the configuration file: when its backends are believed to be down.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HealthSettings {
    /// How many connects in a row must fail.
    max_failures: Count,
    /// How long a backend that is down is left alone before a request tries it again.
    backoff: Period,
    /// The longest of these times, which double with each try; and of those between two probes.
    max_backoff: Period,
    /// How long a backend that comes back, or is new, is given less than its share.
    slow_start: Limit,
    /// How backends are asked whether they live.
    pub(super) probe: ProbeSettings,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            max_failures: Count(3),
            // A try is a connect. What waits for it is answered 502, which clients give up on.
            backoff: Period(Duration::from_millis(100)),
            max_backoff: Period(Duration::from_secs(2)),
            slow_start: Limit(Some(Duration::from_secs(30))),
            probe: ProbeSettings::default(),
        }
    }
}

/// What is known of one backend.
pub(crate) struct Health {
    epoch: Instant,
    is_down: AtomicBool,
    /// Connects that failed since the last that did not.
    failures: AtomicU32,
    /// When it came, in milliseconds from `epoch`. `FROM_THE_BEGINNING` has its whole share.
    came_at: AtomicU64,
    /// When it may be tried while it is down, in the same way.
    retry_at: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    down: Option<Down>,
    is_probed: bool,
    /// When the last probe ended.
    probed_at: Option<Instant>,
    /// Probes in a row that say otherwise than what is believed.
    against: u64,
}

#[derive(Clone, Copy)]
struct Down {
    since: Instant,
    backoff: Duration,
    /// Whether a request has been let through to see.
    is_tried: bool,
}

/// What has become of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Down,
    Up,
}

impl Default for Health {
    /// One that was there from the beginning.
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            is_down: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            came_at: AtomicU64::new(FROM_THE_BEGINNING),
            retry_at: AtomicU64::new(0),
            state: Mutex::default(),
        }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_down() { "down" } else { "up" })
    }
}

impl Health {
    /// One that comes while others have requests already.
    pub(super) fn newcomer() -> Self {
        Self {
            came_at: AtomicU64::new(0),
            ..Self::default()
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    /// How long it has been down, if it is.
    pub(crate) fn down_for(&self) -> Option<Duration> {
        if !self.is_down() {
            return None;
        }
        self.lock().down.map(|down| down.since.elapsed())
    }

    /// When it may be tried, by a clock of its own.
    pub(super) fn retry_at(&self) -> u64 {
        self.retry_at.load(Ordering::Relaxed)
    }

    /// Whether this request is the one that tries a backend that is down, for `connect` at the most.
    /// Where there are probes, they do that.
    pub(super) fn is_tried_now(&self, settings: &HealthSettings, connect: Duration) -> bool {
        if settings.probe.is_on() || self.now() < self.retry_at() {
            return false;
        }
        let mut state = self.lock();
        let Some(down) = &mut state.down else {
            return true;
        };
        if self.now() < self.retry_at() {
            return false;
        }
        // Nobody else until it is known what this one comes to, or must be.
        self.leave_alone(down.backoff.max(connect));
        down.is_tried = true;
        true
    }

    fn leave_alone(&self, backoff: Duration) {
        let backoff = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX);
        let retry_at = self.now().saturating_add(backoff);
        self.retry_at.store(retry_at, Ordering::Relaxed);
    }

    /// In milliseconds from `epoch`.
    fn now(&self) -> u64 {
        let now = self.epoch.elapsed().as_millis();
        now.try_into().unwrap_or(u64::MAX)
    }

    /// A connect failed.
    pub(super) fn failed(&self, settings: &HealthSettings) -> Option<Turn> {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let mut state = self.lock();
        match &mut state.down {
            // Of those that were under way when it went down, none says anything new.
            Some(down) if !down.is_tried => None,
            Some(down) => {
                down.backoff = (down.backoff * 2).min(settings.max_backoff.0);
                down.is_tried = false;
                self.leave_alone(down.backoff);
                None
            }
            None if u64::from(failures) < settings.max_failures.0 => None,
            None => Some(self.turn_down(&mut state, settings)),
        }
    }

    /// A connect succeeded. Where there are probes, it takes them to say that a backend is up.
    pub(super) fn connected(&self, settings: &HealthSettings) -> Option<Turn> {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if !self.is_down() || settings.probe.is_on() {
            return None;
        }
        let mut state = self.lock();
        state.down?;
        Some(self.turn_up(&mut state))
    }

    /// Whether a probe is to be sent now. Then [`probed`](Self::probed) must follow.
    pub(super) fn is_probe_due(&self, settings: &HealthSettings) -> bool {
        let mut state = self.lock();
        let interval = match state.down {
            // As soon as a request would try it.
            Some(_) => settings.probe.interval.0.min(settings.max_backoff.0),
            None => settings.probe.interval.0,
        };
        let is_due = state.probed_at.is_none_or(|at| at.elapsed() >= interval);
        let begins = is_due && !state.is_probed;
        state.is_probed |= begins;
        begins
    }

    /// A probe says whether the backend lives.
    pub(super) fn probed(&self, lives: bool, settings: &HealthSettings) -> Option<Turn> {
        let probe = &settings.probe;
        let mut state = self.lock();
        state.is_probed = false;
        state.probed_at = Some(Instant::now());
        let is_down = state.down.is_some();
        if lives != is_down {
            state.against = 0;
            return None;
        }
        state.against += 1;
        if lives && state.against >= probe.healthy.0 {
            return Some(self.turn_up(&mut state));
        }
        if !lives && state.against >= probe.unhealthy.0 {
            return Some(self.turn_down(&mut state, settings));
        }
        None
    }

    fn turn_down(&self, state: &mut State, settings: &HealthSettings) -> Turn {
        let backoff = settings.backoff.0.min(settings.max_backoff.0);
        state.down = Some(Down {
            since: Instant::now(),
            backoff,
            is_tried: false,
        });
        state.against = 0;
        self.leave_alone(backoff);
        self.is_down.store(true, Ordering::Relaxed);
        Turn::Down
    }

    fn turn_up(&self, state: &mut State) -> Turn {
        state.down = None;
        state.against = 0;
        self.failures.store(0, Ordering::Relaxed);
        self.came_now();
        self.is_down.store(false, Ordering::Relaxed);
        Turn::Up
    }

    /// It has its share to grow into, from now on.
    pub(super) fn came_now(&self) {
        self.came_at.store(self.now(), Ordering::Relaxed);
    }

    /// Which part of its share it gets: all, or less while it is new. With a share that grows, what
    /// it gets until it is level with the others comes over time and not at once.
    pub(crate) fn share(&self, settings: &HealthSettings) -> f64 {
        let came_at = self.came_at.load(Ordering::Relaxed);
        let (Some(slow_start), true) = (settings.slow_start.0, came_at != FROM_THE_BEGINNING)
        else {
            return 1.0;
        };
        let there_for = Duration::from_millis(self.now().saturating_sub(came_at));
        let share = there_for.as_secs_f64() / slow_start.as_secs_f64();
        share.clamp(LEAST_SHARE, 1.0)
    }

    /// It is whole between any two statements, also where a panic came between.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const FROM_THE_BEGINNING: u64 = u64::MAX;

/// Above zero, as it is divided by.
const LEAST_SHARE: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(backoff: u64) -> HealthSettings {
        HealthSettings {
            max_failures: Count(2),
            backoff: Period(Duration::from_millis(backoff)),
            max_backoff: Period(Duration::from_secs(10_000)),
            ..HealthSettings::default()
        }
    }

    #[test]
    fn failures_in_a_row_take_it_down_and_one_success_between_does_not() {
        let (health, settings) = (Health::default(), settings(1_000_000));
        assert_eq!(health.failed(&settings), None);
        assert_eq!(health.connected(&settings), None);
        assert_eq!(health.failed(&settings), None);
        assert_eq!(health.failed(&settings), Some(Turn::Down));
        assert!(health.is_down() && !health.is_tried_now(&settings, Duration::ZERO));
    }

    #[test]
    fn one_request_at_a_time_tries_what_is_down_and_each_waits_longer() {
        let (health, settings) = (Health::default(), settings(1_000_000));
        let backoff = || health.lock().down.map(|down| down.backoff.as_secs());
        health.failed(&settings);
        health.failed(&settings);
        assert_eq!(backoff(), Some(1_000));
        assert!(!health.is_tried_now(&settings, Duration::ZERO));
        health.retry_at.store(0, Ordering::Relaxed);
        assert!(health.is_tried_now(&settings, Duration::ZERO));
        assert!(!health.is_tried_now(&settings, Duration::ZERO));
        health.failed(&settings);
        assert_eq!(backoff(), Some(2_000));
        // One that was under way before says nothing new.
        health.failed(&settings);
        assert_eq!(backoff(), Some(2_000));
        assert_eq!(health.connected(&settings), Some(Turn::Up));
        assert!(health.share(&settings) < 0.5);
    }
}
