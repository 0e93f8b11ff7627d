//! The session store of this process's memory.

use std::net::IpAddr;

use futures::FutureExt;
use http::HeaderValue;
use pingora_mcp::backend::BackendName;
use pingora_mcp::mcp::{BackendSessionId, ClientSessionId};
use pingora_mcp::route::RoutePath;
use pingora_mcp::session::{
    Binding, ClientNetwork, MemoryStore, Opened, SessionSettings, SessionStore,
};

use super::Meter;

/// A store with sessions in it.
pub struct Filled {
    pub store: MemoryStore,
    pub ids: Vec<ClientSessionId>,
    template: Template,
}

impl Filled {
    pub fn new(count: usize) -> Self {
        let template = Template::new();
        let store = MemoryStore::new(unbounded());
        let ids = (0..count).map(|_| template.open(&store)).collect();
        Self {
            store,
            ids,
            template,
        }
    }

    pub fn measure(&self, meter: &mut impl Meter) {
        let (store, count) = (&self.store, self.ids.len());
        let mut turn = self.ids.iter().cycle();
        let known = || *turn.next().unwrap();
        meter.measure(&format!("find of {count}"), known, |id| find(store, *id));
        let new = || Some(self.template.session());
        meter.measure(&format!("insert and remove of {count}"), new, |session| {
            let (id, binding) = session.take().unwrap();
            let opened = store.open(id, binding, Some(client()));
            opened
                .now_or_never()
                .expect("memory answers at once")
                .unwrap();
            let removed = store.remove(id).now_or_never();
            removed.expect("memory answers at once").unwrap();
        });
    }
}

fn find(store: &MemoryStore, id: ClientSessionId) {
    let found = store.find(id).now_or_never();
    assert!(found.expect("memory answers at once").unwrap().is_some());
}

fn client() -> ClientNetwork {
    IpAddr::from([127, 0, 0, 1]).into()
}

/// What all sessions of a backend share.
pub struct Template {
    route: RoutePath,
    backend: BackendName,
}

impl Template {
    pub fn new() -> Self {
        Self {
            route: "/mcp".parse().unwrap(),
            backend: "local".parse().unwrap(),
        }
    }

    pub fn open(&self, store: &MemoryStore) -> ClientSessionId {
        let opened = self.open_in(store).now_or_never();
        opened.expect("memory answers at once")
    }

    pub async fn open_in(&self, store: &impl SessionStore) -> ClientSessionId {
        let (id, binding) = self.session();
        store.open(id, binding, Some(client())).await.unwrap();
        id
    }

    /// A session whose backend's id is a UUID with hyphens, as the SDKs' servers give it.
    pub fn session(&self) -> (ClientSessionId, Binding) {
        let id = ClientSessionId::mint();
        let given = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).unwrap();
        let binding = Binding {
            route: self.route.clone(),
            backend: self.backend.clone(),
            session: BackendSessionId::try_from(&given).unwrap(),
            opened: Opened::now(),
            seal: None,
        };
        (id, binding)
    }
}

pub fn unbounded() -> SessionSettings {
    let yaml = "{ capacity: 2000000, max_per_client: none, max_new_per_client: none }";
    serde_saphyr::from_str(yaml).unwrap()
}
