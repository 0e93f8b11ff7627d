//! A backend that is a process of its own, so that it can be killed and started anew: the test
//! program itself, of which that process runs one test.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;

use super::LOOPBACK;
use super::process::{Program, ignored_test, listen_again};

/// What it says to a request. Then it waits until the proxy closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Says {
    Nothing,
    /// A part of a body whose length is known.
    HalfABody,
    /// A stream of one event, that stays open.
    AnEvent,
    /// An answer, one byte after the other, a pause after each.
    ByteByByte,
    /// An answer. It knows the sessions that this process has opened, and no other.
    Everything,
    /// An answer without an end.
    Flood,
}

impl Says {
    /// What has arrived at the client once this is said, where anything has.
    pub fn heard(self) -> Option<&'static str> {
        match self {
            Self::Nothing | Self::ByteByByte | Self::Everything => None,
            Self::HalfABody => Some("half a body"),
            Self::AnEvent => Some("data: 1\n\n"),
            Self::Flood => Some("flood"),
        }
    }
}

/// One that runs until it is dropped.
pub struct BackendProcess {
    pub address: SocketAddr,
    says: Says,
    program: Program,
}

impl BackendProcess {
    /// Starts this program for its one test `named`, which is ignored and does nothing but
    /// [`serve`].
    pub async fn start(named: &str, says: Says) -> Self {
        let (address, program) = run(named, says, LOOPBACK).await;
        Self {
            address,
            says,
            program,
        }
    }

    /// Kills it: its system closes its connections, and it says no more.
    pub async fn kill(&mut self) {
        self.program.signal("KILL");
        assert_eq!(self.program.ended().await, None);
    }

    /// Starts another on its address, which knows nothing of what the one before did.
    pub async fn start_anew(&mut self, named: &str) {
        let (address, program) = run(named, self.says, self.address).await;
        assert_eq!(address, self.address);
        self.program = program;
    }

    /// How many requests it has had.
    pub fn asked(&self) -> usize {
        self.program.log().matches(ASKED).count()
    }

    /// Waits until it has had `count` requests.
    pub async fn until_asked(&mut self, count: usize) {
        let is_asked = |program: &Program| program.log().matches(ASKED).count() == count;
        assert!(self.program.until(is_asked).await);
    }

    /// Waits until nobody is connected to it.
    pub async fn until_left(&mut self) {
        let is_left = |program: &Program| {
            let log = program.log();
            log.matches(CONNECTED).count() == log.matches(LEFT).count()
        };
        assert!(self.program.until(is_left).await);
    }
}

async fn run(named: &str, says: Says, address: SocketAddr) -> (SocketAddr, Program) {
    let mut command = ignored_test(named);
    command.env(SAYS, says.to_possible_value().unwrap().get_name());
    Program::serving(command.env(ADDRESS, address.to_string())).await
}

/// Is such a process, until it is killed. Returns at once where this is none.
pub fn serve() {
    let Ok(says) = env::var(SAYS) else { return };
    let says = Says::from_str(&says, false).unwrap();
    let address = env::var(ADDRESS).unwrap();
    let listener = listen_again(&address);
    println!("listening on http://{}/mcp", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        thread::spawn(move || {
            println!("{CONNECTED}");
            // What fails is that the proxy has left.
            let _ = converse(&stream.unwrap(), says);
            println!("{LEFT}");
        });
    }
}

/// Answers all requests of a connection, or says its part of one answer and waits.
fn converse(mut stream: &TcpStream, says: Says) -> io::Result<()> {
    let mut received = BufReader::new(stream);
    while let Some(request) = Request::read_header(&mut received)? {
        println!("{ASKED}");
        match says {
            Says::Nothing => {}
            Says::HalfABody => {
                stream.write_all(HALF_A_BODY.as_bytes())?;
                stream.write_all(&[b'x'; HELD_BACK])?;
            }
            Says::AnEvent => stream.write_all(AN_EVENT.as_bytes())?,
            Says::Flood => {
                stream.write_all(FLOOD.as_bytes())?;
                loop {
                    stream.write_all(&[b'x'; 0x1000])?;
                    stream.write_all(b"\r\n1000\r\n")?;
                }
            }
            Says::ByteByByte => {
                request.read_body(&mut received)?;
                for byte in request.answer().as_bytes() {
                    stream.write_all(&[*byte])?;
                    thread::sleep(BYTE_PAUSE);
                }
                continue;
            }
            Says::Everything => {
                request.read_body(&mut received)?;
                stream.write_all(request.answer().as_bytes())?;
                continue;
            }
        }
        io::copy(&mut received, &mut io::sink())?;
    }
    Ok(())
}

struct Request {
    session: Option<String>,
    length: u64,
}

impl Request {
    /// `None` where the proxy has closed.
    fn read_header(received: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut request = Self {
            session: None,
            length: 0,
        };
        loop {
            let mut line = String::new();
            if received.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("mcp-session-id", id)) => request.session = Some(id.to_owned()),
                Some(("content-length", length)) => request.length = length.parse().unwrap(),
                Some(_) => {}
                None if line == "\r\n" => return Ok(Some(request)),
                None => {}
            }
        }
    }

    fn read_body(&self, received: &mut impl Read) -> io::Result<()> {
        let mut body = vec![0; self.length as usize];
        received.read_exact(&mut body)
    }

    /// The id of a session is the number of the process that opened it.
    fn answer(&self) -> String {
        let own = std::process::id().to_string();
        let (status, body) = match &self.session {
            Some(id) if *id != own => ("404 Not Found", NO_SESSION),
            _ => ("200 OK", RESULT),
        };
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nMcp-Session-Id: {own}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    }
}

/// The body of a whole answer.
pub const RESULT: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

const NO_SESSION: &str =
    r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}"#;

const HALF_A_BODY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf a body";

/// As much as may wait in the proxy for the rest of a body whose length is known.
const HELD_BACK: usize = 0x8000;

const AN_EVENT: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";

const FLOOD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                     Transfer-Encoding: chunked\r\n\r\n5\r\nflood\r\n1000\r\n";

/// After each byte of an answer that comes slowly.
pub const BYTE_PAUSE: Duration = Duration::from_millis(20);

// What it writes to its output.
const CONNECTED: &str = "(connected)";
const ASKED: &str = "(asked)";
const LEFT: &str = "(left)";

// What its environment tells it.
const SAYS: &str = "BACKEND_SAYS";
const ADDRESS: &str = "BACKEND_ADDRESS";
