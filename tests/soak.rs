//! Idle streams, and requests at a steady rate beside them, through the built binary: no error, no
//! stream lost, and what a stream costs.
//!
//! 500 streams and 200 requests a second for 5 s. `SOAK_STREAMS=5000 SOAK_RATE=2000 SOAK_SECONDS=60`
//! takes other numbers, as `make soak` does, and `-- --nocapture` shows what came of it.

mod support;

use std::io;
use std::time::Duration;

use support::process::ProxyProcess;
use support::route;
use support::wire::Wire;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(target_os = "linux"), ignore = "memory is read from /proc")]
async fn idle_streams_and_requests_do_not_disturb_each_other() {
    let (streams, rate) = (setting("SOAK_STREAMS", 500), setting("SOAK_RATE", 200));
    let seconds = setting("SOAK_SECONDS", 5);
    // A stream has two ends here, and as many in the proxy. Half of them may be on their way out.
    let wanted = u64::from(3 * streams) + OTHER_DESCRIPTORS;
    let allowed = rlimit::increase_nofile_limit(wanted).unwrap();
    assert!(allowed >= wanted, "{wanted} open files are needed");

    let over = watch::Sender::new(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mcp = route(&[listener.local_addr().unwrap()]) + WITHOUT_BOUNDS;
    tokio::spawn(serve(listener, over.subscribe()));
    let proxy = ProxyProcess::start(&mcp).await;

    let mut first = Wire::connect(proxy.address).await;
    let mut sessions = Vec::new();
    for _ in 0..streams {
        first.send(&post("")).await;
        let opened = first.answer().await;
        let id = opened
            .lines()
            .find(|line| line.starts_with("mcp-session-id"));
        sessions.push(format!("{}\r\n", id.unwrap()));
    }
    let before = proxy.resident();
    let mut idle = Vec::new();
    open_all(&mut idle, &sessions, &proxy).await;
    let opened = proxy.resident();

    let calls: Vec<_> = sessions.iter().map(|session| post(session)).collect();
    let calls = calls.iter().cycle().take((rate * seconds) as usize);
    let report = at_rate(rate, calls, &proxy).await;

    for round in 0..RETURNS {
        idle = idle.into_iter().skip(round % 2).step_by(2).collect();
        open_all(&mut idle, &sessions, &proxy).await;
    }
    let reopened = proxy.resident();
    over.send(true).unwrap();
    for mut stream in idle {
        let events = stream.receive("0\r\n\r\n").await;
        assert!(events.contains("data: last\n\n"), "{events}");
    }
    let each = |resident: u64| resident.saturating_sub(before) as f64 / f64::from(streams);
    println!(
        "{streams} streams: {before} KiB became {opened} KiB, {:.1} KiB a stream; when half of them \
         had left and come back {RETURNS} times, {reopened} KiB, {:.1} KiB a stream\n\
         {rate} requests a second for {seconds} s: {report}\n{} KiB at most",
        each(opened),
        each(reopened),
        proxy.peak_resident(),
    );
    let is_release = std::env::var_os("PINGORA_MCP").is_some();
    let most = if is_release {
        MOST_OF_RELEASE
    } else {
        MOST_A_STREAM
    };
    assert!(each(opened) < most);
    assert!(each(reopened.saturating_sub(MOST_OF_CALLS)) < most);
}

/// Opens streams until there are as many as sessions.
async fn open_all(idle: &mut Vec<Wire>, sessions: &[String], proxy: &ProxyProcess) {
    for session in &sessions[idle.len()..] {
        let mut stream = Wire::connect(proxy.address).await;
        stream.send(&format!("{GET}{session}\r\n")).await;
        let header = stream.receive("\r\n\r\n").await;
        assert!(header.starts_with("HTTP/1.1 200 "), "{header}");
        idle.push(stream);
    }
}

/// Sends each of `calls` when it is due, whatever became of those before, on the next free connection.
/// All are answered with 200. Times are counted from when a call was due.
async fn at_rate(rate: u32, calls: impl Iterator<Item = &String>, proxy: &ProxyProcess) -> String {
    let (release, mut free) = mpsc::channel(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let connection = Wire::connect(proxy.address).await;
        release.send(connection).await.unwrap();
    }
    let begin = Instant::now();
    let mut asked = JoinSet::new();
    let mut times = Vec::new();
    for (number, call) in calls.enumerate() {
        let due = begin + Duration::from_secs(1) * number as u32 / rate;
        sleep_until(due).await;
        let mut connection = free.recv().await.unwrap();
        let (call, release) = (call.clone(), release.clone());
        asked.spawn(async move {
            connection.send(&call).await;
            let answer = connection.answer().await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            // There is room for all of them.
            release.try_send(connection).unwrap();
            due.elapsed()
        });
        while let Some(answered) = asked.try_join_next() {
            times.push(answered.unwrap());
        }
    }
    while let Some(answered) = asked.join_next().await {
        times.push(answered.unwrap());
    }
    let reached = times.len() as f64 / begin.elapsed().as_secs_f64();
    times.sort();
    let within = |share: f64| times[(share * (times.len() - 1) as f64) as usize];
    format!(
        "{} answered with 200, {reached:.0} a second; half within {:.1?}, 99 % within {:.1?}, all within {:.1?}",
        times.len(),
        within(0.5),
        within(0.99),
        within(1.0),
    )
}

/// The number in `variable`.
fn setting(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |number| number.parse().unwrap())
}

/// A call of a session, which is a line of the header. Without one, it opens one.
fn post(session: &str) -> String {
    format!("POST /mcp HTTP/1.1\r\nHost: localhost\r\n{session}Content-Length: 2\r\n\r\n{{}}")
}

/// A backend that ends all streams with an event when `over` says so.
async fn serve(listener: TcpListener, over: watch::Receiver<bool>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(converse(BufReader::new(stream), over.clone()));
    }
}

/// Answers all requests of a connection.
async fn converse(
    mut stream: BufReader<TcpStream>,
    mut over: watch::Receiver<bool>,
) -> io::Result<()> {
    loop {
        let mut header = String::new();
        while !header.ends_with("\r\n\r\n") {
            if stream.read_line(&mut header).await? == 0 {
                return Ok(());
            }
        }
        if header.starts_with("GET") {
            stream.write_all(EVENTS.as_bytes()).await?;
            tokio::select! {
                over = over.wait_for(|over| *over) => drop(over.unwrap()),
                left = stream.read_u8() => return left.map(drop),
            }
            stream.write_all(LAST_EVENT.as_bytes()).await?;
            continue;
        }
        stream.read_exact(&mut [0; 2]).await?;
        stream.write_all(ANSWER.as_bytes()).await?;
    }
}

/// A call waits where all of them are busy.
const CONNECTIONS: usize = 256;

/// Those of the calls, on both sides, and some more.
const OTHER_DESCRIPTORS: u64 = 1024;

/// How often half of the streams leave and come back, after which free memory lies scattered.
const RETURNS: usize = 8;

/// KiB of a stream, where nothing is optimised.
const MOST_A_STREAM: f64 = 128.0;

/// KiB of a stream in a release build: a little more than `docs/performance.md` says it takes.
const MOST_OF_RELEASE: f64 = 46.0;

/// KiB that the calls may leave behind, however few the streams are.
const MOST_OF_CALLS: u64 = 8 * 1024;

const WITHOUT_BOUNDS: &str = "      limits: { max_requests_per_backend: none }
  sessions: { max_per_client: none, max_new_per_client: none }
  limits: { max_streams: none, max_connections: none }
";

const GET: &str = "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n";

const EVENTS: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

const LAST_EVENT: &str = "c\r\ndata: last\n\n\r\n0\r\n\r\n";

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
    Mcp-Session-Id: the-backends-own-0123456789abcdef\r\nContent-Length: 36\r\n\r\n\
    {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}";
