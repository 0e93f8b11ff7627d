//! The results as text: a table of each piece of work, what has to be reached, and every single value.

use std::fmt::Write;

use super::peers::Peer;
use super::results::{Figure, Results, Spread};
use super::work::Work;

/// The figures of `work`: a row for each proxy, medians with the least and the most of all rounds.
pub(crate) fn table(work: &Work, results: &Results) -> String {
    let has = |figure: &Figure| {
        let mut samples = results.samples.iter();
        samples.any(|sample| sample.work == work.name && sample.figure == *figure)
    };
    let figures: Vec<_> = Figure::ALL.into_iter().filter(has).collect();
    let mut heads: Vec<_> = figures.iter().map(|f| f.name().to_owned()).collect();
    let compared = match figures.contains(&Figure::Processor) {
        true => Figure::Processor,
        false => Figure::Start,
    };
    heads.push(format!("{}: pingora-mcp / this", compared.name()));
    let mut text = format!(
        "\n### {}\n\n`{}`, each {}\n\n",
        work.title, work.name, work.unit
    );
    let _ = writeln!(text, "| | {} |", heads.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(heads.len()));
    for peer in work.peers {
        let mut cells: Vec<_> = figures
            .iter()
            .map(|figure| {
                let spread = results.spread(&work.name, *peer, *figure);
                spread.map_or(String::new(), |spread| scaled(*figure, spread))
            })
            .collect();
        if cells.iter().all(String::is_empty) {
            continue;
        }
        let ratio = results.ratio(&work.name, compared, Peer::PingoraMcp, *peer);
        cells.push(ratio.map_or(String::new(), |ratio| written(ratio, "")));
        let _ = writeln!(text, "| {} | {} |", peer.name(), cells.join(" | "));
    }
    text
}

/// What has to be reached, and what was.
pub(crate) fn goals(results: &Results) -> String {
    let mut text =
        "\n### What has to be reached\n\n| | at most | here | |\n|---|---|---|---|\n".to_owned();
    for goal in GOALS {
        let (here, unit) = match goal.beside {
            Some(base) => (results.ratio(goal.work, goal.figure, goal.of, base), ""),
            None => {
                let (unit, factor) = goal.figure.scale();
                let spread = results.spread(goal.work, goal.of, goal.figure);
                (spread.map(|spread| spread.times(factor)), unit)
            }
        };
        let (here, verdict) = match here {
            None => ("not measured".to_owned(), ""),
            Some(spread) if spread.median <= goal.most => (written(spread, unit), "reached"),
            Some(spread) => (written(spread, unit), "**missed**"),
        };
        let most = format!("{} {unit}", goal.most);
        let most = most.trim_end();
        let _ = writeln!(text, "| {} | {most} | {here} | {verdict} |", goal.what);
    }
    text
}

/// Every value as it was taken, in seconds and bytes.
pub(crate) fn csv(results: &Results) -> String {
    let mut text = "work,round,peer,figure,value\n".to_owned();
    for sample in &results.samples {
        let (peer, figure) = (sample.peer.name(), sample.figure.name());
        let (work, round, value) = (&sample.work, sample.round + 1, sample.value);
        let _ = writeln!(text, "{work},{round},\"{peer}\",{figure},{value:e}");
    }
    text
}

pub(crate) fn scaled(figure: Figure, spread: Spread) -> String {
    let (unit, factor) = figure.scale();
    written(spread.times(factor), unit)
}

fn written(spread: Spread, unit: &str) -> String {
    let [median, least, most] = [spread.median, spread.least, spread.most].map(number);
    let unit = if unit.is_empty() {
        String::new()
    } else {
        format!(" {unit}")
    };
    format!("{median}{unit} ({least} - {most})")
}

/// Three digits of it.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 1.0 => format!("{value:.2}"),
        value => format!("{value:.3}"),
    }
}

impl Spread {
    fn times(self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            least: self.least * factor,
            most: self.most * factor,
        }
    }
}

struct Goal {
    what: &'static str,
    work: &'static str,
    figure: Figure,
    of: Peer,
    /// Whose figure is the measure. `None`: the figure itself counts, in the unit that it is written in.
    beside: Option<Peer>,
    most: f64,
}

const GOALS: &[Goal] = &[
    Goal {
        what: "CPU of a session POST / bare Pingora",
        work: "session-post-64",
        figure: Figure::Processor,
        of: Peer::PingoraMcp,
        beside: Some(Peer::BarePingora),
        most: 1.05,
    },
    Goal {
        what: "CPU of a session POST / Envoy",
        work: "session-post-64",
        figure: Figure::Processor,
        of: Peer::PingoraMcp,
        beside: Some(Peer::Envoy),
        most: 0.55,
    },
    Goal {
        what: "CPU of a session POST / nginx",
        work: "session-post-64",
        figure: Figure::Processor,
        of: Peer::PingoraMcp,
        beside: Some(Peer::Nginx),
        most: 2.0,
    },
    Goal {
        what: "delay of an event at 500 streams, p50 / nginx",
        work: "fan-out-500",
        figure: Figure::P50,
        of: Peer::PingoraMcp,
        beside: Some(Peer::Nginx),
        most: 0.8,
    },
    Goal {
        what: "delay of an event at 500 streams, p50 / bare Pingora",
        work: "fan-out-500",
        figure: Figure::P50,
        of: Peer::PingoraMcp,
        beside: Some(Peer::BarePingora),
        most: 1.05,
    },
    Goal {
        what: "memory of an idle stream",
        work: "fan-out-1000",
        figure: Figure::IdleStream,
        of: Peer::PingoraMcp,
        beside: None,
        most: 40.0,
    },
    Goal {
        what: "memory of an idle stream / Envoy",
        work: "fan-out-1000",
        figure: Figure::IdleStream,
        of: Peer::PingoraMcp,
        beside: Some(Peer::Envoy),
        most: 1.0,
    },
    Goal {
        what: "CPU of a request at 100 backends / at 1",
        work: "growth",
        figure: Figure::Processor,
        of: Peer::HundredBackends,
        beside: Some(Peer::PingoraMcp),
        most: 1.05,
    },
    Goal {
        what: "cold start to the first answer",
        work: "cold-start",
        figure: Figure::Start,
        of: Peer::PingoraMcp,
        beside: None,
        most: 50.0,
    },
];
