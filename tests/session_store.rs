//! The session store in memory: it is as the model of any store says, keeps its bounds, and knows
//! what it has forgotten.

mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora_mcp::mcp::ClientSessionId;
use pingora_mcp::session::{
    Binding, ClientNetwork, MemoryStore, OpenError, Opened, SessionSettings, SessionStore,
};
use proptest::collection::vec;
use proptest::prelude::*;
use support::session_model::{Limits, Model, binding};
use support::{until_asked, within};

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_agrees_with_a_map(steps in vec(LIMITS.step(), 1..60)) {
        let store = MemoryStore::new(with_yaml(&format!("{{ {} }}", LIMITS.yaml())));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(async {
            let mut model = Model::of(&store, LIMITS);
            for step in steps {
                model.take(step).await;
            }
        });
    }
}

#[tokio::test]
async fn capacity_is_a_hard_bound_and_the_newest_stays_where_the_oldest_goes() {
    let store = MemoryStore::new(with_yaml("{ capacity: 100, evict: oldest }"));
    for position in 0..1_000 {
        let id = ClientSessionId::mint();
        store.open(id, binding(position), None).await.unwrap();
        assert!(store.len() <= 100);
        assert_eq!(store.find(id).await.unwrap(), Some(binding(position)));
    }
}

#[tokio::test]
async fn what_is_used_stays_when_others_go() {
    let store = MemoryStore::new(with_yaml("{ capacity: 100, evict: oldest }"));
    let used = ClientSessionId::mint();
    store.open(used, binding(0), None).await.unwrap();
    for position in 1..1_000 {
        let id = ClientSessionId::mint();
        store.open(id, binding(position), None).await.unwrap();
        assert!(
            store.find(used).await.unwrap().is_some(),
            "gone after {position}"
        );
    }
}

#[tokio::test]
async fn sessions_are_counted_by_their_backend_until_they_are_gone() {
    let store = MemoryStore::new(with_yaml("{ capacity: 3, evict: oldest }"));
    let at = |backend: &str| Binding {
        backend: backend.parse().unwrap(),
        ..binding(0)
    };
    let count = |backend: &str| store.sessions_at(&binding(0).route, &backend.parse().unwrap());
    let mut ids = Vec::new();
    for backend in ["a", "a", "b@10.0.0.3:3000"] {
        let id = ClientSessionId::mint();
        store.open(id, at(backend), None).await.unwrap();
        ids.push(id);
    }
    assert_eq!(
        (count("a"), count("b@10.0.0.3:3000"), count("b")),
        (2, 1, 0)
    );
    // Bound anew, it is the same session; with another one, the oldest goes.
    store.insert(ids[2], at("b@10.0.0.3:3000")).await.unwrap();
    let id = ClientSessionId::mint();
    store.open(id, at("c"), None).await.unwrap();
    assert_eq!(
        (count("a"), count("b@10.0.0.3:3000"), count("c")),
        (1, 1, 1)
    );
    for id in ids.into_iter().chain([id]) {
        store.remove(id).await.unwrap();
    }
    assert_eq!(
        (count("a"), count("b@10.0.0.3:3000"), count("c")),
        (0, 0, 0)
    );
    let other = "/other".parse().unwrap();
    assert_eq!(store.sessions_at(&other, &"a".parse().unwrap()), 0);
}

#[tokio::test]
async fn at_capacity_a_new_session_is_refused_until_one_is_removed() {
    let store = MemoryStore::new(with_yaml("{ capacity: 100 }"));
    let mut ids = Vec::new();
    for position in 0..100 {
        let id = ClientSessionId::mint();
        store.open(id, binding(position), None).await.unwrap();
        ids.push(id);
    }
    assert_eq!(open(&store, None).await, Err(OpenError::Full));
    assert_eq!(store.check_room(None).await, Err(OpenError::Full));
    // What is there may be bound anew.
    store.insert(ids[0], binding(100)).await.unwrap();
    assert_eq!(store.len(), 100);
    for (position, id) in ids.iter().enumerate().skip(1) {
        assert_eq!(store.find(*id).await.unwrap(), Some(binding(position)));
    }
    store.remove(ids[0]).await.unwrap();
    assert_eq!(store.check_room(None).await, Ok(()));
    assert_eq!(open(&store, None).await, Ok(()));
}

#[tokio::test]
async fn a_session_that_expired_makes_room_for_another() {
    let store = MemoryStore::new(with_yaml(
        "{ capacity: 1, max_per_client: 1, idle_timeout: 50ms }",
    ));
    let client = Some(client([192, 0, 2, 1]));
    assert_eq!(open(&store, client).await, Ok(()));
    until_asked("the end of its idle time", async || {
        store.check_room(client).await.is_ok()
    })
    .await;
    assert_eq!(open(&store, client).await, Ok(()));
}

#[tokio::test]
async fn a_client_has_its_own_bound_and_leaves_that_of_others_alone() {
    for evict in ["none", "oldest"] {
        let yaml = format!("{{ capacity: 5, evict: {evict}, max_per_client: 2 }}");
        let store = MemoryStore::new(with_yaml(&yaml));
        let [first, second] = [1, 2].map(|host| Some(client([192, 0, 2, host])));
        for client in [first, second] {
            let id = ClientSessionId::mint();
            store.open(id, binding(0), client).await.unwrap();
            // Bound anew, it is one session still.
            store.insert(id, binding(1)).await.unwrap();
            assert_eq!(open(&store, client).await, Ok(()));
            assert_eq!(open(&store, client).await, Err(OpenError::ClientFull));
            store.remove(id).await.unwrap();
            assert_eq!(open(&store, client).await, Ok(()));
        }
        // A client on a Unix socket has no address, and no bound of its own.
        assert_eq!(open(&store, None).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_race_goes_beyond_a_bound() {
    let yaml = "{ capacity: 150, max_per_client: 100, max_new_per_client: none }";
    let store = Arc::new(MemoryStore::new(with_yaml(yaml)));
    let tasks = (0..8).map(|task| {
        let store = Arc::clone(&store);
        let client = Some(client([192, 0, 2, task % 2]));
        tokio::spawn(async move {
            let mut opened = 0;
            for _ in 0..100 {
                opened += u64::from(open(&store, client).await.is_ok());
            }
            opened
        })
    });
    let mut opened = 0;
    for task in tasks.collect::<Vec<_>>() {
        opened += task.await.unwrap();
    }
    assert_eq!((opened, store.len()), (150, 150));
}

async fn open(store: &MemoryStore, client: Option<ClientNetwork>) -> Result<(), OpenError> {
    let id = ClientSessionId::mint();
    store.open(id, binding(0), client).await
}

fn client(address: [u8; 4]) -> ClientNetwork {
    ClientNetwork::from(IpAddr::from(address))
}

#[tokio::test]
async fn a_lifetime_ends_a_session_that_is_in_use() {
    let store = MemoryStore::new(with_yaml("{ idle_timeout: 1h, lifetime: 200ms }"));
    let id = ClientSessionId::mint();
    let opened = Instant::now();
    store.insert(id, binding(0)).await.unwrap();
    until_asked("the end of its lifetime", async || {
        store.find(id).await == Ok(None)
    })
    .await;
    assert!(opened.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_session_that_is_bound_anew_lives_no_longer() {
    let store = MemoryStore::new(with_yaml("{ idle_timeout: 1h, lifetime: 200ms }"));
    let id = ClientSessionId::mint();
    let opened = Instant::now();
    store.insert(id, binding(0)).await.unwrap();
    until_asked("the end of its lifetime", async || {
        let is_over = store.find(id).await == Ok(None);
        if !is_over {
            store.insert(id, binding(1)).await.unwrap();
        }
        is_over
    })
    .await;
    assert!(opened.elapsed() >= Duration::from_millis(200));
    // Where it ends just before it is bound anew, it begins anew.
    assert!(store.census().await.lifetime >= 1);
}

/// Idle, at capacity, or used until its lifetime was over: not what its client ended.
#[tokio::test]
async fn each_session_that_was_forgotten_is_given_to_one_caller() {
    let limits = "{ capacity: 2, evict: oldest, idle_timeout: 50ms, lifetime: 200ms }";
    let store = MemoryStore::new(with_yaml(limits));
    let ids: Vec<_> = (0..4).map(|_| ClientSessionId::mint()).collect();
    for (position, id) in ids.iter().enumerate() {
        store.insert(*id, binding(position)).await.unwrap();
        if position == 1 {
            store.remove(*id).await.unwrap();
        }
    }
    let mut forgotten = Vec::new();
    within("the end of three", async {
        while forgotten.len() < 3 {
            forgotten.extend(store.abandoned(1).await.unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(store.abandoned(10).await, Ok(Vec::new()));
    let mut forgotten: Vec<_> = forgotten.into_iter().map(|one| one.binding).collect();
    forgotten.sort_by_key(|binding| binding.session.to_header().as_bytes().to_vec());
    assert_eq!(forgotten, [binding(0), binding(2), binding(3)]);
}

/// One whose lifetime was over may still be in memory: as a session that is adopted is.
#[tokio::test]
async fn a_session_that_is_bound_after_its_lifetime_begins_anew() {
    let store = MemoryStore::new(with_yaml("{ lifetime: 1h }"));
    let id = ClientSessionId::mint();
    let former = opened_before(60);
    store.adopt(id, former.clone(), None).await.unwrap();
    store.insert(id, binding(1)).await.unwrap();
    assert_eq!(store.find(id).await, Ok(Some(binding(1))));
    let abandoned = store.abandoned(10).await.unwrap().into_iter();
    assert_eq!(
        abandoned.map(|one| one.binding).collect::<Vec<_>>(),
        [former]
    );
    let census = store.census().await;
    assert_eq!((census.live, census.lifetime), (Some(1), 1));
}

#[tokio::test]
async fn a_session_that_is_adopted_lives_on_from_when_it_was_opened() {
    let store = MemoryStore::new(with_yaml("{ lifetime: 1h }"));
    for (minutes, lives) in [(59, true), (60, false)] {
        let (id, binding) = (ClientSessionId::mint(), opened_before(minutes));
        store.adopt(id, binding.clone(), None).await.unwrap();
        let found = store.find(id).await.unwrap();
        assert_eq!(found, lives.then_some(binding), "after {minutes} minutes");
    }
}

#[tokio::test]
async fn a_session_is_adopted_within_the_bounds_but_for_the_rate() {
    let limits = "{ capacity: 3, max_per_client: 2, max_new_per_client: 1 }";
    let store = MemoryStore::new(with_yaml(limits));
    let [first, second] = [1, 2].map(|host| Some(client([192, 0, 2, host])));
    let adopt = |client| store.adopt(ClientSessionId::mint(), binding(0), client);
    assert_eq!(open(&store, first).await, Ok(()));
    assert_eq!(adopt(first).await, Ok(()));
    assert_eq!(adopt(first).await, Err(OpenError::ClientFull));
    // Adopting was no opening of this second.
    assert_eq!(adopt(second).await, Ok(()));
    assert_eq!(adopt(second).await, Err(OpenError::Full));
    assert_eq!(store.len(), 3);
}

#[tokio::test]
async fn a_session_that_is_adopted_twice_is_one() {
    let store = MemoryStore::new(with_yaml("{ max_per_client: 2 }"));
    let (id, client) = (ClientSessionId::mint(), Some(client([192, 0, 2, 1])));
    store.adopt(id, binding(0), client).await.unwrap();
    store.adopt(id, binding(1), client).await.unwrap();
    assert_eq!(store.census().await.live, Some(1));
    assert_eq!(open(&store, client).await, Ok(()));
    store.remove(id).await.unwrap();
    assert_eq!(open(&store, client).await, Ok(()));
}

#[tokio::test]
async fn a_census_tells_why_sessions_were_forgotten() {
    let limits = "{ capacity: 2, evict: oldest, idle_timeout: 50ms, lifetime: 200ms }";
    let store = MemoryStore::new(with_yaml(limits));
    let used = ClientSessionId::mint();
    store.insert(used, binding(0)).await.unwrap();
    for position in 1..=2 {
        let id = ClientSessionId::mint();
        store.insert(id, binding(position)).await.unwrap();
        store.find(used).await.unwrap();
    }
    assert_eq!(store.census().await.live, Some(2));
    until_asked("the end of both", async || {
        store.find(used).await.unwrap();
        store.census().await.live == Some(0)
    })
    .await;
    let census = store.census().await;
    // On a busy machine, the one that is used may be found too late, and be idle too.
    assert_eq!(census.idle + census.lifetime, 2);
    assert!(census.idle >= 1);
    assert_eq!(census.capacity, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_use_loses_nothing() {
    let store = Arc::new(MemoryStore::new(with_yaml("{ capacity: 10000 }")));
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for position in task * 500..task * 500 + 500 {
                    let id = ClientSessionId::mint();
                    store.insert(id, binding(position)).await.unwrap();
                    assert_eq!(store.find(id).await.unwrap(), Some(binding(position)));
                    if position % 2 == 0 {
                        store.remove(id).await.unwrap();
                        assert_eq!(store.find(id).await.unwrap(), None);
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.len(), 16 * 250);
}

/// A binding to a session that was opened so many minutes ago.
fn opened_before(minutes: u64) -> Binding {
    let opened = Opened::now().milliseconds() - minutes * 60_000;
    Binding {
        opened: Opened::from_milliseconds(opened),
        ..binding(0)
    }
}

fn with_yaml(yaml: &str) -> SessionSettings {
    serde_saphyr::from_str(yaml).unwrap()
}

const LIMITS: Limits = Limits {
    idle: Duration::from_millis(20),
    latest_idle: Duration::from_millis(20),
    lifetime: Duration::from_millis(30),
};
