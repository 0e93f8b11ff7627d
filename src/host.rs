//! Which names a server is reached by: the check of `Host` that stops DNS rebinding.
//!
//! A page of `attacker.example` whose name suddenly resolves to 127.0.0.1 reaches a server on
//! loopback with the page's own origin; only `Host` gives it away. Servers check it themselves,
//! but behind a proxy they see the name that the proxy sends, so the check is made here
//! (MCP 2025-11-25, Transports, Security Warning).

use std::net::IpAddr;

use http::uri::Authority;
use serde::{Deserialize, Deserializer};

use crate::setting::{Text, parse};

/// How a client reached this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// At a loopback address: from this machine, or through a name that was made to point to it.
    #[default]
    Loopback,
    /// At any other address.
    Network,
}

/// The names by which clients may address this server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct HostPolicy {
    /// Empty: any name on a network address, loopback names on a loopback address.
    allowed: Vec<HostName>,
}

impl HostPolicy {
    /// Whether a request for `authority` (`Host`, or HTTP/2's `:authority`) is let in.
    ///
    /// Over a loopback address, loopback names are always good, and others only if listed. Over
    /// another address any name is good as long as none is listed. A request without a host
    /// (HTTP/1.0 only) does not come from a browser and is let in.
    pub fn allows(&self, authority: Option<&str>, reach: Reach) -> bool {
        let Some(authority) = authority else {
            return true;
        };
        if self.allowed.is_empty() && reach == Reach::Network {
            return true;
        }
        let host = without_port(authority);
        if reach == Reach::Loopback && is_loopback(host) {
            return true;
        }
        let mut allowed = self.allowed.iter();
        allowed.any(|HostName(name)| name.eq_ignore_ascii_case(host))
    }
}

/// A name without port, or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostName(String);

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for HostName {
    type Error = &'static str;

    fn try_from(Text(name): Text) -> Result<Self, Self::Error> {
        match name.parse::<Authority>() {
            Ok(authority) if authority.host() == name => Ok(Self(name)),
            _ => Err("not a host name: expected one without scheme, port or path"),
        }
    }
}

/// What is no host is left as it is, and equal to none.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether `host` (a name, an IPv4 address or an IPv6 address in brackets) is this machine.
pub fn is_loopback(host: &str) -> bool {
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(names: &[&str]) -> HostPolicy {
        let names = names.iter().map(|name| Text(name.to_string()));
        HostPolicy {
            allowed: names
                .map(|name| HostName::try_from(name).unwrap())
                .collect(),
        }
    }

    #[test]
    fn loopback_takes_loopback_names_and_listed_ones_only() {
        let policy = policy(&["mcp.example"]);
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]:80",
        ] {
            assert!(policy.allows(Some(host), Reach::Loopback), "{host}");
        }
        assert!(policy.allows(Some("MCP.example:443"), Reach::Loopback));
        for host in [
            "attacker.example",
            "localhost.attacker.example",
            "10.0.0.1",
            "",
            "[::1",
            "user@localhost",
            "localhost:80:80",
            "localhost:port",
        ] {
            assert!(!policy.allows(Some(host), Reach::Loopback), "{host}");
        }
    }

    #[test]
    fn a_network_address_takes_any_name_until_one_is_listed() {
        assert!(policy(&[]).allows(Some("anything.example"), Reach::Network));
        assert!(policy(&["mcp.example"]).allows(Some("mcp.example"), Reach::Network));
        assert!(!policy(&["mcp.example"]).allows(Some("other.example"), Reach::Network));
        assert!(!policy(&["mcp.example"]).allows(Some("localhost"), Reach::Network));
    }

    #[test]
    fn listed_names_are_bare() {
        for name in [
            "mcp.example:8080",
            "http://mcp.example",
            "mcp.example/mcp",
            "",
        ] {
            assert!(
                HostName::try_from(Text(name.to_string())).is_err(),
                "{name}"
            );
        }
    }
}
