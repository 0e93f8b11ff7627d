//! The log on standard error.
//!
//! Where requests are served, nobody waits for who reads it: a thread of its own writes what waits in
//! a queue, and says how much was lost.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::SystemTime;

use anstream::AutoStream;
use env_logger::{Builder, Env, Logger, Target};
use log::{Level, Log, Metadata, Record};
use tokio::runtime::Handle;

use crate::lines::{Appended, Queue};

/// Starts the log. `RUST_LOG` sets its levels, for this proxy's own modules at will. What the client
/// of the session store has to say, this proxy says in one line.
///
/// # Panics
/// Another log was started before.
pub fn start() -> LastLines {
    let lines = Lines::default();
    let logger = Builder::new()
        .write_style(AutoStream::choice(&io::stderr()).into())
        .parse_env(Env::default().default_filter_or("warn,redis=off,pingora_mcp=info"))
        .target(Target::Pipe(Box::new(lines.clone())))
        .build();
    log::set_max_level(logger.filter());
    let log = Discreet {
        logger,
        lines: lines.clone(),
    };
    log::set_boxed_logger(Box::new(log)).expect("no log was started before");
    let of_panics = lines.clone();
    panic::set_hook(Box::new(move |panic| tell(panic, of_panics.clone())));
    LastLines(lines)
}

/// Has the last lines of the log written when it is dropped, at the end of the process, if that takes
/// no longer than a second.
#[must_use]
pub struct LastLines(Lines);

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.wait();
    }
}

/// Where lines go: to standard error at once, and through a queue from the first on that is written in
/// a runtime. Before, nobody is served, and a thread would be lost to a process that goes to the
/// background, or its lines to one that ends.
#[derive(Clone, Default)]
struct Lines {
    /// `None` where there is no thread to write.
    queue: Arc<OnceLock<Option<Queue<Vec<u8>>>>>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    fn start(&self) -> Option<Queue<Vec<u8>>> {
        let dropped = Arc::clone(&self.dropped);
        let stderr = io::stderr().as_fd().try_clone_to_owned().ok()?;
        let mut stderr = Appended::new(stderr.into());
        let mut written = Vec::new();
        let write = move |lines: &mut dyn Iterator<Item = Vec<u8>>| {
            written.clear();
            written.extend(lines.flatten());
            let mut lost = match stderr.add(&written) {
                Ok(()) => 0,
                Err(lost) => lost.lines,
            };
            lost += dropped.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let now = humantime::format_rfc3339_seconds(SystemTime::now());
                let target = module_path!();
                let told = format!("[{now} WARN  {target}] {lost} lines of this log are lost\n");
                if stderr.add(told.as_bytes()).is_err() {
                    dropped.fetch_add(lost, Ordering::Relaxed);
                }
            }
        };
        Queue::start("log", write).ok()
    }

    /// Returns when all lines are written, or cannot be for a while.
    fn wait(&self) {
        if let Some(Some(queue)) = self.queue.get() {
            queue.flush();
        }
    }
}

impl Write for Lines {
    /// Takes whole lines.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let is_in_runtime = self.queue.get().is_some() || Handle::try_current().is_ok();
        let mut is_first = false;
        let queue = is_in_runtime.then(|| {
            self.queue.get_or_init(|| {
                is_first = true;
                self.start()
            })
        });
        match queue {
            Some(Some(queue)) if queue.push(lines.to_vec()) => {
                // Who waited in vain for a process in the background says that, and ends.
                if is_first {
                    queue.flush();
                }
            }
            Some(Some(_)) => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
            Some(None) | None => io::stderr().write_all(lines)?,
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the standard library's own hook says, which would wait for who reads.
fn tell(panic: &PanicHookInfo<'_>, mut lines: Lines) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let mut told = format!("thread '{name}' {panic}\n");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        told += &format!("{backtrace}\n");
    }
    let _ = lines.write_all(told.as_bytes());
}

/// Keeps Pingora at `warn`, whatever is asked for: below, it prints whole requests and answers,
/// with the ids and tokens in them.
struct Discreet {
    logger: Logger,
    lines: Lines,
}

impl Log for Discreet {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !(is_pingora(metadata) && metadata.level() > Level::Warn) && self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if quotes(record) {
            let (target, line) = (record.target(), record.line().unwrap_or_default());
            return log::debug!("{target}, line {line}: not told, as it may quote what was sent");
        }
        let target = if is_of_a_client(record) {
            "pingora_mcp::connections"
        } else if is_of_the_handover(record) {
            "pingora_mcp::handover"
        } else {
            return self.logger.log(record);
        };
        let mut told = Record::builder();
        told.level(Level::Debug).target(target);
        self.logger.log(&told.args(*record.args()).build());
    }

    fn flush(&self) {
        self.lines.wait();
    }
}

fn is_pingora(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target.starts_with("pingora") && !target.starts_with("pingora_mcp")
}

/// Whether a failure is told with what a client or a backend sent: to Pingora, a header that it could
/// not parse, whole, the target of a request, a length; to rustls, the name that was asked for.
fn quotes(record: &Record<'_>) -> bool {
    let quoting = ["apps::http_app", "protocols::http::v1::common"];
    let module = record.target().strip_prefix("pingora_core::");
    module.is_some_and(|module| quoting.contains(&module)) || record.target().starts_with("rustls")
}

/// An error to Pingora: a client has left before its first request, or in the middle of a header.
/// Nobody must act, and who scans is not to fill a disk.
fn is_of_a_client(record: &Record<'_>) -> bool {
    let begins = |words| record.args().to_string().starts_with(words);
    is_pingora(record.metadata())
        && (begins("H2 handshake error") || begins("Fail to proxy: Downstream"))
}

/// Each second that a process waits for the other is an error to Pingora, or a warning. How it ends is
/// told here.
fn is_of_the_handover(record: &Record<'_>) -> bool {
    record.target() == "pingora_core::server::transfer_fd"
}
