//! The configuration file: what `conf/` and `docs/configuration.md` say is so, each mistake is told
//! with its place, and no value of the file or of the environment is ever told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use pingora_mcp::Settings;
use proptest::prelude::*;
use serde_json::Value;

#[test]
fn every_file_in_conf_is_good() {
    for file in files("conf") {
        let yaml = std::fs::read_to_string(&file).unwrap();
        if let Err(error) = Settings::parse(&file, &yaml, environment()) {
            panic!("{error}");
        }
        let checked = check(&file);
        assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    }
}

#[test]
fn every_invalid_file_is_refused_with_what_its_first_line_says() {
    let files = files("tests/invalid");
    assert!(files.len() > 100);
    for file in files {
        let yaml = std::fs::read_to_string(&file).unwrap();
        let Err(error) = Settings::parse(&file, &yaml, environment()) else {
            panic!("{file} is accepted");
        };
        assert_eq!(error.to_string(), expected_error(&file, &yaml));
    }
}

#[test]
fn no_error_repeats_a_value() {
    let mut holding = 0;
    for file in files("tests/invalid") {
        let yaml = std::fs::read_to_string(&file).unwrap();
        holding += usize::from(yaml.contains(SECRET) || yaml.contains("SECRET}"));
        let error = Settings::parse(&file, &yaml, environment()).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }
    assert!(holding > 50, "{holding} files hold a secret");
}

#[test]
fn the_binary_tells_one_line_and_exits_with_64() {
    for name in [
        "backend-key-unknown",
        "header-reference-missing",
        "listener-from-environment",
        "route-path-twice",
        "yaml-at-sign",
    ] {
        let file = format!("tests/invalid/{name}.yaml");
        let yaml = std::fs::read_to_string(&file).unwrap();
        assert_refused(&check(&file), &expected_error(&file, &yaml));
        // The same without -t: it does not start.
        let started = binary().args(["-c", &file]).output().unwrap();
        assert_refused(&started, &expected_error(&file, &yaml));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_64_too() {
    let missing = "tests/invalid/there-is-none.yaml";
    let checked = check(missing);
    let told = String::from_utf8_lossy(&checked.stderr);
    assert!(
        told.starts_with(&format!("{missing}: cannot be read: ")),
        "{told}"
    );
    assert_eq!(checked.status.code(), Some(64));
    assert_eq!(binary().output().unwrap().status.code(), Some(64));
}

#[test]
fn the_keys_in_the_code_in_edge_yaml_and_in_the_documentation_are_the_same() {
    let known = known_keys();
    let shown: BTreeSet<_> = edge_keys().into_keys().collect();
    let documented: BTreeSet<_> = documented_keys().into_keys().collect();
    let ours = |keys: &BTreeSet<String>| -> BTreeSet<String> {
        let keys = keys.iter().filter(|key| key.starts_with("mcp."));
        keys.cloned().collect()
    };
    assert_eq!(ours(&shown), known);
    assert_eq!(documented, {
        let mut shown = shown;
        shown.remove("mcp");
        shown
    });
}

#[test]
fn the_defaults_in_the_documentation_are_those_in_edge_yaml() {
    let shown = edge_keys();
    for (key, default) in documented_keys() {
        if !["", "required"].contains(&&*default) {
            assert_eq!(shown[&key], default, "{key}");
        }
    }
}

#[test]
fn the_defaults_in_edge_yaml_are_the_real_ones() {
    let edge = Settings::load(EDGE).unwrap();
    let minimal = Settings::load("conf/minimal.yaml").unwrap();
    assert_eq!(edge.server, minimal.server);
    assert_eq!(format!("{:?}", edge.mcp), format!("{:?}", minimal.mcp));
}

/// Without it, the comparison of defaults would hold for a key that is not looked at. `tls` needs
/// files: `tests/tls.rs` has it.
#[test]
fn each_key_of_edge_yaml_changes_something() {
    let yaml = std::fs::read_to_string(EDGE).unwrap();
    let settings = |yaml: &str| format!("{:?}", parse(yaml, &[]).unwrap());
    let original = settings(&yaml);
    let mut changed = 0;
    let lines: Vec<_> = yaml.lines().collect();
    for (position, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.trim_start_matches([' ', '-']).split_once(": ") else {
            continue;
        };
        if line.trim_start().starts_with('#') || ["tls", "store"].contains(&key) {
            continue;
        }
        let other = match (key, value) {
            ("address", _) => "127.0.0.1:8081",
            ("path", _) => "/other",
            ("url", _) => "http://127.0.0.1:3001/mcp",
            ("host", _) => "client",
            ("public_url", _) => "https://mcp.example/mcp",
            ("headers", _) => "{x-key: a}",
            ("allowed_hosts", _) => "[mcp.example]",
            ("allow" | "deny", _) => "[ping]",
            ("origins", _) => "[]",
            ("expired_session_status", _) => "400",
            ("kind", _) => "tcp",
            ("method", _) => "HEAD",
            ("statuses", _) => "[200]",
            ("evict", _) => "oldest",
            ("format", _) => "json",
            ("key", _) => "0123456789abcdef",
            ("keys", _) => "[5a0c6f1e7d93b824f6e1d0c9b8a73625]",
            (_, "true") => "false",
            (_, "false") => "true",
            (_, "none") => "1s",
            (_, duration) if duration.ends_with(['s', 'm', 'h', 'd']) => "77s",
            (_, size) if size.ends_with('B') => "77KiB",
            (_, number) if number.parse::<u64>().is_ok() => "77",
            _ => "other",
        };
        let line_with_other = line.replace(&format!(": {value}"), &format!(": {other}"));
        let mut different = lines.clone();
        different[position] = &line_with_other;
        assert_ne!(settings(&different.join("\n")), original, "{key}");
        changed += 1;
    }
    let mut leaves = keys_of(&yaml);
    leaves.retain(|key, value| {
        let is_section = key.ends_with(".tls") || key.ends_with(".store");
        !value.is_empty() && !is_section
    });
    assert_eq!(changed, leaves.len());
}

#[test]
fn a_variable_is_taken_from_the_environment_in_strings_and_in_numbers() {
    let yaml = minimal_with(
        "  sessions:
    capacity: ${CAPACITY}
    lifetime: ${DAYS}d
    idle_timeout: ${NOT_SET:-5m}
  cors:
    credentials: ${CREDENTIALS}
  allowed_hosts:
    - mcp.${DOMAIN}
",
    );
    let environment = [
        ("CAPACITY", "77"),
        ("DAYS", "3"),
        ("CREDENTIALS", "true"),
        ("DOMAIN", "example"),
    ];
    let settings = parse(&yaml, &environment).unwrap();
    let sessions = &settings.mcp.sessions;
    assert_eq!(sessions.capacity.0, 77);
    assert_eq!(sessions.lifetime.0, Duration::from_secs(3 * DAY));
    assert_eq!(sessions.idle_timeout.0, Duration::from_secs(300));
    let said = format!("{:?}", settings.mcp);
    assert!(said.contains("mcp.example"), "{said}");
    assert!(said.contains("credentials: true"), "{said}");
}

#[test]
fn a_variable_brings_one_value_and_no_yaml() {
    let yaml = minimal_with("  allowed_hosts:\n    - ${NAMES}\n");
    let environment = [("NAMES", "a.example\n    - b.example")];
    let error = parse(&yaml, &environment).unwrap_err().to_string();
    assert!(
        error.contains("mcp.allowed_hosts[0]: not a host name"),
        "{error}"
    );
}

/// Both directions: it is used, and it is nowhere else.
#[test]
fn a_secret_from_the_environment_reaches_its_backend_and_no_debug() {
    let headers = |token: &str| format!("          headers:\n            x-key: {token}\n");
    let yaml = MINIMAL.to_owned() + &headers("${TOKEN}");
    let settings = parse(&yaml, &[("TOKEN", SECRET)]).unwrap();
    let mut routes = settings.mcp.routes.iter();
    let backend = routes.next().unwrap().pool.iter().next().unwrap();
    let [(name, value)] = backend.headers() else {
        panic!("there is one header");
    };
    assert_eq!(
        (name.as_str(), value.as_bytes()),
        ("x-key", SECRET.as_bytes())
    );
    assert!(!format!("{settings:?}").contains(SECRET));
    assert!(!format!("{backend}").contains(SECRET));
}

#[test]
fn neither_keys_nor_the_password_of_a_session_store_are_in_debug() {
    let yaml = std::fs::read_to_string("conf/cluster.yaml").unwrap();
    let settings = Settings::parse("cluster.yaml", &yaml, environment()).unwrap();
    let said = format!("{settings:?}");
    assert!(said.contains("Password(redacted)"), "{said}");
    for (name, value) in ENVIRONMENT {
        assert!(!said.contains(value), "{name}");
    }
}

#[test]
fn all_addresses_of_both_versions_may_have_one_port() {
    let both = "0.0.0.0:8080\n    - address: \"[::]:8080\"";
    let yaml = MINIMAL.replace("127.0.0.1:8080", both);
    let settings = parse(&yaml, &[]).unwrap();
    assert_eq!(settings.mcp.listeners.iter().count(), 2);
}

/// What else of the environment's values stands near must not take its place, nor its message.
#[test]
fn a_mistake_beside_a_value_from_the_environment_is_told_as_any_other() {
    let route = "    - path: /mcp
      backends:
        - name: a
          url: http://127.0.0.1:3000/mcp
          headers:
            x-key: ${TOKEN}
";
    let yaml = format!(
        "version: 1\nmcp:\n  listeners:\n    - address: 127.0.0.1:8080\n  routes:\n{route}{route}"
    );
    let error = parse(&yaml, &[("TOKEN", "path")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "edge.yaml:12:7: mcp.routes[1]: duplicate path: expected each once"
    );
}

proptest! {
    #[test]
    fn a_duration_is_its_number_of_its_unit(number in 1..36_500_u64, unit in 0..5_usize) {
        let (unit, milliseconds) =
            [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 60 * 60_000), ("d", DAY * 1000)][unit];
        let yaml = minimal_with(&format!("  sessions:\n    idle_timeout: {number}{unit}\n"));
        let settings = parse(&yaml, &[]).unwrap();
        let expected = Duration::from_millis(number * milliseconds);
        prop_assert_eq!(settings.mcp.sessions.idle_timeout.0, expected);
    }

    #[test]
    fn no_text_is_more_than_an_error(text in "[ -~\n]{0,80}", position in 0..MINIMAL.len()) {
        let mut yaml = MINIMAL.to_owned();
        yaml.insert_str(position, &text);
        if let Err(error) = parse(&yaml, &[]) {
            let error = error.to_string();
            prop_assert!(error.starts_with("edge.yaml:"), "{}", error);
            prop_assert!(!error.contains('\n'), "{}", error);
        }
    }
}

/// The keys of each of our sections, as the code itself names them where it is given another.
fn known_keys() -> BTreeSet<String> {
    let sections = [
        ("mcp", "mcp: {probe: 1}"),
        ("mcp.listeners[]", "mcp: {listeners: [{probe: 1}]}"),
        (
            "mcp.listeners[].tls",
            "mcp: {listeners: [{tls: {probe: 1}}]}",
        ),
        (
            "mcp.listeners[].tls.certificates[]",
            "mcp: {listeners: [{tls: {certificates: [{probe: 1}]}}]}",
        ),
        ("mcp.routes[]", "mcp: {routes: [{probe: 1}]}"),
        (
            "mcp.routes[].backends[]",
            "mcp: {routes: [{backends: [{probe: 1}]}]}",
        ),
        (
            "mcp.routes[].backends[].tls",
            "mcp: {routes: [{backends: [{tls: {probe: 1}}]}]}",
        ),
        (
            "mcp.routes[].methods",
            "mcp: {routes: [{methods: {probe: 1}}]}",
        ),
        ("mcp.routes[].tools", "mcp: {routes: [{tools: {probe: 1}}]}"),
        (
            "mcp.routes[].timeouts",
            "mcp: {routes: [{timeouts: {probe: 1}}]}",
        ),
        (
            "mcp.routes[].limits",
            "mcp: {routes: [{limits: {probe: 1}}]}",
        ),
        (
            "mcp.routes[].health",
            "mcp: {routes: [{health: {other: 1}}]}",
        ),
        (
            "mcp.routes[].health.probe",
            "mcp: {routes: [{health: {probe: {probe: 1}}}]}",
        ),
        (
            "mcp.routes[].compatibility",
            "mcp: {routes: [{compatibility: {probe: 1}}]}",
        ),
        ("mcp.sessions", "mcp: {sessions: {probe: 1}}"),
        ("mcp.sessions.reap", "mcp: {sessions: {reap: {probe: 1}}}"),
        ("mcp.sessions.seal", "mcp: {sessions: {seal: {probe: 1}}}"),
        (
            "mcp.sessions.store.redis",
            "mcp: {sessions: {store: {redis: {probe: 1}}}}",
        ),
        (
            "mcp.sessions.store.redis.sentinel",
            "mcp: {sessions: {store: {redis: {sentinel: {probe: 1}}}}}",
        ),
        (
            "mcp.sessions.store.redis.tls",
            "mcp: {sessions: {store: {redis: {tls: {probe: 1}}}}}",
        ),
        ("mcp.timeouts", "mcp: {timeouts: {probe: 1}}"),
        ("mcp.limits", "mcp: {limits: {probe: 1}}"),
        ("mcp.cors", "mcp: {cors: {probe: 1}}"),
        ("mcp.drain", "mcp: {drain: {probe: 1}}"),
        ("mcp.admin", "mcp: {admin: {probe: 1}}"),
        ("mcp.metrics", "mcp: {metrics: {probe: 1}}"),
        ("mcp.access_log", "mcp: {access_log: {probe: 1}}"),
    ];
    // What an enum is chosen by is named as a value.
    let mut keys = BTreeSet::from(["mcp.sessions.store.redis".to_owned()]);
    for (section, yaml) in sections {
        let error = parse(yaml, &[]).unwrap_err().to_string();
        let (_, names) = error.split_once("unknown key: expected one of ").unwrap();
        keys.extend(names.split(", ").map(|name| format!("{section}.{name}")));
    }
    keys
}

/// The keys of `conf/edge.yaml`, each with its value; that of a section is empty. A section that is
/// `null` is shown below, commented out.
fn edge_keys() -> BTreeMap<String, String> {
    let yaml = std::fs::read_to_string(EDGE).unwrap();
    let mut keys = keys_of(&with_null_sections(&yaml));
    keys.extend(keys_of(&yaml));
    keys
}

/// Puts what is commented out below `tls: null` and `store: memory` in their places.
fn with_null_sections(yaml: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut is_shown = false;
    for line in yaml.lines() {
        let shown = line.trim_start().strip_prefix("# ");
        match shown {
            Some(key @ ("tls:" | "store:")) if !is_shown => {
                let instead = if key == "tls:" { "null" } else { "memory" };
                let expected = format!("{key} {instead}");
                assert_eq!(lines.pop().unwrap().trim(), expected);
                is_shown = true;
            }
            Some(_) => {}
            None => is_shown = false,
        }
        match shown {
            Some(_) if is_shown => lines.push(line.replacen("# ", "", 1)),
            Some(_) | None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

fn keys_of(yaml: &str) -> BTreeMap<String, String> {
    fn walk(parent: &str, value: &Value, keys: &mut BTreeMap<String, String>) -> bool {
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    let path = format!("{parent}.{key}").trim_start_matches('.').to_owned();
                    let text = match value {
                        _ if walk(&path, value, keys) => String::new(),
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    keys.insert(path, text);
                }
                true
            }
            Value::Array(entries) => {
                let path = format!("{parent}[]");
                let sections = entries.iter().filter(|entry| walk(&path, entry, keys));
                sections.count() > 0
            }
            _ => false,
        }
    }
    let mut keys = BTreeMap::new();
    walk("", &serde_saphyr::from_str(yaml).unwrap(), &mut keys);
    keys
}

/// The keys of the tables in `docs/configuration.md`, each with its default.
fn documented_keys() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string("docs/configuration.md").unwrap();
    let mut keys = BTreeMap::new();
    let mut section = "";
    let mut is_table_of_keys = false;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.trim_matches('`');
        }
        let cells: Vec<_> = line
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        match cells.as_slice() {
            ["", "key", "type", "default", "", ""] => is_table_of_keys = true,
            ["", "---", ..] => {}
            ["", key, _, default, _, ""] if is_table_of_keys => {
                let path = match section {
                    "Pingora's keys" => (*key).to_owned(),
                    _ => format!("{section}.{key}"),
                };
                keys.insert(path, (*default).to_owned());
            }
            _ => is_table_of_keys = false,
        }
    }
    keys
}

/// All files of a folder, by name.
fn files(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.map(|path| as_text(&path)).collect();
    files.sort();
    files
}

fn as_text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// What the first line of an invalid file says of it.
fn expected_error(file: &str, yaml: &str) -> String {
    let first = yaml.lines().next().unwrap();
    format!("{file}:{}", first.strip_prefix("# ").unwrap())
}

fn parse(yaml: &str, environment: &[(&str, &str)]) -> Result<Settings, pingora_mcp::ConfigError> {
    let environment = environment.iter();
    let environment = environment.map(|(name, value)| (name.to_string(), value.to_string()));
    Settings::parse("edge.yaml", yaml, environment.collect())
}

fn minimal_with(mcp: &str) -> String {
    MINIMAL.to_owned() + mcp
}

/// What the files find in their environment.
fn environment() -> HashMap<String, String> {
    let variables = ENVIRONMENT.iter();
    variables
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pingora-mcp"));
    command.env_clear().envs(ENVIRONMENT);
    command
}

fn check(file: &str) -> Output {
    binary().args(["-t", "-c", file]).output().unwrap()
}

fn assert_refused(output: &Output, error: &str) {
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        format!("{error}\n")
    );
    assert!(output.stdout.is_empty(), "{output:?}");
}

const EDGE: &str = "conf/edge.yaml";

const MINIMAL: &str = include_str!("../conf/minimal.yaml");

const SECRET: &str = "s3cret";

const ENVIRONMENT: [(&str, &str); 5] = [
    ("SECRET", SECRET),
    ("REDIS_PASSWORD", SECRET),
    ("SESSION_KEY", "MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4f"),
    ("PATH_SECRET", "/s3cret"),
    ("QUOTING_SECRET", "s3cret ${"),
];

const DAY: u64 = 24 * 60 * 60;
