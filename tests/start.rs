//! How the process starts: who reaches it is served, and what keeps it from its start is told.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;

use support::process::{Program, scratch_file};
use support::{Backend, route, unused_address, within};
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
    let mut yaml = String::from("mcp:\n  listeners:\n");
    for address in addresses {
        yaml += &format!("    - address: {address}\n");
    }
    let file = scratch_file("yaml");
    std::fs::write(&file, yaml + mcp).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pingora-mcp"));
    (Program::start(command.arg("-c").arg(&file)), file)
}

const REQUEST: &str = "OPTIONS /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
