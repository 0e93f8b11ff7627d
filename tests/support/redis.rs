//! A Redis of a test's own: one server, or several that are a cluster or have a Sentinel.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use redis::FromRedisValue;

use super::process::{Program, scratch_file};
use super::{until_asked, unused_address};

/// A server that runs until it is dropped.
pub struct Redis {
    pub address: SocketAddr,
    /// Its own folder, with its configuration and what it saves.
    pub folder: PathBuf,
    password: String,
    program: Program,
}

impl Redis {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with `lines` in its configuration, `PORT` in them being its port.
    pub async fn with(lines: &[&str]) -> Self {
        Self::run(&[], lines, "Ready to accept connections").await
    }

    /// A Sentinel.
    pub async fn sentinel(lines: &[&str]) -> Self {
        Self::run(&["--sentinel"], lines, "Sentinel ID is").await
    }

    async fn run(arguments: &[&str], lines: &[&str], ready: &str) -> Self {
        let folder = scratch_file("redis");
        std::fs::create_dir(&folder).unwrap();
        let password = lines
            .iter()
            .find_map(|line| line.strip_prefix("requirepass "));
        // Between this bind and the server's own, anybody may take the port; then another is tried.
        for _ in 0..5 {
            let address = unused_address();
            let lines = configuration(address, &folder, lines);
            std::fs::write(folder.join(FILE), lines).unwrap();
            if let Some(program) = program(&folder, arguments, ready).await {
                return Self {
                    address,
                    folder,
                    password: password.unwrap_or_default().to_owned(),
                    program,
                };
            }
        }
        panic!("each port was taken before the server could bind it");
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Kills it, as a crash would.
    pub async fn kill(&mut self) {
        self.program.signal("KILL");
        self.program.ended().await;
    }

    /// Starts it again where it was.
    pub async fn restart(&mut self) {
        let again = program(&self.folder, &[], "Ready to accept connections").await;
        self.program = again.expect("its port is free");
    }

    /// Stops it without closing a connection, until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.program.signal("STOP");
    }

    pub fn thaw(&self) {
        self.program.signal("CONT");
    }

    /// Runs a command, with spaces between its words.
    pub async fn ask<T: FromRedisValue>(&self, command: &str) -> T {
        self.ask_with(&self.password, command).await
    }

    /// The same, with another password than the one that it was started with.
    pub async fn ask_with<T: FromRedisValue>(&self, password: &str, command: &str) -> T {
        let url = format!("redis://:{password}@{}", self.address);
        let client = redis::Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut connection).await.unwrap()
    }

    /// How many scripts it has run.
    pub async fn scripts(&self) -> u64 {
        let stats: String = self.ask("INFO commandstats").await;
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A cluster of three masters.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A cluster, each of whose nodes has `lines` in its configuration.
    pub async fn with(lines: &[&str]) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let bus = format!("cluster-port {}", unused_address().port());
            let lines = [&["cluster-enabled yes", &bus], lines].concat();
            nodes.push(Redis::with(&lines).await);
        }
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create", "--cluster-yes"]);
        create.args(nodes.iter().map(|node| node.address.to_string()));
        let mut create = Program::start(&mut create);
        assert_eq!(create.ended().await, Some(0), "{}", create.log());
        for node in &nodes {
            until_asked("a cluster", async || {
                node.ask::<String>("CLUSTER INFO")
                    .await
                    .contains("cluster_state:ok")
            })
            .await;
        }
        Self { nodes }
    }
}

async fn program(folder: &Path, arguments: &[&str], ready: &str) -> Option<Program> {
    let mut command = Command::new("redis-server");
    let mut program = Program::start(command.arg(folder.join(FILE)).args(arguments));
    let is_ready = program.until(|program| program.log().contains(ready));
    is_ready.await.then_some(program)
}

fn configuration(address: SocketAddr, folder: &Path, lines: &[&str]) -> String {
    let port = address.port().to_string();
    let mut all = format!("bind 127.0.0.1\ndir {}\n", folder.display());
    if !lines.contains(&"tls-port PORT") {
        all += &format!("port {port}\n");
    }
    for line in lines {
        all += &format!("{}\n", line.replace("PORT", &port));
    }
    all
}

/// What sessions in it may be sealed with.
pub const KEY: &str = "MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4f";

const FILE: &str = "redis.conf";
