//! OAuth discovery: the public URL takes the place of the backend's, and nothing else changes.

use http::HeaderValue;
use pingora_mcp::discovery::{PublicUrl, WellKnown};
use serde_json::{Map, Value, json};

use super::input::{first_line, text};

/// `input`: a public URL, a path, a challenge, each on a line of its own, then a document.
pub fn discovery(input: &[u8]) {
    let (url, rest) = first_line(input);
    let (path, rest) = first_line(rest);
    let (challenge, document) = first_line(rest);
    let (Some(url), Some(path)) = (text(url), text(path)) else {
        return;
    };
    if let Some(WellKnown { document, endpoint }) = WellKnown::parse(path) {
        assert_eq!(format!("{document}{endpoint}"), path);
        assert!(endpoint.is_empty() || endpoint.starts_with('/'));
    }
    let Ok(url) = serde_json::from_value::<PublicUrl>(json!(url)) else {
        return;
    };
    check_document(&url, document);
    if let Ok(challenge) = HeaderValue::from_bytes(challenge) {
        check_challenge(&url, &challenge);
    }
}

fn check_document(url: &PublicUrl, document: &[u8]) {
    let read = |document: &[u8]| serde_json::from_slice::<Map<String, Value>>(document);
    let Some(rewritten) = url.rewrite_document(document) else {
        assert!(
            read(document).is_ok_and(|read| !read.contains_key("resource"))
                || read(document).is_err()
        );
        return;
    };
    let mut expected = read(document).expect("what was rewritten is an object");
    let written = read(&rewritten).expect("what is written is an object");
    let resource = written["resource"].as_str().expect("a URL is text");
    assert!(!resource.ends_with('/'), "{resource}");
    expected["resource"] = json!(resource);
    assert!(written.iter().eq(&expected));
    assert_eq!(url.rewrite_document(&rewritten), Some(rewritten));
}

/// All but what stands in quotes after the parameter's name.
fn check_challenge(url: &PublicUrl, challenge: &HeaderValue) {
    let Some(rewritten) = url.rewrite_challenge(challenge) else {
        return;
    };
    let around = |challenge: &HeaderValue| {
        let text = challenge
            .to_str()
            .expect("what was rewritten is text")
            .to_owned();
        let (before, value) = text.split_once(PARAMETER).expect("it has the parameter");
        let (_, after) = value.split_once('"').expect("its value ends");
        (before.to_owned(), after.to_owned())
    };
    assert_eq!(around(challenge), around(&rewritten));
    assert_eq!(url.rewrite_challenge(&rewritten), Some(rewritten));
}

const PARAMETER: &str = "resource_metadata=\"";
