//! The configuration file: whatever stands in it, no error repeats a value of the environment.

use std::collections::HashMap;

use pingora_mcp::Settings;

use super::input::text;

/// `input`: the file, with `${SECRET}` where a secret is.
pub fn configuration(input: &[u8]) {
    let Some(yaml) = text(input).filter(|yaml| stays_here(yaml)) else {
        return;
    };
    let environment = HashMap::from([("SECRET".to_owned(), SECRET.to_owned())]);
    if let Err(error) = Settings::parse("edge.yaml", yaml, environment) {
        let said = format!("{error} {error:?}");
        assert!(!said.contains(SECRET), "{said}");
        assert!(!said.contains(char::is_control), "{said:?}");
        assert!(said.starts_with("edge.yaml:"), "{said}");
    }
}

/// Whether nothing is looked up for it that is not on this machine, or never ends: each URL is of an
/// address, and cannot be put together of parts that do not show it.
fn stays_here(yaml: &str) -> bool {
    let lower = yaml.to_ascii_lowercase();
    let mut urls = lower.split("http").skip(1);
    let mut variables = yaml.split("${").skip(1);
    urls.all(|rest| {
        let rest = rest.strip_prefix('s').unwrap_or(rest);
        let rest = rest.strip_prefix("://127.0.0.1");
        rest.is_some_and(|rest| rest.starts_with([':', '/', '\n', '"', '\'']))
    }) && variables.all(|rest| rest.starts_with("SECRET}"))
        && !yaml.contains(['\\', '\t', '\r'])
        && !yaml.contains("/dev")
}

const SECRET: &str = "s3cr3t-0f-the-3nv1r0nm3nt";
