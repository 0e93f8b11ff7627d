//! What every session store must do: random operations on it and on a plain map agree.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use pingora_mcp::mcp::{BackendSessionId, ClientSessionId};
use pingora_mcp::session::{Binding, MemoryStore, SessionSettings, SessionStore};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_agrees_with_a_map(steps in proptest::collection::vec(step(), 1..60)) {
        check(Arc::new(MemoryStore::new(settings())), steps);
    }
}

#[tokio::test]
async fn capacity_is_a_hard_bound_and_the_newest_stays() {
    let store = MemoryStore::new(with_yaml("{ capacity: 100 }"));
    for position in 0..1_000 {
        let id = ClientSessionId::mint();
        store.insert(id, binding(position)).await.unwrap();
        assert!(store.len() <= 100);
        assert_eq!(store.find(id).await.unwrap(), Some(binding(position)));
    }
}

#[tokio::test]
async fn what_is_used_stays_when_others_go() {
    let store = MemoryStore::new(with_yaml("{ capacity: 100 }"));
    let used = ClientSessionId::mint();
    store.insert(used, binding(0)).await.unwrap();
    for position in 1..1_000 {
        store
            .insert(ClientSessionId::mint(), binding(position))
            .await
            .unwrap();
        assert!(
            store.find(used).await.unwrap().is_some(),
            "gone after {position}"
        );
    }
}

#[tokio::test]
async fn a_lifetime_ends_a_session_that_is_in_use() {
    let store = MemoryStore::new(with_yaml("{ idle_timeout: 1h, lifetime: 200ms }"));
    let id = ClientSessionId::mint();
    let opened = Instant::now();
    store.insert(id, binding(0)).await.unwrap();
    while store.find(id).await.unwrap().is_some() {
        assert!(opened.elapsed() < Duration::from_secs(10), "it lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(opened.elapsed() >= Duration::from_millis(200));
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

/// An operation on one of a few sessions.
#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(usize, usize),
    Find(usize),
    Remove(usize),
    Wait(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..SESSIONS, 0..100usize).prop_map(|(session, to)| Step::Insert(session, to)),
        5 => (0..SESSIONS).prop_map(Step::Find),
        2 => (0..SESSIONS).prop_map(Step::Remove),
        1 => prop_oneof![Just(IDLE / 3), Just(IDLE * 2)].prop_map(Step::Wait),
    ]
}

/// What the model knows of a session: where it goes, and between which two moments its idle time
/// and its lifetime began. Between the two answers that these allow, either is right.
struct Entry {
    binding: Binding,
    opened: (Instant, Instant),
    used: (Instant, Instant),
}

impl Entry {
    fn must_be_gone(&self, now: Instant) -> bool {
        now >= self.used.1 + IDLE || now >= self.opened.1 + LIFETIME
    }

    fn may_be_gone(&self, now: Instant) -> bool {
        now >= self.used.0 + IDLE || now >= self.opened.0 + LIFETIME
    }
}

fn check(store: Arc<dyn SessionStore>, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let ids: Vec<_> = (0..SESSIONS).map(|_| ClientSessionId::mint()).collect();
        let mut model: HashMap<usize, Entry> = HashMap::new();
        for step in steps {
            let before = Instant::now();
            match step {
                Step::Insert(session, to) => {
                    store.insert(ids[session], binding(to)).await.unwrap();
                    let span = (before, Instant::now());
                    let entry = Entry {
                        binding: binding(to),
                        opened: span,
                        used: span,
                    };
                    model.insert(session, entry);
                }
                Step::Find(session) => {
                    let found = store.find(ids[session]).await.unwrap();
                    let after = Instant::now();
                    match (found, model.get_mut(&session)) {
                        (Some(found), Some(entry)) => {
                            assert!(!entry.must_be_gone(before), "{step:?} found an expired one");
                            assert_eq!(found, entry.binding);
                            entry.used = (before, after);
                        }
                        (None, Some(entry)) => {
                            assert!(entry.may_be_gone(after), "{step:?} lost a living one");
                            model.remove(&session);
                        }
                        (found, None) => assert_eq!(found, None, "{step:?}"),
                    }
                }
                Step::Remove(session) => {
                    store.remove(ids[session]).await.unwrap();
                    model.remove(&session);
                }
                Step::Wait(time) => tokio::time::sleep(time).await,
            }
        }
    });
}

const SESSIONS: usize = 5;
const IDLE: Duration = Duration::from_millis(30);
const LIFETIME: Duration = Duration::from_millis(90);

fn settings() -> SessionSettings {
    with_yaml("{ idle_timeout: 30ms, lifetime: 90ms }")
}

fn with_yaml(yaml: &str) -> SessionSettings {
    serde_saphyr::from_str(yaml).unwrap()
}

fn binding(position: usize) -> Binding {
    let id = HeaderValue::try_from(format!("backend-session-{position}")).unwrap();
    Binding {
        route: "/mcp".parse().unwrap(),
        backend: "local".parse().unwrap(),
        session: BackendSessionId::try_from(&id).unwrap(),
    }
}
