//! The outcome as Markdown, kept in docs/conformance.md.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use crate::judgement::{Pair, REASONS};
use crate::peers::{CLIENTS, FOLDER, SERVERS};

/// The matrix, then all that is not "ok", then why what differs is right.
pub(crate) fn markdown(pairs: &[Pair]) -> String {
    let mut out = format!("Versions: {}.\n\n", versions());
    matrix(&mut out, pairs).expect("a string takes all");
    remarks(&mut out, pairs).expect("a string takes all");
    out += "\nWhy each difference is right:\n\n";
    for reason in &REASONS {
        let step = reason.step;
        out += &format!(
            "- {step}, \"{}\" and \"{}\": {}\n",
            reason.direct, reason.proxied, reason.why
        );
    }
    out
}

/// A row for each client, a column for each server: how many steps are "ok", directly and through
/// the proxy, of those before the failures that the era has.
fn matrix(out: &mut String, pairs: &[Pair]) -> std::fmt::Result {
    let names: Vec<_> = SERVERS.iter().map(|server| server.name).collect();
    writeln!(out, "| client | {} |", names.join(" | "))?;
    writeln!(out, "|---{}|", "|---".repeat(names.len()))?;
    for client in &CLIENTS {
        write!(out, "| {client} |")?;
        for server in &SERVERS {
            let pair = pairs.iter().find(|pair| {
                std::ptr::eq(pair.client, client) && std::ptr::eq(pair.server, server)
            });
            match pair {
                Some(pair) => write!(out, " {} |", cell(pair))?,
                None => write!(out, " not run |")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

fn cell(pair: &Pair) -> String {
    let usual = pair.facts().take_while(|(step, ..)| !is_failure(step));
    let usual = usual.filter(|(_, direct, _)| *direct != "unsupported by era");
    let (is_same, ok): (Vec<_>, Vec<_>) = usual
        .map(|(_, direct, proxied)| (direct == proxied, proxied == "ok"))
        .unzip();
    let count = ok.iter().filter(|ok| **ok).count();
    let all = ok.len();
    match is_same.iter().all(|same| *same) {
        true if count == all => "ok".to_owned(),
        true => format!("{count} of {all}"),
        false => format!("{count} of {all}, **differs**"),
    }
}

/// A row for what is not "ok", with all the steps and servers that it is the same for.
fn remarks(out: &mut String, pairs: &[Pair]) -> std::fmt::Result {
    writeln!(out, "\nAll that is not \"ok\":\n")?;
    writeln!(
        out,
        "| client | steps | servers | directly | through the proxy |"
    )?;
    writeln!(out, "|---|---|---|---|---|")?;
    for client in &CLIENTS {
        let mut servers_of: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let of_client = pairs
            .iter()
            .filter(|pair| std::ptr::eq(pair.client, client));
        for pair in of_client {
            for (position, (step, direct, proxied)) in pair.facts().enumerate() {
                if (direct, proxied) != ("ok", "ok") {
                    let key = (position, step, direct, proxied);
                    servers_of.entry(key).or_default().push(pair.server.name);
                }
            }
        }
        let mut rows: Vec<(Vec<_>, _)> = Vec::new();
        for ((_, step, direct, proxied), servers) in servers_of {
            let rest = (servers, direct, proxied);
            match rows.iter_mut().find(|(_, other)| *other == rest) {
                Some((steps, _)) => steps.push(step),
                None => rows.push((vec![step], rest)),
            }
        }
        for (steps, (servers, direct, proxied)) in rows {
            let steps = steps.join(", ");
            let servers = match servers.len() == SERVERS.len() {
                true => "all".to_owned(),
                false => servers.join("; "),
            };
            let proxied = if proxied == direct {
                "the same"
            } else {
                proxied
            };
            writeln!(
                out,
                "| {client} | {steps} | {servers} | {direct} | {proxied} |"
            )?;
        }
    }
    Ok(())
}

/// Keeps the outcome in the document, or says in which line it is not what is there.
pub(crate) fn keep(markdown: &str, is_to_be_written: bool) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    let document = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    let (before, rest) = document.split_once(BEGIN).ok_or("no beginning mark")?;
    let (kept, after) = rest.split_once(END).ok_or("no end mark")?;
    let outcome = format!("\n\n{markdown}\n");
    if is_to_be_written {
        let written = format!("{before}{BEGIN}{outcome}{END}{after}");
        return std::fs::write(&path, written).map_err(|error| error.to_string());
    }
    if kept == outcome {
        return Ok(());
    }
    let lines = outcome
        .lines()
        .zip(kept.lines().chain(std::iter::repeat("")));
    let other: Vec<_> = lines.filter(|(found, kept)| found != kept).collect();
    Err(format!(
        "docs/conformance.md is not the outcome; `make interop INTEROP=--write` makes it so: {other:#?}"
    ))
}

/// What the lock files name.
fn versions() -> String {
    let read = |path: String| std::fs::read_to_string(path).expect("the file is there");
    let root = env!("CARGO_MANIFEST_DIR");
    let packages: Value = serde_json::from_str(&read(format!("{FOLDER}/package.json")))
        .expect("package.json is JSON");
    let packages = packages["dependencies"].as_object().into_iter().flatten();
    let mut versions: Vec<_> = packages
        .map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or_default()))
        .collect();
    let requirements = read(format!("{FOLDER}/requirements.txt"));
    let mcp = requirements
        .lines()
        .find_map(|line| line.strip_prefix("mcp=="));
    let mcp = mcp.and_then(|rest| rest.split_whitespace().next());
    versions.push(format!("mcp (Python) {}", mcp.unwrap_or_default()));
    let lock = read(format!("{root}/Cargo.lock"));
    let (_, rmcp) = lock
        .split_once("name = \"rmcp\"\nversion = \"")
        .unwrap_or_default();
    versions.push(format!(
        "rmcp {}",
        rmcp.split('"').next().unwrap_or_default()
    ));
    versions.join(", ")
}

fn is_failure(step: &str) -> bool {
    step.parse::<u16>().is_ok()
}

const BEGIN: &str = "<!-- interop: begin -->";
const END: &str = "<!-- interop: end -->";
