//! From a configuration to a running Pingora server.

use std::net::TcpListener;
use std::sync::Arc;

use pingora_core::apps::HttpServerOptions;
use pingora_core::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{RunArgs, Server};
use pingora_core::services::background::background_service;
use pingora_core::services::listening::Service;
use pingora_proxy::{HttpProxy, http_proxy};

use crate::config::{Config, Settings};
use crate::connections::Connections;
use crate::drain::{Drain, Drained, Signals};
use crate::gateway::Gateway;
use crate::limits::ClientLimits;
use crate::listener::Listeners;
use crate::proxy::McpProxy;
use crate::reload::{Fixed, Reload};
use crate::session::MemoryStore;
use crate::setting::Most;
use crate::tls::{BackendTls, CertificateWatch, ListenerTls};

/// Runs the proxy until a signal ends it. `options` are Pingora's own; the configuration file that
/// they name is the one that `settings` have been read from, and is read again on SIGHUP.
///
/// # Errors
/// An address cannot be listened on.
pub fn run(mut options: Opt, settings: Settings) -> Result<(), ListenError> {
    let Settings { server, mut mcp } = settings;
    let file = options.conf.take();
    if !options.upgrade {
        check_addresses(&mcp.listeners)?;
    }
    let settings = mcp.drain;
    let fixed = Fixed::of(&server, &mcp);
    let mut pingora = Server::new_with_opt_and_conf(options, server);
    pingora.bootstrap();
    log::info!("{}", summary(&mcp));
    fit_connections(&mut mcp.limits, &pingora.configuration);
    let listeners = mcp.listeners.clone();
    let gateway = Arc::new(gateway(mcp));
    if let Some(file) = file {
        let reload = Reload::new(file, fixed, Arc::clone(&gateway));
        pingora.add_service(background_service("reload", reload));
    }
    let watch = certificate_watch(&listeners, Arc::clone(&gateway));
    pingora.add_service(background_service("certificates", watch));
    let upgrade_sock = pingora.configuration.upgrade_sock.clone();
    let drain = Arc::new(Drain::new(settings, gateway.load().clone(), upgrade_sock));
    let proxy = application(&pingora.configuration, gateway, &listeners);
    let mut service = Drained::new(SERVICE, proxy, Arc::clone(&drain));
    listen(service.service(), &listeners);
    pingora.add_service(service);
    pingora.run(RunArgs {
        shutdown_signal: Box::new(Signals(drain)),
    });
    Ok(())
}

/// The gateway that `config` describes, with its sessions in memory.
pub fn gateway(config: Config) -> Gateway {
    let store = Arc::new(MemoryStore::new(config.sessions));
    let (timeouts, limits) = (config.timeouts, config.limits);
    Gateway::new(config.into(), store).with_limits(timeouts, limits)
}

/// The proxy as a service on `listeners`, to host in a Pingora server of your own.
pub fn proxy_service(
    conf: &Arc<ServerConf>,
    gateway: impl Into<Arc<Gateway>>,
    listeners: &Listeners,
) -> Service<Connections<HttpProxy<McpProxy>>> {
    let proxy = application(conf, gateway.into(), listeners);
    let mut service = Service::new(SERVICE.to_owned(), proxy);
    listen(&mut service, listeners);
    service
}

/// The proxy behind the bounds of its clients' connections.
fn application(
    conf: &Arc<ServerConf>,
    gateway: Arc<Gateway>,
    listeners: &Listeners,
) -> Connections<HttpProxy<McpProxy>> {
    let (timeouts, limits) = (*gateway.timeouts(), *gateway.limits());
    let load = gateway.load().clone();
    let mut proxy = http_proxy(conf, McpProxy::new(gateway));
    let mut options = HttpServerOptions::default();
    options.h2c = listeners.speak_h2c();
    options.h2_idle_timeout = Some(timeouts.keep_alive.0);
    proxy.server_options = Some(options);
    proxy.h2_options = Some(h2_options(&limits));
    Connections::new(proxy, load, timeouts, &limits)
}

/// Pingora's own, which a new set would be without, and what is bounded here. One upload that its
/// backend does not take holds no other up: a connection may have in flight what all of its streams
/// together may.
fn h2_options(limits: &ClientLimits) -> H2Options {
    let mut options = default_h2_options();
    options.max_header_list_size(limits.max_header_size.0.try_into().unwrap_or(u32::MAX));
    options.max_concurrent_streams(H2_STREAMS);
    options.initial_connection_window_size(H2_STREAMS * H2_STREAM_WINDOW);
    options
}

fn listen<A>(service: &mut Service<A>, listeners: &Listeners) {
    for listener in listeners.iter() {
        service.add_listener(listener.endpoint());
    }
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

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}")]
pub struct ListenError {
    address: std::net::SocketAddr,
    cause: std::io::Error,
}

/// Pingora tries a bind for half a minute and then goes on without the listener. All are held at
/// once here, as two of them may be in each other's way.
fn check_addresses(listeners: &Listeners) -> Result<(), ListenError> {
    let bind = |address| TcpListener::bind(address).map_err(|cause| ListenError { address, cause });
    let addresses = listeners.iter().map(|listener| listener.address);
    let held: Result<Vec<_>, _> = addresses.map(bind).collect();
    held.map(drop)
}

/// Has the system give as many descriptors as it may, and takes no more connections than it gives
/// for: each has one, and its request another one to the backend.
fn fit_connections(limits: &mut ClientLimits, conf: &ServerConf) {
    let given = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(given) => usize::try_from(given).unwrap_or(usize::MAX),
        Err(error) => return log::warn!("the number of descriptors is not known: {error}"),
    };
    let pooled = conf
        .upstream_keepalive_pool_size
        .saturating_mul(conf.threads);
    let free = given.saturating_sub(OTHER_DESCRIPTORS);
    let fitting = free.saturating_sub(pooled) / 2;
    match limits.max_connections {
        Most(Some(most)) if most <= fitting => {}
        Most(wanted) => {
            if wanted.is_some() {
                log::warn!("max_connections is {fitting}: {given} descriptors allow no more");
            }
            limits.max_connections = Most(Some(fitting.max(1)));
        }
    }
}

/// What is listened on and what goes where, in one line.
fn summary(config: &Config) -> String {
    let mut summary = String::from("listening on");
    for listener in config.listeners.iter() {
        let tls = if listener.tls.is_some() { " (TLS)" } else { "" };
        summary += &format!(" {}{tls}", listener.address);
    }
    for route in config.routes.iter() {
        summary += &format!("; {} ->", route.path);
        for backend in route.pool.iter() {
            summary += &format!(" {backend}");
        }
    }
    summary
}

/// The name of the service, in Pingora's log and of its threads.
const SERVICE: &str = "mcp";

/// Descriptors of the process for other things: listeners, the log, connections being refused.
const OTHER_DESCRIPTORS: usize = 200;

/// Pingora's own limit.
const H2_STREAMS: u32 = 100;

/// RFC 9113 6.9.2.
const H2_STREAM_WINDOW: u32 = 65_535;
