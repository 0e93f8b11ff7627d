//! A fleet: several proxies, processes of their own, with their sessions in one Redis. Whatever of it
//! dies, is replaced or is cut off, no call goes astray and no session is left behind.

#[path = "support/fleet/mod.rs"]
mod fleet;
mod support;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fleet::{Client, Fleet, KILLED, Member, PATIENCE, TURNS};
use fleet::{balancer, http_client, is_lost, until_none_is_left};
use futures::future::join_all;
use http::Method;
use support::network::{Network, is_apart, run_apart};
use support::redis::Redis;
use support::{Backend, Seen, answer, ask, initialize, open_session, within};
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
        () = have_all_of_it_die_and_come_back(&mut fleet) => {}
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

/// One after the other, and two at a time, while clients make calls.
async fn have_all_of_it_die_and_come_back(fleet: &mut Fleet) {
    fleet.all_are_answered(SESSIONS + SDK_CLIENTS).await;

    // One is upgraded, which nobody notices; and before that is over, another is killed.
    let upgraded = fleet.begin_upgrade(2).await;
    fleet.kill_proxy(KILLED).await;
    fleet.calls(300).await;
    fleet.end_upgrade(upgraded).await;
    // The backend dies while there is one proxy less.
    fleet.kill_backend(0).await;
    fleet.calls(300).await;
    fleet.restart_backend(0).await;
    fleet.all_are_answered(SESSIONS + SDK_CLIENTS).await;
    fleet.start_proxy(KILLED).await;
    fleet.all_are_answered(SESSIONS + SDK_CLIENTS).await;
    // A proxy that is restarted while the store is away knows no session.
    fleet.kill_store().await;
    fleet.restart_proxy(1).await;
    fleet.calls(300).await;
    fleet.nobody_opens_a_session().await;
    fleet.restart_store().await;
    fleet.all_are_answered(SESSIONS + SDK_CLIENTS).await;
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
    run_apart("cut_off").await;
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
    let (mut cut, other) = (member(&one, 0).await, member(&another, 2).await);

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
    let again = |log: String| log.matches("the session store is reached").count() > 1;
    assert!(cut.process.until(again).await);
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

async fn delete(url: &str, id: &str) -> u16 {
    let delete = reqwest::Client::new()
        .delete(url)
        .header("mcp-session-id", id);
    delete.send().await.unwrap().status().as_u16()
}

#[tokio::test]
#[ignore = "it is a server of another test"]
async fn the_server() {
    fleet::serve().await;
}

/// Each of the large tests takes all of a machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const SESSIONS: usize = 300;

const SDK_CLIENTS: usize = 12;

/// As a server says that it knows no such session.
const LOST: &str =
    r#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}"#;
