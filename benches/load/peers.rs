//! The proxies that are compared, each a process of its own with its configuration from this folder.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

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
        let started = Instant::now();
        let backend = *backends.first().ok_or("no backend")?;
        let setup = Setup {
            plain: unused_address()?,
            tls: unused_address()?,
            backend,
            backends,
            threads: if self == Self::TwoThreads { 2 } else { 1 },
            folder,
        };
        let Some(mut command) = self.command(&setup)? else {
            return Ok(Running {
                peer: self,
                plain: backend,
                tls: backend,
                started,
                program: None,
            });
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
            plain: setup.plain,
            tls: setup.tls,
            started,
            program: Some(Program { child, log }),
        })
    }

    /// What starts it, its configuration written. `None`: there is nothing to start.
    fn command(self, setup: &Setup) -> Outcome<Option<Command>> {
        let folder = setup.folder;
        let mut command;
        match self {
            Self::Direct => return Ok(None),
            Self::PingoraMcp | Self::TwoThreads | Self::HundredBackends => {
                let path = setup.write("pingora-mcp.yaml", include_str!("pingora-mcp.yaml"))?;
                command = Command::new(PINGORA_MCP);
                command.arg("-c").arg(path).env_remove("RUST_LOG");
            }
            Self::BarePingora => {
                command = Command::new(bare_proxy());
                command.args([setup.plain, setup.tls].map(|address| address.to_string()));
                command.arg(folder.certificate()).arg(folder.key());
                command.arg(setup.backend.to_string());
            }
            Self::Nginx => {
                let path = setup.write("nginx.conf", include_str!("nginx.conf"))?;
                command = Command::new("nginx");
                command.arg("-p").arg(&folder.path).arg("-c").arg(path);
                command.args(["-e", "stderr"]);
            }
            Self::HaProxy => {
                let path = setup.write("haproxy.cfg", include_str!("haproxy.cfg"))?;
                command = Command::new("haproxy");
                command.arg("-db").arg("-f").arg(path);
            }
            Self::Envoy => {
                let path = setup.write("envoy.yaml", include_str!("envoy.yaml"))?;
                command = Command::new("envoy");
                command.args(["--concurrency", "1", "--disable-hot-restart"]);
                command.args(["--log-level", "error"]).arg("-c").arg(path);
            }
        }
        Ok(Some(command))
    }
}

/// A proxy that runs, until this is dropped.
pub(crate) struct Running {
    pub(crate) peer: Peer,
    /// Where it listens without TLS, and with it.
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) started: Instant,
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
    /// At once: asked to end, some would wait for their streams. A worker does not end with its master.
    fn drop(&mut self) {
        if let Ok(processes) = Processes::of(self.child.id()) {
            processes.kill();
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
struct Setup<'a> {
    plain: SocketAddr,
    tls: SocketAddr,
    /// The first of the backends, for those that have no other.
    backend: SocketAddr,
    backends: &'a [SocketAddr],
    threads: usize,
    folder: &'a Folder,
}

impl Setup<'_> {
    /// Writes `text`, filled in, into the file `name`.
    fn write(&self, name: &str, text: &str) -> Outcome<PathBuf> {
        let Self { plain, tls, .. } = self;
        let (backend, folder) = (self.backend, self.folder);
        let entry = |(number, address): (usize, &SocketAddr)| {
            format!("{{ name: b{number}, url: \"http://{address}/mcp\" }}")
        };
        let backends: Vec<_> = self.backends.iter().enumerate().map(entry).collect();
        let mut text = text.to_owned();
        for (key, value) in [
            ("${PLAIN}", plain.to_string()),
            ("${PLAIN_PORT}", plain.port().to_string()),
            ("${TLS}", tls.to_string()),
            ("${TLS_PORT}", tls.port().to_string()),
            ("${HOST}", plain.ip().to_string()),
            ("${BACKEND}", backend.to_string()),
            ("${BACKEND_PORT}", backend.port().to_string()),
            ("${BACKENDS}", backends.join(", ")),
            ("${THREADS}", self.threads.to_string()),
            ("${FOLDER}", folder.path.display().to_string()),
            ("${CERTIFICATE}", folder.certificate().display().to_string()),
            ("${KEY}", folder.key().display().to_string()),
        ] {
            text = text.replace(key, &value);
        }
        let path = folder.path.join(name);
        fs::write(&path, text)?;
        Ok(path)
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
