//! Sessions in Redis: what every store must do, what several proxies see of each other, and each
//! way in which the store can be away.

mod support;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use http::StatusCode;
use pingora_mcp::mcp::ClientSessionId;
use pingora_mcp::session::{
    Abandoned, Binding, ClientNetwork, OpenError, Opened, SessionSettings, SessionStore,
    SharedStore, StoreError, StoreSettings,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use support::process::ProxyProcess;
use support::redis::{Cluster, KEY, Redis};
use support::session_model::{Limits, Model, Step, binding};
use support::tls::{Authority, Files};
use support::{
    Backend, ask, header, initialize, open_session, route, until, until_asked, unused_address,
    within,
};
use tokio::task::JoinSet;

#[tokio::test]
async fn the_shared_store_agrees_with_a_map_whatever_becomes_of_its_connection() {
    let redis = Redis::start().await;
    let mut runner = TestRunner::deterministic();
    let events = proptest::collection::vec(event(), 1..60);
    for _ in 0..12 {
        let events = events.new_tree(&mut runner).unwrap().current();
        let store = store(&redis.url(), &LIMITS.yaml());
        let mut model = Model::of(&store, LIMITS);
        for event in events {
            match event {
                Event::Step(step) => model.take(step).await,
                Event::Cut => _ = redis.ask::<u64>("CLIENT KILL TYPE pubsub").await,
                Event::Freeze => {
                    redis.freeze();
                    tokio::time::sleep(LIMITS.idle / 4).await;
                    redis.thaw();
                }
            }
        }
    }
}

#[tokio::test]
async fn two_stores_see_each_others_sessions() {
    let redis = Redis::start().await;
    let [one, other] = [(); 2].map(|()| store(&redis.url(), ""));
    let id = ClientSessionId::mint();
    one.open(id, binding(0), None).await.unwrap();
    assert_eq!(other.find(id).await, Ok(Some(binding(0))));
    // Bound anew at one, the other's near entry goes.
    one.insert(id, binding(1)).await.unwrap();
    until_found(&other, id, Some(binding(1))).await;
    one.remove(id).await.unwrap();
    assert_eq!(one.find(id).await, Ok(None));
    until_found(&other, id, None).await;
    assert_eq!(redis.ask::<u64>("DBSIZE").await, 0, "what is left of it");
}

#[tokio::test]
async fn a_session_that_is_near_costs_no_round_trip() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "");
    let id = connected(&store).await;
    let before = redis.scripts().await;
    for _ in 0..1000 {
        assert_eq!(store.find(id).await, Ok(Some(binding(0))));
    }
    assert_eq!(redis.scripts().await, before);
}

#[tokio::test]
async fn near_sessions_are_counted_by_their_backend_until_they_are_gone() {
    let redis = Redis::start().await;
    let (one, other) = (store(&redis.url(), ""), store(&redis.url(), ""));
    let Binding { route, backend, .. } = binding(0);
    let id = connected(&one).await;
    connected(&other).await;
    one.insert(id, binding(1)).await.unwrap();
    assert_eq!(one.sessions_at(&route, &backend), 2);
    assert_eq!(other.find(id).await, Ok(Some(binding(1))));
    assert_eq!(other.sessions_at(&route, &backend), 3);
    one.remove(id).await.unwrap();
    assert_eq!(one.sessions_at(&route, &backend), 1);
    until("what another store hears", || {
        other.sessions_at(&route, &backend) == 2
    })
    .await;
}

#[tokio::test]
async fn near_sessions_that_are_idle_are_counted_out_by_a_census_alone() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "idle_timeout: 100ms");
    connected(&store).await;
    let Binding { route, backend, .. } = binding(0);
    assert_eq!(store.sessions_at(&route, &backend), 2);
    within("the end of their idle time", async {
        while store.sessions_at(&route, &backend) > 0 {
            store.census().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_adopted_is_as_old_as_it_is_and_no_new_one() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "lifetime: 1h, max_new_per_client: 1");
    let hour = Duration::from_secs(60 * 60).as_millis() as u64;
    let opened = Opened::from_milliseconds(Opened::now().milliseconds() - hour + 2000);
    let client = Some(ClientNetwork::from(IpAddr::from([192, 0, 2, 1])));
    for position in 0..3 {
        let id = ClientSessionId::mint();
        let binding = Binding {
            opened,
            ..binding(position)
        };
        store.adopt(id, binding.clone(), client).await.unwrap();
        assert_eq!(store.find(id).await, Ok(Some(binding)));
        if position == 2 {
            until_asked("the end of its lifetime", async || {
                store.find(id).await == Ok(None)
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_session_is_kept_with_its_seal() {
    let redis = Redis::start().await;
    let (one, other) = (store(&redis.url(), ""), store(&redis.url(), ""));
    let id = connected(&one).await;
    let sealed = Binding {
        seal: Some("what-stands-behind-the-digits".parse().unwrap()),
        ..binding(0)
    };
    one.insert(id, sealed.clone()).await.unwrap();
    assert_eq!(other.find(id).await, Ok(Some(sealed)));
}

#[tokio::test]
async fn a_removal_that_was_not_heard_is_found_out_when_the_connection_is_back() {
    let redis = Redis::start().await;
    let [one, other] = [(); 2].map(|()| store(&redis.url(), ""));
    let id = connected(&one).await;
    assert_eq!(other.find(id).await, Ok(Some(binding(0))));
    // As if its removal had been told while there was no connection.
    redis.ask::<()>("FLUSHALL").await;
    for _ in 0..10 {
        assert_eq!(other.find(id).await, Ok(Some(binding(0))));
    }
    let _: u64 = redis.ask("CLIENT KILL TYPE pubsub").await;
    until_found(&other, id, None).await;
}

#[tokio::test]
async fn idle_time_is_refreshed_at_most_each_quarter_of_it() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "idle_timeout: 400ms");
    let id = connected(&store).await;
    let (before, begun) = (redis.scripts().await, Instant::now());
    // For longer than a session that is not refreshed would live.
    while begun.elapsed() < Duration::from_secs(2) {
        assert_eq!(store.find(id).await, Ok(Some(binding(0))));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let refreshes = redis.scripts().await - before;
    let quarters = begun.elapsed().as_millis() / 100 + 1;
    assert!(
        (4..=quarters).contains(&refreshes.into()),
        "{refreshes} times in {quarters} quarters"
    );
}

#[tokio::test]
async fn a_session_that_is_in_use_without_a_request_is_refreshed_at_once_and_goes_on_in_an_outage()
{
    let mut redis = Redis::start().await;
    let store = store(&redis.url(), "");
    let id = connected(&store).await;
    let before = redis.scripts().await;
    for _ in 0..3 {
        assert_eq!(store.touch(id).await, Ok(Some(binding(0))));
    }
    assert_eq!(redis.scripts().await, before + 3);
    redis.kill().await;
    until("it is away", || !store.is_reached()).await;
    assert_eq!(store.touch(id).await, Ok(Some(binding(0))));
    let unknown = ClientSessionId::mint();
    assert_eq!(store.touch(unknown).await, Err(StoreError));
}

#[tokio::test]
async fn a_use_that_the_server_is_not_told_of_costs_nothing_of_the_idle_time() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "idle_timeout: 1h");
    let before = Opened::now().milliseconds();
    connected(&store).await;
    let minutes = |count: u64| count * 60 * 1000;
    let mut due = Vec::new();
    for shard in 0..16 {
        let list = format!("ZRANGE pmcp:{{{shard}}}:due 0 -1 WITHSCORES");
        due.extend(redis.ask::<Vec<(String, u64)>>(&list).await);
    }
    assert!(!due.is_empty());
    for (_, due) in due {
        // Up to a quarter may have passed before it is told of a use again.
        assert!(due >= before + minutes(75), "{due}");
    }
}

#[tokio::test]
async fn what_the_server_saves_shows_no_id_of_either_side() {
    let redis = Redis::with(&["rdbcompression no"]).await;
    let store = store(&redis.url(), "");
    let ids: Vec<_> = (0..100).map(|_| ClientSessionId::mint()).collect();
    for (position, id) in ids.iter().enumerate() {
        store.open(*id, binding(position), None).await.unwrap();
    }
    redis.ask::<()>("SAVE").await;
    let dump = std::fs::read(redis.folder.join("dump.rdb")).unwrap();
    let shows = |bytes: &[u8]| dump.windows(bytes.len()).any(|at| at == bytes);
    assert!(shows(b"pmcp:{"), "this is no dump of the sessions");
    for secret in ["backend-session-", "/mcp", "local"] {
        assert!(!shows(secret.as_bytes()), "{secret}");
    }
    for id in ids {
        let digits = id.to_header();
        let text = digits.to_str().unwrap();
        let bytes: Vec<_> = (0..16)
            .map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
            .collect();
        assert!(!shows(text.as_bytes()) && !shows(&bytes));
    }
}

#[tokio::test]
async fn keys_are_rotated_without_a_session_lost() {
    let redis = Redis::start().await;
    let with = |keys: &str| with_keys(&redis.url(), "", keys);
    let (old, both, new) = (with(OLD), with(&format!("{NEW}, {OLD}")), with(NEW));
    let [before, after] = [(); 2].map(|()| ClientSessionId::mint());
    old.open(before, binding(0), None).await.unwrap();
    both.open(after, binding(1), None).await.unwrap();
    assert_eq!(both.find(before).await, Ok(Some(binding(0))));
    assert_eq!(new.find(after).await, Ok(Some(binding(1))));
    // Another proxy may have the key: that is no 404.
    assert_eq!(new.find(before).await, Err(StoreError));
    assert_eq!(old.find(after).await, Err(StoreError));
    // Nor does one that has another key take its removals for its own.
    both.remove(before).await.unwrap();
    until_found(&old, before, None).await;
}

#[tokio::test]
async fn an_abandoned_session_goes_to_one_store_and_to_another_if_that_dies() {
    let redis = Redis::start().await;
    let limits = "idle_timeout: 100ms, lifetime: 10m, max_new_per_client: none";
    let [one, other] = [(); 2].map(|()| store(&redis.url(), limits));
    let mut left = HashSet::new();
    for position in 0..200 {
        let id = ClientSessionId::mint();
        one.open(id, binding(position), None).await.unwrap();
        left.insert(position);
    }
    // Both at a time, until none is left that was not claimed.
    let mut claimed = Vec::new();
    within("all sessions, abandoned", async {
        while claimed.len() < 200 {
            let (first, second) = tokio::join!(one.abandoned(7), other.abandoned(7));
            claimed.extend(first.unwrap());
            claimed.extend(second.unwrap());
        }
    })
    .await;
    for Abandoned { binding, .. } in &claimed {
        assert!(left.remove(&position(binding)), "claimed twice");
    }
    assert_eq!(one.abandoned(1).await, Ok(Vec::new()));
    assert_eq!(one.census().await.idle + other.census().await.idle, 200);
    // The half of them is settled. Who had the others dies, and its time passes.
    let unsettled = claimed.split_off(100);
    for Abandoned { claim, .. } in claimed {
        one.settle(claim).await.unwrap();
    }
    for shard in 0..16 {
        let list = format!("pmcp:{{{shard}}}:claimed");
        let names: Vec<String> = redis.ask(&format!("ZRANGE {list} 0 -1")).await;
        for name in names {
            redis.ask::<()>(&format!("ZADD {list} XX 1 {name}")).await;
        }
    }
    let again = other.abandoned(1000).await.unwrap();
    let positions = |of: &[Abandoned]| -> HashSet<usize> {
        of.iter()
            .map(|session| position(&session.binding))
            .collect()
    };
    assert_eq!(positions(&again), positions(&unsettled));
    for Abandoned { claim, .. } in again {
        other.settle(claim).await.unwrap();
    }
    assert_eq!(redis.ask::<u64>("DBSIZE").await, 0, "what is left of them");
}

#[tokio::test]
async fn what_nobody_claims_goes_as_others_come() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "max_new_per_client: none");
    let open = async |count: usize| {
        for position in 0..count {
            let id = ClientSessionId::mint();
            store.open(id, binding(position), None).await.unwrap();
        }
    };
    open(50).await;
    // The time in which they could have been claimed passes.
    for shard in 0..16 {
        let list = format!("pmcp:{{{shard}}}:due");
        let names: Vec<String> = redis.ask(&format!("ZRANGE {list} 0 -1")).await;
        for name in names {
            redis.ask::<()>(&format!("ZADD {list} XX 1 {name}")).await;
        }
    }
    open(500).await;
    let keys: u64 = redis.ask("DBSIZE").await;
    assert_eq!(keys, 500 + 16, "sessions and lists");
}

#[tokio::test]
async fn who_leaves_before_the_store_has_answered_takes_no_room() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "capacity: 1");
    let [id, other] = [(); 2].map(|()| ClientSessionId::mint());
    assert_eq!(store.find(id).await, Ok(None));
    redis.freeze();
    let opening = store.open(id, binding(0), None);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), opening)
            .await
            .is_err()
    );
    redis.thaw();
    assert_eq!(store.open(other, binding(0), None).await, Ok(()));
    assert_eq!(store.check_room(None).await, Err(OpenError::Full));
}

#[tokio::test]
async fn a_session_that_is_used_or_ended_is_not_abandoned() {
    let redis = Redis::start().await;
    let limits = "idle_timeout: 300ms, lifetime: 1200ms";
    let [one, other] = [(); 2].map(|()| store(&redis.url(), limits));
    let [used, ended] = [(); 2].map(|()| ClientSessionId::mint());
    one.open(used, binding(0), None).await.unwrap();
    one.open(ended, binding(1), None).await.unwrap();
    one.remove(ended).await.unwrap();
    let begun = Instant::now();
    let mut abandoned = Vec::new();
    within("the end of its lifetime", async {
        while abandoned.is_empty() {
            let _ = one.find(used).await.unwrap();
            abandoned = other.abandoned(10).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(begun.elapsed() >= Duration::from_millis(1200));
    assert_eq!(abandoned.len(), 1);
    assert_eq!(abandoned[0].binding, binding(0));
    assert_eq!(other.census().await.lifetime, 1);
    assert_eq!(one.find(used).await, Ok(None));
}

#[tokio::test]
async fn bounds_count_what_this_proxy_opened() {
    let redis = Redis::start().await;
    let limits = "capacity: 3, max_per_client: 2";
    let [one, other] = [(); 2].map(|()| store(&redis.url(), limits));
    let client = Some(ClientNetwork::from(IpAddr::from([192, 0, 2, 1])));
    let open = async |store: &SharedStore, client| {
        let id = ClientSessionId::mint();
        store.open(id, binding(0), client).await.map(|()| id)
    };
    let first = open(&one, client).await.unwrap();
    open(&one, client).await.unwrap();
    assert_eq!(open(&one, client).await, Err(OpenError::ClientFull));
    assert_eq!(one.check_room(client).await, Err(OpenError::ClientFull));
    open(&one, None).await.unwrap();
    assert_eq!(one.check_room(None).await, Err(OpenError::Full));
    assert_eq!(other.check_room(client).await, Ok(()));
    // One that ends anywhere makes room.
    other.remove(first).await.unwrap();
    until_asked("room for another", async || {
        one.check_room(client).await.is_ok()
    })
    .await;
    open(&one, client).await.unwrap();
}

#[tokio::test]
async fn a_cluster_keeps_sessions_and_tells_of_removals() {
    let cluster = Cluster::start().await;
    let urls: Vec<_> = cluster.nodes.iter().map(Redis::url).collect();
    let servers = format!("cluster: [{}]", urls.join(", "));
    let [one, other] = [(); 2].map(|()| at(&servers, "idle_timeout: 1h", OLD));
    let ids: Vec<_> = (0..64).map(|_| ClientSessionId::mint()).collect();
    for (position, id) in ids.iter().enumerate() {
        one.open(*id, binding(position), None).await.unwrap();
        assert_eq!(other.find(*id).await, Ok(Some(binding(position))));
    }
    for node in &cluster.nodes {
        assert!(node.ask::<u64>("DBSIZE").await > 0, "a node has nothing");
    }
    one.remove(ids[0]).await.unwrap();
    until_found(&other, ids[0], None).await;
    assert_eq!(one.abandoned(10).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_cluster_that_has_lost_a_part_serves_the_others() {
    let lines = [
        "cluster-require-full-coverage no",
        "appendonly yes",
        "appendfsync always",
    ];
    let mut cluster = Cluster::with(&lines).await;
    let urls: Vec<_> = cluster.nodes.iter().map(Redis::url).collect();
    let servers = format!("cluster: [{}]", urls.join(", "));
    let [one, other] = [(); 2].map(|()| at(&servers, "", OLD));
    let ids: Vec<_> = (0..64).map(|_| ClientSessionId::mint()).collect();
    for id in &ids {
        one.open(*id, binding(0), None).await.unwrap();
    }
    assert_eq!(other.find(ClientSessionId::mint()).await, Ok(None));
    cluster.nodes[0].kill().await;
    let mut asked = JoinSet::new();
    for id in ids.clone() {
        let other = other.clone();
        asked.spawn(async move { other.find(id).await });
    }
    let found = within("an answer for each session", asked.join_all()).await;
    let lost = found.iter().filter(|found| **found == Err(StoreError));
    let lost = lost.count();
    assert!((1..64).contains(&lost), "{lost} of 64");
    assert!(!found.contains(&Ok(None)), "one is said to be none");
    assert!(other.is_reached());
    cluster.nodes[0].restart().await;
    within("the part that was lost", async {
        for id in &ids {
            while other.find(*id).await != Ok(Some(binding(0))) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn no_operation_waits_for_ever_however_many_there_are() {
    let redis = Redis::start().await;
    let store = store(&redis.url(), "max_new_per_client: none");
    connected(&store).await;
    redis.freeze();
    let mut waiting = JoinSet::new();
    for position in 0..5000 {
        let (store, id) = (store.clone(), ClientSessionId::mint());
        waiting.spawn(async move {
            if position % 2 == 0 {
                assert_eq!(store.find(id).await, Err(StoreError));
            } else {
                let opened = store.open(id, binding(0), None).await;
                assert_eq!(opened, Err(OpenError::Store(StoreError)));
            }
        });
    }
    within("an answer to each", waiting.join_all()).await;
    until("an outage", || !store.is_reached()).await;
    redis.thaw();
    until_asked("the store", async || {
        store.find(ClientSessionId::mint()).await == Ok(None)
    })
    .await;
}

#[tokio::test]
async fn a_sentinel_leads_to_the_master_and_to_the_next() {
    let mut master = Redis::start().await;
    let port = master.address.port().to_string();
    let next = Redis::with(&[&format!("replicaof 127.0.0.1 {port}")]).await;
    until_asked("a replica", async || {
        next.ask::<String>("INFO replication")
            .await
            .contains("master_link_status:up")
    })
    .await;
    let sentinel = Redis::sentinel(&[
        &format!("sentinel monitor mymaster 127.0.0.1 {port} 1"),
        "sentinel down-after-milliseconds mymaster 500",
        "sentinel failover-timeout mymaster 2000",
    ])
    .await;
    let servers = format!(
        "sentinel: {{ name: mymaster, urls: [\"{}\"] }}",
        sentinel.url()
    );
    let store = at(&servers, "", OLD);
    let id = ClientSessionId::mint();
    until_asked("the master", async || {
        store.open(id, binding(0), None).await.is_ok()
    })
    .await;
    let replicated = async {
        while next.ask::<u64>("DBSIZE").await < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the session at the replica", replicated).await;
    within("the replica, known to the Sentinel", async {
        while sentinel
            .ask::<Vec<redis::Value>>("SENTINEL REPLICAS mymaster")
            .await
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    master.kill().await;
    let other = at(&servers, "", OLD);
    within("the session at the new master", async {
        while other.find(id).await != Ok(Some(binding(0))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let more = ClientSessionId::mint();
        while store.open(more, binding(1), None).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn tls_and_a_password_are_needed_where_the_server_wants_them() {
    let authority = Authority::new();
    let Files { certificate, key } = authority.issue("store", &["localhost"]);
    let (ca, password) = (authority.file(), "s3cret-of-the-store");
    let redis = Redis::with(&[
        "port 0",
        "tls-port PORT",
        &format!("tls-cert-file {}", certificate.display()),
        &format!("tls-key-file {}", key.display()),
        "tls-auth-clients no",
        &format!("requirepass {password}"),
    ])
    .await;
    let url = format!("rediss://localhost:{}", redis.address.port());
    let opened = async |more: &str| {
        let store = at(&format!("url: \"{url}\"{more}"), "", OLD);
        store.open(ClientSessionId::mint(), binding(0), None).await
    };
    let tls = format!(", tls: {{ ca: \"{}\" }}", ca.display());
    let both = format!("{tls}, password: {password}");
    assert_eq!(opened(&both).await, Ok(()));
    let refused = Err(OpenError::Store(StoreError));
    assert_eq!(opened(&tls).await, refused, "without the password");
    let wrong = format!("{tls}, password: {password}2");
    assert_eq!(opened(&wrong).await, refused, "with another password");
    let unknown = format!(", password: {password}");
    assert_eq!(opened(&unknown).await, refused, "from an unknown authority");
}

#[tokio::test]
async fn the_permissions_in_the_documentation_are_enough() {
    let text = std::fs::read_to_string("docs/configuration.md").unwrap();
    let permissions = text.lines().find(|line| line.starts_with("`+@connection"));
    let permissions = permissions.unwrap().trim_end_matches(',').trim_matches('`');
    let user = format!("user proxy on >s3cret ~pmcp:* &pmcp:removed {permissions}");
    let redis = Redis::with(&[&user]).await;
    let login = format!(
        "url: \"{}\", username: proxy, password: s3cret",
        redis.url()
    );
    let [one, other] = [(); 2].map(|()| at(&login, "idle_timeout: 400ms", OLD));
    let id = ClientSessionId::mint();
    one.open(id, binding(0), None).await.unwrap();
    assert_eq!(other.find(id).await, Ok(Some(binding(0))));
    one.insert(id, binding(1)).await.unwrap();
    until_found(&other, id, Some(binding(1))).await;
    one.remove(id).await.unwrap();
    until_found(&other, id, None).await;
    one.open(id, binding(2), None).await.unwrap();
    within("an abandoned session", async {
        loop {
            if let Some(over) = one.abandoned(1).await.unwrap().pop() {
                break one.settle(over.claim).await.unwrap();
            }
        }
    })
    .await;
}

// docs/operations.md, When the session store is away.
#[tokio::test]
async fn a_store_that_is_killed_leaves_near_sessions_alone_and_comes_back() {
    let mut fleet = Fleet::start(&["appendonly yes", "appendfsync always"]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    fleet.redis.kill().await;
    fleet.is_away(&near, &far).await;
    fleet.redis.restart().await;
    fleet.is_back(&near, &far).await;
}

#[tokio::test]
async fn a_store_that_is_frozen_is_away_until_it_answers() {
    let mut fleet = Fleet::start(&[]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    fleet.redis.freeze();
    fleet.is_away(&near, &far).await;
    fleet.redis.thaw();
    fleet.is_back(&near, &far).await;
}

#[tokio::test]
async fn a_store_that_is_too_slow_is_away_until_it_is_not() {
    let mut fleet = Fleet::start(&[]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    fleet.redis.ask::<()>("CLIENT PAUSE 3000 ALL").await;
    fleet.is_away(&near, &far).await;
    fleet.is_back(&near, &far).await;
}

#[tokio::test]
async fn a_connection_that_is_lost_is_no_outage() {
    let fleet = Fleet::start(&[]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    let url = fleet.proxy.url("/mcp");
    for _ in 0..5 {
        let cut: u64 = fleet.redis.ask("CLIENT KILL TYPE pubsub").await;
        assert_eq!(cut, 2, "one of each proxy");
        let (one, other) = tokio::join!(ask(&url, &near), ask(&url, &far));
        assert_eq!(
            (one.status(), other.status()),
            (StatusCode::OK, StatusCode::OK)
        );
        let unseen = fleet.open_elsewhere().await;
        assert_eq!(ask(&url, &unseen).await.status(), 200);
    }
    let log = fleet.proxy.log();
    assert_eq!(log.matches("the session store is").count(), 1, "{log}");
}

#[tokio::test]
async fn a_replica_is_no_store() {
    let mut fleet = Fleet::start(&[]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    fleet.redis.ask::<()>("REPLICAOF 127.0.0.1 1").await;
    fleet.is_away(&near, &far).await;
    fleet.redis.ask::<()>("REPLICAOF NO ONE").await;
    fleet.is_back(&near, &far).await;
}

#[tokio::test]
async fn a_store_that_refuses_a_command_is_reached_and_the_log_says_what_it_refuses() {
    let mut fleet = Fleet::start(&[]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    fleet.redis.ask::<()>("ACL SETUSER default -zscore").await;
    let url = fleet.proxy.url("/mcp");
    for _ in 0..3 {
        assert_eq!(ask(&url, &far).await.status(), 503);
        assert_eq!(ask(&url, &near).await.status(), 200);
    }
    let line = "the session store refuses what it is asked: it answers ";
    let is_said = fleet.proxy.until(|log| log.contains(line));
    assert!(is_said.await);
    assert!(fleet.says_store().await);
    fleet.redis.ask::<()>("ACL SETUSER default +zscore").await;
    assert_eq!(ask(&url, &far).await.status(), 200);
    let log = fleet.proxy.log();
    assert_eq!(log.matches(line).count(), 1, "{log}");
}

#[tokio::test]
async fn a_changed_password_is_an_outage_from_the_next_connection_on() {
    let mut fleet = Fleet::start(&[]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    fleet
        .redis
        .ask::<()>("CONFIG SET requirepass changed")
        .await;
    assert_eq!(ask(&fleet.proxy.url("/mcp"), &far).await.status(), 200);
    let unseen = fleet.open_elsewhere().await;
    for kind in ["normal SKIPME yes", "pubsub"] {
        let kill = format!("CLIENT KILL TYPE {kind}");
        fleet.redis.ask_with::<u64>("changed", &kill).await;
    }
    fleet.is_away(&near, &unseen).await;
    let said = "the session store is away: it answers WRONGPASS";
    assert!(fleet.proxy.until(|log| log.contains(said)).await);
    let back = "CONFIG SET requirepass s3cret";
    fleet.redis.ask_with::<()>("changed", back).await;
    fleet.is_back(&near, &unseen).await;
}

#[tokio::test]
async fn a_full_store_refuses_new_sessions_and_finds_those_that_are_there() {
    let fleet = Fleet::start(&["maxmemory-policy noeviction"]).await;
    let far = fleet.open_elsewhere().await;
    fleet.redis.ask::<()>("CONFIG SET maxmemory 1").await;
    let url = fleet.proxy.url("/mcp");
    let refused = initialize(&url).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(header(refused.headers(), "retry-after").is_some());
    assert_eq!(ask(&url, &far).await.status(), 200);
    assert!(fleet.says_store().await);
    // From the first refusal on, no backend opens a session in vain.
    let asked = fleet.backend.seen().len();
    let begun = Instant::now();
    assert_eq!(initialize(&url).send().await.unwrap().status(), 503);
    if begun.elapsed() < Duration::from_millis(500) {
        assert_eq!(fleet.backend.seen().len(), asked);
    }
    fleet.redis.ask::<()>("CONFIG SET maxmemory 0").await;
    until_asked("room", async || {
        initialize(&url).send().await.unwrap().status() == 200
    })
    .await;
}

#[tokio::test]
async fn sessions_that_the_store_has_lost_start_over() {
    let fleet = Fleet::start(&[]).await;
    let (near, far) = (fleet.open().await, fleet.open_elsewhere().await);
    fleet.redis.ask::<()>("FLUSHALL").await;
    let url = fleet.proxy.url("/mcp");
    assert_eq!(ask(&url, &near).await.status(), 200);
    assert_eq!(ask(&url, &far).await.status(), 404);
    open_session(&url).await;
}

#[tokio::test]
async fn a_proxy_starts_without_its_store_and_uses_it_when_that_is_there() {
    let mut redis = Redis::with(&["requirepass s3cret"]).await;
    redis.kill().await;
    let mut fleet = Fleet::of(redis).await;
    let url = fleet.proxy.url("/mcp");
    until_asked("its first try", async || !fleet.says_store().await).await;
    // Whether its backends give sessions, a proxy learns from the first that they give.
    for _ in 0..3 {
        assert_eq!(initialize(&url).send().await.unwrap().status(), 503);
        assert_eq!(fleet.backend.seen().len(), 1);
    }
    fleet.redis.restart().await;
    until_asked("the store", async || fleet.says_store().await).await;
    open_session(&url).await;
    // What is under way ends before the process, and the process with it.
    fleet.proxy.signal("TERM");
    assert_eq!(fleet.proxy.ended().await, Some(0));
    let log = fleet.proxy.log();
    assert_eq!(log.matches("the session store is").count(), 2, "{log}");
}

#[tokio::test]
async fn where_it_is_asked_for_a_proxy_whose_store_is_away_is_not_ready() {
    let admin = unused_address();
    let yaml = format!(
        "{}  sessions: {{ store: {{ redis: {{ url: redis://{}, keys: [{OLD}], unready_when_away: true }} }} }}\n  \
         admin: {{ address: {admin} }}\n",
        route(&[unused_address()]),
        unused_address(),
    );
    let _proxy = ProxyProcess::start(&yaml).await;
    until_asked("'store' at /readyz", async || {
        readiness(admin).await == (503, "store\n".to_owned())
    })
    .await;
    let status = reqwest::get(format!("http://{admin}/status"))
        .await
        .unwrap();
    let page = status.text().await.unwrap();
    assert!(page.contains("The session store is away."), "{page}");
}

async fn readiness(admin: SocketAddr) -> (u16, String) {
    let answer = reqwest::get(format!("http://{admin}/readyz")).await;
    let answer = answer.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Two proxies that share a store.
struct Fleet {
    redis: Redis,
    backend: Backend,
    proxy: ProxyProcess,
    admin: SocketAddr,
    elsewhere: ProxyProcess,
}

impl Fleet {
    async fn start(lines: &[&str]) -> Self {
        let lines = [&["requirepass s3cret"], lines].concat();
        Self::of(Redis::with(&lines).await).await
    }

    async fn of(redis: Redis) -> Self {
        let backend = Backend::with_session("backend-session").await;
        let admin = unused_address();
        let yaml = format!(
            "{}  sessions:\n    store:\n      redis:\n        url: {}\n        password: ${{STORE_PASSWORD}}\n        keys: [{OLD}]\n        timeout: 200ms\n",
            route(&[backend.address]),
            redis.url()
        );
        let with_admin = format!("{yaml}  admin: {{ address: {admin} }}\n");
        let environment = [("STORE_PASSWORD", "s3cret")];
        let proxy = ProxyProcess::with_environment(&with_admin, &environment).await;
        Self {
            redis,
            backend,
            proxy,
            admin,
            elsewhere: ProxyProcess::with_environment(&yaml, &environment).await,
        }
    }

    /// A session that the proxy has near.
    async fn open(&self) -> String {
        open_session(&self.proxy.url("/mcp")).await
    }

    /// A session that the proxy has not seen.
    async fn open_elsewhere(&self) -> String {
        open_session(&self.elsewhere.url("/mcp")).await
    }

    /// Whether the proxy says that its store is there, too. It is ready in any case.
    async fn says_store(&self) -> bool {
        let (status, body) = readiness(self.admin).await;
        assert_eq!(status, 200);
        match body.as_str() {
            "ready\n" => true,
            "ready, but the session store is away\n" => false,
            _ => panic!("{body}"),
        }
    }

    async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.admin);
        reqwest::get(url).await.unwrap().text().await.unwrap()
    }

    /// `near` goes on; what cannot be known, and what cannot be kept, is 503; and all say so.
    async fn is_away(&mut self, near: &str, far: &str) {
        let url = self.proxy.url("/mcp");
        let unknown = ask(&url, far).await;
        assert_eq!(unknown.status(), 503);
        assert!(header(unknown.headers(), "retry-after").is_some());
        assert_eq!(ask(&url, near).await.status(), 200);
        until_asked("the word of it at /readyz", async || {
            !self.says_store().await
        })
        .await;
        let asked = self.backend.seen().len();
        let refused = initialize(&url).send().await.unwrap();
        assert_eq!(refused.status(), 503);
        assert!(header(refused.headers(), "retry-after").is_some());
        assert_eq!(self.backend.seen().len(), asked, "a session was opened");
        assert_eq!(ask(&url, far).await.status(), 503);
        assert_eq!(ask(&url, near).await.status(), 200);
        let metrics = self.metrics().await;
        assert!(metrics.contains("\npingora_mcp_store_reached 0\n"));
        assert!(metrics.contains(&operation("find", "error")), "{metrics}");
    }

    /// All goes on, and of all that happened the log has three lines.
    async fn is_back(&mut self, near: &str, far: &str) {
        let url = self.proxy.url("/mcp");
        until_asked("the store", async || self.says_store().await).await;
        assert_eq!(ask(&url, far).await.status(), 200);
        assert_eq!(ask(&url, near).await.status(), 200);
        open_session(&url).await;
        let metrics = self.metrics().await;
        assert!(metrics.contains("\npingora_mcp_store_reached 1\n"));
        assert!(metrics.contains(&operation("insert", "ok")), "{metrics}");
        let again = |log: String| log.matches("the session store is reached").count() > 1;
        assert!(self.proxy.until(again).await);
        let log = self.proxy.log();
        let count = |line: &str| log.matches(line).count();
        assert_eq!(count("the session store is reached"), 2, "{log}");
        assert_eq!(count("the session store is away"), 1, "{log}");
        assert_eq!(count("the session store refuses"), 0, "{log}");
        assert!(!log.contains("s3cret") && !log.contains(OLD), "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn operation(operation: &str, outcome: &str) -> String {
    let name = "pingora_mcp_store_operation_duration_seconds_count";
    format!("{name}{{operation=\"{operation}\",outcome=\"{outcome}\"}}")
}

/// A step, or what becomes of the connection.
#[derive(Clone, Copy, Debug)]
enum Event {
    Step(Step),
    Cut,
    Freeze,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        11 => LIMITS.step().prop_map(Event::Step),
        1 => Just(Event::Cut),
        1 => Just(Event::Freeze),
    ]
}

const LIMITS: Limits = Limits {
    idle: Duration::from_millis(200),
    // Its idle time, and a quarter, may have been refreshed when it was last used.
    latest_idle: Duration::from_millis(250),
    lifetime: Duration::from_millis(300),
};

/// Waits until a store finds what it is to find, which it may hear of later.
async fn until_found(store: &SharedStore, id: ClientSessionId, expected: Option<Binding>) {
    until_asked("what another store has done", async || {
        store.find(id).await == Ok(expected.clone())
    })
    .await;
}

/// A session of `store`, which has its connection and its scripts from another.
async fn connected(store: &SharedStore) -> ClientSessionId {
    let [id, other] = [(); 2].map(|()| ClientSessionId::mint());
    store.open(other, binding(0), None).await.unwrap();
    assert_eq!(store.find(ClientSessionId::mint()).await, Ok(None));
    store.open(id, binding(0), None).await.unwrap();
    id
}

/// A store at `url` with `limits`, some keys of `sessions` with commas between.
fn store(url: &str, limits: &str) -> SharedStore {
    with_keys(url, limits, OLD)
}

fn with_keys(url: &str, limits: &str, keys: &str) -> SharedStore {
    at(&format!("url: \"{url}\""), limits, keys)
}

fn at(servers: &str, limits: &str, keys: &str) -> SharedStore {
    let limits = if limits.is_empty() {
        "capacity: 100000"
    } else {
        limits
    };
    let yaml =
        format!("{{ {limits}, store: {{ redis: {{ {servers}, keys: [{keys}], timeout: 5s }} }} }}");
    let settings: SessionSettings = serde_saphyr::from_str(&yaml).unwrap();
    let StoreSettings::Redis(redis) = &settings.store else {
        panic!("another store");
    };
    SharedStore::new((**redis).clone(), &settings)
}

fn position(binding: &Binding) -> usize {
    let id = binding.session.to_header();
    let (_, position) = id.to_str().unwrap().rsplit_once('-').unwrap();
    position.parse().unwrap()
}

const OLD: &str = KEY;
const NEW: &str = "qE6mE3cPpbfDMJZuO7Vd7ZrDL1kBv5cN";
