//! The proof of the proof: a proxy with one rule broken must fail a test, whichever rule it is.
//!
//! `make mutations` prints which test noticed which.

mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use support::mutation::{Mutation, VARIABLE};

/// Those that host their proxy in their own process, the quickest first.
const FILES: [&str; 7] = [
    "headers",
    "discovery",
    "admission",
    "bad_day",
    "protocol",
    "behaviour",
    "streaming",
];

/// A test that hangs for longer lacks its `within`.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn each_broken_rule_fails_a_test() {
    let programs = build();
    let mutations = Mutation::value_variants().iter().copied().map(Some);
    let runs = Mutex::new([None].into_iter().chain(mutations));
    let next = || runs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let mistakes = Mutex::new(Vec::new());
    let run_all = || {
        let mut programs = programs.clone();
        while let Some(mutation) = next() {
            let failed = first_failure(&mut programs, mutation);
            let (name, rule) = describe(mutation);
            let noticed = failed.as_deref().unwrap_or("-");
            println!("{name:29} {rule:74} {noticed}");
            if failed.is_some() != must_fail(mutation) {
                let mut mistakes = mistakes.lock().unwrap_or_else(PoisonError::into_inner);
                mistakes.push(format!("{name}: {noticed}"));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(run_all);
        }
    });
    let mistakes = mistakes.into_inner().unwrap();
    assert!(
        mistakes.is_empty(),
        "survived, or failed without a reason: {mistakes:#?}"
    );
}

/// Builds the tests of [`FILES`] and returns their programs.
fn build() -> Vec<(&'static str, PathBuf)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "test",
        "--locked",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    for file in FILES {
        cargo.args(["--test", file]);
    }
    // What cargo tells this test of its package would have the dependencies built anew whose build
    // scripts look at it.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&*name);
        }
    }
    let built = cargo.stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success());
    let messages = String::from_utf8(built.stdout).unwrap();
    let messages = messages
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let messages: Vec<serde_json::Value> = messages.collect();
    let program_of = |file: &str| {
        let of_file = messages
            .iter()
            .find(|message| message["target"]["name"] == file);
        PathBuf::from(of_file.unwrap()["executable"].as_str().unwrap())
    };
    FILES.map(|file| (file, program_of(file))).into()
}

fn must_fail(mutation: Option<Mutation>) -> bool {
    !matches!(mutation, None | Some(Mutation::Nothing))
}

fn describe(mutation: Option<Mutation>) -> (String, String) {
    let Some(mutation) = mutation else {
        return ("(none)".to_owned(), "the real proxy".to_owned());
    };
    let value = mutation.to_possible_value().unwrap();
    let rule = value.get_help().map(ToString::to_string);
    (value.get_name().to_owned(), rule.unwrap_or_default())
}

/// The first test that fails under `mutation`. Its program goes first the next time, as
/// neighbours in the list break rules of one kind.
fn first_failure(programs: &mut [(&str, PathBuf)], mutation: Option<Mutation>) -> Option<String> {
    for position in 0..programs.len() {
        let (file, program) = &programs[position];
        let mut command = Command::new(program);
        match mutation {
            Some(_) => command.env(VARIABLE, describe(mutation).0),
            None => command.env_remove(VARIABLE),
        };
        if must_fail(mutation) {
            command.stderr(Stdio::null());
        } else {
            command.arg("--nocapture");
        }
        command.stdout(Stdio::piped());
        let mut running = command.spawn().unwrap();
        let Ok(failed) = failure_of(&mut running) else {
            panic!("a test of {file} hangs under {mutation:?}: it lacks its `within`");
        };
        let _ = running.kill();
        running.wait().unwrap();
        if let Some(test) = failed {
            let failed = format!("{file}: {test}");
            programs[..=position].rotate_right(1);
            return Some(failed);
        }
    }
    None
}

/// Follows a test program to its first failure, or its end.
fn failure_of(running: &mut Child) -> Result<Option<String>, RecvTimeoutError> {
    let output = BufReader::new(running.stdout.take().unwrap());
    let (lines, received) = channel();
    thread::spawn(move || {
        output
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| lines.send(line))
    });
    let mut passed = false;
    loop {
        match received.recv_timeout(LIMIT) {
            Ok(line) => {
                let test = line.strip_prefix("test ").unwrap_or_default();
                if let Some(name) = test.strip_suffix(" ... FAILED") {
                    return Ok(Some(name.to_owned()));
                }
                passed |= line.starts_with("test result: ok.");
            }
            Err(RecvTimeoutError::Disconnected) if passed => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Ok(Some("it died".to_owned())),
            Err(hangs @ RecvTimeoutError::Timeout) => return Err(hangs),
        }
    }
}
