//! The log on standard error: it holds nobody up, its last lines come out, and it quotes nobody.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use support::process::{Program, ProxyProcess, ignored_test, scratch_file};
use support::wire::Wire;
use support::{Backend, post, route, until, until_asked, unused_address, within};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_reader_that_stalls_holds_neither_requests_nor_signals_up() {
    for signal in ["TERM", "INT"] {
        let backend = Backend::with_session("id").await;
        let (stderr, _reader) = full();
        let mut proxy = Proxy::start(&with_dead_route(&backend), stderr).await;
        for _ in 0..20 {
            // A line of the log each.
            let failed = post(&proxy.url("/dead")).send();
            assert_eq!(within("an answer", failed).await.unwrap().status(), 502);
        }
        let served = post(&proxy.url("/mcp")).send();
        assert_eq!(within("an answer", served).await.unwrap().status(), 200);
        proxy.program.signal(signal);
        assert_eq!(proxy.program.ended().await, Some(0));
    }
}

#[tokio::test]
async fn what_is_written_last_comes_out_where_somebody_reads() {
    let backend = Backend::with_session("id").await;
    let (stderr, reader) = full();
    let mut proxy = Proxy::start(&with_dead_route(&backend), stderr).await;
    let failed = post(&proxy.url("/dead")).send();
    assert_eq!(within("an answer", failed).await.unwrap().status(), 502);
    let log = tokio::spawn(read(reader));
    proxy.program.signal("TERM");
    assert_eq!(proxy.program.ended().await, Some(0));
    let log = within("the end of the log", log).await.unwrap();
    for line in ["listening on", "backend-unreachable", "ending: waiting"] {
        assert!(log.contains(line), "{log}");
    }
    assert!(log.ends_with('\n'), "{log}");
}

#[tokio::test]
async fn how_many_lines_are_lost_is_told_once_somebody_reads() {
    let (stderr, reader) = full();
    let mut task = Program::start_with_stderr(&mut ignored_test("a_task_that_tells_much"), stderr);
    let told = |task: &Program| task.log().contains("all is told");
    assert!(task.until(told).await);
    let log = within("the end of the log", read(reader)).await;
    let taken = log.matches("WARN  logging] one of many").count();
    let lost = log.lines().find_map(|line| {
        let (_, lost) = line.split_once("WARN  pingora_mcp::logging] ")?;
        lost.strip_suffix(" lines of this log are lost")
    });
    assert_eq!(taken + lost.unwrap().parse::<usize>().unwrap(), MANY);
}

#[tokio::test]
#[ignore = "run by the one above, as a process"]
async fn a_task_that_tells_much() {
    let _last_lines = pingora_mcp::logging::start();
    for _ in 0..MANY {
        log::warn!("one of many");
    }
    println!("all is told");
    // A second at most, each.
    (0..10).for_each(|_| log::logger().flush());
}

/// As a process that goes to the background loses its threads.
#[tokio::test]
async fn in_the_background_the_log_goes_to_its_file() {
    let [log, pid] = ["error", "pid"].map(scratch_file);
    let keys = format!(
        "pid_file: {}\nerror_log: {}\n",
        pid.display(),
        log.display()
    );
    let configuration = Configuration::new(&keys, &route(&[unused_address()]));
    let mut command = configuration.command();
    assert_eq!(Program::start(command.arg("-d")).ended().await, Some(0));
    let is_told = async |text: &str| {
        let is_told = async || std::fs::read_to_string(&log).is_ok_and(|log| log.contains(text));
        until_asked(text, is_told).await;
    };
    is_told("listening on").await;
    let number = std::fs::read_to_string(&pid).unwrap();
    let kill = Command::new("kill").arg(number.trim()).status();
    assert!(kill.unwrap().success());
    is_told("ending: waiting").await;
    std::fs::remove_file(log).unwrap();
    std::fs::remove_file(pid).unwrap();
}

#[tokio::test]
async fn the_message_of_a_panic_comes_out() {
    let task = Program::start(&mut ignored_test("a_task_that_panics"));
    until("the panic's message", || {
        let log = task.log();
        log.contains("panicked at ") && log.contains(PANIC)
    })
    .await;
}

#[tokio::test]
async fn a_task_that_panics_waits_for_no_reader() {
    let (stderr, _reader) = full();
    let mut task = Program::start_with_stderr(&mut ignored_test("a_task_that_panics"), stderr);
    assert_eq!(task.ended().await, Some(0));
}

#[tokio::test]
#[ignore = "run by those above, as a process"]
async fn a_task_that_panics() {
    let _last_lines = pingora_mcp::logging::start();
    let panics = tokio::spawn(async { panic!("{PANIC}") });
    assert!(panics.await.is_err());
}

/// Pingora's own lines on these quote the request or the header, as errors or warnings.
#[tokio::test]
async fn what_cannot_be_read_is_not_quoted() {
    for level in ["info", "info,pingora_core=debug,pingora_mcp::logging=debug"] {
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = unused_address();
        let route = route(&[backend.local_addr().unwrap()]);
        let yaml = format!("{route}  admin: {{ address: {admin} }}\n");
        let mut proxy = ProxyProcess::with_environment(&yaml, &[("RUST_LOG", level)]).await;
        for (address, unreadable) in [
            (admin, "Authorization: Bearer s3cret\r\nno header\r\n\r\n"),
            (admin, "Content-Length: s3cret\r\n\r\n"),
            (admin, "Transfer-Encoding: chunked\r\n\r\ns3cret\r\n\r\n"),
            (proxy.address, "Content-Length: s3cret\r\n\r\n"),
            (proxy.address, "Authorization: Bearer s3cret"),
        ] {
            let mut client = Wire::connect(address).await;
            let request = format!("POST /mcp?s3cret HTTP/1.1\r\nHost: localhost\r\n{unreadable}");
            client.send(&request).await;
            client.close().await;
        }
        let asked = tokio::spawn(post(&proxy.url("/mcp")).send());
        let (mut wire, _) = Wire::accept(&backend).await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: s3cret\r\n\r\n")
            .await;
        let answer = within("an answer", asked).await.unwrap().unwrap();
        assert_eq!(answer.status(), 502);
        proxy.signal("TERM");
        assert_eq!(proxy.ended().await, Some(0));
        let log = proxy.log();
        assert!(!log.contains("s3cret") && !log.contains("ERROR"), "{log}");
        let told = "DEBUG pingora_mcp::logging] pingora_core::";
        assert_eq!(log.contains(told), level.contains("debug"), "{log}");
    }
}

/// A proxy as it is shipped, at an address that it was given.
struct Proxy {
    program: Program,
    configuration: Configuration,
}

impl Proxy {
    /// A proxy with `mcp`, the YAML below `mcp:` but for its listeners, that has begun to listen.
    async fn start(mcp: &str, stderr: OwnedFd) -> Self {
        let configuration = Configuration::new("", mcp);
        let program = Program::start_with_stderr(&mut configuration.command(), stderr);
        let connects = async || TcpStream::connect(configuration.address).await.is_ok();
        until_asked("a connection", connects).await;
        Self {
            program,
            configuration,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.configuration.address)
    }
}

/// A configuration's file.
struct Configuration {
    address: SocketAddr,
    path: PathBuf,
}

impl Configuration {
    /// With `keys` of Pingora's, and with `mcp`, the YAML below `mcp:` but for its listeners.
    fn new(keys: &str, mcp: &str) -> Self {
        let (address, path) = (unused_address(), scratch_file("yaml"));
        let yaml = format!("{keys}mcp:\n  listeners:\n    - address: {address}\n{mcp}");
        std::fs::write(&path, yaml).unwrap();
        Self { address, path }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pingora-mcp"));
        command.env_remove("RUST_LOG").arg("-c").arg(&self.path);
        command
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where no byte more can be written until somebody reads, and its other end.
fn full() -> (OwnedFd, UnixStream) {
    let (mut writer, reader) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let error = loop {
        if let Err(error) = writer.write(b".") {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    writer.set_nonblocking(false).unwrap();
    (writer.into(), reader)
}

/// All that comes of `reader` from now on, but for what has filled it.
async fn read(mut reader: UnixStream) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        log.trim_start_matches('.').to_owned()
    });
    read.await.unwrap()
}

fn with_dead_route(backend: &Backend) -> String {
    format!(
        "{}    - path: /dead\n      backends:\n        - name: dead\n          url: http://{}\n",
        route(&[backend.address]),
        unused_address()
    )
}

const PANIC: &str = "of a task";

const MANY: usize = 10_000;
