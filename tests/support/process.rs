//! The built binary as a process of its own, and other programs that a test needs beside it.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::LOOPBACK;
use super::network::Network;

/// A proxy as it is shipped: the built binary with a configuration file.
pub struct ProxyProcess {
    pub address: SocketAddr,
    program: Program,
    configuration: PathBuf,
    /// Those of its listener, beside its address.
    pub keys: String,
}

impl ProxyProcess {
    /// A proxy with `mcp`, the YAML below `mcp:` but for its listeners, and the default log.
    pub async fn start(mcp: &str) -> Self {
        Self::with_environment(mcp, &[]).await
    }

    /// A proxy as [`start`](Self::start), with `environment` added to this process's.
    pub async fn with_environment(mcp: &str, environment: &[(&str, &str)]) -> Self {
        Self::listening("", mcp, environment).await
    }

    /// A proxy as [`with_environment`](Self::with_environment), its listener with `keys` beside
    /// its address.
    pub async fn listening(keys: &str, mcp: &str, environment: &[(&str, &str)]) -> Self {
        let command = || {
            let mut command = Command::new(binary());
            command.env_remove("RUST_LOG");
            command.envs(environment.iter().copied());
            command
        };
        Self::run(LOOPBACK.ip(), keys, mcp, command).await
    }

    /// A proxy as [`start`](Self::start), at `address` in a network that is not this process's.
    pub async fn inside(network: &Network, address: IpAddr, mcp: &str) -> Self {
        Self::run(address, "", mcp, || network.command(binary())).await
    }

    /// A proxy as [`start`](Self::start), that may have `most` descriptors and is given fewer.
    pub async fn with_descriptors(keys: &str, mcp: &str, most: usize) -> Self {
        let limits = format!("ulimit -n {most} && ulimit -S -n 64");
        Self::limited(keys, mcp, &limits).await
    }

    /// A proxy as [`listening`](Self::listening), with the `limits` that a shell sets.
    pub async fn limited(keys: &str, mcp: &str, limits: &str) -> Self {
        let limited = format!("{limits} && exec \"$0\" \"$@\"");
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", &limited]).arg(binary());
            command
        };
        Self::run(LOOPBACK.ip(), keys, mcp, command).await
    }

    /// Runs `command` with `-c` and the file of its configuration, to listen on a port of `ip`.
    async fn run(ip: IpAddr, keys: &str, mcp: &str, command: impl Fn() -> Command) -> Self {
        // Between this bind and the proxy's own, anybody may take the port; then another is tried.
        for _ in 0..5 {
            let address = SocketAddr::new(ip, super::unused_address().port());
            let configuration = scratch_file("yaml");
            std::fs::write(&configuration, document(address, keys, mcp)).unwrap();

            let mut program = Program::start(command().arg("-c").arg(&configuration));
            let is_ready = program
                .until(|program| program.log().contains("listening on"))
                .await;
            if is_ready {
                return Self {
                    address,
                    program,
                    configuration,
                    keys: keys.to_owned(),
                };
            }
            std::fs::remove_file(configuration).unwrap();
            let log = program.log();
            assert!(log.contains("cannot listen on"), "it did not start: {log}");
        }
        panic!("each port was taken before the proxy could bind it");
    }

    /// The URL of `path` at this proxy.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Puts `mcp` in place of what stands below `mcp:` in its file, has it read again, and waits
    /// until the log says so.
    pub async fn reload(&mut self, mcp: &str) {
        let reloads = |log: String| log.matches("configuration reloaded").count();
        let before = reloads(self.log());
        self.replace_configuration(mcp);
        assert!(self.until(|log| reloads(log) > before).await);
    }

    /// Puts `mcp` in place of what stands below `mcp:` in its file, and sends SIGHUP.
    pub fn replace_configuration(&self, mcp: &str) {
        self.write_configuration(mcp);
        self.program.signal("HUP");
    }

    /// Puts `mcp` in place of what stands below `mcp:` in its file.
    pub fn write_configuration(&self, mcp: &str) {
        std::fs::write(&self.configuration, document(self.address, &self.keys, mcp)).unwrap();
    }

    /// Sends it a signal, by the signal's name without `SIG`.
    pub fn signal(&self, name: &str) {
        self.program.signal(name);
    }

    /// Waits for its end and returns its exit code: `None` where a signal ended it.
    pub async fn ended(&mut self) -> Option<i32> {
        self.program.ended().await
    }

    /// Starts a proxy that takes the listening sockets over from this one, which then is to be
    /// sent SIGQUIT.
    pub fn successor(&self) -> Self {
        self.successor_with(&[])
    }

    /// A proxy as [`successor`](Self::successor), with `arguments` more.
    pub fn successor_with(&self, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.arg("-u").args(arguments);
        command.arg("-c").arg(&self.configuration);
        Self {
            address: self.address,
            program: Program::start(command.env_remove("RUST_LOG")),
            configuration: self.configuration.clone(),
            keys: self.keys.clone(),
        }
    }

    /// Kills it, so that nothing of it is left but its configuration.
    pub async fn kill(&mut self) {
        self.signal("KILL");
        assert_eq!(self.ended().await, None);
    }

    /// Starts it anew after its end, on the same address and with the same configuration.
    pub async fn start_again(&mut self) {
        // A connection of anybody's may have the port for a moment.
        for _ in 0..5 {
            self.begin_again();
            if self.until(|log| log.contains("listening on")).await {
                return;
            }
            assert!(self.log().contains("cannot listen on"), "{}", self.log());
        }
        panic!("its port stays taken");
    }

    /// Starts it anew after its end, and waits for nothing.
    pub fn begin_again(&mut self) {
        let mut command = Command::new(binary());
        command.arg("-c").arg(&self.configuration);
        self.program = Program::start(command.env_remove("RUST_LOG"));
    }

    /// The file of its configuration.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Where it hands its listening sockets over.
    pub fn upgrade_sock(&self) -> String {
        upgrade_sock(self.address)
    }

    /// Waits until its log is as `is_so` says, and says no if it ends before that.
    pub async fn until(&mut self, is_so: impl Fn(String) -> bool) -> bool {
        self.program.until(|program| is_so(program.log())).await
    }

    /// All that it has written to standard output and standard error.
    pub fn log(&self) -> String {
        self.program.log()
    }

    /// The memory that it has in RAM now, in KiB.
    pub fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that [`resident`](Self::resident) has ever been.
    pub fn peak_resident(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.program.child.id());
        std::fs::read_dir(path).unwrap().count()
    }

    fn status(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.program.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse().unwrap()
    }
}

impl Drop for ProxyProcess {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.configuration);
    }
}

/// A program that runs until it is dropped, its output in a file.
pub struct Program {
    child: Child,
    output: PathBuf,
}

impl Program {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        let path = scratch_file("log");
        let output = std::fs::File::create(&path).unwrap();
        let both = output.try_clone().unwrap();
        Self::spawn(command.stdout(both).stderr(output), path)
    }

    /// Starts `command`, and has it write its standard error to `stderr` instead.
    pub fn start_with_stderr(command: &mut Command, stderr: impl Into<Stdio>) -> Self {
        let path = scratch_file("log");
        let output = std::fs::File::create(&path).unwrap();
        Self::spawn(command.stdout(output).stderr(stderr), path)
    }

    fn spawn(command: &mut Command, output: PathBuf) -> Self {
        Self {
            child: command.stdin(Stdio::null()).spawn().unwrap(),
            output,
        }
    }

    /// Starts `command`, a server, and waits until it has written `listening on http://<address>/mcp`.
    pub async fn serving(command: &mut Command) -> (SocketAddr, Self) {
        let mut program = Self::start(command);
        let listens = program.until(|server| server.address().is_some()).await;
        let log = program.log();
        assert!(listens, "{command:?} did not start: {log}");
        (program.address().unwrap(), program)
    }

    /// All that it has written to standard output and standard error.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap()).into_owned()
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, by the signal's name without `SIG`.
    pub fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        let kill = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// Waits for its end and returns its exit code: `None` where a signal ended it.
    pub async fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it goes on: {}", self.log());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        let log = self.log();
        let (_, line) = log.split_once("listening on http://")?;
        let (address, _) = line.split_once("/mcp\n")?;
        Some(address.parse().unwrap())
    }

    /// Waits until `is_ready` says so, and says no if the program ends before that.
    pub async fn until(&mut self, is_ready: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let ready = is_ready(self);
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if ready {
                return true;
            }
            assert!(Instant::now() < deadline, "not ready: {}", self.log());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only where the program has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.output);
    }
}

/// The command that runs one test of this program, which is ignored.
pub fn ignored_test(named: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", "--nocapture", named]);
    command
}

/// Listens where a process did that was killed: a connection of anybody's may have its port for a moment.
pub fn listen_again(address: &str) -> TcpListener {
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

/// The built binary, or the one that `PINGORA_MCP` names: that of a release, whose memory and pace
/// are others.
pub fn binary() -> OsString {
    let built = env!("CARGO_BIN_EXE_pingora-mcp");
    std::env::var_os("PINGORA_MCP").unwrap_or_else(|| built.into())
}

fn document(address: SocketAddr, keys: &str, mcp: &str) -> String {
    let upgrade_sock = upgrade_sock(address);
    format!(
        "version: 1\nupgrade_sock: {upgrade_sock}\nmcp:\n  listeners:\n    - address: {address}\n{keys}{mcp}"
    )
}

fn upgrade_sock(address: SocketAddr) -> String {
    let folder = env!("CARGO_TARGET_TMPDIR");
    format!("{folder}/{}.sock", address.port())
}

/// A path that no other test uses.
pub fn scratch_file(extension: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}-{number}.{extension}", std::process::id());
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

const START_LIMIT: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(5);
