//! The figures of all rounds, and what is made of them.

use super::peers::Peer;

/// What is told of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Units a second, of the whole: clients, proxy and backend share the machine.
    Rate,
    /// How long half of the units took at most, in seconds; 99 %; 99.9 %. Of an event: its delay.
    P50,
    P99,
    P999,
    /// Processor time of the proxy for a unit, in seconds.
    Processor,
    /// Resident memory of the proxy under the load, in bytes.
    Memory,
    /// Resident memory that a stream adds to the proxy, in bytes: before its first event, and under load.
    IdleStream,
    BusyStream,
    /// Seconds to the first answer.
    Start,
}

/// One figure of one round.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) work: String,
    pub(crate) round: usize,
    pub(crate) peer: Peer,
    pub(crate) figure: Figure,
    pub(crate) value: f64,
}

/// The middle of what the rounds say, and the least and the most of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// All of a run.
#[derive(Default)]
pub(crate) struct Results {
    pub(crate) samples: Vec<Sample>,
}

impl Results {
    pub(crate) fn spread(&self, work: &str, peer: Peer, figure: Figure) -> Option<Spread> {
        Spread::of(self.values(work, peer, figure).map(|(_, value)| value))
    }

    /// `peer`'s figure in the measure of the one of `base`, each round by itself: what happened to the
    /// machine in a round happened to both.
    pub(crate) fn ratio(
        &self,
        work: &str,
        figure: Figure,
        peer: Peer,
        base: Peer,
    ) -> Option<Spread> {
        let ratios = self
            .values(work, peer, figure)
            .filter_map(|(round, value)| {
                let (_, base) = self
                    .values(work, base, figure)
                    .find(|(other, _)| *other == round)?;
                Some(value / base)
            });
        Spread::of(ratios)
    }

    fn values(&self, work: &str, peer: Peer, figure: Figure) -> impl Iterator<Item = (usize, f64)> {
        self.samples
            .iter()
            .filter(move |sample| {
                sample.work == work && sample.peer == peer && sample.figure == figure
            })
            .map(|sample| (sample.round, sample.value))
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let (middle, len) = (values.len() / 2, values.len());
        let median = match len % 2 {
            _ if len == 0 => return None,
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Some(Self {
            median,
            least: values[0],
            most: values[len - 1],
        })
    }
}

impl Figure {
    pub(crate) const ALL: [Self; 9] = [
        Self::Rate,
        Self::P50,
        Self::P99,
        Self::P999,
        Self::Processor,
        Self::Memory,
        Self::IdleStream,
        Self::BusyStream,
        Self::Start,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rate => "a second",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Processor => "CPU each",
            Self::Memory => "memory",
            Self::IdleStream => "an idle stream",
            Self::BusyStream => "a busy stream",
            Self::Start => "first answer",
        }
    }

    /// How a value is written, and what it is in that measure.
    pub(crate) fn scale(self) -> (&'static str, f64) {
        match self {
            Self::Rate => ("", 1.0),
            Self::P50 | Self::P99 | Self::P999 | Self::Start => ("ms", 1e3),
            Self::Processor => ("µs", 1e6),
            Self::Memory => ("MiB", 1.0 / (1024.0 * 1024.0)),
            Self::IdleStream | Self::BusyStream => ("KiB", 1.0 / 1024.0),
        }
    }
}
