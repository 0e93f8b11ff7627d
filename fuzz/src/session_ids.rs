//! Session ids: each side's are of one form, written as they were read, and never printed.

use http::HeaderValue;
use pingora_mcp::mcp::{BackendSessionId, ClientSessionId};

/// `input`: a value of `Mcp-Session-Id`.
pub fn session_ids(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let client = ClientSessionId::try_from(&value);
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    assert_eq!(
        client.is_ok(),
        input.len() == 32 && input.iter().all(is_hex)
    );
    if let Ok(id) = client {
        assert_eq!(id.to_header(), value);
        assert_eq!(format!("{id:?}"), "ClientSessionId(redacted)");
        assert_eq!(format!("{:?}", id.to_header()), "Sensitive");
    }
    let backend = BackendSessionId::try_from(&value);
    let is_visible = |byte: &u8| (0x21..=0x7e).contains(byte);
    let is_allowed = (1..=1024).contains(&input.len()) && input.iter().all(is_visible);
    assert_eq!(backend.is_ok(), is_allowed);
    if let Ok(id) = backend {
        assert_eq!(id.to_header(), value);
        assert_eq!(format!("{id:?}"), "BackendSessionId(redacted)");
        assert_eq!(format!("{:?}", id.to_header()), "Sensitive");
    }
}
