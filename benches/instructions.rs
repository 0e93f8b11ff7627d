//! Holds the instructions and the allocations of a call to `benches/instructions.csv`: of all that
//! is measured of the gateway and of the store.
//!
//! ```text
//! cargo bench --bench instructions               compares
//! cargo bench --bench instructions -- --write    writes what it has counted
//! ```
//!
//! valgrind counts the instructions, under which this program runs itself for each piece of work.
//! So they do not depend on what else the machine does, but on the compiler, and on the C library
//! for what it allocates and copies with.

mod support;

use std::alloc::System;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::process::{Command, ExitCode};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::store::Filled;
use support::{CALLS, Meter, gateway, prepared};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    if let Ok(name) = env::var(WORK) {
        measure(&mut Once(name));
        return ExitCode::SUCCESS;
    }
    let mut counted = Counted(Vec::new());
    measure(&mut counted);
    if env::args().any(|argument| argument == "--write") {
        fs::write(BASELINE, counted.to_csv()).unwrap();
        return ExitCode::SUCCESS;
    }
    counted.compare(&fs::read_to_string(BASELINE).unwrap())
}

fn measure(meter: &mut impl Meter) {
    gateway::measure(meter);
    Filled::new(1000).measure(meter);
}

/// Does the work of one name, for valgrind to count.
struct Once(String);

impl Meter for Once {
    fn measure<P>(&mut self, name: &str, mut prepare: impl FnMut() -> P, work: impl Fn(&mut P)) {
        if name == self.0 {
            prepared(&mut prepare).iter_mut().for_each(&work);
            let mut prepared = prepared(prepare);
            counted(&mut || prepared.iter_mut().for_each(&work));
        }
    }
}

/// While this runs, valgrind counts: it knows it by its name.
#[inline(never)]
fn counted(work: &mut dyn FnMut()) {
    black_box(work)();
}

/// What a call of each piece of work costs.
struct Counted(Vec<(String, Cost)>);

struct Cost {
    /// `None` without valgrind.
    instructions: Option<f64>,
    allocations: f64,
}

impl Meter for Counted {
    fn measure<P>(&mut self, name: &str, prepare: impl FnMut() -> P, work: impl Fn(&mut P)) {
        let cost = Cost {
            instructions: fewest_instructions(name),
            allocations: allocations(prepare, work),
        };
        self.0.push((name.to_owned(), cost));
    }
}

impl Counted {
    fn to_csv(&self) -> String {
        let mut csv = format!("# {}\n{HEADER}\n", environment());
        for (name, cost) in &self.0 {
            let instructions = cost.instructions.expect("valgrind is needed");
            writeln!(csv, "{name},{instructions:.0},{:.1}", cost.allocations).unwrap();
        }
        csv
    }

    fn compare(&self, baseline: &str) -> ExitCode {
        let (of, rows) = baseline.split_once(HEADER).unwrap();
        let (of, here) = (of.trim_start_matches("# ").trim(), environment());
        let mut tolerance = 0.02;
        if of != here {
            tolerance = 0.10;
            println!("NOT THE SAME COMPILER OR C LIBRARY: {BASELINE} is of {of}, this is {here}");
        }
        if self.0.iter().any(|(_, cost)| cost.instructions.is_none()) {
            println!("SKIPPED: without valgrind, instructions are not counted");
        }
        let rows = rows.trim().lines().map(|row| {
            let [name, instructions, allocations] = row.split(',').collect::<Vec<_>>()[..] else {
                panic!("not a row of {BASELINE}: {row}");
            };
            let number = |text: &str| text.parse::<f64>().unwrap();
            (name, number(instructions), number(allocations))
        });
        let rows: Vec<_> = rows.collect();
        let mut is_worse = false;
        for (name, ..) in &rows {
            if !self.0.iter().any(|(known, _)| known == name) {
                println!("GONE  {name}: it is in {BASELINE}, and measured no more");
                is_worse = true;
            }
        }
        for (name, cost) in &self.0 {
            let row = rows.iter().find(|(known, ..)| known == name);
            let &(_, instructions, allocations) = row.unwrap_or(&(name, 0.0, 0.0));
            let now = cost.instructions.unwrap_or(instructions);
            let has_more = now > instructions * (1.0 + tolerance)
                || cost.allocations > allocations + HALF_AN_ALLOCATION;
            is_worse |= has_more;
            println!(
                "{:5} {name:32} {instructions:8.0} -> {now:8.0} instructions ({:+5.1} %)  \
                 {allocations:4.1} -> {:4.1} allocations",
                if has_more { "WORSE" } else { "" },
                (now / instructions - 1.0) * 100.0,
                cost.allocations,
            );
        }
        if !is_worse {
            return ExitCode::SUCCESS;
        }
        println!(
            "a call costs more than {BASELINE} says by over {:.0} %, or by an allocation; \
             where that is meant, make bench-check WRITE=1",
            tolerance * 100.0
        );
        ExitCode::FAILURE
    }
}

/// How many a call makes: the average of many, after as many.
fn allocations<P>(mut prepare: impl FnMut() -> P, work: impl Fn(&mut P)) -> f64 {
    prepared(&mut prepare).iter_mut().for_each(&work);
    let mut prepared = prepared(prepare);
    let region = Region::new(ALLOCATOR);
    prepared.iter_mut().for_each(work);
    let change = region.change();
    (change.allocations + change.reallocations) as f64 / CALLS as f64
}

/// Counts those of one call. `None` where there is no valgrind. The cache tidies itself up a few times
/// a second, which some runs are long enough to see.
fn fewest_instructions(name: &str) -> Option<f64> {
    let runs = (0..RUNS).map(|_| instructions(name));
    runs.collect::<Option<Vec<_>>>()?
        .into_iter()
        .reduce(f64::min)
}

fn instructions(name: &str) -> Option<f64> {
    let valgrind = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*::counted*"])
        .arg(env::current_exe().unwrap())
        .env(WORK, name)
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&valgrind.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, total) = collected.unwrap_or_else(|| panic!("{name}: {said}"));
    Some(total.trim().parse::<f64>().unwrap() / CALLS as f64)
}

/// What the counts depend on beside the code.
fn environment() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let output = output.map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let (rustc, libc) = (
        said("rustc", "--version"),
        said("getconf", "GNU_LIBC_VERSION"),
    );
    format!("{rustc}, {libc}, {}", env::consts::ARCH)
}

const RUNS: usize = 5;

/// Averages have a part of one where tables grow.
const HALF_AN_ALLOCATION: f64 = 0.5;

const BASELINE: &str = "benches/instructions.csv";
const HEADER: &str = "work,instructions,allocations";

/// Names the one piece of work that a run under valgrind does.
const WORK: &str = "INSTRUCTIONS_OF";
