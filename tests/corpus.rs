//! What fuzzing keeps: each input of `fuzz/corpus` still holds what its target asks of it.

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::Path;

#[expect(unreachable_pub, reason = "it is a library to cargo-fuzz")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

#[test]
fn every_input_of_the_corpus_holds() {
    for (name, target) in fuzz::TARGETS {
        for file in files(&format!("fuzz/corpus/{name}")) {
            let input = std::fs::read(&file).unwrap();
            let held = catch_unwind(|| target(&input));
            assert!(held.is_ok(), "{file} does not hold: see above");
        }
    }
}

#[test]
fn each_target_is_fuzzed_and_has_a_corpus() {
    let targets = fuzz::TARGETS.map(|(name, _)| name.to_owned());
    let targets = BTreeSet::from(targets);
    let programs = files("fuzz/fuzz_targets").into_iter();
    let programs: BTreeSet<_> = programs.map(|file| stem(&file)).collect();
    let corpora = files("fuzz/corpus").into_iter();
    let corpora: BTreeSet<_> = corpora.map(|folder| stem(&folder)).collect();
    assert_eq!(programs, targets);
    assert_eq!(corpora, targets);
}

/// What is in a folder, of which there is some.
fn files(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path().display().to_string());
    let paths: Vec<_> = paths.collect();
    assert!(!paths.is_empty(), "{folder} is empty");
    paths
}

fn stem(path: &str) -> String {
    Path::new(path).file_stem().unwrap().display().to_string()
}
