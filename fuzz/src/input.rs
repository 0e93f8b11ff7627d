//! How inputs are written, so that people can read and write them: lines, and headers as on the wire.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The first line, and what follows it.
pub fn first_line(input: &[u8]) -> (&[u8], &[u8]) {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, b""),
    }
}

/// The lines before the first empty one, and what follows that.
pub fn head(mut input: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut lines = Vec::new();
    while !input.is_empty() {
        let (line, rest) = first_line(input);
        input = rest;
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    (lines, input)
}

/// The header that a line is, where it is one.
pub fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
    Some((name, value))
}

/// The headers that lines are. What is none is left out.
pub fn headers(lines: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines.iter().filter_map(|line| header(line)) {
        headers.append(name, value);
    }
    headers
}

/// Text, if it is some.
pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
