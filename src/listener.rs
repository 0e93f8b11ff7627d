//! Where clients connect, and how.

use std::net::SocketAddr;

use pingora_core::listeners::{ListenerConfig, TcpSocketOptions};
use serde::{Deserialize, Deserializer};

use crate::backend::tcp_keepalive;
use crate::setting::{Address, Entries, Entry, parse};
use crate::tls::ListenerTls;

/// What is listened on: at least one address, each once.
#[derive(Clone, Debug, PartialEq)]
pub struct Listeners(Vec<Listener>);

/// An entry of `mcp.listeners` in the configuration file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Listener {
    /// An IP address and a port.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Its certificates. `None`: no TLS.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
    /// Whether HTTP/2 is spoken without TLS too, to clients that begin with it (RFC 9113 3.3).
    #[serde(default)]
    pub h2c: bool,
}

impl Listener {
    /// For `add_listener` of a service of Pingora's.
    pub fn endpoint(&self) -> ListenerConfig {
        let mut socket = TcpSocketOptions::default();
        socket.tcp_keepalive = Some(tcp_keepalive());
        let endpoint = ListenerConfig::tcp(self.address.to_string()).tcp_socket_options(socket);
        match &self.tls {
            Some(tls) => endpoint.tls(tls.settings()),
            None => endpoint,
        }
    }
}

impl Listeners {
    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.iter()
    }

    /// Whether those without TLS speak HTTP/2.
    pub(crate) fn speak_h2c(&self) -> bool {
        self.0.iter().any(|listener| listener.h2c)
    }
}

impl<'de> Deserialize<'de> for Listeners {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Entries<Listener>, _, _>(deserializer)
    }
}

impl TryFrom<Entries<Listener>> for Listeners {
    type Error = &'static str;

    fn try_from(Entries(listeners): Entries<Listener>) -> Result<Self, Self::Error> {
        let (with_tls, without): (Vec<_>, Vec<_>) = listeners
            .iter()
            .partition(|listener| listener.tls.is_some());
        if with_tls.iter().any(|listener| listener.h2c) {
            return Err("'h2c' where there is 'tls': expected it on others only");
        }
        // Pingora knows one setting for all that it serves.
        if without.windows(2).any(|pair| pair[0].h2c != pair[1].h2c) {
            return Err("'h2c' of some: expected the same on all without 'tls'");
        }
        Ok(Self(listeners))
    }
}

impl Entry for Listener {
    const DUPLICATE: &'static str = "duplicate address: expected each once";

    fn is_same(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let Address(address) = Address::deserialize(deserializer)?;
    Ok(address)
}
