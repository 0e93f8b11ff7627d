//! The official TypeScript SDKs as clients of the official example server, through the built
//! binary: they see through it what they see without it, but for the session ids.

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::process::ProxyProcess;
use support::tls::{Authority, listener};
use support::typescript::{ExampleServer, node};
use support::{route, within};

#[tokio::test]
async fn clients_see_through_the_proxy_what_they_see_without_it() {
    let server = ExampleServer::start().await;
    let proxy = ProxyProcess::start(&route(&[server.address])).await;
    for client in CLIENTS {
        let direct_url = format!("http://{}/mcp", server.address);
        // The example server's own answer to an ended session is 400.
        let mut direct = run(client, &direct_url, "400").await;
        let mut proxied = run(client, &proxy.url("/mcp"), "404").await;

        let direct_id = take(&mut direct, "sessionId");
        assert!(server.sessions().contains(&text(direct_id)), "{client}");
        let proxied_id = take(&mut proxied, "sessionId");
        assert_minted_here(&text(proxied_id), &server.sessions());

        let _ = take(&mut direct, "ended");
        let ended = take(&mut proxied, "ended");
        assert_eq!(ended, json!({ "status": 404, "code": -32001 }), "{client}");
        assert_eq!(proxied, direct, "{client}");
    }
}

#[tokio::test]
async fn clients_see_the_same_through_tls_by_http1_and_by_http2() {
    let server = ExampleServer::start().await;
    let authority = Authority::new();
    let own = authority.issue("own", &["127.0.0.1"]);
    let keys = listener(&[&own], None);
    let proxy = ProxyProcess::listening(&keys, &route(&[server.address]), &[]).await;
    let ca = authority.file();
    for client in CLIENTS {
        let direct_url = format!("http://{}/mcp", server.address);
        let mut direct = run(client, &direct_url, "400").await;
        let _ = take(&mut direct, "sessionId");
        let _ = take(&mut direct, "ended");
        for options in ["", "--import=./http2.mjs"] {
            let mut command = node(client);
            command.env("NODE_EXTRA_CA_CERTS", &ca);
            command.env("NODE_OPTIONS", options);
            let url = format!("https://{}/mcp", proxy.address);
            let mut proxied = facts(client, command, &url, "404").await;
            let _ = take(&mut proxied, "sessionId");
            let _ = take(&mut proxied, "ended");
            assert_eq!(proxied, direct, "{client} {options}");
        }
    }
}

#[tokio::test]
async fn a_probe_sees_that_a_server_hangs_and_opens_no_session() {
    let server = ExampleServer::start().await;
    let probe = "      health: { probe: { kind: mcp, interval: 20ms, timeout: 300ms } }\n";
    let mut proxy = ProxyProcess::start(&(route(&[server.address]) + probe)).await;
    server.signal("STOP");
    assert!(proxy.until(|log| log.contains("is down: ")).await);
    server.signal("CONT");
    let says_so = |log: String| log.contains("is up: it answers probes");
    assert!(proxy.until(says_so).await);
    assert_eq!(server.sessions(), [""; 0]);
}

#[tokio::test]
async fn four_clients_at_a_time_use_two_servers_behind_one_proxy() {
    let servers = [ExampleServer::start().await, ExampleServer::start().await];
    let proxy = ProxyProcess::start(&route(&[servers[0].address, servers[1].address])).await;
    let url = proxy.url("/mcp");
    for _ in 0..2 {
        let clients = [CLIENTS[0], CLIENTS[1], CLIENTS[0], CLIENTS[1]];
        let runs = clients.map(|client| run(client, &url, "404"));
        for mut facts in futures::future::join_all(runs).await {
            let id = text(take(&mut facts, "sessionId"));
            assert_minted_here(&id, &servers[0].sessions());
            assert_minted_here(&id, &servers[1].sessions());
        }
    }
    for server in servers {
        assert!(!server.sessions().is_empty(), "a server got no session");
    }
}

/// Runs a client, which checks all it sees itself, and returns the facts that it prints.
async fn run(client: &str, url: &str, status_of_an_ended_session: &str) -> Value {
    facts(client, node(client), url, status_of_an_ended_session).await
}

async fn facts(
    client: &str,
    command: Command,
    url: &str,
    status_of_an_ended_session: &str,
) -> Value {
    let mut command = tokio::process::Command::from(command);
    command
        .args([url, status_of_an_ended_session])
        .kill_on_drop(true);
    let output = within(client, command.output()).await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{client}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Removes a fact from a client's.
fn take(facts: &mut Value, name: &str) -> Value {
    facts.as_object_mut().unwrap().remove(name).unwrap()
}

fn text(fact: Value) -> String {
    fact.as_str().unwrap().to_owned()
}

fn assert_minted_here(id: &str, of_server: &[String]) {
    let is_digit = |byte: u8| b"0123456789abcdef".contains(&byte);
    assert!(id.len() == 32 && id.bytes().all(is_digit), "{id}");
    let plain = |id: &String| id.replace('-', "");
    assert!(
        !of_server.iter().map(plain).any(|other| other == id),
        "{id}"
    );
}

const CLIENTS: [&str; 2] = ["client.mjs", "client2.mjs"];
