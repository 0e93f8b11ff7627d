//! The clients and servers of the matrix, and how each is started.

use std::fmt::{Display, Formatter};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Era {
    /// The revisions up to 2025-11-25.
    Session,
    /// Revision 2026-07-28.
    Stateless,
}

/// A program that goes through the steps at a URL.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) era: Era,
    program: fn() -> Command,
    more: &'static [&'static str],
}

/// A program that serves the tools of the matrix.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    /// How many of it are behind the proxy.
    pub(crate) backends: usize,
    /// Where it serves them.
    pub(crate) path: &'static str,
    program: fn() -> Command,
    more: &'static [&'static str],
}

impl Era {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Stateless => "stateless",
        }
    }
}

impl TryFrom<&str> for Era {
    type Error = String;

    fn try_from(name: &str) -> Result<Self, String> {
        let mut eras = [Self::Session, Self::Stateless].into_iter();
        let era = eras.find(|era| era.name() == name);
        era.ok_or_else(|| format!("{name} is no era"))
    }
}

impl Client {
    /// The command that connects to `url`. What mcp-remote and the inspector keep goes to `home`.
    pub(crate) fn command(&self, url: &str, home: &Path) -> Command {
        let mut command = (self.program)();
        command.args([url, self.era.name()]).args(self.more);
        command.env("MCP_REMOTE_CONFIG_DIR", home);
        command.env("MCP_STORAGE_DIR", home);
        command
    }
}

impl Server {
    /// The command that serves on `address`.
    pub(crate) fn command(&self, address: SocketAddr) -> Command {
        let mut command = (self.program)();
        command.arg(address.to_string()).args(self.more);
        command
    }
}

impl Display for Client {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} era", self.name, self.era.name())
    }
}

fn node(script: &str) -> Command {
    script_of("node", script)
}

fn python(script: &str) -> Command {
    script_of(
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/bin/python-mcp"),
        script,
    )
}

fn script_of(interpreter: &str, script: &str) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(script).current_dir(FOLDER);
    command
}

fn demo_server() -> Command {
    let proxy = Path::new(env!("CARGO_BIN_EXE_pingora-mcp"));
    Command::new(proxy.with_file_name("examples").join("demo_server"))
}

/// This program as a client.
fn rmcp() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg(RMCP);
    command
}

/// The argument that makes this program the client of [`rmcp`](crate::rmcp).
pub(crate) const RMCP: &str = "rmcp";

/// Where the programs in other languages are.
pub(crate) const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");

pub(crate) static CLIENTS: [Client; 11] = [
    client(
        "TypeScript SDK 1.x",
        Era::Session,
        || node("typescript1.mjs"),
        &[],
    ),
    client(
        "TypeScript SDK 2.x",
        Era::Session,
        || node("typescript2.mjs"),
        &[],
    ),
    client(
        "TypeScript SDK 2.x",
        Era::Stateless,
        || node("typescript2.mjs"),
        &[],
    ),
    client("Python SDK", Era::Session, || python("client.py"), &[]),
    client("Python SDK", Era::Stateless, || python("client.py"), &[]),
    client("Rust SDK", Era::Session, rmcp, &[]),
    client("Rust SDK", Era::Stateless, rmcp, &[]),
    client(
        "mcp-remote",
        Era::Session,
        || node("typescript1.mjs"),
        &["mcp-remote"],
    ),
    client(
        "mcp-remote",
        Era::Stateless,
        || node("typescript1.mjs"),
        &["mcp-remote"],
    ),
    client("Inspector CLI", Era::Session, || node("inspector.mjs"), &[]),
    client(
        "Inspector CLI",
        Era::Stateless,
        || node("inspector.mjs"),
        &[],
    ),
];

pub(crate) static SERVERS: [Server; 5] = [
    server("Rust SDK", 1, "/interop", demo_server, &[]),
    server("TypeScript SDK 2.x", 1, "/mcp", || node("server.mjs"), &[]),
    server("Python SDK", 1, "/mcp", || python("server.py"), &[]),
    server(
        "Python SDK, no sessions",
        1,
        "/mcp",
        || python("server.py"),
        &["stateless"],
    ),
    server(
        "two of these",
        2,
        "/mcp",
        || python("server.py"),
        &["stateless"],
    ),
];

const fn client(
    name: &'static str,
    era: Era,
    program: fn() -> Command,
    more: &'static [&'static str],
) -> Client {
    Client {
        name,
        era,
        program,
        more,
    }
}

const fn server(
    name: &'static str,
    backends: usize,
    path: &'static str,
    program: fn() -> Command,
    more: &'static [&'static str],
) -> Server {
    Server {
        name,
        backends,
        path,
        program,
        more,
    }
}
