//! Backends by host name: each address is a backend of its own, and addresses come and go.

mod support;

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use pingora_core::server::configuration::ServerConf;
use pingora_mcp::backend::Resolver;
use pingora_mcp::backend_watch::BackendWatch;
use pingora_mcp::mcp::{BackendSessionId, ClientSessionId};
use pingora_mcp::server;
use pingora_mcp::session::{Binding, Opened};
use support::network::{is_apart, run_apart};
use support::process::{Program, ProxyProcess, scratch_file};
use support::{Backend, Proxy, ask, initialize, open_session, within};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

#[tokio::test]
async fn each_address_of_a_name_is_a_backend_with_sessions_of_its_own() {
    let backends = [
        Backend::with_session("first").await,
        Backend::with_session("second").await,
    ];
    let named = Named::start("").await;
    named.stand_for(&[&backends[0], &backends[1]]).await;
    let url = named.proxy.url("/mcp");
    let ids = [open_session(&url).await, open_session(&url).await];
    for backend in &backends {
        assert_eq!(backend.seen().len(), 1);
        assert_eq!(backend.last().header("host"), Some("pods.test:3000"));
    }
    for id in &ids {
        for _ in 0..3 {
            assert_eq!(ask(&url, id).await.status(), 200);
        }
    }
    for backend in &backends {
        assert_eq!(backend.seen().len(), 4);
    }
}

/// Another proxy may have looked the name up since, and opened it there.
#[tokio::test]
async fn a_new_session_at_an_address_that_is_not_known_yet_is_not_over() {
    let backend = Backend::with_session("first").await;
    let named = Named::start("").await;
    named.stand_for(&[&backend]).await;
    let url = named.proxy.url("/mcp");
    let hour = Duration::from_secs(60 * 60).as_millis() as u64;
    for (milliseconds, status) in [(Opened::now().milliseconds() + hour, 502), (0, 404)] {
        let id = ClientSessionId::mint();
        let binding = Binding {
            route: "/mcp".parse().unwrap(),
            backend: "pods@192.0.2.1:3000".parse().unwrap(),
            session: BackendSessionId::try_from(&HeaderValue::from_static("own")).unwrap(),
            opened: Opened::from_milliseconds(milliseconds),
            seal: None,
        };
        let store = named.proxy.gateway.store();
        store.open(id, binding, None).await.unwrap();
        let id = id.to_header();
        let answered = ask(&url, id.to_str().unwrap()).await;
        assert_eq!(answered.status(), status);
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_yet_is_503_until_it_does() {
    let backend = Backend::with_session("id").await;
    let named = Named::start("").await;
    let url = named.proxy.url("/mcp");
    let refused = initialize(&url).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    named.stand_for(&[&backend]).await;
    open_session(&url).await;
}

#[tokio::test]
async fn an_address_that_is_gone_keeps_its_sessions_for_as_long_as_it_answers() {
    let backends = [
        Backend::with_session("first").await,
        Backend::with_session("second").await,
    ];
    let named = Named::start(
        "      timeouts: { pool_idle: 1ms }\n      health: { max_failures: 2, backoff: 1h, max_backoff: 1h }\n",
    )
    .await;
    named.stand_for(&[&backends[0]]).await;
    let url = named.proxy.url("/mcp");
    let id = open_session(&url).await;

    named.stand_for(&[&backends[1]]).await;
    let before = backends[0].seen().len();
    for _ in 0..3 {
        open_session(&url).await;
    }
    assert_eq!(backends[0].seen().len(), before);
    assert_eq!(ask(&url, &id).await.status(), 200);

    // It is gone, and cannot be reached either: it does not come back.
    backends[0].stop().await;
    within("a connect that fails", async {
        while ask(&url, &id).await.status() == 200 {}
    })
    .await;
    let lost = ask(&url, &id).await;
    assert_eq!(lost.status(), 404);
    named.stand_for(&[&backends[1]]).await;
    assert_eq!(ask(&url, &id).await.status(), 404);
    assert_eq!(named.count(), 1);
}

#[tokio::test]
async fn an_address_that_is_gone_and_dead_is_forgotten_without_being_asked() {
    let backends = [
        Backend::with_session("first").await,
        Backend::with_session("second").await,
    ];
    let named = Named::start("").await;
    named.stand_for(&[&backends[0]]).await;
    let id = open_session(&named.proxy.url("/mcp")).await;
    named.stand_for(&[&backends[1]]).await;
    for _ in 0..5 {
        named.look().await;
    }
    assert_eq!(named.count(), 2, "it answers");
    backends[0].stop().await;
    within("its end", async {
        while named.count() > 1 {
            named.look().await;
        }
    })
    .await;
    let lost = ask(&named.proxy.url("/mcp"), &id).await;
    assert_eq!(lost.status(), 404);
}

#[tokio::test]
async fn an_address_that_is_back_gets_new_sessions_again() {
    let backends = [
        Backend::with_session("first").await,
        Backend::with_session("second").await,
    ];
    let named = Named::start("      health: { slow_start: none }\n").await;
    named.stand_for(&[&backends[0], &backends[1]]).await;
    named.stand_for(&[&backends[1]]).await;
    named.stand_for(&[&backends[0], &backends[1]]).await;
    let url = named.proxy.url("/mcp");
    let ids = [open_session(&url).await, open_session(&url).await];
    assert_eq!(backends[0].seen().len(), 1);
    for id in &ids {
        assert_eq!(ask(&url, id).await.status(), 200);
    }
}

#[tokio::test]
async fn a_lookup_that_fails_changes_nothing() {
    let backend = Backend::with_session("id").await;
    let named = Named::start("").await;
    named.stand_for(&[&backend]).await;
    let url = named.proxy.url("/mcp");
    let id = open_session(&url).await;
    *named.names.0.lock().unwrap() = None;
    named.look().await;
    assert_eq!(ask(&url, &id).await.status(), 200);
    open_session(&url).await;
}

/// What the system itself says of `localhost` goes through the whole binary.
#[tokio::test]
async fn a_real_name_is_served_and_its_sessions_outlive_a_reload() {
    let backend = Backend::with_session("id").await;
    let port = backend.address.port();
    let addresses: Vec<_> = ("localhost", port).to_socket_addrs().unwrap().collect();
    assert!(addresses.contains(&backend.address), "{addresses:?}");
    let mcp = format!(
        "  routes:\n    - path: /mcp\n      backends:\n        \
         - {{ name: local, url: \"http://localhost:{port}/mcp\", resolve: 1ms }}\n"
    );
    let mut proxy = ProxyProcess::start(&mcp).await;
    let url = proxy.url("/mcp");
    let id = open_session(&url).await;
    proxy.reload(&mcp).await;
    assert_eq!(ask(&url, &id).await.status(), 200);
    // The address is now written, and is no backend of that name.
    proxy.reload(&mcp.replace("localhost", "127.0.0.1")).await;
    assert_eq!(ask(&url, &id).await.status(), 404);
}

/// A name server that is silent would hold a start up by the sum of its names.
#[tokio::test]
async fn all_names_are_looked_up_at_the_same_time_and_none_for_a_check() {
    run_apart("silent_name_server").await;
}

#[tokio::test]
#[ignore = "it is run in a network of its own"]
async fn silent_name_server() {
    if !is_apart() {
        return;
    }
    let server = UdpSocket::bind("127.0.0.1:53").await.unwrap();
    let names: HashSet<_> = (0..9).map(|number| format!("host{number}")).collect();
    let mut yaml = String::from(
        "mcp:\n  listeners: [{ address: 127.0.0.1:8080 }]\n  routes:\n    - path: /mcp\n      backends:\n",
    );
    for name in &names {
        yaml += &format!("        - {{ name: {name}, url: \"http://{name}.test:1/mcp\" }}\n");
    }
    let written = |text: &str| {
        let file = scratch_file("conf");
        std::fs::write(&file, text).unwrap();
        file
    };
    let files = [
        ("/etc/resolv.conf", written("nameserver 127.0.0.1\n")),
        ("/etc/nsswitch.conf", written("hosts: dns\n")),
    ];
    let file = written(&yaml);
    let mounts = files.each_ref();
    let mounts = mounts.map(|(file, own)| format!("mount --bind {} {file} && ", own.display()));
    let script = mounts.concat() + "exec \"$0\" \"$@\"";
    let run = |more: &[&str]| {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "sh",
            "-c",
            &script,
            env!("CARGO_BIN_EXE_pingora-mcp"),
        ]);
        Program::start(command.args(more).arg("-c").arg(&file))
    };
    let mut check = run(&["-t"]);
    assert_eq!(check.ended().await, Some(0), "{}", check.log());
    let mut question = [0; 512];
    assert!(server.try_recv(&mut question).is_err(), "it was asked");

    let _proxy = run(&[]);
    let mut asked = HashSet::new();
    within("a question for each name", async {
        while asked != names {
            server.recv(&mut question).await.unwrap();
            // Its first label (RFC 1035 4.1.2).
            let name = &question[13..][..question[12].into()];
            asked.insert(String::from_utf8(name.to_vec()).unwrap());
        }
    })
    .await;
    for (_, own) in files {
        std::fs::remove_file(own).unwrap();
    }
    std::fs::remove_file(file).unwrap();
}

/// A proxy with one backend, `pods`, whose host name stands for what the test says.
struct Named {
    proxy: Proxy,
    names: Names,
    watch: BackendWatch,
}

impl Named {
    /// `keys` are those of the route beside its backends.
    async fn start(keys: &str) -> Self {
        let proxy = Proxy::with(&format!(
            "  routes:\n    - path: /mcp\n      backends:\n        \
             - {{ name: pods, url: \"http://pods.test:3000/mcp\", resolve: 1ms }}\n{keys}"
        ));
        let names = Names::default();
        let watch = server::backend_watch(&ServerConf::default(), Arc::clone(&proxy.gateway))
            .with_resolver(Arc::new(names.clone()));
        Self {
            proxy,
            names,
            watch,
        }
    }

    async fn stand_for(&self, backends: &[&Backend]) {
        let addresses = backends.iter().map(|backend| backend.address);
        *self.names.0.lock().unwrap() = Some(addresses.collect());
        self.look().await;
    }

    /// Looks once, as the service does where it is time.
    async fn look(&self) {
        let mut lookups = JoinSet::new();
        within("the time of a lookup", async {
            while lookups.is_empty() {
                self.watch.look(&mut lookups);
                tokio::task::yield_now().await;
            }
        })
        .await;
        lookups.join_all().await;
    }

    /// How many backends there are.
    fn count(&self) -> usize {
        let rules = self.proxy.gateway.rules();
        let mut routes = rules.routes.iter();
        routes.next().unwrap().pool.iter().count()
    }
}

/// What every name stands for. `None`: nobody knows.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<Option<Vec<SocketAddr>>>>);

#[async_trait]
impl Resolver for Names {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!((host, port), ("pods.test", 3000));
        let known = self.0.lock().unwrap().clone();
        known.ok_or(io::ErrorKind::HostUnreachable.into())
    }
}
