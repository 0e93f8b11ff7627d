//! What has to be the same with and without the proxy, and the differences that are right.

use crate::conversation::{Facts, STEPS};
use crate::peers::{Client, Server};

/// What a client has seen of a server, in both ways.
pub(crate) struct Pair {
    pub(crate) client: &'static Client,
    pub(crate) server: &'static Server,
    pub(crate) direct: Facts,
    pub(crate) proxied: Facts,
}

/// A difference between the two ways that is right.
pub(crate) struct Reason {
    pub(crate) step: &'static str,
    pub(crate) direct: &'static str,
    pub(crate) proxied: &'static str,
    pub(crate) why: &'static str,
}

/// All of them. One that is not needed is a mistake, too.
pub(crate) static REASONS: [Reason; 3] = [
    Reason {
        step: "502",
        direct: "error: connection refused",
        proxied: "error: HTTP 502",
        why: "a server that is gone refuses connections, and the proxy, which is there, says so",
    },
    Reason {
        step: "502",
        direct: "error: ConnectError",
        proxied: "error: JSON-RPC -32603",
        why: "the same in the words of the Python SDK",
    },
    Reason {
        step: "502",
        direct: "error: unreachable, exit code 4",
        proxied: "error: HTTP 502, exit code 1",
        why: "the same in the words of the inspector",
    },
];

impl Pair {
    /// The step, the fact without the proxy, and the one with it.
    pub(crate) fn facts(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        let facts = self.direct.iter().zip(&self.proxied);
        let facts = STEPS.into_iter().zip(facts);
        facts.map(|(step, (direct, proxied))| (step, direct.as_str(), proxied.as_str()))
    }

    /// What is wrong.
    pub(crate) fn complaints(&self) -> impl Iterator<Item = String> {
        self.facts().filter_map(move |(step, direct, proxied)| {
            let why = match proxied {
                _ if ENDLESS.iter().any(|endless| proxied.starts_with(endless)) => "hangs or dies",
                _ if direct != proxied && Self::reason(step, direct, proxied).is_none() => {
                    "differs"
                }
                _ => return None,
            };
            Some(format!(
                "{self}, step {step} {why}: {proxied:?} through the proxy, {direct:?} without"
            ))
        })
    }

    fn reason(step: &str, direct: &str, proxied: &str) -> Option<&'static Reason> {
        let facts = (step, direct, proxied);
        REASONS
            .iter()
            .find(|reason| (reason.step, reason.direct, reason.proxied) == facts)
    }
}

/// Reasons for what has not come to pass.
pub(crate) fn unused_reasons(pairs: &[Pair]) -> impl Iterator<Item = String> {
    let is_used = |reason: &Reason| {
        pairs.iter().any(|pair| {
            let mut facts = pair.facts();
            facts.any(|(step, direct, proxied)| {
                let used = Pair::reason(step, direct, proxied);
                used.is_some_and(|used| std::ptr::eq(used, reason))
            })
        })
    };
    let unused = REASONS.iter().filter(move |reason| !is_used(reason));
    unused.map(|reason| format!("a reason explains nothing: {}", reason.why))
}

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { client, server, .. } = self;
        write!(f, "{client} with {}", server.name)
    }
}

/// How a fact begins that no client may have.
const ENDLESS: [&str; 4] = [
    "no answer within",
    "no end within",
    "the client ended",
    "not reached",
];
