//! Networks of a test's own, with links between them that can be cut: namespaces of Linux.
//!
//! The test is a test of its program that is ignored, run once more as root of a network of its own;
//! that takes no root here, where the system lets users have namespaces. All is gone with the last
//! process that is in it.

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::Command;

use super::process::{Program, ignored_test};

/// Runs this program's test `named` in a network of its own, to its end, and shows all that it has
/// written. Where this machine can have none, it is skipped, and why is said.
pub async fn run_apart(named: &'static str) {
    match try_apart(named).await {
        Ok(written) => println!("{written}"),
        // Not by `println!`, which shows nothing of a test that has passed.
        Err(why) => {
            let skipped = format!("skipped, as no network can be made here: {why}\n");
            io::stderr().write_all(skipped.as_bytes()).unwrap();
        }
    }
}

async fn try_apart(named: &'static str) -> Result<String, String> {
    let mut why = String::new();
    for flags in [["--net", "--map-root-user"].as_slice(), &["--net"]] {
        let unshare = |inner: &Command| {
            let mut command = Command::new("unshare");
            command.args(flags).arg(inner.get_program());
            command.args(inner.get_args());
            command
        };
        let mut link = Command::new("ip");
        link.args(["link", "add", "one", "type", "veth"]);
        match unshare(&link).output() {
            Ok(tried) if tried.status.success() => {
                let mut test = unshare(&ignored_test(named));
                test.env(APART, "");
                let ran = tokio::task::spawn_blocking(move || test.output()).await;
                let ran = ran.unwrap().unwrap();
                let written = [ran.stdout, ran.stderr].concat();
                let written = String::from_utf8_lossy(&written).into_owned();
                let has_run = written.contains("1 passed");
                assert!(ran.status.success() && has_run, "{written}");
                return Ok(written);
            }
            Ok(tried) => why = String::from_utf8_lossy(&tried.stderr).trim().to_owned(),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Err(why)
}

/// Whether this process is in a network of its own. Makes its loopback usable, where it is.
pub fn is_apart() -> bool {
    let is_apart = env::var_os(APART).is_some();
    if is_apart {
        ip(&["link", "set", "lo", "up"]);
    }
    is_apart
}

/// A network that is linked to this process's, until it is dropped.
pub struct Network {
    /// What keeps it there.
    program: Program,
}

impl Network {
    pub async fn start() -> Self {
        let mut command = Command::new("unshare");
        let up = "ip link set lo up && echo up && exec sleep infinity";
        let mut program = Program::start(command.args(["--net", "sh", "-c", up]));
        let is_up = program.until(|program| program.log() == "up\n").await;
        assert!(is_up, "{}", program.log());
        Self { program }
    }

    /// The command that runs `program` in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let id = self.program.id().to_string();
        command.args(["--net", "--target", &id]).arg(program);
        command
    }

    /// Links it to this process's network by a link `named` so, with an address at each end.
    pub fn link(&self, named: &'static str, here: Ipv4Addr, there: Ipv4Addr) -> Link {
        let id = self.program.id().to_string();
        ip(&[
            "link", "add", named, "type", "veth", "peer", "name", named, "netns", &id,
        ]);
        let [here, there] = [here, there].map(|address| format!("{address}/30"));
        ip(&["address", "add", &here, "dev", named]);
        ip(&["link", "set", named, "up"]);
        for arguments in [
            ["address", "add", &there, "dev", named].as_slice(),
            &["link", "set", named, "up"],
        ] {
            run(self.command("ip").args(arguments));
        }
        Link(named)
    }
}

/// A link between this process's network and another.
pub struct Link(&'static str);

impl Link {
    /// From now on, what is sent over it vanishes, and nobody is told.
    pub fn cut(&self) {
        ip(&["link", "set", self.0, "down"]);
    }

    pub fn mend(&self) {
        ip(&["link", "set", self.0, "up"]);
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

fn run(command: &mut Command) {
    let ran = command.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{command:?}: {said}");
}

/// Is set in the environment of a process in a network of its own.
const APART: &str = "NETWORK_APART";
