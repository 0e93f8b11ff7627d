//! The configuration file: whatever stands in it, no error repeats a value of the environment.

use std::collections::HashMap;

use pingora_mcp::Settings;

use super::input::text;

/// `input`: the file, with `${SECRET}` where a secret is.
pub fn configuration(input: &[u8]) {
    let Some(yaml) = text(input).filter(|yaml| ends(yaml)) else {
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

/// Whether no file is read for it that never ends: none is a device's, whose path would show.
fn ends(yaml: &str) -> bool {
    !yaml.contains('\\') && !yaml.contains("/dev")
}

const SECRET: &str = "s3cr3t-0f-the-3nv1r0nm3nt";
