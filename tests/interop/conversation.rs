//! One client's way through all steps, and what happens to the server meanwhile.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use axum::http::StatusCode;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

use crate::peers::{Client, Server};
use crate::support::process::{Program, ProxyProcess, scratch_file};
use crate::support::{post, route};

/// How a client gets to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Proxied,
}

/// What came of each step, in the order of [`STEPS`].
pub(crate) type Facts = Vec<String>;

/// What a client prints, a line each.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Fact {
        step: String,
        fact: String,
        #[serde(default)]
        session: String,
    },
    Need {
        need: Event,
    },
}

/// What a client asks to have done to the server.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Event {
    /// It is there again, and knows nothing of what was before.
    Restart,
    /// Nothing is there.
    Stop,
    /// Something else is there, that answers all with 503.
    Refuse,
    /// It is there.
    Start,
}

/// All steps, and so all facts of `client` with `server`.
pub(crate) async fn facts(client: &Client, server: &'static Server, way: Way) -> Facts {
    let count = match way {
        Way::Direct => 1,
        Way::Proxied => server.backends,
    };
    let mut backends = Vec::new();
    for _ in 0..count {
        backends.push(Backend::start(server).await);
    }
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let (_proxy, url) = match way {
        Way::Direct => (None, format!("http://{}{}", addresses[0], server.path)),
        Way::Proxied => {
            let yaml = route(&addresses).replace("/mcp", server.path);
            let proxy = ProxyProcess::start(&yaml).await;
            let url = proxy.url(server.path);
            (Some(proxy), url)
        }
    };
    let mut program = ClientProgram::start(client, &url);
    let mut facts = Vec::new();
    while let Some(step) = STEPS.get(facts.len()) {
        match program.next_line().await {
            Ok(Line::Need { need }) => {
                for backend in &mut backends {
                    backend.suffer(need).await;
                }
                program.go_on().await;
            }
            Ok(Line::Fact {
                step: told,
                fact,
                session,
            }) => {
                assert_eq!(told, *step, "{client} with {}", server.name);
                let is_ended = fact == "ok" && told == "end";
                facts.push(match is_ended {
                    true => backends[0].fate_of(&session).await,
                    false => fact,
                });
            }
            Err(fact) => {
                let log = program.log();
                let server = server.name;
                eprintln!("interop: {client} with {server} ({way:?}), step {step}: {fact}\n{log}");
                facts.push(fact);
                facts.resize(STEPS.len(), "not reached".to_owned());
            }
        }
    }
    facts
}

struct Backend {
    server: &'static Server,
    address: SocketAddr,
    program: Option<Program>,
    stand_in: Option<JoinHandle<()>>,
}

impl Backend {
    async fn start(server: &'static Server) -> Self {
        let mut backend = Self {
            server,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            program: None,
            stand_in: None,
        };
        backend.run().await;
        backend
    }

    async fn run(&mut self) {
        if self.program.is_some() {
            return;
        }
        if let Some(stand_in) = self.stand_in.take() {
            stand_in.abort();
            let _cancelled = stand_in.await;
        }
        let (address, program) = Program::serving(&mut self.server.command(self.address)).await;
        self.address = address;
        self.program = Some(program);
    }

    async fn suffer(&mut self, event: Event) {
        if !matches!(event, Event::Start) {
            self.program = None; // killed
        }
        match event {
            Event::Restart | Event::Start => self.run().await,
            Event::Stop => (),
            Event::Refuse => {
                let listener = TcpListener::bind(self.address).await.unwrap();
                let refuse = axum::Router::new().fallback(async || StatusCode::SERVICE_UNAVAILABLE);
                self.stand_in = Some(tokio::spawn(async {
                    axum::serve(listener, refuse).await.unwrap();
                }));
            }
        }
    }

    /// Whether the end of a session has come to the server.
    async fn fate_of(&self, session: &str) -> String {
        if session.is_empty() {
            return "ok".to_owned(); // there was none
        }
        let url = format!("http://{}{}", self.address, self.server.path);
        let is_ended = async {
            loop {
                let asked = post(&url).header("mcp-session-id", session).send().await;
                if asked.unwrap().status() == StatusCode::NOT_FOUND {
                    break;
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let ended = tokio::time::timeout(END_LIMIT, is_ended).await;
        ended.map_or("the session lives on", |()| "ok").to_owned()
    }
}

struct ClientProgram {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    home: PathBuf,
}

impl ClientProgram {
    fn start(client: &Client, url: &str) -> Self {
        let home = scratch_file("home");
        std::fs::create_dir(&home).unwrap();
        let log = std::fs::File::create(home.join("log")).unwrap();
        let mut command = tokio::process::Command::from(client.command(url, &home));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(log).kill_on_drop(true).spawn().unwrap();
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = child.stdout.take().expect("it is piped");
        let lines = BufReader::new(stdout).lines();
        Self {
            child,
            stdin,
            lines,
            home,
        }
    }

    /// The next line, or the fact that there is none.
    async fn next_line(&mut self) -> Result<Line, String> {
        let line = tokio::time::timeout(STEP_LIMIT, self.lines.next_line()).await;
        let Ok(line) = line else {
            return Err(format!("no end within {} s", STEP_LIMIT.as_secs()));
        };
        match line.unwrap() {
            Some(line) => {
                Ok(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")))
            }
            None => Err("the client ended".to_owned()),
        }
    }

    async fn go_on(&mut self) {
        // It fails where the client has ended, and then so does the next step.
        let _ = self.stdin.write_all(b"\n").await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap()
    }
}

impl Drop for ClientProgram {
    fn drop(&mut self) {
        let _ended_by_itself = self.child.start_kill();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// The steps, in the order in which each client goes through them.
pub(crate) const STEPS: [&str; 13] = [
    "connect",
    "list",
    "call",
    "progress",
    "elicitation",
    "sampling",
    "notification",
    "resumption",
    "cancellation",
    "end",
    "404",
    "502",
    "503",
];

/// How long a client may take for one step; its own limit is less.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// How long the end of a session may take to come to the server.
const END_LIMIT: Duration = Duration::from_secs(5);

const AGAIN: Duration = Duration::from_millis(20);
