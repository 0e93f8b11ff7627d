//! Who may import whom: `docs/architecture.md`, held.

use std::path::{Path, PathBuf};

/// From the bottom up: a module uses those before it and none after it.
const LAYERS: &[&str] = &[
    "setting",
    "lines",
    "tls",
    "mcp",
    "host",
    "compatibility",
    "message",
    "rejection",
    "limits",
    "fields",
    "metrics",
    "policy",
    "cors",
    "backend",
    "listener",
    "discovery",
    "route",
    "session",
    "streams",
    "load",
    "rules",
    "exchange",
    "headers",
    "gateway",
    "backend_watch",
    "stream_watch",
    "reaper",
    "early_signals",
    "handover",
    "drain",
    "observe",
    "config",
    "start",
    "connections",
    "proxy",
    "reload",
    "server",
    "logging",
    "main",
];

#[test]
fn modules_use_only_those_below_them() {
    for file in sources(Path::new("src")) {
        let Some(layer) = LAYERS.iter().position(|layer| *layer == module_of(&file)) else {
            assert_eq!(module_of(&file), "lib", "{file:?} is in no layer");
            continue;
        };
        for used in used_modules(&file) {
            let below = LAYERS.iter().position(|layer| *layer == used);
            assert!(
                below.is_some_and(|below| below <= layer),
                "{file:?} uses {used}"
            );
        }
    }
}

#[test]
fn only_the_proxy_and_the_server_know_pingoras_proxy() {
    for file in sources(Path::new("src")) {
        let code = code(&file);
        let knows = code.contains("pingora_proxy") || code.contains("pingora::proxy");
        assert!(
            !knows || ["proxy", "server"].contains(&&*module_of(&file)),
            "{file:?}"
        );
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// `src/session/memory.rs` is part of `session`.
fn module_of(file: &Path) -> String {
    let inside = file.strip_prefix("src").unwrap();
    let first = inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn used_modules(file: &Path) -> Vec<String> {
    let code = code(file);
    let paths = code.split("crate::").skip(1);
    let is_name = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    paths
        .map(|path| {
            path.split(|letter| !is_name(letter))
                .next()
                .unwrap()
                .to_owned()
        })
        .collect()
}

fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}
