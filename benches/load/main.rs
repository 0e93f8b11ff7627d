//! What this proxy costs beside others: the same load through each of them, in one run.
//!
//! ```text
//! make bench-load                                        all, in a quarter of an hour
//! make bench-load LOAD="session-post fan-out" ROUNDS=3   a part
//! make bench-load WRITE=1                                all, kept in docs/performance/
//! ```
//!
//! The clients and the backend are threads of this process, each proxy is a process of its own. A round
//! goes through all proxies, so that what else happens on the machine happens to all of them.

mod backend;
mod client;
mod drive;
mod message;
mod peers;
mod plots;
mod report;
mod results;
mod rounds;
mod usage;
mod work;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use clap::Parser;

use peers::Peer;
use plots::Drawn;
use results::{Figure, Results};
use rounds::Bench;
use work::Work;

/// Measures proxies side by side.
#[derive(Parser)]
struct Arguments {
    /// What is measured: "all", or names and beginnings of names, such as session-post
    #[arg(required = true)]
    work: Vec<String>,
    /// How often each is measured through each proxy
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Keep the outcome in docs/performance/
    #[arg(long)]
    write: bool,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

type Problem = Box<dyn Error + Send + Sync>;
type Outcome<T> = Result<T, Problem>;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench-load: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let works = chosen(&arguments.work)?;
    let versions = versions(&works);
    let bench = Bench::prepare(&Path::new(OUTCOME).join("run"), arguments.rounds)?;
    let mut results = Results::default();
    let mut text = head(&versions, arguments.rounds);
    print!("{text}");
    for work in &works {
        let available = |peer: &&Peer| versions.iter().any(|(known, _)| known == *peer);
        let peers: Vec<_> = work.peers.iter().filter(available).copied().collect();
        bench.measure(work, &peers, &mut results)?;
        let table = report::table(work, &results);
        print!("{table}");
        text += &table;
    }
    let goals = report::goals(&results);
    print!("{goals}");
    text += &goals;
    write(Path::new(OUTCOME), &text, &works, &results)?;
    if arguments.write {
        write(Path::new(KEPT), &text, &works, &results)?;
    }
    Ok(())
}

fn chosen(choices: &[String]) -> Outcome<Vec<Work>> {
    let descriptors = rlimit::increase_nofile_limit(u64::MAX)?;
    let most_streams = descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2;
    let all = Work::all(usize::try_from(most_streams)?);
    for choice in choices {
        if !all.iter().any(|work| work.is_meant_by(choice)) {
            let names: Vec<_> = all.iter().map(|work| &*work.name).collect();
            return Err(format!("'{choice}' is none of: all, {}", names.join(", ")).into());
        }
    }
    let is_meant = |work: &Work| choices.iter().any(|choice| work.is_meant_by(choice));
    Ok(all.into_iter().filter(is_meant).collect())
}

/// The peers that can be measured, and what they are.
fn versions(works: &[Work]) -> Vec<(Peer, String)> {
    let mut known = Vec::new();
    let mut asked = Vec::new();
    for peer in works.iter().flat_map(|work| work.peers) {
        if asked.contains(peer) {
            continue;
        }
        asked.push(*peer);
        match peer.version() {
            Ok(version) => known.push((*peer, version)),
            Err(why) => eprintln!("bench-load: {} is left out: {why}", peer.name()),
        }
    }
    known
}

/// When, where, and what is compared.
fn head(versions: &[(Peer, String)], rounds: usize) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let uname = Command::new("uname").args(["-sm"]).output();
    let system = uname.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    });
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("a processor without a name", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut text = format!(
        "{now}, {cores} cores of {model}, {system}. Medians of {rounds} rounds, \
         in parentheses the least and the most.\n\n| | version |\n|---|---|\n"
    );
    for (peer, version) in versions {
        text += &format!("| {} | {version} |\n", peer.name());
    }
    text
}

/// Writes what has been measured into `folder`.
fn write(folder: &Path, text: &str, works: &[Work], results: &Results) -> Outcome<()> {
    fs::create_dir_all(folder)?;
    let mut text = format!("# Beside other proxies: one run\n\n{text}");
    for (file, figure) in PLOTS {
        let path = folder.join(file);
        match plots::draw(&path, *figure, works, results)? {
            Drawn::Something => text += &format!("\n![{}]({file})\n", figure.name()),
            // One of an earlier run may be there.
            Drawn::Nothing => drop(fs::remove_file(path)),
        }
    }
    fs::write(folder.join("results.md"), text)?;
    fs::write(folder.join("results.csv"), report::csv(results))?;
    println!("\nwritten into {}", folder.display());
    Ok(())
}

const PLOTS: &[(&str, Figure)] = &[
    ("cpu.svg", Figure::Processor),
    ("rate.svg", Figure::Rate),
    ("p50.svg", Figure::P50),
    ("p99.svg", Figure::P99),
    ("memory.svg", Figure::Memory),
    ("idle-stream.svg", Figure::IdleStream),
];

/// Cargo runs benchmarks in the package's folder.
const OUTCOME: &str = "target/bench-load";
const KEPT: &str = "docs/performance";

/// What a process needs beside its connections: idle ones that it keeps, files, the runtime.
const OTHER_DESCRIPTORS: u64 = 1_600;
