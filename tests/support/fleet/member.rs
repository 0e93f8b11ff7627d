//! A proxy of a fleet, with the pages that tell how it is.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::support::network::Network;
use crate::support::process::ProxyProcess;
use crate::support::redis::{KEY, Redis};
use crate::support::{header, route, until_asked, unused_address};

/// A proxy that runs until it is dropped.
pub(crate) struct Member {
    pub(crate) process: ProxyProcess,
    admin: SocketAddr,
}

impl Member {
    /// One in front of `backends` whose sessions are in `redis`, with `limits`, some keys of
    /// `sessions` with commas between.
    pub(crate) async fn start(backends: &[SocketAddr], redis: &Redis, limits: &str) -> Self {
        let admin = unused_address();
        let yaml = configuration(backends, redis.address, limits, PATIENCE, admin);
        Self {
            process: ProxyProcess::start(&yaml).await,
            admin,
        }
    }

    /// The same at `ip` in another network, with an impatience for the store.
    pub(crate) async fn inside(
        network: &Network,
        ip: IpAddr,
        backends: &[SocketAddr],
        redis: SocketAddr,
    ) -> Self {
        let admin = SocketAddr::new(ip, unused_address().port());
        let yaml = configuration(backends, redis, "capacity: 100000", IMPATIENCE, admin);
        Self {
            process: ProxyProcess::inside(network, ip, &yaml).await,
            admin,
        }
    }

    /// Puts other `limits` in its file, for its next start.
    pub(super) fn limit(&self, backends: &[SocketAddr], redis: &Redis, limits: &str) {
        let yaml = configuration(backends, redis.address, limits, PATIENCE, self.admin);
        self.process.write_configuration(&yaml);
    }

    pub(crate) fn url(&self) -> String {
        self.process.url("/mcp")
    }

    pub(crate) async fn ready(&self) -> u16 {
        let page = format!("http://{}/readyz", self.admin);
        reqwest::get(page).await.unwrap().status().as_u16()
    }

    pub(crate) async fn until_ready_is(&self, status: u16) {
        until_asked("another answer of /readyz", async || {
            self.ready().await == status
        })
        .await;
    }

    /// The sum of all samples whose lines begin with `name`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let page = format!("http://{}/metrics", self.admin);
        let page = reqwest::get(page).await.unwrap().text().await.unwrap();
        let samples = page.lines().filter(|line| line.starts_with(name));
        let values = samples.map(|line| line.rsplit(' ').next().unwrap());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }

    /// An answer by which a client waits for the store, and does not start over.
    pub(crate) fn is_unavailable(&self, answer: reqwest::Response) {
        assert_eq!(answer.status(), 503, "{}", self.process.log());
        assert!(header(answer.headers(), "retry-after").is_some());
    }
}

fn configuration(
    backends: &[SocketAddr],
    redis: SocketAddr,
    limits: &str,
    timeout: Duration,
    admin: SocketAddr,
) -> String {
    let health = "      health: { backoff: 50ms, max_backoff: 100ms, slow_start: none }\n";
    format!(
        "{}{health}  admin: {{ address: {admin}, allow_network: true }}\n  drain: {{ streams_after: 100ms }}\n  \
         sessions: {{ {limits}, store: {{ redis: {{ url: \"redis://{redis}\", keys: [{KEY}], timeout: {timeout:?}, unready_when_away: true }} }} }}\n",
        route(backends)
    )
}

/// With a store that answers, however slow the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// With a store that will not.
const IMPATIENCE: Duration = Duration::from_secs(1);
