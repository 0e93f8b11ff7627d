//! How the process starts: who reaches it is served, and what keeps it from its start is told.

mod support;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use support::process::{Program, binary, scratch_file};
use support::tls::{Authority, Files};
use support::{Backend, route, until, unused_address, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// With so many listeners that a moment in which one is closed again would be met.
#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "127.0.1.1 is no address there")]
async fn who_connects_first_is_served() {
    let backend = Backend::with_session("id").await;
    for _ in 0..3 {
        let first = unused_address();
        let others =
            (0..800).map(|number| [127, 0, 1 + (number / 200) as u8, (number % 200) as u8]);
        let others = others.map(|ip| SocketAddr::from((ip, first.port())));
        let addresses: Vec<_> = [first].into_iter().chain(others).collect();
        let (_proxy, file) = start(&addresses, &route(&[backend.address]));
        let mut stream = within("a connection", connected(first)).await;
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = within("an answer", stream.read_to_string(&mut answer)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?} {read:?}");
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn an_address_in_use_is_told_and_keeps_it_from_its_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let admin = format!("  admin: {{ address: {address} }}\n");
    for (listener, more) in [(address, ""), (unused_address(), &*admin)] {
        let (mut proxy, file) = start(&[listener], &(route(&[unused_address()]) + more));
        assert_eq!(proxy.ended().await, Some(1));
        let log = proxy.log();
        assert!(
            log.contains(&format!("cannot listen on {address}: ")),
            "{log}"
        );
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn what_a_start_cannot_use_is_told_by_it_and_by_the_check_alike() {
    let folder = Folder::new();
    folder.write("file", "");
    let path = |name: &str| folder.0.join(name).display().to_string();
    let (file, below_file, missing) = (path("file"), path("file/file"), path("missing/file"));
    let (long, access_log) = (path(&"a".repeat(100)), "mcp.access_log.path");
    let folder_itself = folder.0.display().to_string();
    for (option, key, path, told) in [
        ("-d", "pid_file", &missing, "cannot be written"),
        ("-d", "pid_file", &folder_itself, "not a plain file"),
        ("-d", "error_log", &missing, "cannot be written"),
        ("-d", "error_log", &folder_itself, "a directory"),
        ("-d", "error_log", &below_file, "cannot be written"),
        ("-d", "user", &missing, "no such user"),
        ("-d", "group", &missing, "no such group"),
        ("-u", "upgrade_sock", &missing, "cannot be written"),
        ("-u", "upgrade_sock", &folder_itself, "not a socket"),
        ("-u", "upgrade_sock", &file, "not a socket"),
        ("-u", "upgrade_sock", &long, "no socket's address"),
        ("", "upgrade_sock", &long, "no socket's address"),
        ("", access_log, &missing, "cannot be written"),
        ("", access_log, &folder_itself, "a directory"),
    ] {
        let mcp = document(&[unused_address()]) + &route(&[unused_address()]);
        let yaml = match key == access_log {
            true => format!("{mcp}  access_log: {{ format: text, path: {path} }}\n"),
            false => format!("{key}: {path}\n{mcp}"),
        };
        folder.write("edge.yaml", &yaml);
        let before = folder.names();
        for check in [None, Some("-t")] {
            let mut command = Command::new(binary());
            command.current_dir(&folder.0).args(check);
            command.args(option.split_whitespace());
            let mut program = Program::start(command.args(["-c", "edge.yaml"]));
            assert_eq!(program.ended().await, Some(64), "{key}: {}", program.log());
            let (log, told) = (program.log(), format!("edge.yaml: {key}: {told}: "));
            assert!(log.starts_with(&told), "{log}");
            assert_eq!(log.lines().count(), 1, "{log}");
        }
        assert_eq!(folder.names(), before, "{key}");
    }
}

#[tokio::test]
async fn what_only_the_background_needs_keeps_nothing_from_the_foreground() {
    let folder = Folder::new();
    let keys = "user: no-such-user\ngroup: no-such-group\npid_file: no/pid\nerror_log: no/log\n";
    let yaml = document(&[unused_address()]) + &route(&[unused_address()]);
    folder.write("edge.yaml", &(keys.to_owned() + &yaml));
    let mut command = Command::new(binary());
    command.args(["-t", "-c", "edge.yaml"]);
    let mut check = Program::start(command.current_dir(&folder.0));
    assert_eq!(check.ended().await, Some(0));
}

#[tokio::test]
async fn in_the_background_a_relative_path_stays_below_the_folder_of_the_start() {
    let folder = Folder::new();
    let authority = Authority::new();
    let Files { certificate, key } = authority.issue("server", &["localhost"]);
    std::fs::copy(certificate, folder.0.join("certificate.pem")).unwrap();
    std::fs::copy(key, folder.0.join("key.pem")).unwrap();
    let admin = unused_address();
    let keys = "error_log: error.log\nupgrade_sock: upgrade.sock\n";
    let tls = "      tls: { certificates: [{ certificate: certificate.pem, key: key.pem }] }\n";
    let more = format!(
        "  admin: {{ address: {admin} }}\n  access_log: {{ format: text, path: access.log }}\n"
    );
    let mcp = document(&[unused_address()]) + tls + &route(&[unused_address()]) + &more;
    let _daemon = Daemon::start(&folder, &(keys.to_owned() + &mcp)).await;
    let reload = reqwest::Client::new().post(format!("http://{admin}/reload"));
    let reloaded = within("an answer", reload.send()).await.unwrap();
    let said = reloaded.text().await.unwrap();
    assert_eq!(said.trim(), r#"{"restart":[]}"#);
    for name in ["pid", "error.log", "access.log"] {
        assert!(folder.names().contains(OsStr::new(name)), "{name}");
    }
}

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "there is no /proc")]
async fn in_the_background_a_user_without_a_group_has_its_own() {
    // None but root may become another.
    let user = match geteuid().is_root() {
        true => User::from_name("nobody"),
        false => User::from_uid(geteuid()),
    };
    let user = user.unwrap().expect("there is such a user");
    let folder = Folder::new();
    let yaml = document(&[unused_address()]) + &route(&[unused_address()]);
    let daemon = Daemon::start(&folder, &format!("user: {}\n{yaml}", user.name)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.0)).unwrap();
    for (key, own) in [("Uid:", user.uid.as_raw()), ("Gid:", user.gid.as_raw())] {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let mut ids = line.unwrap().split_whitespace();
        assert!(ids.all(|id| id == own.to_string()), "{status}");
    }
    let owned = std::fs::metadata(folder.0.join("pid")).unwrap();
    assert_eq!(owned.gid(), user.gid.as_raw());
}

#[tokio::test]
async fn what_listens_on_ipv6_takes_no_ipv4_and_both_may_be_listened_on() {
    if TcpListener::bind("[::1]:0").is_err() {
        let skipped = b"skipped, as there is no IPv6 here\n";
        return std::io::stderr().write_all(skipped).unwrap();
    }
    let port = unused_address().port();
    let [ipv4, ipv6] = ["0.0.0.0", "::"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
    let [by_ipv4, by_ipv6] =
        ["127.0.0.1", "::1"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
    for addresses in [[ipv6].as_slice(), &[ipv4, ipv6]] {
        let (mut proxy, file) = start(addresses, &route(&[unused_address()]));
        let is_listening = proxy.until(|proxy| proxy.log().contains("listening on"));
        assert!(is_listening.await, "{}", proxy.log());
        assert!(TcpStream::connect(by_ipv6).await.is_ok());
        let is_taken = TcpStream::connect(by_ipv4).await.is_ok();
        assert_eq!(is_taken, addresses.contains(&ipv4));
        std::fs::remove_file(file).unwrap();
    }
}

/// The first connection that `address` takes.
async fn connected(address: SocketAddr) -> TcpStream {
    loop {
        match TcpStream::connect(address).await {
            // While nobody listens, a connection's own port may be the one that it connects to.
            Ok(stream) if stream.local_addr().unwrap() != address => return stream,
            Ok(_) | Err(_) => {}
        }
    }
}

/// The built binary on `addresses`, which it may not listen on yet, and the file of its
/// configuration.
fn start(addresses: &[SocketAddr], mcp: &str) -> (Program, PathBuf) {
    let file = scratch_file("yaml");
    std::fs::write(&file, document(addresses) + mcp).unwrap();
    (
        Program::start(Command::new(binary()).arg("-c").arg(&file)),
        file,
    )
}

/// A configuration with `addresses` and no routes.
fn document(addresses: &[SocketAddr]) -> String {
    let mut yaml = String::from("mcp:\n  listeners:\n");
    for address in addresses {
        yaml += &format!("    - address: \"{address}\"\n");
    }
    yaml
}

/// A folder of a test's own, until it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = scratch_file("start");
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn names(&self) -> BTreeSet<OsString> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The built binary in the background, until it is dropped.
struct Daemon(Pid);

impl Daemon {
    /// Started in `folder` with `yaml` and a pid file there.
    async fn start(folder: &Folder, yaml: &str) -> Self {
        folder.write("edge.yaml", &format!("pid_file: pid\n{yaml}"));
        let mut command = Command::new(binary());
        command.args(["-d", "-c", "edge.yaml"]);
        let mut program = Program::start(command.current_dir(&folder.0));
        assert_eq!(program.ended().await, Some(0), "{}", program.log());
        let pid = || {
            std::fs::read_to_string(folder.0.join("pid"))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        until("a process in the pid file", || pid().is_some()).await;
        Self(Pid::from_raw(pid().unwrap()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It fails only where the process has ended by itself.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

const REQUEST: &str = "OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
