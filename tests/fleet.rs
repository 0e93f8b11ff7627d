//! A fleet: several proxies, processes of their own, with their sessions in one Redis. Whatever of it
//! dies, is replaced or is cut off, no call goes astray and no session is left behind.

mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::env;
use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use futures::future::join_all;
use http::{HeaderMap, Method, StatusCode};
use rmcp::model::{
    CallToolRequestParams, ClientConfig, Implementation, ServerCapabilities, ServerConfig,
};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{
    StreamableHttpClientTransport, StreamableHttpServerConfig, StreamableHttpService,
};
use rmcp::{ClientLifecycleMode, ClientServiceExt, ServerHandler, tool, tool_handler, tool_router};
use serde_json::{Value, json};
use support::network::{Network, is_apart, run_apart};
use support::process::{Program, ProxyProcess};
use support::redis::Redis;
use support::{
    Backend, LOOPBACK, Seen, answer, ask, header, initialize, open_session, route, until,
    until_asked, unused_address, within,
};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

// docs/operations.md, A fleet: what each failure costs.
#[tokio::test(flavor = "multi_thread")]
async fn no_call_goes_astray_while_proxies_a_backend_and_the_store_die_and_come_back() {
    let _alone = ALONE.lock().await;
    let mut fleet = Fleet::start().await;
    let world = Arc::clone(&fleet.world);
    let begun = Instant::now();

    let mut clients = JoinSet::new();
    for _ in 0..SESSIONS {
        clients.spawn(Client::new(&world).spray());
    }
    let balancer = balancer(&world).await;
    let mut sdk_clients = JoinSet::new();
    for _ in 0..SDK_CLIENTS {
        let client = Client::new(&world);
        sdk_clients.spawn(client.live_by_the_sdk(balancer));
    }
    tokio::select! {
        () = fleet.have_all_of_it_die_and_come_back() => {}
        // The first wrong answer ends the test.
        Some(ended) = clients.join_next() => panic!("too early: {ended:?}"),
        Some(ended) = sdk_clients.join_next() => panic!("too early: {ended:?}"),
    }
    world.is_over.store(true, Ordering::SeqCst);
    let mut sessions = within("the end of the calls", clients.join_all()).await;
    within("the end of the SDK's clients", sdk_clients.join_all()).await;
    println!("{:.1?}: {:?}", begun.elapsed(), world.seen());
    for met in ["an answer", "refused", "502", "404", "503"] {
        assert!(world.seen().contains_key(met), "none met {met}");
    }

    // Half of the sessions are ended by their clients, the others by time.
    let left = sessions.split_off(SESSIONS / 2);
    join_all(sessions.iter().map(|session| world.end(session))).await;
    fleet.restart_all_with_a_short_idle_timeout().await;
    join_all(left.iter().map(|session| world.use_last(session))).await;
    fleet.is_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_of_a_proxy_that_was_killed_are_each_ended_once() {
    let _alone = ALONE.lock().await;
    // Those of the first must not end before the last is open, however slow the machine is.
    for idle in [4, 16, 64, 256].map(Duration::from_secs) {
        if all_are_ended_once(idle).await {
            return;
        }
    }
    panic!("it takes minutes to open a thousand sessions");
}

/// `false` where opening them took longer than `idle`.
async fn all_are_ended_once(idle: Duration) -> bool {
    let (opened, ended) = (Arc::new(AtomicUsize::new(0)), Arc::default());
    let deleted: Arc<Mutex<HashMap<String, usize>>> = Arc::clone(&ended);
    let backend = Backend::start(move |request: Seen| {
        if request.method == Method::DELETE {
            let id = request.header("mcp-session-id").unwrap().to_owned();
            *deleted.lock().unwrap().entry(id).or_default() += 1;
            return answer(200, &[], "");
        }
        let number = opened.fetch_add(1, Ordering::Relaxed);
        answer(200, &[("mcp-session-id", &format!("id-{number}"))], "{}")
    })
    .await;
    let redis = Redis::start().await;
    let limits = format!(
        "idle_timeout: {idle:?}, max_new_per_client: none, reap: {{ max_per_second: 1000 }}"
    );
    let mut opener = Member::start(&[backend.address], &redis, &limits).await;
    let survivor = Member::start(&[backend.address], &redis, &limits).await;

    let begun = Instant::now();
    let (http, turns) = (http_client(), Arc::new(Semaphore::new(TURNS)));
    let mut opening = JoinSet::new();
    for _ in 0..1000 {
        let turns = Arc::clone(&turns);
        let request = http.post(opener.url()).body("{}");
        opening.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            assert_eq!(request.send().await.unwrap().status(), 200);
        });
    }
    opening.join_all().await;
    opener.process.kill().await;
    if begun.elapsed() > idle {
        return false;
    }

    until_none_is_left(idle + PATIENCE * 6, async || {
        let keys: u64 = redis.ask("DBSIZE").await;
        let ended = ended.lock().unwrap().len();
        let is_left = ended < 1000 || keys > 0;
        is_left.then(|| format!("{ended} sessions ended, {keys} keys in the store"))
    })
    .await;
    let ended = ended.lock().unwrap().clone();
    let numbers: HashSet<String> = (0..1000).map(|number| format!("id-{number}")).collect();
    assert_eq!(ended.keys().cloned().collect::<HashSet<_>>(), numbers);
    let twice: Vec<_> = ended.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "ended more than once: {twice:?}");
    let reaped = "pingora_mcp_sessions_reaped_total{outcome=\"ended\"}";
    assert_eq!(survivor.metric(reaped).await, 1000.0);
    let idle = "pingora_mcp_sessions_ended_total{cause=\"idle\"}";
    assert_eq!(survivor.metric(idle).await, 1000.0);
    true
}

// docs/operations.md, When the session store is away.
#[tokio::test]
async fn a_proxy_that_is_cut_off_from_the_store_goes_on_with_what_it_knows_and_is_mended_by_itself()
{
    match run_apart("cut_off").await {
        Ok(written) => println!("{written}"),
        // Not by `println!`, which shows nothing of a test that has passed.
        Err(why) => {
            let skipped = format!("skipped, as no network can be made here: {why}\n");
            io::stderr().write_all(skipped.as_bytes()).unwrap();
        }
    }
}

#[tokio::test]
#[ignore = "it is run in a network of its own"]
async fn cut_off() {
    if !is_apart() {
        return;
    }
    let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let backend = Backend::listening_on(everywhere, forgetting()).await;
    let redis = Redis::with(&["bind 0.0.0.0", "protected-mode no"]).await;
    let [one, another] = [Network::start().await, Network::start().await];
    // Each has one link to its clients and the backend, and another to the store.
    let address = |link: u8, end: u8| Ipv4Addr::new(192, 0, 2, link * 4 + end);
    one.link("clients-1", address(0, 1), address(0, 2));
    let store_link = one.link("store-1", address(1, 1), address(1, 2));
    another.link("clients-2", address(2, 1), address(2, 2));
    another.link("store-2", address(3, 1), address(3, 2));
    let member = async |network: &Network, link: u8| {
        let redis = SocketAddr::new(address(link + 1, 1).into(), redis.address.port());
        let backend = SocketAddr::new(address(link, 1).into(), backend.address.port());
        Member::inside(network, address(link, 2).into(), &[backend], redis).await
    };
    let (cut, other) = (member(&one, 0).await, member(&another, 2).await);

    let mut opened = Vec::new();
    for _ in 0..3 {
        opened.push(open_session(&cut.url()).await);
    }
    let [used, ended, ended_unseen] = opened.try_into().unwrap();
    let far = open_session(&other.url()).await;
    store_link.cut();

    // What it cannot know is 503, before it knows that the store is away and afterwards.
    cut.is_unavailable(ask(&cut.url(), &far).await);
    assert_eq!(ask(&cut.url(), &used).await.status(), 200);
    cut.until_ready_is(503).await;
    assert_eq!(cut.metric("pingora_mcp_store_reached").await, 0.0);
    cut.is_unavailable(ask(&cut.url(), &far).await);
    assert_eq!(ask(&cut.url(), &used).await.status(), 200);
    let asked = backend.seen().len();
    cut.is_unavailable(initialize(&cut.url()).send().await.unwrap());
    assert_eq!(backend.seen().len(), asked, "a session was opened");

    // The other one goes on with all of them.
    assert_eq!(other.ready().await, 200);
    assert_eq!(other.metric("pingora_mcp_store_reached").await, 1.0);
    let new = open_session(&other.url()).await;
    for id in [&used, &ended, &ended_unseen, &far, &new] {
        assert_eq!(ask(&other.url(), id).await.status(), 200);
    }
    for id in [&ended, &ended_unseen] {
        assert_eq!(delete(&other.url(), id).await, 200);
        assert_eq!(ask(&other.url(), id).await.status(), 404);
    }
    cut.is_unavailable(ask(&cut.url(), &new).await);
    // Of one that has ended, the backend says so, and then it is as unknown as any other.
    is_lost(ask(&cut.url(), &ended).await).await;
    cut.is_unavailable(ask(&cut.url(), &ended).await);

    store_link.mend();
    cut.until_ready_is(200).await;
    assert_eq!(cut.metric("pingora_mcp_store_reached").await, 1.0);
    for id in [&used, &far, &new] {
        assert_eq!(ask(&cut.url(), id).await.status(), 200);
    }
    for id in [&ended, &ended_unseen] {
        is_lost(ask(&cut.url(), id).await).await;
    }
    open_session(&cut.url()).await;
    let log = cut.process.log();
    let count = |line: &str| log.matches(line).count();
    assert_eq!(count("the session store is reached"), 2, "{log}");
    // It was not told that the link is down, as it would be of a server that is.
    assert_eq!(count("the session store is away: timed out"), 1, "{log}");
    let log = other.process.log();
    assert_eq!(log.matches("the session store is").count(), 1, "{log}");
}

/// What becomes of a session at a backend that forgets those that are ended.
fn forgetting() -> impl Fn(Seen) -> axum::response::Response + Clone {
    let live: Arc<Mutex<HashSet<String>>> = Arc::default();
    let opened = Arc::new(AtomicUsize::new(0));
    move |request| {
        let mut live = live.lock().unwrap();
        let Some(id) = request.header("mcp-session-id") else {
            let id = format!("id-{}", opened.fetch_add(1, Ordering::Relaxed));
            live.insert(id.clone());
            return answer(200, &[("mcp-session-id", &id)], "{}");
        };
        let is_live = match request.method {
            Method::DELETE => live.remove(id),
            _ => live.contains(id),
        };
        match is_live {
            true => answer(200, &[], "{}"),
            false => answer(404, &[], LOST),
        }
    }
}

async fn is_lost(answer: reqwest::Response) {
    assert_eq!(answer.status(), 404);
    assert!(answer.text().await.unwrap().contains("Session not found"));
}

async fn delete(url: &str, id: &str) -> u16 {
    let delete = http_client().delete(url).header("mcp-session-id", id);
    delete.send().await.unwrap().status().as_u16()
}

/// A proxy of a fleet, with the page that tells how it is.
struct Member {
    process: ProxyProcess,
    admin: SocketAddr,
}

impl Member {
    /// One in front of `backends` whose sessions are in `redis`, with `limits`, some keys of
    /// `sessions` with commas between.
    async fn start(backends: &[SocketAddr], redis: &Redis, limits: &str) -> Self {
        let admin = unused_address();
        let yaml = configuration(backends, redis.address, limits, PATIENCE, admin);
        Self {
            process: ProxyProcess::start(&yaml).await,
            admin,
        }
    }

    /// The same at `ip` in another network, with an impatience for the store.
    async fn inside(
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

    fn url(&self) -> String {
        self.process.url("/mcp")
    }

    async fn ready(&self) -> u16 {
        let page = format!("http://{}/readyz", self.admin);
        let answer = http_client().get(page).send().await.unwrap();
        answer.status().as_u16()
    }

    async fn until_ready_is(&self, status: u16) {
        until_asked("another answer of /readyz", async || {
            self.ready().await == status
        })
        .await;
    }

    /// The sum of all samples whose lines begin with `name`.
    async fn metric(&self, name: &str) -> f64 {
        let page = format!("http://{}/metrics", self.admin);
        let page = http_client().get(page).send().await.unwrap();
        let page = page.text().await.unwrap();
        let samples = page.lines().filter(|line| line.starts_with(name));
        let values = samples.map(|line| line.rsplit(' ').next().unwrap());
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }

    /// An answer by which a client waits for the store, and does not start over.
    fn is_unavailable(&self, answer: reqwest::Response) {
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

/// One connection for each request, so that what becomes of it is that request's alone.
fn http_client() -> reqwest::Client {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0);
    client.build().unwrap()
}

/// Three proxies, three servers and a store, and who has them die.
struct Fleet {
    world: Arc<World>,
    proxies: Vec<Member>,
    servers: Vec<Server>,
    redis: Redis,
}

impl Fleet {
    async fn start() -> Self {
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

    /// One after the other, and two at a time, while clients make calls.
    async fn have_all_of_it_die_and_come_back(&mut self) {
        self.everybody_is_answered().await;

        // One is upgraded, which nobody notices; and before that is over, another is killed.
        let upgraded = self.begin_upgrade(2).await;
        self.kill_proxy(KILLED).await;
        self.calls(300).await;
        self.end_upgrade(upgraded).await;
        // The backend dies while there is one proxy less.
        self.kill_backend(0).await;
        self.calls(300).await;
        self.restart_backend(0).await;
        self.everybody_is_answered().await;
        self.start_proxy(KILLED).await;
        self.everybody_is_answered().await;
        // A proxy that is restarted while the store is away knows no session.
        self.kill_store().await;
        self.restart_proxy(1).await;
        self.calls(300).await;
        self.nobody_opens_a_session().await;
        self.restart_store().await;
        self.everybody_is_answered().await;
    }

    /// Waits until clients have met `count` answers or failures more.
    async fn calls(&self, count: usize) {
        let before = self.world.calls.load(Ordering::SeqCst);
        until("more calls", || {
            self.world.calls.load(Ordering::SeqCst) >= before + count
        })
        .await;
    }

    /// Waits until each client has got an answer more.
    async fn everybody_is_answered(&self) {
        let answered: Vec<_> = self.world.answered.lock().unwrap().clone();
        assert_eq!(answered.len(), SESSIONS + SDK_CLIENTS);
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

    async fn kill_proxy(&mut self, number: usize) {
        self.world.proxies[number].goes_away();
        self.proxies[number].process.kill().await;
    }

    async fn start_proxy(&mut self, number: usize) {
        self.proxies[number].process.start_again().await;
        self.world.proxies[number].is_back();
    }

    /// Ends a proxy in order, and starts it again.
    async fn restart_proxy(&mut self, number: usize) {
        self.world.proxies[number].goes_away();
        let process = &mut self.proxies[number].process;
        process.signal("TERM");
        assert_eq!(process.ended().await, Some(0));
        self.start_proxy(number).await;
    }

    /// Has another process take over from one, which is returned.
    async fn begin_upgrade(&mut self, number: usize) -> ProxyProcess {
        let process = &mut self.proxies[number].process;
        let successor = process.successor();
        process.signal("QUIT");
        let mut old = std::mem::replace(process, successor);
        let is_handed_over = old.until(|log| log.contains("listening sockets handed over"));
        assert!(is_handed_over.await);
        old
    }

    async fn end_upgrade(&self, mut old: ProxyProcess) {
        assert_eq!(old.ended().await, Some(0));
        assert!(!old.log().contains("panicked"), "{}", old.log());
    }

    async fn kill_backend(&mut self, number: usize) {
        self.world.backends[number].goes_away();
        self.world.processes[number].store(0, Ordering::SeqCst);
        self.servers[number].program.signal("KILL");
        assert_eq!(self.servers[number].program.ended().await, None);
    }

    /// Starts a backend where it was, and waits until all proxies that live have reached it.
    async fn restart_backend(&mut self, number: usize) {
        let server = Server::at(self.servers[number].address, number).await;
        let process = server.program.id();
        self.world.processes[number].store(process, Ordering::SeqCst);
        self.servers[number] = server;
        let down = format!(
            "pingora_mcp_backend_addresses{{backend=\"b{number}\",route=\"/mcp\",state=\"down\"}}"
        );
        for (proxy, member) in self.proxies.iter().enumerate() {
            if !self.world.proxies[proxy].is_away() {
                within("the backend at a proxy", async {
                    while member.metric(&down).await > 0.0 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                })
                .await;
            }
        }
        self.world.backends[number].is_back();
    }

    /// Kills the store, and waits until all proxies know that it is away.
    async fn kill_store(&mut self) {
        self.world.store.goes_away();
        self.redis.kill().await;
        for member in &self.proxies {
            member.until_ready_is(503).await;
        }
    }

    /// Starts the store where it was, and waits until all proxies have reached it.
    async fn restart_store(&mut self) {
        self.redis.restart().await;
        for member in &self.proxies {
            member.until_ready_is(200).await;
        }
        self.world.store.is_back();
    }

    async fn nobody_opens_a_session(&self) {
        for proxy in 0..3 {
            let refused = self.world.initialize(proxy).await;
            assert!(matches!(refused, Reply::TryLater), "{refused:?}");
        }
    }

    async fn restart_all_with_a_short_idle_timeout(&mut self) {
        let addresses: Vec<_> = self.servers.iter().map(|server| server.address).collect();
        let limits = format!("{LIMITS}, idle_timeout: {IDLE:?}");
        for member in &self.proxies {
            let mcp = configuration(
                &addresses,
                self.redis.address,
                &limits,
                PATIENCE,
                member.admin,
            );
            member.process.write_configuration(&mcp);
        }
        for number in 0..3 {
            self.restart_proxy(number).await;
        }
    }

    /// Waits until no session is left: at a backend, in the store, near a proxy.
    async fn is_empty(&self) {
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

/// What clients know: where the proxies are, and what may be away.
struct World {
    urls: Vec<String>,
    addresses: Vec<SocketAddr>,
    proxies: [Outages; 3],
    backends: [Outages; 3],
    store: Outages,
    /// The number of each server's process; 0 while there is none.
    processes: [AtomicU32; 3],
    is_over: AtomicBool,
    http: reqwest::Client,
    turns: Semaphore,
    calls: AtomicUsize,
    met: Mutex<BTreeMap<String, usize>>,
    /// How many answers each client has got.
    answered: Mutex<Vec<Arc<AtomicUsize>>>,
}

/// How often something has gone away or come back: an odd number while it is away.
#[derive(Debug, Default)]
struct Outages(AtomicUsize);

impl Outages {
    fn goes_away(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 0);
    }

    fn is_back(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 1);
    }

    fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn is_away(&self) -> bool {
        self.now() % 2 == 1
    }

    /// Whether it has been away since it was `then`.
    fn was_away(&self, then: usize) -> bool {
        then % 2 == 1 || self.now() != then
    }
}

/// A session as its client knows it.
#[derive(Clone, Debug)]
struct Session {
    id: String,
    home: Home,
}

/// A session as its server knows it: `backend/process/number`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Home(String);

impl Home {
    fn part(&self, position: usize) -> usize {
        self.0.split('/').nth(position).unwrap().parse().unwrap()
    }

    fn backend(&self) -> usize {
        self.part(0)
    }

    fn process(&self) -> usize {
        self.part(1)
    }
}

/// What a client does next.
#[derive(Debug)]
enum Reply {
    /// This came: a message, or none where there is none to be.
    Is(HeaderMap, Value),
    StartOver,
    TryLater,
}

impl World {
    fn new(proxies: &[Member], servers: &[Server]) -> Self {
        let process = |number: usize| AtomicU32::new(servers[number].program.id());
        Self {
            urls: proxies.iter().map(Member::url).collect(),
            addresses: proxies.iter().map(|proxy| proxy.process.address).collect(),
            proxies: Default::default(),
            backends: Default::default(),
            store: Outages::default(),
            processes: [process(0), process(1), process(2)],
            is_over: AtomicBool::new(false),
            http: http_client(),
            turns: Semaphore::new(TURNS),
            calls: AtomicUsize::new(0),
            met: Mutex::default(),
            answered: Mutex::default(),
        }
    }

    /// How often clients have met what.
    fn seen(&self) -> BTreeMap<String, usize> {
        self.met.lock().unwrap().clone()
    }

    fn has_lost(&self, home: &Home) -> bool {
        let process = self.processes[home.backend()].load(Ordering::SeqCst);
        process as usize != home.process()
    }

    /// Everything that may be away, as it is now.
    fn outages(&self) -> Vec<usize> {
        let all = self.proxies.iter().chain(&self.backends);
        all.chain([&self.store]).map(Outages::now).collect()
    }

    /// Sends a request of `session`, or of none, to a proxy. Whatever comes of it but what is in
    /// docs/operations.md, when it may come, ends the test.
    async fn send(
        &self,
        proxy: usize,
        session: Option<&Session>,
        method: Method,
        message: &Value,
    ) -> Reply {
        let then = self.outages();
        let is_proxy_away = || self.proxies[proxy].was_away(then[proxy]);
        let is_backend_away = || match session {
            Some(session) => {
                let backend = session.home.backend();
                self.backends[backend].was_away(then[3 + backend])
            }
            None => (0..3).any(|backend| self.backends[backend].was_away(then[3 + backend])),
        };
        let mut request = self.http.request(method, &self.urls[proxy]);
        if let Some(session) = session {
            request = request.header("mcp-session-id", &session.id);
        }
        if !message.is_null() {
            request = request
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .body(message.to_string());
        }
        let received = async {
            let answer = request.send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            answer.text().await.map(|text| (status, headers, text))
        };
        let received = within("an answer", received).await;
        let (met, reply) = match &received {
            Err(error) if error.is_connect() && is_proxy_away() => ("refused", Reply::TryLater),
            // It was not taken yet when the proxy began to end.
            Err(error) if is_reset(error) && is_proxy_away() => ("reset", Reply::TryLater),
            Err(_) if proxy == KILLED && is_proxy_away() => ("broken off", Reply::TryLater),
            // Its answer had begun.
            Err(error) if error.is_decode() && is_backend_away() => ("cut", Reply::TryLater),
            Ok((status, headers, text)) if status.is_success() => {
                let message = message_in(text);
                ("an answer", Reply::Is(headers.clone(), message))
            }
            Ok((StatusCode::NOT_FOUND, _, text))
                if session.is_some_and(|session| self.has_lost(&session.home))
                    && text.contains("Session not found") =>
            {
                ("404", Reply::StartOver)
            }
            Ok((StatusCode::BAD_GATEWAY, ..)) if is_backend_away() => ("502", Reply::TryLater),
            Ok((StatusCode::SERVICE_UNAVAILABLE, headers, _))
                if self.store.was_away(then[6]) && headers.contains_key("retry-after") =>
            {
                ("503", Reply::TryLater)
            }
            _ => panic!("proxy {proxy}, {session:?}, outages {then:?}, may not say {received:?}"),
        };
        *self.met.lock().unwrap().entry(met.to_owned()).or_default() += 1;
        self.calls.fetch_add(1, Ordering::SeqCst);
        reply
    }

    async fn initialize(&self, proxy: usize) -> Reply {
        let message = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": { "name": "test", "version": "1" },
        }});
        self.send(proxy, None, Method::POST, &message).await
    }

    /// Opens a session, at any proxy, however long that takes.
    async fn open(&self) -> Session {
        loop {
            let opened = self.initialize(random(3)).await;
            let Reply::Is(headers, message) = opened else {
                continue;
            };
            let name = &message["result"]["serverInfo"]["name"];
            let session = Session {
                id: header(&headers, "mcp-session-id").unwrap().to_owned(),
                home: Home(name.as_str().unwrap().to_owned()),
            };
            let noted = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
            loop {
                match self
                    .send(random(3), Some(&session), Method::POST, &noted)
                    .await
                {
                    Reply::Is(..) => return session,
                    Reply::StartOver => break,
                    Reply::TryLater => {}
                }
            }
        }
    }

    /// Has a tool tell whose session this is, which must be right.
    async fn call(&self, proxy: usize, session: &Session) -> Reply {
        let number = random(1_000_000);
        let call = json!({ "jsonrpc": "2.0", "id": number, "method": "tools/call",
            "params": { "name": "whoami", "arguments": {} } });
        let reply = self.send(proxy, Some(session), Method::POST, &call).await;
        if let Reply::Is(_, message) = &reply {
            assert_eq!(message["id"], number, "the answer to another call");
            let text = &message["result"]["content"][0]["text"];
            assert_eq!(text, &session.home.0, "the answer of another session");
        }
        reply
    }

    /// Ends a session, of which no proxy has anything else to say then.
    async fn end(&self, session: &Session) {
        let _turn = self.turns.acquire().await.unwrap();
        let ended = self.send(random(3), Some(session), Method::DELETE, &Value::Null);
        assert!(matches!(ended.await, Reply::Is(..)));
        for url in &self.urls {
            is_lost(ask(url, &session.id).await).await;
        }
    }

    /// Uses a session at all proxies, and leaves it.
    async fn use_last(&self, session: &Session) {
        let _turn = self.turns.acquire().await.unwrap();
        let begun = Instant::now();
        for proxy in 0..3 {
            let used = ask(&self.urls[proxy], &session.id).await;
            // Where the machine is slow, its time may be over between two of them.
            let is_late = proxy > 0 && begun.elapsed() > IDLE / 2;
            assert!(used.status() == 200 || is_late, "{used:?}");
        }
    }
}

/// A client that makes calls until the world is over.
struct Client {
    world: Arc<World>,
    answered: Arc<AtomicUsize>,
}

impl Client {
    fn new(world: &Arc<World>) -> Self {
        let answered = Arc::new(AtomicUsize::new(0));
        world.answered.lock().unwrap().push(Arc::clone(&answered));
        Self {
            world: Arc::clone(world),
            answered,
        }
    }

    fn goes_on(&self) -> bool {
        !self.world.is_over.load(Ordering::SeqCst)
    }

    /// Calls at any proxy, and returns its session, which all proxies serve then.
    async fn spray(self) -> Session {
        let turn = self.world.turns.acquire().await.unwrap();
        let mut session = self.world.open().await;
        drop(turn);
        while self.goes_on() {
            let _turn = self.world.turns.acquire().await.unwrap();
            match self.world.call(random(3), &session).await {
                Reply::Is(..) => _ = self.answered.fetch_add(1, Ordering::SeqCst),
                Reply::StartOver => session = self.world.open().await,
                Reply::TryLater => {}
            }
        }
        for proxy in 0..3 {
            let last = self.world.call(proxy, &session).await;
            assert!(matches!(last, Reply::Is(..)), "{last:?}");
        }
        session
    }

    /// The official SDK's client, which knows one address, and starts over by itself.
    async fn live_by_the_sdk(self, address: SocketAddr) {
        let transport = StreamableHttpClientTransport::from_uri(format!("http://{address}/mcp"));
        let client = ClientConfig::default()
            .serve_with_lifecycle(transport, ClientLifecycleMode::Initialize);
        let client = within("a session", client).await.unwrap();
        let mut home: Option<Home> = None;
        while self.goes_on() {
            let _turn = self.world.turns.acquire().await.unwrap();
            let then = self.world.outages();
            let called = client.call_tool(CallToolRequestParams::new("whoami"));
            match tokio::time::timeout(SDK_PATIENCE, called).await {
                Ok(Ok(result)) => {
                    let told = serde_json::to_value(&result.content).unwrap();
                    let told = Home(told[0]["text"].as_str().unwrap().to_owned());
                    if let Some(home) = home.replace(told.clone()) {
                        let is_right = home == told || self.world.has_lost(&home);
                        assert!(is_right, "{told:?} in place of {home:?}");
                    }
                    self.answered.fetch_add(1, Ordering::SeqCst);
                }
                Ok(Err(error)) => {
                    let is_all_there = then.iter().all(|then| then % 2 == 0);
                    let was_all_there = is_all_there && then == self.world.outages();
                    assert!(!was_all_there, "{error:?}");
                }
                // It waits for an answer of a connection that was lost. The next call is answered.
                Err(_) => {}
            }
        }
        client.cancel().await.unwrap();
    }
}

fn is_reset(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) = kind {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What stands in an answer: JSON, or an event with it, or nothing.
fn message_in(text: &str) -> Value {
    let mut events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let message = events.next_back().unwrap_or(text);
    serde_json::from_str(message).unwrap_or_default()
}

/// A load balancer that knows nothing but connections: each goes to a proxy that takes it.
async fn balancer(world: &Arc<World>) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap();
    let world = Arc::clone(world);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                let first = random(3);
                for proxy in [first, first + 1, first + 2] {
                    if let Ok(mut proxy) = TcpStream::connect(world.addresses[proxy % 3]).await {
                        // What fails is that one of them has left.
                        let _ = copy_bidirectional(&mut client, &mut proxy).await;
                        break;
                    }
                }
            });
        }
    });
    address
}

/// Waits until `left` says nothing any more, which takes as long as the machine is slow; after
/// `limit`, its words end the test.
async fn until_none_is_left(limit: Duration, left: impl AsyncFn() -> Option<String>) {
    let begun = Instant::now();
    while let Some(left) = left().await {
        assert!(begun.elapsed() < limit, "{left}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn random(below: usize) -> usize {
    (uuid::Uuid::new_v4().as_u128() % below as u128) as usize
}

/// A real MCP server in a process of its own, until it is dropped: this program again.
struct Server {
    address: SocketAddr,
    program: Program,
}

impl Server {
    async fn at(address: SocketAddr, number: usize) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "the_server", "--nocapture"]);
        command.env("SERVER_ADDRESS", address.to_string());
        command.env("SERVER_NUMBER", number.to_string());
        let mut program = Program::start(&mut command);
        let listens = program.until(|server| server.address().is_some()).await;
        assert!(listens, "it did not start: {}", program.log());
        Self {
            address: program.address().unwrap(),
            program,
        }
    }

    /// How many sessions it has.
    async fn sessions(&self) -> usize {
        let page = format!("http://{}/sessions", self.address);
        let page = http_client().get(page).send().await.unwrap();
        page.text().await.unwrap().parse().unwrap()
    }
}

#[tokio::test]
#[ignore = "it is a server of another test"]
async fn the_server() {
    let Ok(address) = env::var("SERVER_ADDRESS") else {
        return;
    };
    let name = format!(
        "{}/{}",
        env::var("SERVER_NUMBER").unwrap(),
        std::process::id()
    );
    let sessions = Arc::new(LocalSessionManager::default());
    let opened = AtomicUsize::new(0);
    let service = StreamableHttpService::new(
        move || {
            let number = opened.fetch_add(1, Ordering::Relaxed);
            Ok(WhoAmI(format!("{name}/{number}")))
        },
        Arc::clone(&sessions),
        StreamableHttpServerConfig::default(),
    );
    let count = async move || sessions.sessions.read().await.len().to_string();
    let router = Router::new().route_service("/mcp", service);
    let router = router.route("/sessions", get(count));
    // A connection of anybody's may have the port of the process before for a moment.
    let listener = loop {
        match TcpListener::bind(&address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    println!("listening on http://{}/mcp", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// One of these serves each session, and knows which.
struct WhoAmI(String);

#[tool_router]
impl WhoAmI {
    /// Tells whose session this is.
    #[tool]
    async fn whoami(&self) -> String {
        self.0.clone()
    }
}

#[tool_handler]
impl ServerHandler for WhoAmI {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().build();
        ServerConfig::new(capabilities).with_server_info(Implementation::new(&self.0, "1"))
    }
}

/// Each of the large tests takes all of a machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const SESSIONS: usize = 300;

const SDK_CLIENTS: usize = 12;

/// The proxy that has no time to end in order.
const KILLED: usize = 0;

/// Requests of clients at a time.
const TURNS: usize = 32;

/// All clients have one address.
const LIMITS: &str = "max_new_per_client: none, reap: { max_per_second: 1000 }";

const IDLE: Duration = Duration::from_secs(2);

/// After this, what the SDK waits for will not come.
const SDK_PATIENCE: Duration = Duration::from_secs(5);

/// As a server says that it knows no such session.
const LOST: &str =
    r#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}"#;

const KEY: &str = "MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4f";

/// With a store that answers, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(10);

/// With a store that will not.
const IMPATIENCE: Duration = Duration::from_secs(1);
