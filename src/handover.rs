//! How listening sockets go from one process to the next, and what the one that gives them learns of
//! the one that takes them.
//!
//! Pingora sends descriptors under names. Among the listening sockets are sent the ends of two pipes,
//! which the system closes when the new process ends, however it ends. The new one closes the first
//! when it serves ([`begin`]).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use pingora_core::server::{Fds, ListenFds};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A process that has the listening sockets of this one.
pub(crate) struct Successor {
    /// Closed at the other end when it serves, or has ended.
    begins: Receiver,
    /// Closed at the other end when it has ended.
    lives: Receiver,
}

impl Successor {
    /// Gives `sockets` to the process that waits at `path`, or comes there within some seconds.
    pub(crate) async fn with(sockets: &ListenFds, path: String) -> Result<Self, String> {
        let (begins, begins_there) = pipe()?;
        let (lives, lives_there) = pipe()?;
        let mut sent = Fds::new();
        let (names, descriptors) = sockets.lock().serialize();
        sent.deserialize(names, descriptors);
        for (name, pipe) in [(BEGINS, &begins_there), (LIVES, &lives_there)] {
            sent.add(name.to_owned(), pipe.as_raw_fd());
        }
        let count = sent.serialize().0.len();
        if count > MAX_DESCRIPTORS {
            let (most, addresses) = (MAX_DESCRIPTORS - 2, count - 2);
            return Err(format!(
                "{most} addresses can be handed over, and there are {addresses}"
            ));
        }
        log::info!("waiting for a new process to take the listening sockets over");
        let (told, outcome) = oneshot::channel();
        // Pingora sleeps until the new process is there. A thread of its own, as the end of a
        // runtime would wait for one of the runtime's.
        let send = move || {
            // The pipes' other ends are open here until they are sent.
            let _until_sent = (begins_there, lives_there);
            told.send(sent.send_to_sock(path.as_str()))
        };
        let thread = thread::Builder::new().spawn(send);
        thread.map_err(|error| error.to_string())?;
        let sent = outcome.await.map_err(|error| error.to_string())?;
        sent.map_err(|error| format!("no new process took the sockets over: {error}"))?;
        Ok(Self { begins, lives })
    }

    /// Returns when it serves, and has done so for [`HANDOVER`].
    pub(crate) async fn begun(mut self) -> Result<(), &'static str> {
        if timeout(BEGINNING, closed(&mut self.begins)).await.is_err() {
            return Err("the new process does not serve");
        }
        match timeout(HANDOVER, closed(&mut self.lives)).await {
            Ok(()) => Err("the new process has ended"),
            Err(_) => Ok(()),
        }
    }
}

/// Takes the sockets over from the process that sends them to `path` within some seconds.
pub(crate) fn receive(path: &str) -> io::Result<Fds> {
    log::info!("waiting for the listening sockets of the running process: send it SIGQUIT");
    let mut sockets = Fds::new();
    sockets.get_from_sock(path)?;
    Ok(sockets)
}

/// Keeps of `sockets` those that listen on `addresses`, and closes the others.
pub(crate) fn keep(sockets: &mut Fds, addresses: &[SocketAddr]) {
    let addresses = addresses.iter().map(SocketAddr::to_string);
    let pipes = [BEGINS, LIVES].map(str::to_owned);
    sockets.close_unclaimed(&addresses.chain(pipes).collect());
}

/// Tells the process that `sockets` come from, where one does ask, that this one serves.
pub(crate) fn begin(sockets: &ListenFds) {
    let mut sockets = sockets.lock();
    let (mut names, _) = sockets.serialize();
    names.retain(|name| name != BEGINS);
    sockets.close_unclaimed(&names.into_iter().collect());
}

fn pipe() -> Result<(Receiver, OwnedFd), String> {
    let pipe = io::pipe().and_then(|(here, there)| {
        let here = Receiver::from_owned_fd(here.into())?;
        Ok((here, there.into()))
    });
    pipe.map_err(|error| error.to_string())
}

/// Returns when the other end is closed, as nothing is ever written.
async fn closed(pipe: &mut Receiver) {
    let _ = pipe.read(&mut [0]).await;
}

/// How long a new process has until it serves, which takes it milliseconds on a machine that is not
/// overloaded.
const BEGINNING: Duration = Duration::from_secs(15);

/// How long both take connections. As long as Pingora's own.
const HANDOVER: Duration = Duration::from_secs(5);

/// As many as Pingora receives, the pipes included; it sends more all the same. Their names are then
/// far below what it sends of these, 2048 bytes.
const MAX_DESCRIPTORS: usize = 32;

/// The name of the pipe that is closed by who serves. No name of an address.
const BEGINS: &str = "pingora-mcp/begins";

/// The name of the pipe that is closed by nobody but the system.
const LIVES: &str = "pingora-mcp/lives";
