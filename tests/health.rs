//! Backends that die, hang, are drained and come back: who gets what of it. What must die or hang is
//! a process of its own, a real MCP server.

mod support;

#[path = "support/demo.rs"]
mod demo;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use http::Method;
use rmcp::model::{CallToolRequestParams, ClientConfig};
use rmcp::service::RunningService;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{RoleClient, ServiceExt};
use support::process::{Program, ProxyProcess, ignored_test};
use support::{Backend, Proxy, ask, initialize, open_session, post, route, within};

#[tokio::test]
async fn sessions_of_a_dead_backend_are_502_then_404_and_a_real_client_starts_over() {
    let servers = [Server::start("a").await, Server::start("b").await];
    let addresses = servers.each_ref().map(|server| server.address);
    let sessions = "  sessions: { lost_after: 2s }\n";
    let proxy = ProxyProcess::start(&(route(&addresses) + sessions)).await;
    let url = proxy.url("/mcp");
    let client = connect(&url).await;
    let first = whoami(&client).await;
    // With the client's, each server gets two.
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(real_session(&url).await);
    }

    let [a, b] = servers;
    let (dead, alive) = if first.contains(r#"\"a\""#) {
        (a, b)
    } else {
        (b, a)
    };
    drop(dead);
    let mut seen = BTreeSet::new();
    within("both answers", async {
        while seen.len() < 3 {
            for id in &ids {
                seen.insert(ask(&url, id).await.status().as_u16());
            }
        }
    })
    .await;
    assert_eq!(seen, BTreeSet::from([200, 404, 502]));
    for id in &ids {
        let answer = ask(&url, id).await;
        match answer.status().as_u16() {
            200 => {}
            404 => assert!(answer.text().await.unwrap().contains("-32001")),
            status => panic!("{status}: it is lost or it lives"),
        }
    }

    let second = within("the client's new session", whoami(&client)).await;
    assert_ne!(second, first);
    client.cancel().await.unwrap();
    drop(alive);
}

#[tokio::test]
async fn a_new_process_says_itself_that_it_knows_no_session() {
    let server = Server::start("a").await;
    let address = server.address;
    let proxy = ProxyProcess::start(&route(&[address])).await;
    let url = proxy.url("/mcp");
    let id = real_session(&url).await;
    drop(server);
    for _ in 0..4 {
        assert_eq!(ask(&url, &id).await.status(), 502);
    }
    let _new = Server::at(address, "a").await;
    within("the new process's own word", async {
        loop {
            match ask(&url, &id).await.status().as_u16() {
                502 => tokio::time::sleep(Duration::from_millis(20)).await,
                status => break assert_eq!(status, 404),
            }
        }
    })
    .await;
    real_session(&url).await;
}

#[tokio::test]
async fn a_backend_that_hangs_is_found_by_probes_and_has_its_sessions_when_it_goes_on() {
    for kind in ["mcp", "http"] {
        let servers = [Server::start("a").await, Server::start("b").await];
        let addresses = servers.each_ref().map(|server| server.address);
        let probe = format!(
            "      health: {{ probe: {{ kind: {kind}, interval: 20ms, timeout: 300ms, healthy: 1 }} }}\n"
        );
        let mut proxy = ProxyProcess::start(&(route(&addresses) + &probe)).await;
        let url = proxy.url("/mcp");
        let ids = [real_session(&url).await, real_session(&url).await];

        servers[0].program.signal("STOP");
        assert!(proxy.until(|log| log.contains("backend b0 ")).await);
        assert!(
            proxy.log().contains("is down: ConnectTimedout"),
            "{}",
            proxy.log()
        );
        let mut statuses = Vec::new();
        for id in &ids {
            statuses.push(ask(&url, id).await.status().as_u16());
        }
        statuses.sort();
        assert_eq!(statuses, [200, 502]);
        for _ in 0..4 {
            real_session(&url).await;
        }

        servers[0].program.signal("CONT");
        assert!(proxy.until(|log| log.contains("is up: it answers")).await);
        for id in &ids {
            assert_eq!(ask(&url, id).await.status(), 200);
        }
    }
}

#[tokio::test]
async fn what_is_down_is_left_alone_and_refused_at_once_across_a_reload_too() {
    let address = support::unused_address();
    let other = Backend::with_session("other").await;
    let first = Backend::at(address, "first").await;
    // Connections that were open before are not to be used again.
    let health = "      timeouts: { pool_idle: 1ms }\n      \
                  health: { max_failures: 1, backoff: 1h, max_backoff: 1h }\n";
    let mcp = route(&[address, other.address]) + health;
    let mut proxy = ProxyProcess::start(&mcp).await;
    let url = proxy.url("/mcp");
    let ids = [open_session(&url).await, open_session(&url).await];
    let of_first = match first.seen().len() {
        1 => ids,
        count => panic!("{count} of two sessions are the first's"),
    };
    first.stop().await;
    within("it is down", async {
        for id in of_first.iter().cycle() {
            if ask(&url, id).await.status() == 502 {
                break;
            }
        }
    })
    .await;

    let back = Backend::at(address, "first").await;
    proxy.reload(&mcp).await;
    let mut statuses = Vec::new();
    for id in &of_first {
        statuses.push(ask(&url, id).await.status().as_u16());
    }
    statuses.sort();
    assert_eq!(statuses, [200, 502]);
    for _ in 0..4 {
        open_session(&url).await;
    }
    assert_eq!(back.seen().len(), 0, "its time has not come");
}

#[tokio::test]
async fn what_is_refused_here_does_not_count_as_the_one_that_tries_a_backend() {
    let first = Backend::start(|request| match request.method {
        Method::GET => support::answer(405, &[], ""),
        _ => support::answer(200, &[("mcp-session-id", "id")], "{}"),
    })
    .await;
    // Who tries it has an hour to find out, and nobody else is let through in that.
    let route = route(&[first.address])
        + "      timeouts: { connect: 1h, pool_idle: 1ms }\n      \
           health: { max_failures: 1, backoff: 1ms, max_backoff: 1ms }\n      \
           methods: { deny: [tools/list] }\n      \
           compatibility: { get_405_memory: 1h }\n";
    let proxy = Proxy::with(&route);
    let url = proxy.url("/mcp");
    let id = open_session(&url).await;
    let listen = async || {
        let get = reqwest::Client::new().get(&url);
        let get = get.header("accept", "text/event-stream");
        get.header("mcp-session-id", &id).send().await.unwrap()
    };
    assert_eq!(listen().await.status(), 405);
    let address = first.address;
    first.stop().await;
    assert_eq!(ask(&url, &id).await.status(), 502);

    let _back = Backend::at(address, "id").await;
    assert_eq!(listen().await.status(), 405);
    let denied = post(&url).header("mcp-session-id", &id);
    let denied = denied.body(r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#);
    assert_eq!(denied.send().await.unwrap().status(), 403);
    within("the one that tries it", async {
        while ask(&url, &id).await.status() != 200 {}
    })
    .await;
}

#[tokio::test]
async fn where_all_are_down_a_request_is_tried_and_finds_out() {
    let address = support::unused_address();
    let health = "      health: { max_failures: 1, backoff: 1h, max_backoff: 1h }\n";
    let proxy = Proxy::with(&(route(&[address]) + health));
    let url = proxy.url("/mcp");
    for _ in 0..3 {
        assert_eq!(initialize(&url).send().await.unwrap().status(), 502);
    }
    let _backend = Backend::at(address, "id").await;
    let id = open_session(&url).await;
    assert_eq!(ask(&url, &id).await.status(), 200);
}

#[tokio::test]
async fn a_backend_that_is_drained_keeps_its_sessions_and_gets_nothing_new() {
    let backends = [
        Backend::with_session("first").await,
        Backend::with_session("second").await,
    ];
    let mcp = route(&backends.each_ref().map(|backend| backend.address));
    let mut proxy = ProxyProcess::start(&mcp).await;
    let url = proxy.url("/mcp");
    let ids = [open_session(&url).await, open_session(&url).await];

    proxy
        .reload(&mcp.replacen("          url", "          drain: true\n          url", 1))
        .await;
    let before = backends[0].seen().len();
    for _ in 0..4 {
        open_session(&url).await;
        let stateless = post(&url).header("mcp-protocol-version", "2026-07-28");
        assert_eq!(stateless.send().await.unwrap().status(), 200);
    }
    assert_eq!(backends[0].seen().len(), before);
    for id in &ids {
        assert_eq!(ask(&url, id).await.status(), 200);
    }
    assert_eq!(backends[0].seen().len(), before + 1, "its own session");

    proxy
        .reload(&mcp.replace("          url", "          drain: true\n          url"))
        .await;
    let refused = initialize(&url).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(ask(&url, &ids[0]).await.status(), 200);
}

#[tokio::test]
async fn new_sessions_go_where_the_fewest_are_for_each_weight() {
    let backends = join_all([1, 2, 3].map(|_| Backend::with_session("id"))).await;
    let mut mcp = String::from("  routes:\n    - path: /mcp\n      backends:\n");
    for (position, backend) in backends.iter().enumerate() {
        let (weight, address) = (position + 1, backend.address);
        mcp += &format!(
            "        - {{ name: b{weight}, url: \"http://{address}/mcp\", weight: {weight} }}\n"
        );
    }
    let proxy = Proxy::with(&mcp);
    let url = proxy.url("/mcp");
    for _ in 0..10 {
        // At a time, too: what is being opened counts.
        join_all([0; 6].map(|_| open_session(&url))).await;
    }
    let counts: Vec<_> = backends
        .iter()
        .map(|backend| backend.seen().len())
        .collect();
    for (count, share) in counts.iter().zip([10, 20, 30]) {
        assert!(count.abs_diff(share) <= 1, "{counts:?}");
    }
}

#[tokio::test]
async fn sessions_that_are_alive_count_and_requests_do_not() {
    let first = Backend::with_session("first").await;
    let second = Backend::with_session("second").await;
    let proxy = Proxy::to(&[first.address, second.address]);
    let url = proxy.url("/mcp");
    let mut of_first = Vec::new();
    for _ in 0..6 {
        let before = first.seen().len();
        let id = open_session(&url).await;
        if first.seen().len() > before {
            of_first.push(id);
        }
    }
    assert_eq!(of_first.len(), 3);
    for id in &of_first {
        let delete = reqwest::Client::new().delete(&url);
        let deleted = delete.header("mcp-session-id", id).send().await.unwrap();
        assert_eq!(deleted.status(), 200);
    }
    let before = second.seen().len();
    for _ in 0..3 {
        open_session(&url).await;
    }
    assert_eq!(second.seen().len(), before, "three places are free");
}

#[tokio::test]
async fn a_backend_that_comes_back_is_not_flooded() {
    for (slow_start, most) in [("1h", 1), ("none", 40)] {
        let address = support::unused_address();
        let busy = Backend::with_session("busy").await;
        let health = format!(
            "      health: {{ max_failures: 1, backoff: 1ms, max_backoff: 1ms, slow_start: {slow_start} }}\n"
        );
        let proxy = Proxy::with(&(route(&[busy.address, address]) + &health));
        let url = proxy.url("/mcp");
        for _ in 0..40 {
            open_session(&url).await;
        }
        assert_eq!(busy.seen().len(), 40);

        let back = Backend::at(address, "back").await;
        for _ in 0..4 {
            join_all([0; 10].map(|_| open_session(&url))).await;
        }
        let count = back.seen().len();
        match slow_start {
            // The one that found it.
            "1h" => assert_eq!(count, most),
            _ => assert!(count > 30 && count <= most, "{count}"),
        }
    }
}

#[tokio::test]
async fn a_probe_asks_what_is_configured_and_takes_the_statuses_that_are() {
    let backend = Backend::start(|request| match request.uri.path() {
        "/healthz" => support::answer(204, &[], ""),
        _ => support::answer(500, &[], ""),
    })
    .await;
    let headers = "          headers: { authorization: Bearer token }\n";
    let probe = |statuses| {
        format!(
            "{}{headers}      health:\n        probe: {{ kind: http, method: HEAD, path: /healthz?x, \
             statuses: [{statuses}], interval: 5ms, unhealthy: 2 }}\n",
            route(&[backend.address])
        )
    };
    let mut proxy = ProxyProcess::start(&probe("200, 204")).await;
    support::until("probes", || backend.seen().len() > 3).await;
    let seen = backend.last();
    assert_eq!(
        (seen.method.as_str(), seen.uri.to_string().as_str()),
        ("HEAD", "/healthz?x")
    );
    assert_eq!(seen.header("authorization"), Some("Bearer token"));
    assert_eq!(seen.header("host"), Some(&*backend.address.to_string()));
    assert!(!proxy.log().contains("is down"), "{}", proxy.log());

    proxy.reload(&probe("200")).await;
    let says_so = |log: String| log.contains("is down: HTTPStatus");
    assert!(proxy.until(says_so).await);
}

#[tokio::test]
async fn a_tcp_probe_is_a_connection_and_no_request() {
    let address = support::unused_address();
    let probe = "      health: { probe: { kind: tcp, interval: 5ms, unhealthy: 1, healthy: 1 } }\n";
    let mut proxy = ProxyProcess::start(&(route(&[address]) + probe)).await;
    assert!(proxy.until(|log| log.contains("is down: ")).await);
    let backend = Backend::at(address, "id").await;
    assert!(proxy.until(|log| log.contains("is up: ")).await);
    assert_eq!(backend.seen().len(), 0);
    open_session(&proxy.url("/mcp")).await;
}

#[tokio::test]
async fn what_is_down_is_probed_as_often_as_it_would_be_tried_and_one_good_probe_is_enough() {
    let address = support::unused_address();
    let probe =
        "      health: { max_backoff: 5ms, probe: { kind: tcp, interval: 1h, unhealthy: 1 } }\n";
    let mut proxy = ProxyProcess::start(&(route(&[address]) + probe)).await;
    assert!(proxy.until(|log| log.contains("is down: ")).await);
    let _backend = Backend::at(address, "id").await;
    assert!(proxy.until(|log| log.contains("is up: ")).await);
    let id = open_session(&proxy.url("/mcp")).await;
    assert_eq!(ask(&proxy.url("/mcp"), &id).await.status(), 200);
}

/// A real MCP server in a process of its own, until it is dropped: this program again.
struct Server {
    address: SocketAddr,
    program: Program,
}

impl Server {
    async fn start(name: &str) -> Self {
        Self::at(support::LOOPBACK, name).await
    }

    async fn at(address: SocketAddr, name: &str) -> Self {
        let mut command = ignored_test("the_server");
        command.envs([
            ("SERVER_ADDRESS", &*address.to_string()),
            ("SERVER_NAME", name),
        ]);
        let (address, program) = Program::serving(&mut command).await;
        Self { address, program }
    }
}

#[tokio::test]
#[ignore = "it is the server of the others"]
async fn the_server() {
    let address = std::env::var("SERVER_ADDRESS").unwrap();
    let name = std::env::var("SERVER_NAME").unwrap();
    let address = demo::demo_server_at(&address, &name).await;
    println!("listening on http://{address}/mcp");
    std::future::pending::<()>().await;
}

type Client = RunningService<RoleClient, ClientConfig>;

async fn connect(url: &str) -> Client {
    let transport = StreamableHttpClientTransport::from_uri(url);
    ClientConfig::default().serve(transport).await.unwrap()
}

async fn whoami(client: &Client) -> String {
    loop {
        match client.call_tool(CallToolRequestParams::new("whoami")).await {
            Ok(result) => return serde_json::to_string(&result.content).unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Opens a session at a real server, and returns the client's id of it.
async fn real_session(url: &str) -> String {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":
        "2025-11-25","capabilities":{},"clientInfo":{"name":"test","version":"1"}}}"#;
    let opened = post(url).body(body).send().await.unwrap();
    assert_eq!(opened.status(), 200);
    let id = support::header(opened.headers(), "mcp-session-id")
        .unwrap()
        .to_owned();
    opened.bytes().await.unwrap();
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let noted = post(url).header("mcp-session-id", &id).body(initialized);
    assert_eq!(noted.send().await.unwrap().status(), 202);
    id
}
