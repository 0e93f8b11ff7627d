//! Where clients connect, and how.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::SystemTime;

use pingora_core::listeners::{ListenerConfig, TcpSocketOptions};
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::stream::{L4BufferSettings, Stream as TcpStream};
use pingora_core::{Error, ErrorType, Result};
use serde::{Deserialize, Deserializer};
use socket2::{Domain, Socket, Type};

use crate::backend::tcp_keepalive;
use crate::setting::{Address, Entries, Entry, parse};
use crate::tls::{Handshake, ListenerTls};

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
    /// For `add_listener` of a service of your own around the gateway. The TLS handshake is
    /// Pingora's there, with its limit of 60 s, and a changed `client_ca` ends no session.
    pub fn endpoint(&self) -> ListenerConfig {
        match &self.tls {
            Some(tls) => self.socket().tls(tls.settings()),
            None => self.socket(),
        }
    }

    /// Whether a system lets nobody listen on `other` beside it. What listens on all IPv6 addresses
    /// takes no IPv4.
    pub(crate) fn overlaps(&self, other: SocketAddr) -> bool {
        let is_all = self.address.ip().is_unspecified() || other.ip().is_unspecified();
        let is_one_port =
            self.address.port() == other.port() && self.address.is_ipv4() == other.is_ipv4();
        self.address == other || (is_all && is_one_port)
    }

    /// The same without the TLS, which [`Handshakes`] adds.
    pub(crate) fn socket(&self) -> ListenerConfig {
        let mut options = socket_options(self.address);
        options.tcp_keepalive = Some(tcp_keepalive());
        let read_buffer = match &self.tls {
            Some(_) => TLS_READ_BUFFER,
            None => READ_BUFFER,
        };
        ListenerConfig::tcp(self.address.to_string())
            .tcp_socket_options(options)
            .l4_buffer(L4BufferSettings::default().read(read_buffer))
    }
}

impl Listeners {
    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.iter()
    }

    /// When the first of all certificates expires. `None` without TLS.
    pub fn expire(&self) -> Option<SystemTime> {
        let tls = self.0.iter().filter_map(|listener| listener.tls.as_ref());
        tls.filter_map(ListenerTls::expires).min()
    }

    /// Whether those without TLS speak HTTP/2.
    pub(crate) fn speak_h2c(&self) -> bool {
        self.0.iter().any(|listener| listener.h2c)
    }
}

/// The TLS handshakes of some listeners, for connections as they come from the socket: Pingora's
/// own are neither counted nor limited as configured.
pub(crate) struct Handshakes(Vec<(SocketAddr, Option<Handshake>)>);

impl Handshakes {
    pub(crate) fn of(listeners: &Listeners) -> Self {
        let handshake = |listener: &Listener| {
            let tls = listener.tls.as_ref();
            (listener.address, tls.map(ListenerTls::handshake))
        };
        Self(listeners.iter().map(handshake).collect())
    }

    /// `stream` after its handshake, or as it is where its listener has no TLS.
    ///
    /// # Errors
    /// The handshake fails, or it came in where no listener is known to be: it may be one with TLS.
    pub(crate) async fn accept(&self, stream: Stream) -> Result<Stream> {
        let Some(handshake) = self.handshake(&stream)? else {
            return Ok(stream);
        };
        let Ok(tcp) = stream.into_any().downcast::<TcpStream>() else {
            return Error::e_explain(ErrorType::InternalError, "the connection is no socket's");
        };
        Ok(Box::new(handshake.accept(*tcp).await?))
    }

    /// By the address that the client has connected to: the listener's own, or any where it
    /// listens on all. A system has no two listeners for one.
    fn handshake(&self, stream: &Stream) -> Result<Option<&Handshake>> {
        if self.0.iter().all(|(_, tls)| tls.is_none()) {
            return Ok(None);
        }
        let digest = stream.get_socket_digest();
        let local = digest.as_ref().and_then(|digest| digest.local_addr());
        let Some(local) = local.and_then(|local| local.as_inet()) else {
            return Error::e_explain(ErrorType::InternalError, "where it came in is not known");
        };
        let is_here = |listener: &SocketAddr| {
            let ip = listener.ip().to_canonical();
            let is_all = ip.is_unspecified() && listener.is_ipv4() == local.is_ipv4();
            listener.port() == local.port() && (is_all || ip == local.ip().to_canonical())
        };
        match self.0.iter().find(|(listener, _)| is_here(listener)) {
            Some((_, tls)) => Ok(tls.as_ref()),
            None => Error::e_explain(ErrorType::InternalError, "it came in at no listener"),
        }
    }
}

impl<'de> Deserialize<'de> for Listeners {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Entries<Listener>, _, _>(deserializer)
    }
}

impl TryFrom<Entries<Listener>> for Listeners {
    type Error = String;

    fn try_from(Entries(listeners): Entries<Listener>) -> Result<Self, Self::Error> {
        for (second, listener) in listeners.iter().enumerate() {
            let mut before = listeners[..second].iter();
            if let Some(first) = before.position(|first| first.overlaps(listener.address)) {
                return Err(format!(
                    "[{first}] and [{second}] have one port, and one of them has all addresses: \
                     expected another port, or that one alone"
                ));
            }
        }
        let (with_tls, without): (Vec<_>, Vec<_>) = listeners
            .iter()
            .partition(|listener| listener.tls.is_some());
        if with_tls.iter().any(|listener| listener.h2c) {
            return Err("'h2c' where there is 'tls': expected it on others only".to_owned());
        }
        // Pingora knows one setting for all that it serves.
        if without.windows(2).any(|pair| pair[0].h2c != pair[1].h2c) {
            return Err("'h2c' of some: expected the same on all without 'tls'".to_owned());
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

/// A socket that takes connections at `address` from now on.
///
/// # Errors
/// What the system says.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Connections of a process that has ended may be there still.
    socket.set_reuse_address(true)?;
    if is_ipv6_only(address) {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What has Pingora bind one like that.
pub(crate) fn socket_options(address: SocketAddr) -> TcpSocketOptions {
    let mut options = TcpSocketOptions::default();
    options.ipv6_only = is_ipv6_only(address).then_some(true);
    options
}

/// Whether it is of IPv6 alone. Left to the system, `[::]` takes IPv4 as well, and has `0.0.0.0` be
/// in use.
fn is_ipv6_only(address: SocketAddr) -> bool {
    // An address of IPv4 in IPv6's form takes IPv4, or nothing.
    address.ip().to_canonical().is_ipv6()
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let Address(address) = Address::deserialize(deserializer)?;
    Ok(address)
}

/// Pingora's own. The system has its limit, too.
const BACKLOG: i32 = 65_535;

/// None: headers and bodies are read into buffers of their own. A connection would keep this one, by
/// default of 64 KiB, for as long as it is open.
const READ_BUFFER: usize = 0;

/// A TLS record, which is read in pieces.
const TLS_READ_BUFFER: usize = 16 * 1024;
