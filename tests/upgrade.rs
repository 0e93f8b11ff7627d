//! How a new process takes the place of an old one, and what goes wrong with that: whoever serves goes
//! on until another does. Real processes of the built binary.

mod support;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::process::Command;

use pingora_core::server::Fds;
use support::process::{ProxyProcess, scratch_file};
use support::{Backend, ask, initialize, open_session, route, unused_address, within};
use tokio::net::TcpStream;

#[tokio::test]
async fn listeners_come_and_go_with_an_upgrade() {
    let backend = Backend::with_session("id").await;
    let [kept, removed, added] = std::array::from_fn(|_| unused_address());
    let admin = format!("  admin: {{ address: {kept} }}\n");
    let mcp = route(&[backend.address]) + &admin;
    let mut old = ProxyProcess::listening(&listener(removed), &mcp, &[]).await;

    old.keys = listener(added);
    old.write_configuration(&mcp);
    let mut new = old.successor();
    old.signal("QUIT");
    assert_eq!(old.ended().await, Some(0));
    for address in [new.address, kept, added] {
        within("a connection", TcpStream::connect(address))
            .await
            .unwrap();
    }
    assert!(TcpStream::connect(removed).await.is_err());

    // Also what has been handed over and added is handed over.
    let newest = new.successor();
    new.signal("QUIT");
    assert_eq!(new.ended().await, Some(0));
    open_session(&newest.url("/mcp")).await;
    within("a connection", TcpStream::connect(added))
        .await
        .unwrap();
    for log in [old.log(), new.log(), newest.log()] {
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_added_is_told_and_the_old_process_goes_on() {
    let backend = Backend::with_session("id").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let admin = format!("  admin: {{ address: {taken} }}\n");
    for (keys, more) in [(listener(taken), ""), (String::new(), &*admin)] {
        let mut old = ProxyProcess::start(&route(&[backend.address])).await;
        let id = open_session(&old.url("/mcp")).await;
        old.keys = keys;
        old.write_configuration(&(route(&[backend.address]) + more));

        let mut new = old.successor();
        old.signal("QUIT");
        assert_eq!(new.ended().await, Some(1));
        let log = new.log();
        assert!(
            log.contains(&format!("cannot listen on {taken}: ")),
            "{log}"
        );
        goes_on(&mut old, &id, "the new process has ended").await;
    }
}

#[tokio::test]
#[cfg_attr(not(target_os = "linux"), ignore = "127.0.1.1 is no address there")]
async fn as_many_addresses_are_handed_over_as_can_be_and_with_more_the_old_process_goes_on() {
    let backend = Backend::with_session("id").await;
    for (others, are_too_many) in [(29, false), (30, true)] {
        let port = unused_address().port();
        let others = (1..=others).map(|number| SocketAddr::from(([127, 0, 1, number], port)));
        let keys: String = others.map(listener).collect();
        let mut old = ProxyProcess::listening(&keys, &route(&[backend.address]), &[]).await;
        let id = open_session(&old.url("/mcp")).await;

        let new = old.successor();
        old.signal("QUIT");
        if are_too_many {
            goes_on(
                &mut old,
                &id,
                "30 addresses can be handed over, and there are 31",
            )
            .await;
        } else {
            assert_eq!(old.ended().await, Some(0));
            open_session(&new.url("/mcp")).await;
        }
    }
}

#[tokio::test]
async fn a_new_process_that_dies_in_the_handover_leaves_the_service_to_the_old_one() {
    let backend = Backend::with_session("id").await;
    let mut old = ProxyProcess::start(&route(&[backend.address])).await;
    let id = open_session(&old.url("/mcp")).await;
    let mut new = old.successor();
    old.signal("QUIT");
    assert!(new.until(|log| log.contains("listening on")).await);
    new.kill().await;
    goes_on(&mut old, &id, "the new process has ended").await;

    // And it is still there to be upgraded.
    let new = old.successor();
    old.signal("QUIT");
    assert_eq!(old.ended().await, Some(0));
    open_session(&new.url("/mcp")).await;
}

#[tokio::test]
async fn a_new_process_that_never_serves_leaves_the_service_to_the_old_one() {
    let backend = Backend::with_session("id").await;
    let mut old = ProxyProcess::start(&route(&[backend.address])).await;
    let id = open_session(&old.url("/mcp")).await;
    let upgrade_sock = old.upgrade_sock();
    let taken = tokio::task::spawn_blocking(move || {
        let mut sockets = Fds::new();
        sockets
            .get_from_sock(upgrade_sock.as_str())
            .map(|()| sockets)
    });
    old.signal("QUIT");
    let sockets = within("the sockets", taken).await.unwrap().unwrap();
    assert!(sockets.get(&old.address.to_string()).is_some());
    goes_on(&mut old, &id, "the new process does not serve").await;
}

/// One that sends its sockets and no more, and that leaves without a word from the new one.
#[tokio::test]
async fn an_old_process_that_asks_for_nothing_is_replaced() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    proxy.kill().await;
    let listener = support::process::listen_again(&proxy.address.to_string());
    listener.set_nonblocking(true).unwrap();
    let mut sockets = Fds::new();
    sockets.add(proxy.address.to_string(), listener.into_raw_fd());

    let new = proxy.successor();
    let upgrade_sock = proxy.upgrade_sock();
    let sent = tokio::task::spawn_blocking(move || sockets.send_to_sock(upgrade_sock.as_str()));
    within("the sockets' way", sent).await.unwrap().unwrap();
    open_session(&new.url("/mcp")).await;
}

#[tokio::test]
async fn a_new_process_in_the_background_takes_over() {
    let backend = Backend::with_session("id").await;
    let background = Background(scratch_file("pid"));
    let pid_file = format!("pid_file: {}\n", background.0.display());
    let mut old = ProxyProcess::start(&(route(&[backend.address]) + &pid_file)).await;
    let mut new = old.successor_with(&["-d"]);
    old.signal("QUIT");
    assert_eq!(new.ended().await, Some(0));
    assert_eq!(old.ended().await, Some(0), "{}", new.log());
    open_session(&old.url("/mcp")).await;
}

#[tokio::test]
async fn a_new_process_that_does_not_get_to_the_background_leaves_the_service_to_the_old_one() {
    let backend = Backend::with_session("id").await;
    let background = Background(scratch_file("pid"));
    let pid_file = format!("pid_file: {}\n", background.0.display());
    let mcp = route(&[backend.address]) + &pid_file;
    let mut old = ProxyProcess::start(&mcp).await;
    let id = open_session(&old.url("/mcp")).await;
    old.write_configuration(&(mcp + "working_directory: /no/such/folder\n"));
    let mut new = old.successor_with(&["-d"]);
    old.signal("QUIT");
    new.ended().await;
    goes_on(&mut old, &id, "").await;
}

#[tokio::test]
async fn a_new_process_that_finds_no_old_one_says_what_to_do() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    let mut new = proxy.successor();
    assert_eq!(new.ended().await, Some(1));
    let log = new.log();
    assert!(
        log.contains("no process gave its listening sockets"),
        "{log}"
    );
    assert!(log.contains("SIGQUIT"), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    proxy.kill().await;
}

/// The start is held up where the configuration is read.
#[tokio::test]
async fn signals_that_come_before_the_process_listens_are_heard_once_it_does() {
    let backend = Backend::with_session("id").await;
    let mut proxy = ProxyProcess::start(&route(&[backend.address])).await;
    proxy.kill().await;
    let file = proxy.configuration().to_owned();
    let yaml = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&file)
            .status()
            .unwrap()
            .success()
    );
    proxy.begin_again();
    // Returns once it is opened for reading.
    let path = file.clone();
    let opened = tokio::task::spawn_blocking(move || fs::File::options().write(true).open(path));
    let pipe = within("its configuration's opening", opened)
        .await
        .unwrap()
        .unwrap();
    proxy.signal("HUP");
    proxy.signal("QUIT");
    fs::remove_file(&file).unwrap();
    fs::write(&file, &yaml).unwrap();
    std::io::Write::write_all(&mut &pipe, yaml.as_bytes()).unwrap();
    drop(pipe);
    let told = |log: String| log.contains("configuration reloaded") && log.contains("goes on");
    assert!(proxy.until(told).await, "{}", proxy.log());
    open_session(&proxy.url("/mcp")).await;
}

/// Waits until `old` says that it goes on, and why, and has it serve its session `id`, and new ones.
async fn goes_on(old: &mut ProxyProcess, id: &str, why: &str) {
    let is_told = |line: &str| line.contains("goes on") && line.contains(why);
    assert!(old.until(|log| log.lines().any(is_told)).await);
    assert_eq!(ask(&old.url("/mcp"), id).await.status(), 200);
    assert_eq!(
        initialize(&old.url("/mcp")).send().await.unwrap().status(),
        200
    );
}

/// The lines of one more listener.
fn listener(address: SocketAddr) -> String {
    format!("    - address: {address}\n")
}

/// A process in the background that names itself in a file. Ends with this.
struct Background(PathBuf);

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(&self.0) {
            let _ = Command::new("kill")
                .args(["-s", "KILL", pid.trim()])
                .status();
            let _ = fs::remove_file(&self.0);
        }
    }
}
