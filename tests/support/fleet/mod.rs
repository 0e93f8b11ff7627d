//! Three proxies in front of three servers, with their sessions in one Redis, and who has them die.

mod client;
mod member;
mod server;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;

use self::server::Server;
use self::world::{IDLE, Reply};
use crate::support::process::ProxyProcess;
use crate::support::redis::Redis;
use crate::support::{LOOPBACK, until, until_asked};

pub(crate) use self::client::{Client, balancer};
pub(crate) use self::member::{Member, PATIENCE};
pub(crate) use self::server::serve;
pub(crate) use self::world::{KILLED, TURNS, World, is_lost};

/// Three proxies, three servers and a store, until it is dropped.
pub(crate) struct Fleet {
    pub(crate) world: Arc<World>,
    proxies: Vec<Member>,
    servers: Vec<Server>,
    redis: Redis,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        // What is written is there after a crash.
        let redis = Redis::with(&["appendonly yes"]).await;
        let servers = join_all((0..3).map(|number| Server::at(LOOPBACK, number))).await;
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let proxies = (0..3).map(|_| Member::start(&addresses, &redis, LIMITS));
        let proxies = join_all(proxies).await;
        let world = Arc::new(World::new(&proxies, &servers));
        Self {
            world,
            proxies,
            servers,
            redis,
        }
    }

    /// Waits until clients have met `count` answers or failures more.
    pub(crate) async fn calls(&self, count: usize) {
        let before = self.world.calls.load(Ordering::SeqCst);
        until("more calls", || {
            self.world.calls.load(Ordering::SeqCst) >= before + count
        })
        .await;
    }

    /// Waits until each of `clients` has got an answer more.
    pub(crate) async fn all_are_answered(&self, clients: usize) {
        let answered: Vec<_> = self.world.answered.lock().unwrap().clone();
        assert_eq!(answered.len(), clients);
        let count = |answered: &Arc<AtomicUsize>| answered.load(Ordering::SeqCst);
        let before: Vec<_> = answered.iter().map(count).collect();
        until_none_is_left(PATIENCE * 6, async || {
            // The SDK's are the last of them.
            let clients = 0..answered.len();
            let is_waiting = |client: &usize| count(&answered[*client]) == before[*client];
            let waiting: Vec<_> = clients.filter(is_waiting).collect();
            (!waiting.is_empty()).then(|| format!("no answer to clients {waiting:?}"))
        })
        .await;
    }

    pub(crate) async fn kill_proxy(&mut self, number: usize) {
        self.world.proxies[number].goes_away();
        self.proxies[number].process.kill().await;
    }

    pub(crate) async fn start_proxy(&mut self, number: usize) {
        self.proxies[number].process.start_again().await;
        self.world.proxies[number].is_back();
    }

    /// Ends a proxy in order, and starts it again.
    pub(crate) async fn restart_proxy(&mut self, number: usize) {
        self.world.proxies[number].goes_away();
        let process = &mut self.proxies[number].process;
        process.signal("TERM");
        assert_eq!(process.ended().await, Some(0));
        self.start_proxy(number).await;
    }

    /// Has another process take over from one, which is returned.
    pub(crate) async fn begin_upgrade(&mut self, number: usize) -> ProxyProcess {
        let process = &mut self.proxies[number].process;
        let successor = process.successor();
        process.signal("QUIT");
        let mut old = std::mem::replace(process, successor);
        let is_handed_over = old.until(|log| log.contains("listening sockets handed over"));
        assert!(is_handed_over.await);
        old
    }

    pub(crate) async fn end_upgrade(&self, mut old: ProxyProcess) {
        assert_eq!(old.ended().await, Some(0));
        assert!(!old.log().contains("panicked"), "{}", old.log());
    }

    pub(crate) async fn kill_backend(&mut self, number: usize) {
        self.world.backends[number].goes_away();
        self.world.processes[number].store(0, Ordering::SeqCst);
        self.servers[number].program.signal("KILL");
        assert_eq!(self.servers[number].program.ended().await, None);
    }

    /// Starts a backend where it was, and waits until all proxies that live have reached it.
    pub(crate) async fn restart_backend(&mut self, number: usize) {
        let server = Server::at(self.servers[number].address, number).await;
        let process = server.program.id();
        self.world.processes[number].store(process, Ordering::SeqCst);
        self.servers[number] = server;
        let down = format!(
            "pingora_mcp_backend_addresses{{backend=\"b{number}\",route=\"/mcp\",state=\"down\"}}"
        );
        for (proxy, member) in self.proxies.iter().enumerate() {
            if !self.world.proxies[proxy].is_away() {
                until_asked("the backend at a proxy", async || {
                    member.metric(&down).await == 0.0
                })
                .await;
            }
        }
        self.world.backends[number].is_back();
    }

    /// Kills the store, and waits until all proxies know that it is away.
    pub(crate) async fn kill_store(&mut self) {
        self.world.store.goes_away();
        self.redis.kill().await;
        for member in &self.proxies {
            member.until_ready_is(503).await;
        }
    }

    /// Starts the store where it was, and waits until all proxies have reached it.
    pub(crate) async fn restart_store(&mut self) {
        self.redis.restart().await;
        for member in &self.proxies {
            member.until_ready_is(200).await;
        }
        self.world.store.is_back();
    }

    pub(crate) async fn nobody_opens_a_session(&self) {
        for proxy in 0..3 {
            let refused = self.world.initialize(proxy).await;
            assert!(matches!(refused, Reply::TryLater), "{refused:?}");
        }
    }

    pub(crate) async fn restart_all_with_a_short_idle_timeout(&mut self) {
        let addresses: Vec<_> = self.servers.iter().map(|server| server.address).collect();
        let limits = format!("{LIMITS}, idle_timeout: {IDLE:?}");
        for member in &self.proxies {
            member.limit(&addresses, &self.redis, &limits);
        }
        for number in 0..3 {
            self.restart_proxy(number).await;
        }
    }

    /// Waits until no session is left: at a backend, in the store, near a proxy.
    pub(crate) async fn is_empty(&self) {
        until_none_is_left(PATIENCE * 6, async || {
            let mut left = Vec::new();
            for server in &self.servers {
                left.push(server.sessions().await as f64);
            }
            left.push(self.redis.ask::<u64>("DBSIZE").await as f64);
            for member in &self.proxies {
                left.push(member.metric("pingora_mcp_backend_sessions").await);
            }
            let is_left = left.iter().any(|left| *left > 0.0);
            is_left.then(|| format!("{left:?} at the servers, in the store, near the proxies"))
        })
        .await;
        for member in &self.proxies {
            let log = member.process.log();
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

/// Waits until `left` says nothing any more, which takes as long as the machine is slow; after
/// `limit`, its words end the test.
pub(crate) async fn until_none_is_left(limit: Duration, left: impl AsyncFn() -> Option<String>) {
    let begun = Instant::now();
    while let Some(left) = left().await {
        assert!(begun.elapsed() < limit, "{left}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One connection for each request, so that what becomes of it is that request's alone.
pub(crate) fn http_client() -> reqwest::Client {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0);
    client.build().unwrap()
}

/// All clients have one address.
const LIMITS: &str = "max_new_per_client: none, reap: { max_per_second: 1000 }";
