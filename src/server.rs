//! From a configuration to a running Pingora server.

use std::io;
use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{Fds, ListenFds, RunArgs, Server};
use pingora_core::services::background::background_service;
use pingora_core::services::listening::Service;
use pingora_proxy::{HttpProxy, http_proxy};

use crate::backend_watch::BackendWatch;
use crate::config::{Config, Settings};
use crate::connections::Connections;
use crate::drain::{Drain, Drained, Signals};
use crate::early_signals::EarlySignals;
use crate::gateway::Gateway;
use crate::handover;
use crate::listener::{Listeners, listen, socket_options};
use crate::metrics::Metrics;
use crate::observe::{AccessLog, Admin, BoundedAdmin, Observer};
use crate::proxy::McpProxy;
use crate::reaper::Reaper;
use crate::reload::{Fixed, Reload};
use crate::session::{
    MemoryStore, RedisSettings, SessionSettings, SessionStore, SharedStore, StoreSettings,
};
use crate::setting::Most;
use crate::start;
use crate::stream_watch::StreamWatch;
use crate::tls::{BackendTls, CertificateWatch, ListenerTls};

/// Runs the proxy until a signal ends it. `options` are Pingora's own; the configuration file that
/// they name is the one that `settings` have been read from, and is read again on SIGHUP. What of
/// `early` has come is done as soon as it can be. In the background, what
/// [`start::check`] finds is a panic.
///
/// # Errors
/// An address cannot be listened on, no running process be replaced, or the access log not be written.
pub fn run(mut options: Opt, settings: Settings, early: EarlySignals) -> Result<(), StartError> {
    let Settings {
        mut server,
        mut mcp,
    } = settings;
    let file = options.conf.take();
    let access_log = AccessLog::open(mcp.access_log.clone()).map_err(StartError::AccessLog)?;
    let settings = mcp.drain;
    let fixed = Fixed::of(&server, &mcp);
    start::complete(&mut server);
    // One thread has nobody to take work from. On a runtime that does not try, a request costs it a
    // seventh less.
    server.work_stealing &= server.threads > 1;
    // Here and not by Pingora, which would go on without the addresses that are new.
    let taken_over = match std::mem::take(&mut options.upgrade) {
        true => handover::receive(&server.upgrade_sock).map_err(StartError::Upgrade)?,
        false => Fds::new(),
    };
    let sockets = bind(&mcp, taken_over)?;
    let mut pingora = Server::new_with_opt_and_conf(options, server);
    pingora.bootstrap();
    let started = summary(&mcp);
    let descriptors = descriptors(&pingora.configuration);
    mcp.limits.fit(descriptors);
    let (listeners, sessions, admin) = (
        mcp.listeners.clone(),
        mcp.sessions.clone(),
        mcp.admin.clone(),
    );
    // Without the admin listener nobody could read them.
    let metrics = match admin.address {
        Some(_) => Some(Arc::new(Metrics::new(mcp.metrics)?)),
        None => None,
    };
    let shared = shared_store(&mcp.sessions);
    if let (Some(metrics), Some(shared)) = (&metrics, &shared) {
        metrics.add(shared.collectors())?;
    }
    if let Some(shared) = &shared {
        pingora.add_service(background_service("sessions", shared.clone()));
    }
    let store = store(&mcp.sessions, shared);
    let gateway = Arc::new(gateway_with(mcp, store));
    let reload = file.map(|file| {
        let reload = Reload::new(file, fixed, descriptors, Arc::clone(&gateway), early.hangup);
        let service = background_service("reload", reload);
        let reload = service.task();
        pingora.add_service(service);
        reload
    });
    let watch = certificate_watch(&listeners, Arc::clone(&gateway));
    pingora.add_service(background_service("certificates", watch));
    let watch = backend_watch(&pingora.configuration, Arc::clone(&gateway));
    pingora.add_service(background_service("backends", watch));
    let watch = stream_watch(&sessions, Arc::clone(&gateway));
    pingora.add_service(background_service("streams", watch));
    let reaper = Reaper::new(
        &pingora.configuration,
        Arc::clone(&gateway),
        metrics.clone(),
    );
    if let Some(reaper) = reaper {
        pingora.add_service(background_service("reaper", reaper));
    }
    let upgrade_sock = pingora.configuration.upgrade_sock.clone();
    let load = gateway.load().clone();
    let drain = Arc::new(Drain::new(settings, load, upgrade_sock, sockets));
    let observer = Observer::new(metrics, access_log.clone()).with_listeners(listeners.clone());
    if let Some(address) = admin.address {
        let (hosts, gateway) = (admin.allowed_hosts, Arc::clone(&gateway));
        let mut admin = Admin::new(hosts, gateway, observer.clone(), sessions, drain.begun());
        if let Some(reload) = reload {
            admin = admin.with_reload(reload);
        }
        let service = admin_service(admin, address);
        pingora.add_service(Drained::to_the_end(service, Arc::clone(&drain)));
    }
    let proxy = McpProxy::new(gateway).with_observer(observer);
    let service = proxy_service(&pingora.configuration, proxy, &listeners);
    pingora.add_service(Drained::new(service, Arc::clone(&drain)));
    pingora.run(RunArgs {
        shutdown_signal: Box::new(Signals {
            drain,
            started,
            quit: early.quit,
        }),
    });
    if let Some(access_log) = access_log {
        access_log.flush();
    }
    Ok(())
}

/// The gateway that `config` describes, with its sessions where it says.
pub fn gateway(config: Config) -> Gateway {
    let store = store(&config.sessions, shared_store(&config.sessions));
    gateway_with(config, store)
}

/// The gateway that `config` describes, with its sessions in `store`.
pub fn gateway_with(config: Config, store: Arc<dyn SessionStore>) -> Gateway {
    let sessions = config.sessions.clone();
    Gateway::new(config.into(), store)
        .with_lost_after(sessions.lost_after.0)
        .with_reaping(&sessions)
}

/// The store that others share, where `sessions` are kept in one.
fn shared_store(sessions: &SessionSettings) -> Option<SharedStore> {
    match &sessions.store {
        StoreSettings::Memory => None,
        StoreSettings::Redis(redis) => {
            Some(SharedStore::new(RedisSettings::clone(redis), sessions))
        }
    }
}

fn store(sessions: &SessionSettings, shared: Option<SharedStore>) -> Arc<dyn SessionStore> {
    match shared {
        Some(shared) => Arc::new(shared),
        None => Arc::new(MemoryStore::new(sessions.clone())),
    }
}

/// The proxy as a service on `listeners`, to host in a Pingora server of your own.
pub fn proxy_service(
    conf: &Arc<ServerConf>,
    proxy: impl Into<McpProxy>,
    listeners: &Listeners,
) -> Service<Connections<HttpProxy<McpProxy>>> {
    let proxy = proxy.into();
    let gateway = Arc::clone(proxy.gateway());
    let mut proxy = http_proxy(conf, proxy);
    let mut options = HttpServerOptions::default();
    options.h2c = listeners.speak_h2c();
    proxy.server_options = Some(options);
    proxy.h2_options = Some(h2_options());
    let proxy = Connections::new(proxy, listeners, gateway);
    let mut service = Service::new(SERVICE.to_owned(), proxy);
    for listener in listeners.iter() {
        service.add_listener(listener.socket());
    }
    service
}

/// Pingora's own, which a new set would be without, and what is bounded here. One upload that its
/// backend does not take holds no other up: a connection may have in flight what all of its streams
/// together may. Of an answer that its client does not take, as much is held as the client sends
/// unasked.
fn h2_options() -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(H2_STREAMS);
    options.initial_connection_window_size(H2_STREAMS * H2_STREAM_WINDOW);
    options.max_send_buffer_size(H2_STREAM_WINDOW as usize);
    options
}

/// Reads the files of certificates and keys again when they change: those of `listeners`, and those
/// of the backends that `gateway` has now. A task for
/// `pingora_core::services::background::background_service`.
pub fn certificate_watch(listeners: &Listeners, gateway: Arc<Gateway>) -> CertificateWatch {
    let tls = listeners
        .iter()
        .filter_map(|listener| listener.tls.as_ref());
    let of_listeners: Vec<_> = tls.flat_map(ListenerTls::files).collect();
    CertificateWatch::new(move || {
        let rules = gateway.rules();
        let of_backends = rules.routes.backend_tls().flat_map(BackendTls::files);
        of_listeners.iter().cloned().chain(of_backends).collect()
    })
}

/// Looks the host names of the backends up that `gateway` has now, and probes these, as is
/// configured. Without it, names stand for what they did at the start, and a backend with probes
/// that is down stays so. A task for `pingora_core::services::background::background_service`.
pub fn backend_watch(conf: &ServerConf, gateway: Arc<Gateway>) -> BackendWatch {
    BackendWatch::new(conf, gateway)
}

/// Keeps the sessions that have a stream open at `gateway`, whose store keeps them as `sessions` say.
/// Without it, only requests count as a use of a session. A task for
/// `pingora_core::services::background::background_service`.
pub fn stream_watch(sessions: &SessionSettings, gateway: Arc<Gateway>) -> StreamWatch {
    StreamWatch::new(sessions, gateway)
}

/// The admin listener as a service, to host in a Pingora server of your own. Its one thread is not
/// the proxy's: it answers also where that is busy.
pub fn admin_service(admin: Admin, address: SocketAddr) -> Service<BoundedAdmin> {
    let mut service = Service::new("admin".to_owned(), admin.into());
    service.threads = Some(1);
    service.add_tcp_with_settings(&address.to_string(), socket_options(address));
    service
}

/// What keeps the proxy from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        cause: io::Error,
    },
    /// No process gave its listening sockets to this one.
    #[error(
        "no process gave its listening sockets ({0}): -u waits some seconds for one that is sent \
         SIGQUIT and has the same 'upgrade_sock'; without a running one, start without -u"
    )]
    Upgrade(io::Error),
    /// The access log's file cannot be opened.
    #[error("mcp.access_log.path: cannot be opened: {0}")]
    AccessLog(io::Error),
    /// The metrics cannot be made.
    #[error("no metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Sockets that take connections from now on, for the services to go on with: those that were
/// `taken_over`, and for other addresses new ones. Pingora itself would try a bind for half a minute
/// and then go on without the listener.
fn bind(config: &Config, mut taken_over: Fds) -> Result<ListenFds, StartError> {
    let bind = |address: SocketAddr| {
        let bound = listen(address).map(|socket| (address.to_string(), socket));
        bound.map_err(|cause| StartError::Listen { address, cause })
    };
    let listeners = config.listeners.iter().map(|listener| listener.address);
    let mut addresses: Vec<_> = listeners.chain(config.admin.address).collect();
    handover::keep(&mut taken_over, &addresses);
    addresses.retain(|address| taken_over.get(&address.to_string()).is_none());
    let bound: Result<Vec<_>, _> = addresses.into_iter().map(bind).collect();
    for (address, socket) in bound? {
        taken_over.add(address, socket.into_raw_fd());
    }
    Ok(Arc::new(taken_over.into()))
}

/// Has the system give as many descriptors as it may, and says how many there are for connections of
/// clients and their requests.
fn descriptors(conf: &ServerConf) -> Most {
    let given = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(given) => usize::try_from(given).unwrap_or(usize::MAX),
        Err(error) => {
            log::warn!("the number of descriptors is not known: {error}");
            return Most(None);
        }
    };
    let pooled = conf
        .upstream_keepalive_pool_size
        .saturating_mul(conf.threads);
    let others = pooled.saturating_add(OTHER_DESCRIPTORS);
    // At least one of each.
    Most(Some(given.saturating_sub(others).max(2)))
}

/// What is listened on and what goes where, in one line.
fn summary(config: &Config) -> String {
    let mut summary = String::from("listening on");
    for listener in config.listeners.iter() {
        let tls = if listener.tls.is_some() { " (TLS)" } else { "" };
        summary += &format!(" {}{tls}", listener.address);
    }
    if let Some(address) = config.admin.address {
        summary += &format!("; admin on {address}");
    }
    for route in config.routes.iter() {
        summary += &format!("; {} ->", route.path);
        for entry in route.pool.entries() {
            summary += &format!(" {}", entry.profile());
        }
    }
    summary
}

/// The name of the service, in Pingora's log and of its threads.
const SERVICE: &str = "mcp";

/// Descriptors of the process for other things: listeners, the log, connections being refused and those of
/// the operator.
const OTHER_DESCRIPTORS: usize = 200;

/// Pingora's own limit.
const H2_STREAMS: u32 = 100;

/// RFC 9113 6.9.2.
const H2_STREAM_WINDOW: u32 = 65_535;
