//! How many sessions there are, in all and of each client's network, and how fast it opens more.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use pingora_limits::rate::Rate;

use super::{Evict, OpenError, SessionSettings};

/// Whose sessions are counted together: an IPv4 address, or the /64 that an IPv6 address is of,
/// as one subscriber has all of it (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientNetwork(Network);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Network {
    V4(Ipv4Addr),
    V6([u8; 8]),
}

impl From<IpAddr> for ClientNetwork {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => Network::V4(address),
            IpAddr::V6(address) => Network::V6(((address.to_bits() >> 64) as u64).to_be_bytes()),
        })
    }
}

/// How many sessions there are, and how many of each network that has one.
pub(super) struct Clients {
    total: u64,
    capacity: u64,
    evict: Evict,
    sessions: HashMap<ClientNetwork, usize>,
    most: usize,
    opened: Rate,
    most_opened: isize,
}

impl Clients {
    pub(super) fn new(settings: &SessionSettings) -> Self {
        let most_opened = settings.max_new_per_client.0;
        Self {
            total: 0,
            capacity: settings.capacity.0,
            evict: settings.evict,
            sessions: HashMap::new(),
            most: settings.max_per_client.0.unwrap_or(usize::MAX),
            opened: Rate::new(Duration::from_secs(1)),
            most_opened: most_opened
                .and_then(|most| most.try_into().ok())
                .unwrap_or(isize::MAX),
        }
    }

    /// How many sessions there are.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether there are more than there may be, as the oldest are still to go.
    pub(super) fn are_too_many(&self) -> bool {
        self.total > self.capacity
    }

    /// Whether `client` may open one more session. One on a Unix socket has no bound of its own.
    pub(super) fn check(&self, client: Option<ClientNetwork>) -> Result<(), OpenError> {
        if let Some(client) = client
            && self.opened.observe(&client, 0) >= self.most_opened
        {
            return Err(OpenError::ClientRate);
        }
        self.check_held(client)
    }

    /// Whether `client` may have one more session, opened now or before.
    pub(super) fn check_held(&self, client: Option<ClientNetwork>) -> Result<(), OpenError> {
        if let Some(client) = client
            && let Some(held) = self.sessions.get(&client)
            && *held >= self.most
        {
            return Err(OpenError::ClientFull);
        }
        match self.evict {
            Evict::None if self.total >= self.capacity => Err(OpenError::Full),
            Evict::None | Evict::Oldest => Ok(()),
        }
    }

    /// Counts a session that is opened now.
    pub(super) fn open(&mut self, client: Option<ClientNetwork>) {
        if let Some(client) = &client {
            self.opened.observe(client, 1);
        }
        self.add(client);
    }

    /// Counts a session that takes the place of one that will be counted out.
    pub(super) fn add(&mut self, client: Option<ClientNetwork>) {
        self.total += 1;
        if let Some(client) = client {
            *self.sessions.entry(client).or_default() += 1;
        }
    }

    /// Counts a session that is gone, for whatever cause.
    pub(super) fn remove(&mut self, client: Option<ClientNetwork>) {
        self.total -= 1;
        let Some(client) = client else {
            return;
        };
        if let Some(held) = self.sessions.get_mut(&client) {
            *held -= 1;
            if *held == 0 {
                self.sessions.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str) -> ClientNetwork {
        ClientNetwork::from(address.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_ipv6_client_is_its_64_bits_of_network() {
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }

    #[test]
    fn a_network_without_sessions_takes_no_memory() {
        let mut clients = Clients::new(&SessionSettings::default());
        for address in 0..100_u32 {
            let client = Some(IpAddr::from(address.to_be_bytes()).into());
            clients.open(client);
            clients.open(client);
            clients.remove(client);
            clients.remove(client);
        }
        assert!(clients.sessions.is_empty());
    }
}
