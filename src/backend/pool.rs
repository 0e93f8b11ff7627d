//! The backends of a route, and which of them takes a request.

use std::cmp::Ordering::Equal;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::names::{Lookup, distinct};
use super::{Backend, BackendName, Health, HostName, Profile};
use crate::metrics::Series;
use crate::rejection::Rejection;

/// All backends of a route, in the order of the configuration.
#[derive(Debug)]
pub struct Pool {
    entries: Vec<Arc<Entry>>,
    backends: ArcSwap<Vec<Arc<Backend>>>,
    /// Where the next search begins, so that backends with equal load take turns.
    next: AtomicUsize,
}

/// An entry of a route's `backends`, which stands for one backend, or for those of its host name.
#[derive(Debug)]
pub(crate) struct Entry {
    profile: Arc<Profile>,
    series: Arc<Series>,
    /// Its own, or those that its host name stood for at first.
    addresses: Vec<SocketAddr>,
    lookup: Lookup,
}

impl Entry {
    fn new(profile: Profile) -> Self {
        Self {
            addresses: profile.url.address.into_iter().collect(),
            lookup: Lookup::new(&[]),
            profile: Arc::new(profile),
            series: Arc::default(),
        }
    }

    /// What is configured of it.
    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The host name to be looked up now, if it is time to. What comes of it must be
    /// [told](Pool::resolved).
    pub(crate) fn due_name(&self) -> Option<(&str, u16)> {
        let (host, port) = self.profile.url.host_name.as_ref()?;
        let is_due = self.lookup.is_due(self.profile.resolve);
        is_due.then_some((host, *port))
    }

    fn owns(&self, backend: &Backend) -> bool {
        Arc::ptr_eq(&self.profile, &backend.profile)
    }

    /// Whether one lookup is for both.
    fn has_host_name_of(&self, other: &Self) -> bool {
        let (url, other) = (&self.profile.url, &other.profile.url);
        url.host_name.is_some() && url.host_name == other.host_name
    }
}

/// What a backend is chosen for.
#[non_exhaustive]
pub enum For<'f> {
    /// A request that may open a session: it says how many of a backend's are alive.
    Session(&'f dyn Fn(&BackendName) -> u64),
    /// Any other request.
    Request,
}

impl Pool {
    pub(crate) fn new(profiles: impl Iterator<Item = Profile>) -> Self {
        let entries: Vec<_> = profiles.map(Entry::new).map(Arc::new).collect();
        Self {
            backends: backends(&entries),
            entries,
            next: AtomicUsize::new(0),
        }
    }

    /// The host names that its entries have.
    pub(crate) fn host_names(&self) -> impl Iterator<Item = &HostName> {
        let entries = self.entries.iter();
        entries.filter_map(|entry| entry.profile.url.host_name.as_ref())
    }

    /// Begins with what host names were `found` to stand for.
    pub(crate) fn begin(&mut self, found: &HashMap<HostName, Vec<SocketAddr>>) {
        for entry in self.entries.iter_mut().filter_map(Arc::get_mut) {
            let host_name = entry.profile.url.host_name.as_ref();
            if let Some(addresses) = host_name.and_then(|name| found.get(name)) {
                entry.lookup = Lookup::new(addresses);
                entry.addresses.clone_from(addresses);
            }
        }
        self.backends = backends(&self.entries);
    }

    /// The backend that takes a request of no session: the one with the fewest sessions or requests,
    /// each for its weight, of those that are up and were not tried already. One that is down is
    /// tried now and then; where all are, the one whose time to be tried comes first, as a request has
    /// nothing to lose.
    ///
    /// # Errors
    /// All were tried or are being drained, or those that are left have as many requests as they
    /// may.
    pub fn pick(&self, tried: &[BackendName], purpose: For<'_>) -> Result<Lease, Rejection> {
        let backends = self.backends.load();
        let start = self.next.fetch_add(1, Ordering::Relaxed) % backends.len().max(1);
        let (after, before) = (&backends[start..], &backends[..start]);
        let left = || {
            let all = after.iter().chain(before);
            all.filter(|backend| is_left(backend, tried))
        };
        if left().next().is_none() {
            return Err(Rejection::NoBackend);
        }
        let free = || left().filter(|backend| backend.in_flight.has_room());
        let is_up = |backend: &&Arc<Backend>| !backend.health.is_down();
        let tried_now = free().find(|backend| !is_up(backend) && backend.is_tried_now());
        let least = || {
            let ranked = free().filter(is_up);
            let ranked = ranked.map(|backend| (rank(backend, &purpose), backend));
            let order = |one: &Rank, other: &Rank| one.partial_cmp(other).unwrap_or(Equal);
            let least = ranked.min_by(|(one, _), (other, _)| order(one, other));
            least.map(|(_, backend)| backend)
        };
        let soonest = || free().min_by_key(|backend| backend.health.retry_at());
        match tried_now.or_else(least).or_else(soonest) {
            Some(backend) => Lease::new(backend, matches!(purpose, For::Session(_))),
            None => Err(Rejection::BackendFull),
        }
    }

    /// Whether [`pick`](Self::pick) might have another one.
    pub(crate) fn has_another(&self, tried: &[BackendName]) -> bool {
        let backends = self.backends.load();
        backends.iter().any(|backend| is_left(backend, tried))
    }

    /// The backend of this name, whatever its health.
    ///
    /// # Errors
    /// The configuration has it no more, or its host name no more that address, so that its sessions
    /// are unknown; its host name was never resolved, so that nothing is known; or it has as many
    /// requests as it may.
    pub fn get(&self, name: &BackendName) -> Result<Lease, Rejection> {
        let backends = self.backends.load();
        if let Some(backend) = backends.iter().find(|backend| backend.name == *name) {
            return Lease::new(backend, false);
        }
        let mut entries = self.entries.iter();
        let configured = name.configured();
        match entries.find(|entry| entry.profile.name.as_str() == configured) {
            Some(entry) if entry.profile.url.host_name.is_some() && !entry.lookup.is_known() => {
                Err(Rejection::BackendUnreachable)
            }
            _ => Err(Rejection::UnknownSession),
        }
    }

    /// Whether `name` may be one that another proxy has met already and this one has not looked up yet:
    /// of a session that was opened no longer than `age` ago.
    pub(crate) fn may_come(&self, name: &BackendName, age: Duration) -> bool {
        let mut entries = self.entries.iter();
        let configured = name.configured();
        let entry = entries.find(|entry| entry.profile.name.as_str() == configured);
        entry.is_some_and(|entry| {
            let Profile { url, resolve, .. } = &*entry.profile;
            configured != name.as_str() && url.host_name.is_some() && age < *resolve * 2
        })
    }

    /// Goes on with what `former` knows of the backends that both have. Others are new.
    pub(crate) fn succeed(&mut self, former: &Self) {
        let formers: Vec<_> = former.iter().collect();
        let mut backends = Vec::new();
        for entry in &mut self.entries {
            let mut entries = former.entries.iter();
            let same = entries.find(|former| former.profile.name == entry.profile.name);
            if let (Some(entry), Some(same)) = (Arc::get_mut(entry), same) {
                entry.series = Arc::clone(&same.series);
            }
            let is_known = |backend: &&Arc<Backend>| {
                same.is_some_and(|same| same.owns(backend) && entry.has_host_name_of(same))
            };
            let known = || formers.iter().filter(is_known);
            let mut listed = entry.addresses.clone();
            if listed.is_empty() {
                // The name does not resolve now.
                let before = known().filter(|backend| backend.is_listed());
                listed.extend(before.map(|backend| backend.address));
            }
            let gone = known().map(|backend| backend.address);
            let gone: Vec<_> = gone.filter(|gone| !listed.contains(gone)).collect();
            if !listed.is_empty() {
                entry.lookup.ended(false);
            }
            for &address in listed.iter().chain(&gone) {
                let mut backend = Backend::new(&entry.profile, address, &entry.series);
                backend.is_listed = listed.contains(&address).into();
                let mut formers = formers.iter();
                backend.succeed(formers.find(|former| former.name == backend.name));
                backends.push(Arc::new(backend));
            }
        }
        self.backends = ArcSwap::from_pointee(backends);
    }

    /// All entries of the configuration.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    /// Those of them whose host name has not stood for any address yet.
    pub(crate) fn unresolved(&self) -> impl Iterator<Item = &Profile> {
        let entries = self.entries.iter().map(|entry| entry.profile());
        let backends = self.backends.load_full();
        entries.filter(move |profile| {
            let mut backends = backends.iter();
            !backends.any(|backend| std::ptr::eq(&*backend.profile, *profile))
        })
    }

    /// The host name of `entry` was looked up. A lookup that failed changes nothing. An address that
    /// is new is a new backend; one that is gone goes on with its sessions, for as long as it can be
    /// connected to.
    pub(crate) fn resolved(&self, entry: &Entry, found: io::Result<Vec<SocketAddr>>) {
        let addresses = match found {
            Ok(addresses) => distinct(addresses),
            Err(_) => Vec::new(),
        };
        let is_new = entry.lookup.ended(addresses.is_empty());
        let profile = &entry.profile;
        if addresses.is_empty() {
            if is_new {
                log::warn!("backend {profile}: its host name does not resolve");
            }
            return;
        }
        let before = self.backends.load_full();
        let known: Vec<_> = before
            .iter()
            .filter(|backend| entry.owns(backend))
            .collect();
        for backend in &known {
            backend.list(addresses.contains(&backend.address));
        }
        let is_new = |address: &SocketAddr| known.iter().all(|known| known.address != *address);
        let new = addresses.into_iter().filter(is_new);
        let new: Vec<_> = new
            .map(|address| {
                let mut backend = Backend::new(profile, address, &entry.series);
                // Beside others, it is not to get all at once.
                if !before.is_empty() {
                    backend.health = Arc::new(Health::newcomer());
                }
                log::info!("backend {backend}: a new address");
                Arc::new(backend)
            })
            .collect();
        let is_over = |backend: &Backend| entry.owns(backend) && backend.is_lost(Duration::MAX);
        self.backends.rcu(|current| {
            let kept = current.iter().filter(|backend| !is_over(backend));
            let mut backends: Vec<_> = kept.chain(&new).cloned().collect();
            let place = |backend: &Arc<Backend>| {
                let mut entries = self.entries.iter();
                (
                    entries.position(|entry| entry.owns(backend)),
                    backend.address,
                )
            };
            backends.sort_by_key(place);
            backends
        });
    }

    /// The backends of `entry` whose address is gone.
    pub(crate) fn gone<'p>(&'p self, entry: &'p Entry) -> impl Iterator<Item = Arc<Backend>> + 'p {
        self.iter()
            .filter(|backend| entry.owns(backend) && !backend.is_listed())
    }

    /// All of them, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = Arc<Backend>> + use<> {
        let backends = self.backends.load_full();
        (0..backends.len()).map(move |position| Arc::clone(&backends[position]))
    }
}

impl Backend {
    /// Goes on with what `former` is known by, or is new.
    fn succeed(&mut self, former: Option<&Arc<Self>>) {
        let Some(former) = former else {
            self.health = Arc::new(Health::newcomer());
            return;
        };
        self.in_flight.succeed(&former.in_flight);
        self.opening = Arc::clone(&former.opening);
        self.health = match former.address == self.address {
            true => Arc::clone(&former.health),
            false => Arc::new(Health::newcomer()),
        };
        if former.profile.drain && !self.profile.drain {
            self.health.came_now();
        }
    }

    /// Notes whether its host name stands for its address now.
    fn list(&self, is_listed: bool) {
        let was_listed = self.is_listed.swap(is_listed, Ordering::Relaxed);
        match (was_listed, is_listed) {
            (true, false) => log::info!("backend {self}: its address is gone"),
            (false, true) => {
                self.health.came_now();
                log::info!("backend {self}: its address is back");
            }
            (true, true) | (false, false) => {}
        }
    }
}

/// All backends of `entries` at the beginning.
fn backends(entries: &[Arc<Entry>]) -> ArcSwap<Vec<Arc<Backend>>> {
    let backends = entries.iter().flat_map(|entry| {
        let addresses = entry.addresses.iter();
        addresses.map(|&address| Backend::new(&entry.profile, address, &entry.series))
    });
    ArcSwap::from_pointee(backends.map(Arc::new).collect())
}

/// Whether a request of no session may go to `backend`.
fn is_left(backend: &Backend, tried: &[BackendName]) -> bool {
    !backend.is_draining() && !tried.contains(&backend.name)
}

type Rank = (f64, f64);

/// The less, the sooner a request goes to `backend`: what it has for each part of its weight, with
/// this request. Of equals, it is the one with the fewest requests.
fn rank(backend: &Backend, purpose: &For<'_>) -> Rank {
    let weight = backend.weight() as f64 * backend.share();
    let requests = (backend.in_flight() as f64 + 1.0) / weight;
    match purpose {
        For::Request => (requests, requests),
        For::Session(live) => {
            let opening = backend.opening.load(Ordering::Relaxed);
            let sessions = live(&backend.name) as f64 + opening as f64;
            ((sessions + 1.0) / weight, requests)
        }
    }
}

/// A backend that a request is at. While it is held, the request counts as in flight.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    is_opening: bool,
}

impl Lease {
    fn new(backend: &Arc<Backend>, is_opening: bool) -> Result<Self, Rejection> {
        if !backend.in_flight.enter() {
            return Err(Rejection::BackendFull);
        }
        if is_opening {
            backend.opening.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Self {
            backend: Arc::clone(backend),
            is_opening,
        })
    }
}

impl std::ops::Deref for Lease {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.in_flight.leave();
        if self.is_opening {
            self.backend.opening.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
