//! Lines of a log, written by a thread of their own: who has one to write never waits for who reads.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// What waits to be written.
#[derive(Debug)]
pub(crate) struct Queue<T>(SyncSender<Entry<T>>);

#[derive(Debug)]
enum Entry<T> {
    Item(T),
    /// All before it are to be written, and that is to be said.
    Flush(SyncSender<()>),
}

impl<T: Send + 'static> Queue<T> {
    /// Starts a thread of this name that has `write` write all that has come, many at a time. Not
    /// before the process has gone to the background, if it does: that loses its threads.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        name: &str,
        write: impl FnMut(&mut dyn Iterator<Item = T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(MOST_WAITING);
        let thread = thread::Builder::new().name(name.to_owned());
        thread.spawn(move || run(&receiver, write))?;
        Ok(Self(sender))
    }

    /// Hands `item` over, and says no where too many wait: then it is lost.
    pub(crate) fn push(&self, item: T) -> bool {
        self.0.try_send(Entry::Item(item)).is_ok()
    }

    /// Returns when all that came before is written, and says no where that takes too long.
    pub(crate) fn flush(&self) -> bool {
        let (done, written) = sync_channel(1);
        let until = Instant::now() + FLUSHING;
        let mut entry = Entry::Flush(done);
        while let Err(TrySendError::Full(waiting)) = self.0.try_send(entry) {
            if Instant::now() > until {
                return false;
            }
            entry = waiting;
            thread::sleep(GATHERING);
        }
        let left = until.saturating_duration_since(Instant::now());
        written.recv_timeout(left).is_ok()
    }
}

/// Has all that comes written, until nobody can send any more.
fn run<T>(entries: &Receiver<Entry<T>>, mut write: impl FnMut(&mut dyn Iterator<Item = T>)) {
    while let Ok(first) = entries.recv() {
        // While this thread sleeps, who sends has nobody to wake.
        thread::sleep(GATHERING);
        let mut flushed = Vec::new();
        let waiting = std::iter::once(first).chain(entries.try_iter());
        let mut items = waiting.take(MOST_WAITING).filter_map(|entry| match entry {
            Entry::Item(item) => Some(item),
            Entry::Flush(done) => {
                flushed.push(done);
                None
            }
        });
        write(&mut items);
        for done in flushed {
            let _ = done.send(());
        }
    }
}

/// A file that lines are added to.
#[derive(Debug)]
pub(crate) struct Appended {
    file: File,
    /// The last line has no end.
    is_cut: bool,
}

/// Lines that a file did not take.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) lines: u64,
    pub(crate) cause: io::Error,
}

impl Appended {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            is_cut: false,
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Adds `lines`, whole ones. Where the file takes only a part of one, as on a disk that is full,
    /// the next begins a new line.
    pub(crate) fn add(&mut self, lines: &[u8]) -> Result<(), Lost> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut rest = lines;
        let mut end: &[u8] = if self.is_cut { b"\n" } else { b"" };
        let added = write(&self.file, &mut end).and_then(|()| write(&self.file, &mut rest));
        if end.is_empty() {
            let (added, _) = lines.split_at(lines.len() - rest.len());
            self.is_cut = added.last().is_some_and(|last| *last != b'\n');
        }
        added.map_err(|cause| {
            // One that lacks nothing but its end is not lost: it gets it later.
            let lost = rest.strip_prefix(b"\n").unwrap_or(rest);
            Lost {
                lines: lost.iter().filter(|byte| **byte == b'\n').count() as u64,
                cause,
            }
        })
    }
}

/// Writes `bytes`, and leaves those in it that could not be.
fn write(mut file: &File, bytes: &mut &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => *bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Lines that wait, at most. Of the access log's, 2 MiB.
const MOST_WAITING: usize = 8192;

/// How long a line waits for others, to be written with them.
const GATHERING: Duration = Duration::from_millis(50);

/// How long the end of the process waits for the last lines.
const FLUSHING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_writes_does_not_wait_for_a_reader_that_stalls() {
        let (release, stalled) = channel::<()>();
        let (written, lines) = channel();
        let queue = Queue::start("lines", move |items| {
            let _ = stalled.recv();
            items.for_each(|item| written.send(item).unwrap());
        });
        let queue = queue.unwrap();
        let taken = (0..3 * MOST_WAITING).filter(|number| queue.push(*number));
        let taken: Vec<_> = taken.collect();
        // One may be with the writer, and the others wait.
        assert!(taken.len() <= MOST_WAITING + 1, "{}", taken.len());
        assert!(!queue.flush());
        drop(release);
        let written: Vec<_> = lines.iter().take(taken.len()).collect();
        assert_eq!(written, taken);
    }

    #[test]
    fn a_flush_waits_for_all_that_came_before() {
        let (written, lines) = channel();
        let queue = Queue::start("lines", move |items| {
            items.for_each(|item| written.send(item).unwrap());
        });
        let queue = queue.unwrap();
        assert!((0..5).all(|number| queue.push(number)));
        assert!(queue.flush());
        assert_eq!(lines.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }
}
