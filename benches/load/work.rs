//! The work that is measured: what MCP does, and how much of it at a time.

use std::time::Duration;

use super::client::Protocol;
use super::message::Message;
use super::peers::Peer;

/// A piece of work, done through each of its peers in turn.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) name: String,
    /// What it is, for a heading.
    pub(crate) title: String,
    /// What is counted, and has a latency and a cost.
    pub(crate) unit: &'static str,
    pub(crate) load: Load,
    pub(crate) protocol: Protocol,
    pub(crate) peers: &'static [Peer],
}

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Each of so many clients does the next turn when the one before is over.
    Turns { clients: usize, turn: Turn },
    /// So many calls a second come due, whether or not those before are over. A latency counts from then.
    Paced { clients: usize, rate: u32 },
    /// So many streams are open, and each gets an event in each period.
    Streams { streams: usize, period: Duration },
    /// The process starts, and answers its first request.
    Start,
}

/// What a client does again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    Call(Message),
    /// Opens a session and ends it.
    Session,
    /// Connects, calls, and is disconnected.
    Connection,
}

impl Work {
    /// All there is. `most_streams` is how many connections each process may have.
    pub(crate) fn all(most_streams: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for (name, era, message) in [
            ("session-post", "in a session", Message::Call),
            (
                "stateless-post",
                "in the stateless era",
                Message::StatelessCall,
            ),
        ] {
            for clients in [1, 16, 64, 256] {
                let turn = Turn::Call(message);
                all.push(Self::new(
                    format!("{name}-{clients}"),
                    format!("POST {era}, {clients} at a time"),
                    "request",
                    Load::Turns { clients, turn },
                ));
            }
        }
        for (name, title, unit, clients, turn) in [
            (
                "session-churn",
                "Sessions opened and ended",
                "session",
                16,
                Turn::Session,
            ),
            (
                "answer-stream",
                "POST answered by a stream of 20 events",
                "answer",
                16,
                Turn::Call(Message::CallWithEvents),
            ),
            (
                "upload",
                "POST of 1 MiB",
                "request",
                4,
                Turn::Call(Message::Upload),
            ),
            (
                "download",
                "POST answered by 1 MiB",
                "request",
                4,
                Turn::Call(Message::Download),
            ),
            (
                "connection-churn",
                "A connection for each POST",
                "request",
                16,
                Turn::Connection,
            ),
        ] {
            let title = format!("{title}, {clients} at a time");
            let load = Load::Turns { clients, turn };
            all.push(Self::new(name.to_owned(), title, unit, load));
        }
        for (name, title, protocol) in [
            (
                "tls",
                "POST in a session over TLS, 64 at a time",
                Protocol::Http1OverTls,
            ),
            (
                "h2",
                "POST in a session over HTTP/2, 64 at a time on 4 connections",
                Protocol::Http2,
            ),
        ] {
            let turn = Turn::Call(Message::Call);
            let load = Load::Turns { clients: 64, turn };
            all.push(Self {
                protocol,
                // The backend has no TLS.
                peers: PROXIES,
                ..Self::new(name.to_owned(), title.to_owned(), "request", load)
            });
        }
        all.push(Self::new(
            "fixed-rate".to_owned(),
            "POST in a session, 1,000 a second".to_owned(),
            "request",
            Load::Paced {
                clients: 64,
                rate: 1000,
            },
        ));
        for (wanted, period) in [(500, 250), (1_000, 1_000), (10_000, 1_000)] {
            let streams = wanted.min(most_streams);
            let period = Duration::from_millis(period);
            all.push(Self::new(
                format!("fan-out-{wanted}"),
                format!("{streams} open streams, each with an event every {period:?}"),
                "event",
                Load::Streams { streams, period },
            ));
        }
        let turn = Turn::Call(Message::Call);
        all.push(Self {
            peers: &[Peer::PingoraMcp, Peer::TwoThreads, Peer::HundredBackends],
            ..Self::new(
                "growth".to_owned(),
                "POST in a session, 200 at a time".to_owned(),
                "request",
                Load::Turns { clients: 200, turn },
            )
        });
        all.push(Self {
            peers: PROXIES,
            ..Self::new(
                "cold-start".to_owned(),
                "From the start of the process to the first answer".to_owned(),
                "start",
                Load::Start,
            )
        });
        all
    }

    fn new(name: String, title: String, unit: &'static str, load: Load) -> Self {
        Self {
            name,
            title,
            unit,
            load,
            protocol: Protocol::Http1,
            peers: EACH,
        }
    }

    /// Whether `choice` means it: by its name, or by what several names begin with.
    pub(crate) fn is_meant_by(&self, choice: &str) -> bool {
        let rest = self.name.strip_prefix(choice);
        choice == "all" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    /// Whether each round begins with a new process, whose memory tells something.
    pub(crate) fn wants_new_process(&self) -> bool {
        match self.load {
            Load::Streams { .. } | Load::Start => true,
            Load::Turns { .. } | Load::Paced { .. } => false,
        }
    }
}

/// In the order of a round.
const EACH: &[Peer] = &[
    Peer::Direct,
    Peer::PingoraMcp,
    Peer::BarePingora,
    Peer::Nginx,
    Peer::HaProxy,
    Peer::Envoy,
];

const PROXIES: &[Peer] = EACH.split_at(1).1;
