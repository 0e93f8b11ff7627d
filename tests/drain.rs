//! How the process ends: on SIGTERM, on SIGINT, and when a new one takes its place. Real signals to
//! the built binary.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use futures::future::join_all;
use support::process::ProxyProcess;
use support::tls::{Authority, Http2, TlsClient, listener, rest};
use support::wire::Wire;
use support::{
    Backend, answer, header, open_session, post, raw_in_turn, route, unused_address, within,
};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

#[tokio::test]
async fn the_process_leaves_as_soon_as_nothing_is_under_way() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&with_deadline(&backend, "10m")).await;
    open_session(&proxy.url("/mcp")).await;
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn an_answer_under_way_is_finished_and_nobody_new_is_let_in() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut proxy = ProxyProcess::start(&route(&[backend.local_addr().unwrap()])).await;
    let asked = tokio::spawn(post(&proxy.url("/mcp")).send());
    let (mut wire, _) = Wire::accept(&backend).await;

    proxy.signal("TERM");
    until_refused(&proxy).await;
    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        .await;
    let answered = within("the answer", asked).await.unwrap().unwrap();
    assert_eq!(answered.text().await.unwrap(), "late");
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn a_request_that_comes_late_on_an_open_connection_is_answered_and_told_to_close() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let mut client = Wire::connect(proxy.address).await;
    let options = "OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.send(options).await;
    client.receive("\r\n\r\n").await;

    proxy.signal("TERM");
    until_refused(&proxy).await;
    client.send(options).await;
    let answer = client.receive("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        answer.to_ascii_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn what_is_left_at_the_deadline_is_ended() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = route(&[backend.local_addr().unwrap()]) + "  drain: { deadline: 200ms }\n";
    let mut proxy = ProxyProcess::start(&yaml).await;
    let asked = tokio::spawn(post(&proxy.url("/mcp")).send());
    let _silent = Wire::accept(&backend).await;
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await, Some(0));
    assert!(within("the end of the call", asked).await.unwrap().is_err());
    assert!(
        proxy.log().contains("ending with 1 connections open"),
        "{}",
        proxy.log()
    );
}

#[tokio::test]
async fn a_silent_stream_is_ended_in_order_and_the_process_leaves() {
    for drain in [
        "streams_after: 200ms, deadline: 10m",
        // Before the deadline all the same.
        "streams_after: 10m, deadline: 2s",
    ] {
        ends_a_silent_stream_in_order(drain).await;
    }
}

async fn ends_a_silent_stream_in_order(drain: &str) {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let route = route(&[backend.local_addr().unwrap()]);
    let yaml = format!("{route}  drain: {{ {drain} }}\n");
    let mut proxy = ProxyProcess::start(&yaml).await;
    let stream = reqwest::Client::new().get(proxy.url("/mcp"));
    let stream = tokio::spawn(stream.header("accept", "text/event-stream").send());
    let (mut wire, _) = Wire::accept(&backend).await;
    wire.send(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    .await;
    wire.send_chunk(b"data: 1\n\n").await;
    let stream = within("the stream", stream).await.unwrap().unwrap();

    proxy.signal("TERM");
    let events = within("the stream's end", stream.text()).await;
    assert_eq!(events.unwrap(), "data: 1\n\n");
    wire.until_closed().await;
    assert_eq!(proxy.ended().await, Some(0));
}

#[tokio::test]
async fn sigint_ends_at_once_also_while_it_ends() {
    for while_ending in [false, true] {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let yaml = route(&[backend.local_addr().unwrap()]) + "  drain: { deadline: 10m }\n";
        let mut proxy = ProxyProcess::start(&yaml).await;
        let _asked = tokio::spawn(post(&proxy.url("/mcp")).send());
        let _silent = Wire::accept(&backend).await;
        if while_ending {
            proxy.signal("TERM");
            until_refused(&proxy).await;
        }
        proxy.signal("INT");
        assert_eq!(proxy.ended().await, Some(0));
    }
}

/// As browsers connect ahead.
#[tokio::test]
async fn a_connection_that_has_sent_nothing_is_not_waited_for() {
    let authority = Authority::new();
    let tls = listener(&[&authority.issue("own", &["localhost"])], None);
    let mcp = route(&[unused_address()])
        + "  timeouts: { tls_handshake: 10m, first_byte: 10m }\n  drain: { deadline: 10m }\n";
    for keys in ["", "      h2c: true\n", &tls] {
        let mut proxy = ProxyProcess::listening(keys, &mcp, &[]).await;
        let _silent = Wire::connect(proxy.address).await;
        // Taken after the other.
        let _in_tls = if keys == tls {
            let client = TlsClient::trusting(&authority);
            Some(client.connect(proxy.address, "localhost").await.unwrap())
        } else {
            let options = "OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n";
            raw_in_turn(proxy.address, &[options]).await;
            None
        };
        proxy.signal("TERM");
        assert_eq!(proxy.ended().await, Some(0), "{keys}");
    }
}

/// As those of a file system that is reached by a network that is gone.
#[tokio::test]
async fn files_that_cannot_be_read_to_their_end_hold_no_end_up() {
    for signal in ["TERM", "INT"] {
        let authority = Authority::new();
        let (own, ca) = (authority.issue("own", &["localhost"]), authority.file());
        let redis = format!(
            "url: \"rediss://127.0.0.1:1\", keys: [{KEY}], tls: {{ ca: {} }}",
            ca.display()
        );
        let mcp = format!(
            "{}  sessions: {{ store: {{ redis: {{ {redis} }} }} }}\n  drain: {{ deadline: 10m }}\n",
            route(&[unused_address()]),
        );
        let mut proxy = ProxyProcess::listening(&listener(&[&own], None), &mcp, &[]).await;
        let files = [&own.certificate, &ca, proxy.configuration()];
        for file in files {
            put_pipe(file);
        }
        proxy.signal("HUP");
        // While these are open, who reads the pipes waits.
        let mut pipes = Vec::new();
        for file in files {
            pipes.push(within("somebody who reads", open_read_pipe(file)).await);
        }
        proxy.signal(signal);
        assert_eq!(proxy.ended().await, Some(0));
    }
}

#[tokio::test]
async fn an_upgrade_that_nobody_takes_over_changes_nothing() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let id = open_session(&proxy.url("/mcp")).await;
    proxy.signal("QUIT");
    assert!(
        proxy
            .until(|log| log.contains("no new process took the sockets over"))
            .await
    );
    assert_eq!(support::ask(&proxy.url("/mcp"), &id).await.status(), 200);
}

#[tokio::test]
async fn signals_are_heard_while_a_new_process_is_waited_for() {
    let backend = Backend::with_session("id").await;
    for signal in ["TERM", "INT"] {
        let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
        open_session(&proxy.url("/mcp")).await;
        proxy.signal("QUIT");
        assert!(proxy.until(|log| log.contains("waiting for a new")).await);
        proxy.signal(signal);
        assert_eq!(proxy.ended().await, Some(0));
        let log = proxy.log();
        assert!(!log.contains("no new process took"), "{signal}: {log}");
    }
}

/// 2,000 requests are at the backend when the signal comes; `IN_FLIGHT=10000` takes another number.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_under_way_is_lost_across_sigterm() {
    let held = HeldBackend::start().await;
    let mut proxy = held.proxy().await;
    let asked = held.ask(&proxy).await;
    proxy.signal("TERM");
    until_refused(&proxy).await;
    held.release(asked).await;
    assert_eq!(proxy.ended().await, Some(0));
    held.asked_nothing_twice();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_and_no_connection_refused_across_an_upgrade() {
    let held = HeldBackend::start().await;
    let mut old = held.proxy().await;
    let asked = held.ask(&old).await;

    let new = old.successor();
    old.signal("QUIT");
    // From here on until the old one has gone, new clients come in all the time.
    let (gone, mut is_gone) = watch::channel(false);
    let address = old.address;
    let newcomers = tokio::spawn(async move {
        let mut answered = 0;
        while !*is_gone.borrow_and_update() {
            let options = "OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let answers = raw_in_turn(address, &[options]).await;
            assert!(answers[0].starts_with("HTTP/1.1 200"), "{answers:?}");
            answered += 1;
        }
        answered
    });
    assert!(old.until(|log| log.contains("ending: waiting")).await);
    held.release(asked).await;
    assert_eq!(old.ended().await, Some(0));
    held.asked_nothing_twice();
    gone.send(true).unwrap();
    assert!(within("the last newcomer", newcomers).await.unwrap() > 0);
    let answered = within(
        "the new process",
        post(&new.url("/mcp")).header("x-number", "0").send(),
    );
    assert_eq!(answered.await.unwrap().status(), 200);
}

/// A backend that holds every answer back until it is told to release them all.
struct HeldBackend {
    address: std::net::SocketAddr,
    arrived: Arc<Semaphore>,
    released: watch::Sender<bool>,
}

impl HeldBackend {
    async fn start() -> Self {
        let arrived = Arc::new(Semaphore::new(0));
        let released = watch::Sender::new(false);
        let (arrivals, release) = (Arc::clone(&arrived), released.subscribe());
        let service = Router::new().fallback(async move |request: Request| {
            arrivals.add_permits(1);
            let mut release = release.clone();
            release.wait_for(|released| *released).await.unwrap();
            let number = header(request.headers(), "x-number").unwrap();
            answer(200, &[], number.to_owned())
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Self {
            address,
            arrived,
            released,
        }
    }

    /// A proxy in front of it that takes as many requests as there are descriptors for.
    async fn proxy(&self) -> ProxyProcess {
        let limits = "      limits: { max_requests_per_backend: none }\n";
        let mcp = format!(
            "{}{limits}  drain: {{ deadline: 10m }}\n",
            route(&[self.address])
        );
        ProxyProcess::listening("      h2c: true\n", &mcp, &[]).await
    }

    /// Asks through `proxy`, and waits until all requests are here. The first 1,000 have a connection
    /// each; those beyond are streams of HTTP/2, as there are not descriptors for any number.
    async fn ask(&self, proxy: &ProxyProcess) -> Vec<tokio::task::JoinHandle<String>> {
        let number = std::env::var("IN_FLIGHT").map_or(2000, |number| number.parse().unwrap());
        rlimit::increase_nofile_limit(u64::MAX).unwrap();
        let http_1 = reqwest::Client::new();
        let mut http_2 = Http2::connect(proxy.address).await;
        let mut asked = Vec::new();
        // A step at a time, as the system refuses more connections at once than its queue holds.
        for start in (0..number).step_by(STEP) {
            let step = start..number.min(start + STEP as u32);
            let arrived = self.arrived.acquire_many(step.len() as u32);
            for number in step {
                if number < OVER_HTTP_1 {
                    let request = http_1.post(proxy.url("/mcp")).header("x-number", number);
                    let answer = async { request.send().await.unwrap().text().await.unwrap() };
                    asked.push(tokio::spawn(answer));
                    continue;
                }
                if number % STREAMS == 0 {
                    http_2 = Http2::connect(proxy.address).await;
                }
                let request = http_2.post().header("x-number", number).body(()).unwrap();
                let mut sending = http_2.send.clone().ready().await.unwrap();
                let (answer, _) = sending.send_request(request, true).unwrap();
                asked.push(tokio::spawn(async {
                    let body = rest(answer.await.unwrap().into_body()).await;
                    String::from_utf8(body).unwrap()
                }));
            }
            let arrived = within("all requests at the backend", arrived).await;
            arrived.unwrap().forget();
        }
        asked
    }

    /// Answers all, and checks that each got its own answer.
    async fn release(&self, asked: Vec<tokio::task::JoinHandle<String>>) {
        self.released.send(true).unwrap();
        let answers = within("all answers", join_all(asked)).await;
        for (number, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.unwrap(), number.to_string());
        }
    }

    /// Checks that no request has come again, once the proxy that had them is gone and can ask no more.
    fn asked_nothing_twice(&self) {
        assert_eq!(self.arrived.available_permits(), 0);
    }
}

fn with_deadline(backend: &Backend, deadline: &str) -> String {
    route(&[backend.address]) + &format!("  drain: {{ deadline: {deadline} }}\n")
}

/// Puts a pipe in place of `file`.
fn put_pipe(file: &Path) {
    let pipe = file.with_extension("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    std::fs::rename(pipe, file).unwrap();
}

/// The other end of a pipe, once somebody reads from it.
async fn open_read_pipe(file: &Path) -> pipe::Sender {
    loop {
        match pipe::OpenOptions::new().open_sender(file) {
            Ok(sender) => return sender,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Waits until the proxy takes no new connection.
async fn until_refused(proxy: &ProxyProcess) {
    let refused = async {
        while TcpStream::connect(proxy.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    within("the listeners' end", refused).await;
}

const KEY: &str = "3f1c0a9e7b5d2468ace013579bdf8642";

const STEP: usize = 500;

const OVER_HTTP_1: u32 = 1000;

/// Of an HTTP/2 connection, as many as the proxy allows.
const STREAMS: u32 = 100;
