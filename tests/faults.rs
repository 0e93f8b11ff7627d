//! Faults, of backends, of clients and of both at once: what the client of each is told, that nobody
//! else is hurt, and that nothing is left of it.

mod support;

use std::cell::Cell;
use std::net::SocketAddr;

use futures::future::join_all;
use serde_json::Value;
use support::backend_process::{self, BYTE_PAUSE, BackendProcess, RESULT, Says};
use support::process::ProxyProcess;
use support::wire::Wire;
use support::{open_session, raw, unused_address, within};
use tokio::net::TcpListener;

use Client::*;
use Fate::*;
use Says::*;
use Sees::*;

/// A request, what its backend says to it and what then becomes of the backend, what its client does,
/// and what the client is told.
type Fault = (&'static str, Says, Fate, Client, Sees);

const FAULTS: [Fault; 26] = [
    // The backend's.
    (POST, Nothing, Killed, Waits, Refusal(502)),
    (GET, Nothing, Killed, Waits, Refusal(502)),
    (POST, HalfABody, Killed, Waits, Cut),
    (POST, AnEvent, Killed, Waits, Cut),
    (GET, AnEvent, Killed, Waits, Cut),
    (POST, Everything, Forgets, Waits, Refusal(404)),
    (POST, Nothing, Lives, Waits, Refusal(504)),
    (POST, HalfABody, Lives, Waits, Cut),
    (POST, ByteByByte, Lives, Waits, Whole),
    // The client's.
    (POST, Everything, Lives, SaysNothing, Silence),
    (POST, Everything, Lives, TricklesHeader, Refusal(408)),
    (POST, Everything, Lives, TricklesBody, Whole),
    (POST, Everything, Lives, StopsInBody, Refusal(408)),
    (POST, Flood, Lives, StopsReading, Cut),
    (GET, Flood, Lives, StopsReading, Cut),
    (POST, Nothing, Lives, HalfCloses, Silence),
    (GET, AnEvent, Lives, HalfCloses, Cut),
    (POST, Nothing, Lives, Resets, Unheard),
    (GET, AnEvent, Lives, Resets, Unheard),
    // Both.
    (POST, Nothing, Killed, StopsInBody, Refusal(502)),
    (POST, HalfABody, Killed, TricklesBody, Cut),
    (GET, Flood, Killed, StopsReading, Cut),
    (GET, AnEvent, Killed, HalfCloses, Cut),
    (GET, AnEvent, Killed, Resets, Unheard),
    (POST, ByteByByte, Lives, Resets, Unheard),
    (POST, HalfABody, Lives, StopsInBody, Cut),
];

/// What becomes of a backend once it has said its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lives,
    /// By SIGKILL.
    Killed,
    /// Killed and started anew, without the session that the request is of.
    Forgets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// The client is without fault.
    Waits,
    SaysNothing,
    /// For longer than a header may take.
    TricklesHeader,
    /// For longer than a body may be silent.
    TricklesBody,
    StopsInBody,
    StopsReading,
    HalfCloses,
    Resets,
}

#[derive(Clone, Copy, Debug)]
enum Sees {
    Whole,
    /// Of the proxy's own, or a backend's 404, and whole.
    Refusal(u16),
    /// A 200 that breaks off.
    Cut,
    /// The end of the connection.
    Silence,
    /// It has left.
    Unheard,
}

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "descriptors are counted in /proc")]
async fn no_fault_hurts_anybody_else_and_nothing_is_left_of_any() {
    let (mut stage, mut backends) = Stage::with_bystanders(1).await;
    for _ in 0..2 {
        for (number, backend) in backends.iter_mut().enumerate() {
            let place = stage.place(number);
            stage.outlives(meet(place, backend)).await;
        }
        stage.end_round();
    }
    stage.has_served(2000);
    stage.has_kept_its_memory(512);
}

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "descriptors are counted in /proc")]
async fn all_faults_at_once_hurt_nobody_else_and_nothing_is_left_of_them() {
    let (mut stage, mut backends) = Stage::with_bystanders(16).await;
    for _ in 0..4 {
        let faults = backends.iter_mut().enumerate();
        let faults: Vec<_> = faults
            .map(|(number, backend)| meet(stage.place(number), backend))
            .collect();
        stage.outlives(join_all(faults)).await;
        stage.end_round();
    }
    stage.has_served(200);
    stage.has_kept_its_memory(4096);
}

#[test]
#[ignore = "it is the backend of the others"]
fn backend() {
    backend_process::serve();
}

/// Where a fault is met: the proxy, its admin listener, and the fault, of which it has a route.
#[derive(Clone, Copy)]
struct Place {
    proxy: SocketAddr,
    admin: SocketAddr,
    number: usize,
}

/// Has a fault happen, and checks what its client is told and that its backend is left. A backend
/// that was killed before is there again.
async fn meet(place: Place, backend: &mut BackendProcess) {
    let (request, says, fate, does, sees) = FAULTS[place.number];
    let fault = format!("{} {says:?} {fate:?} {does:?}", &request[..4]);
    let path = format!("/{}", place.number);
    let (header, body) = request.split_once("\r\n\r\n").unwrap();
    let mut header = header.replacen("/mcp", &path, 1) + "\r\nConnection: close\r\n";
    if fate == Forgets {
        let id = open_session(&format!("http://{}{path}", place.proxy)).await;
        header += &format!("Mcp-Session-Id: {id}\r\n");
        backend.kill().await;
        backend.start_anew(BACKEND).await;
    }
    header += "\r\n";
    println!("{fault}");
    let asked = backend.asked();

    let mut client = Wire::connect(place.proxy).await;
    let (first, second) = body.split_at(body.len() / 2);
    let mut seen = String::new();
    match does {
        SaysNothing => {}
        TricklesHeader => seen += &client.trickle(&header, BYTE_PAUSE).await,
        TricklesBody => {
            client.send(&header).await;
            seen += &client.trickle(first, 2 * BYTE_PAUSE).await;
        }
        StopsInBody => client.send(&(header + first)).await,
        Waits | StopsReading | HalfCloses | Resets => client.send(&(header + body)).await,
    }
    if !matches!(does, SaysNothing | TricklesHeader) {
        backend.until_asked(asked + 1).await;
        if let Some(heard) = says.heard()
            && !seen.contains(heard)
        {
            seen += &client.receive(heard).await;
        }
    }
    if fate == Killed {
        backend.kill().await;
    }
    if does == TricklesBody {
        seen += &client.trickle(second, 2 * BYTE_PAUSE).await;
    }
    if does == HalfCloses {
        client.finish_sending().await;
    }
    if does == StopsReading {
        // What has come is read once the proxy has given it up.
        until_idle(place.admin, &path).await;
    }
    if does == Resets {
        client.reset();
    } else {
        seen += &client.until_end().await;
    }
    judge(sees, &seen, &fault);
    match fate {
        Lives | Forgets => backend.until_left().await,
        Killed => backend.start_anew(BACKEND).await,
    }
}

fn judge(sees: Sees, seen: &str, fault: &str) {
    let is_as_said = match sees {
        Whole => seen.starts_with("HTTP/1.1 200 ") && seen.ends_with(RESULT),
        Refusal(status) => seen.starts_with(&format!("HTTP/1.1 {status} ")) && seen.ends_with('}'),
        Cut => seen.starts_with("HTTP/1.1 200 ") && !seen.ends_with("0\r\n\r\n"),
        Silence => seen.is_empty(),
        Unheard => true,
    };
    let end = seen.len().min(1000);
    assert!(is_as_said, "{fault}: {sees:?} expected: {}", &seen[..end]);
}

/// The proxy with a route for each fault, and those who have nothing to do with any.
struct Stage {
    proxy: ProxyProcess,
    admin: SocketAddr,
    bystanders: Vec<Bystander>,
    before: Footprint,
    /// What it had in RAM after each round of all faults, in KiB.
    resident: Vec<u64>,
}

impl Stage {
    /// Returns the backend of each fault too.
    async fn with_bystanders(count: usize) -> (Self, Vec<BackendProcess>) {
        let backends = FAULTS.map(|(_, says, ..)| BackendProcess::start(BACKEND, says));
        let backends = join_all(backends).await;
        let mut mcp = String::from("  routes:\n");
        for (number, backend) in backends.iter().enumerate() {
            mcp += &named(&number.to_string(), backend.address);
            // Short only where it is to be met, and not before half a body has come.
            let post = match FAULTS[number] {
                (POST, Nothing, Lives, Waits, _) => "1s",
                (POST, HalfABody, Lives, Waits, _) => "5s",
                _ => "1m",
            };
            mcp += &format!("      timeouts: {{ post: {post}, pool_idle: 100ms }}\n");
        }
        let mut listeners = Vec::new();
        for number in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            mcp += &named(&format!("bystander-{number}"), address);
            listeners.push(listener);
        }
        let admin = unused_address();
        mcp += "  timeouts: { first_byte: 1s, header: 1s, body: 3s, write: 1s, drain: 200ms }\n";
        mcp += &format!("  admin: {{ address: {admin} }}\n");
        let proxy = ProxyProcess::start(&mcp).await;

        let mut bystanders = Vec::new();
        for (number, listener) in listeners.into_iter().enumerate() {
            let path = format!("/bystander-{number}");
            bystanders.push(Bystander::start(proxy.address, &path, listener).await);
        }
        let before = Footprint::of(&proxy, admin).await;
        let stage = Self {
            resident: Vec::new(),
            proxy,
            admin,
            bystanders,
            before,
        };
        (stage, backends)
    }

    fn place(&self, number: usize) -> Place {
        Place {
            proxy: self.proxy.address,
            admin: self.admin,
            number,
        }
    }

    /// Has all bystanders go on for as long as `faults` take and once more, and waits until the proxy
    /// has what it had before.
    async fn outlives(&mut self, faults: impl Future) {
        let is_over = Cell::new(false);
        let faults = async {
            faults.await;
            is_over.set(true);
        };
        let bystanders = self.bystanders.iter_mut().map(async |bystander| {
            while !is_over.get() {
                bystander.go_on().await;
            }
            bystander.go_on().await;
        });
        tokio::join!(faults, join_all(bystanders));

        let (mut now, mut polls) = (Footprint::of(&self.proxy, self.admin).await, 0);
        while !now.is_within(&self.before) {
            polls += 1;
            assert!(polls < 3000, "{now:?} is left, and was {:?}", self.before);
            tokio::time::sleep(BYTE_PAUSE).await;
            now = Footprint::of(&self.proxy, self.admin).await;
        }
        // What was counted before may have been on its way out.
        self.before = now;
        let log = self.proxy.log();
        assert!(!log.contains("panic"), "{log}");
    }

    fn end_round(&mut self) {
        self.resident.push(self.proxy.resident());
    }

    /// Others made at least `calls`, each with an event, while the faults were met.
    fn has_served(&self, calls: usize) {
        let served: usize = self.bystanders.iter().map(|other| other.number).sum();
        println!("{served} calls of others");
        assert!(served >= calls, "{served} calls of others");
    }

    /// Once all faults were met, further rounds of them took less than `most` KiB. The allocator does
    /// not keep the same each time.
    fn has_kept_its_memory(&self, most: u64) {
        println!("{:?} KiB", self.resident);
        let (first, last) = (self.resident[0], self.resident[self.resident.len() - 1]);
        assert!(last < first + most, "{:?} KiB", self.resident);
    }
}

/// What the proxy holds.
#[derive(Debug)]
struct Footprint {
    descriptors: usize,
    connections: u64,
    streams: u64,
    in_flight: u64,
}

impl Footprint {
    async fn of(proxy: &ProxyProcess, admin: SocketAddr) -> Self {
        let descriptors = proxy.descriptors();
        let metrics = raw(admin, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let sum = |name: &str| {
            let samples = metrics.lines().filter(|line| line.starts_with(name));
            let values = samples.map(|line| line.rsplit(' ').next().unwrap());
            values.map(|value| value.parse::<u64>().unwrap()).sum()
        };
        Self {
            descriptors,
            connections: sum("pingora_mcp_open_connections"),
            streams: sum("pingora_mcp_open_streams"),
            in_flight: in_flight(admin).await.iter().map(|(_, count)| count).sum(),
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.connections == before.connections
            && self.streams == before.streams
            && self.in_flight == before.in_flight
    }
}

/// How many requests are at backends, by the path of their route.
async fn in_flight(admin: SocketAddr) -> Vec<(String, u64)> {
    let request = "GET /status HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
    let answer = raw(admin, request).await;
    let status: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let routes = status["routes"].as_array().unwrap().iter();
    let counts = routes.map(|route| {
        let count = route["backends"][0]["requests_in_flight"].as_u64();
        (route["path"].as_str().unwrap().to_owned(), count.unwrap())
    });
    counts.collect()
}

/// Waits until no request is at the backend of the route of `path`.
async fn until_idle(admin: SocketAddr, path: &str) {
    let idle = (path.to_owned(), 0);
    within("the end of the request", async {
        while !in_flight(admin).await.contains(&idle) {
            tokio::time::sleep(BYTE_PAUSE).await;
        }
    })
    .await;
}

/// A client without fault at a backend without fault, with a session and a stream.
struct Bystander {
    listener: TcpListener,
    path: String,
    id: String,
    calls: Wire,
    /// The stream's two ends.
    stream: Wire,
    events: Wire,
    number: usize,
}

impl Bystander {
    async fn start(proxy: SocketAddr, path: &str, listener: TcpListener) -> Self {
        let mut calls = Wire::connect(proxy).await;
        calls.send(&POST.replacen("/mcp", path, 1)).await;
        let (mut backend, _) = Wire::accept(&listener).await;
        let opened = format!("Mcp-Session-Id: bystanders-own\r\n{LENGTH_2}");
        backend.send(&format!("{CLOSES}{opened}\r\n\r\nok")).await;
        let answer = calls.answer().await;
        backend.until_closed().await;
        let id = answer
            .lines()
            .find_map(|line| line.strip_prefix("mcp-session-id: "));
        let id = id.unwrap().to_owned();

        let mut stream = Wire::connect(proxy).await;
        let get = GET.replacen("/mcp", path, 1);
        stream.send(&bound(&get, &id)).await;
        let (mut events, _) = Wire::accept(&listener).await;
        events.send(EVENT_STREAM).await;
        let header = stream.receive("\r\n\r\n").await;
        assert!(header.starts_with("HTTP/1.1 200 "), "{header}");
        Self {
            listener,
            path: path.to_owned(),
            id,
            calls,
            stream,
            events,
            number: 0,
        }
    }

    /// An event on the stream, and a call of the session.
    async fn go_on(&mut self) {
        self.number += 1;
        let event = format!("data: {}\n\n", self.number);
        self.events.send_chunk(event.as_bytes()).await;
        let received = self.stream.receive("\n\n\r\n").await;
        assert!(
            received.ends_with(&format!("\r\n{event}\r\n")),
            "{received}"
        );

        let call = bound(&POST.replacen("/mcp", &self.path, 1), &self.id);
        self.calls.send(&call).await;
        let (mut backend, header) = Wire::accept(&self.listener).await;
        assert!(header.contains("bystanders-own"), "{header}");
        backend.send(&format!("{CLOSES}{LENGTH_2}\r\n\r\nok")).await;
        let answer = self.calls.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
        // No connection of it is kept for the next call, so that descriptors can be compared.
        backend.until_closed().await;
    }
}

/// `request` as one of the session `id`.
fn bound(request: &str, id: &str) -> String {
    request.replacen("\r\n\r\n", &format!("\r\nMcp-Session-Id: {id}\r\n\r\n"), 1)
}

/// The YAML of a route `/name` to one backend.
fn named(name: &str, backend: SocketAddr) -> String {
    format!("    - path: /{name}\n      backends: [{{ name: b, url: 'http://{backend}/mcp' }}]\n")
}

/// The test that is the backends' process.
const BACKEND: &str = "backend";

const POST: &str = "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
    Accept: application/json, text/event-stream\r\nContent-Length: 105\r\n\r\n\
    {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":\
    {\"name\":\"echo\",\"arguments\":{\"text\":\"0123456789\"}}}";

const GET: &str = "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";

const EVENT_STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

const CLOSES: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n";

const LENGTH_2: &str = "Content-Length: 2";
