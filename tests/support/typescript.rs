//! The official TypeScript SDK's example server, and the programs of `tests/typescript`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::process::Program;

/// `@modelcontextprotocol/server-everything`, until it is dropped.
pub struct ExampleServer {
    pub address: SocketAddr,
    program: Program,
}

impl ExampleServer {
    /// Starts it.
    pub async fn start() -> Self {
        let (address, program) = Program::serving(&mut node("everything.mjs")).await;
        Self { address, program }
    }

    /// Sends it a signal, by the signal's name without `SIG`.
    pub fn signal(&self, name: &str) {
        self.program.signal(name);
    }

    /// The ids of all sessions that it has opened, from its log.
    pub fn sessions(&self) -> Vec<String> {
        let log = self.program.log();
        let ids = log
            .lines()
            .filter_map(|line| line.strip_prefix("Session initialized with ID: "));
        ids.map(str::to_owned).collect()
    }
}

/// A command for a script of `tests/typescript`.
pub fn node(script: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/typescript");
    let has_node = Command::new("node").arg("--version").output().is_ok();
    assert!(
        has_node && folder.join("node_modules").is_dir(),
        "node or its packages are missing: run `make test`, which installs them"
    );
    let mut node = Command::new("node");
    node.arg(script).current_dir(folder);
    node
}
