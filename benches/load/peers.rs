//! The proxies that are compared, each a process of its own with its configuration from this folder.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::CertifiedKey;

use super::Outcome;
use super::usage::Processes;

/// What stands between the clients and the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Nothing.
    Direct,
    /// pingora-mcp with one thread and one backend.
    PingoraMcp,
    /// The same with two threads.
    TwoThreads,
    /// The same with one thread and a hundred backends.
    HundredBackends,
    BarePingora,
    Nginx,
    HaProxy,
    Envoy,
}

impl Peer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PingoraMcp => "pingora-mcp",
            Self::TwoThreads => "pingora-mcp, 2 threads",
            Self::HundredBackends => "pingora-mcp, 100 backends",
            Self::BarePingora => "bare Pingora",
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Envoy => "Envoy",
        }
    }

    /// What the program says of itself, or why it cannot be measured.
    pub(crate) fn version(self) -> Result<String, String> {
        let (program, argument, get) = match self {
            Self::Direct => return Ok("no proxy".to_owned()),
            Self::BarePingora => {
                return match bare_proxy().exists() {
                    true => Ok("Pingora 0.9.1, of this build".to_owned()),
                    false => Err("cargo build --release --example bare_proxy makes it".to_owned()),
                };
            }
            Self::PingoraMcp | Self::TwoThreads | Self::HundredBackends => {
                (PINGORA_MCP, "--version", "")
            }
            Self::Nginx => ("nginx", "-v", GET),
            Self::HaProxy => ("haproxy", "-v", GET),
            Self::Envoy => ("envoy", "--version", GET),
        };
        match Command::new(program).arg(argument).output() {
            Ok(output) => {
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said).into_owned();
                let line = said.lines().find(|line| !line.trim().is_empty());
                Ok(line.unwrap_or_default().trim().to_owned())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(format!("{program} is not there: {get}"))
            }
            Err(error) => Err(format!("{program} does not run: {error}")),
        }
    }

    /// How many backends it has.
    pub(crate) fn backends(self) -> usize {
        match self {
            Self::HundredBackends => 100,
            Self::Direct
            | Self::PingoraMcp
            | Self::TwoThreads
            | Self::BarePingora
            | Self::Nginx
            | Self::HaProxy
            | Self::Envoy => 1,
        }
    }

    /// Starts it in front of `backends`. It may not listen yet when this returns.
    pub(crate) fn start(self, backends: &[SocketAddr], folder: &Folder) -> Outcome<Running> {
        let backend = *backends.first().ok_or("no backend")?;
        if self == Self::Direct {
            return Ok(Running {
                peer: self,
                plain: backend,
                tls: backend,
                program: None,
            });
        }
        let (plain, tls) = (unused_address()?, unused_address()?);
        let text = |file: &str| {
            Filled {
                plain,
                tls,
                backends,
                threads: if self == Self::TwoThreads { 2 } else { 1 },
                folder,
            }
            .fill(file)
        };
        let configuration = |name: &str, content: &str| {
            let path = folder.path.join(name);
            fs::write(&path, text(content)).map(|()| path)
        };
        let mut command = match self {
            Self::Direct => unreachable!("it has returned"),
            Self::PingoraMcp | Self::TwoThreads | Self::HundredBackends => {
                let path = configuration("pingora-mcp.yaml", include_str!("pingora-mcp.yaml"))?;
                let mut command = Command::new(PINGORA_MCP);
                command.arg("-c").arg(path).env_remove("RUST_LOG");
                command
            }
            Self::BarePingora => {
                let mut command = Command::new(bare_proxy());
                command.args([plain.to_string(), tls.to_string()]);
                command.arg(folder.certificate()).arg(folder.key());
                command.arg(backend.to_string());
                command
            }
            Self::Nginx => {
                let path = configuration("nginx.conf", include_str!("nginx.conf"))?;
                let mut command = Command::new("nginx");
                command.arg("-p").arg(&folder.path).arg("-c").arg(path);
                command.args(["-e", "stderr"]);
                command
            }
            Self::HaProxy => {
                let path = configuration("haproxy.cfg", include_str!("haproxy.cfg"))?;
                let mut command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(path);
                command
            }
            Self::Envoy => {
                let path = configuration("envoy.yaml", include_str!("envoy.yaml"))?;
                let mut command = Command::new("envoy");
                command.args(["--concurrency", "1", "--disable-hot-restart"]);
                command.args(["--log-level", "error"]).arg("-c").arg(path);
                command
            }
        };
        let log = folder.path.join(format!("{}.log", self.name()));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", self.name()))?;
        Ok(Running {
            peer: self,
            plain,
            tls,
            program: Some(Program { child, log }),
        })
    }
}

/// A proxy that runs, until this is dropped.
pub(crate) struct Running {
    pub(crate) peer: Peer,
    /// Where it listens without TLS, and with it.
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    program: Option<Program>,
}

impl Running {
    /// Its processes, or none where there is no proxy.
    pub(crate) fn processes(&self) -> Outcome<Option<Processes>> {
        let program = self.program.as_ref();
        program
            .map(|program| Processes::of(program.child.id()))
            .transpose()
    }

    /// Fails where it has ended by itself, with what it said.
    pub(crate) fn is_alive(&mut self) -> Outcome<()> {
        let Some(program) = &mut self.program else {
            return Ok(());
        };
        match program.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let log = fs::read_to_string(&program.log).unwrap_or_default();
                Err(format!("{} ended with {status}: {log}", self.peer.name()).into())
            }
        }
    }
}

struct Program {
    child: Child,
    log: PathBuf,
}

impl Drop for Program {
    /// By SIGTERM, which a master process passes on to its worker, and then by SIGKILL.
    fn drop(&mut self) {
        let signal = i32::try_from(self.child.id())
            .map(|id| kill(Pid::from_raw(id), Signal::SIGTERM).is_ok());
        let end = Instant::now() + PATIENCE;
        while signal == Ok(true) && Instant::now() < end {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the configurations as they are run, the logs, and a certificate for this machine are.
pub(crate) struct Folder {
    path: PathBuf,
    pub(crate) authority: rustls::pki_types::CertificateDer<'static>,
}

impl Folder {
    pub(crate) fn create(path: &Path) -> Outcome<Self> {
        fs::create_dir_all(path)?;
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
        let folder = Self {
            path: path.canonicalize()?,
            authority: cert.der().clone(),
        };
        fs::write(folder.certificate(), cert.pem())?;
        fs::write(folder.key(), signing_key.serialize_pem())?;
        // HAProxy wants both in one.
        let both = cert.pem() + &signing_key.serialize_pem();
        fs::write(folder.path.join("haproxy.pem"), both)?;
        Ok(folder)
    }

    fn certificate(&self) -> PathBuf {
        self.path.join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.path.join("key.pem")
    }
}

/// What stands in a configuration as `${...}`.
struct Filled<'a> {
    plain: SocketAddr,
    tls: SocketAddr,
    backends: &'a [SocketAddr],
    threads: usize,
    folder: &'a Folder,
}

impl Filled<'_> {
    fn fill(&self, text: &str) -> String {
        let of_mcp = |(number, address): (usize, &SocketAddr)| {
            format!("{{ name: b{number}, url: \"http://{address}/mcp\" }}")
        };
        let backends: Vec<_> = self.backends.iter().enumerate().map(of_mcp).collect();
        let backend = self.backends[0];
        text.replace("${PLAIN}", &self.plain.to_string())
            .replace("${TLS}", &self.tls.to_string())
            .replace("${HOST}", &self.plain.ip().to_string())
            .replace("${PLAIN_PORT}", &self.plain.port().to_string())
            .replace("${TLS_PORT}", &self.tls.port().to_string())
            .replace("${BACKEND}", &backend.to_string())
            .replace("${BACKEND_PORT}", &backend.port().to_string())
            .replace("${BACKENDS}", &backends.join(", "))
            .replace("${THREADS}", &self.threads.to_string())
            .replace("${FOLDER}", &self.folder.path.display().to_string())
            .replace(
                "${CERTIFICATE}",
                &self.folder.certificate().display().to_string(),
            )
            .replace("${KEY}", &self.folder.key().display().to_string())
    }
}

/// Between this bind and the proxy's own anybody may take the port; then the bench fails, and says so.
fn unused_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Cargo puts examples into a folder beside the binaries.
fn bare_proxy() -> PathBuf {
    Path::new(PINGORA_MCP).with_file_name("examples/bare_proxy")
}

const PINGORA_MCP: &str = env!("CARGO_BIN_EXE_pingora-mcp");

const GET: &str = "scripts/tools.sh load gets it where it can";

/// How long a proxy may take to end once it is told.
const PATIENCE: Duration = Duration::from_secs(2);
