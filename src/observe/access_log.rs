//! The access log: a line for each request, written by a thread of its own.
//!
//! A request hands its facts over without waiting. Where the writer does not keep up, lines are
//! dropped and counted. No line holds anything that a client wrote, nor an id: a session is known by
//! a keyed hash, by which lines can be joined and nothing can be asked for.

use std::borrow::Cow;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use blake2::Blake2sMac;
use blake2::digest::{Mac, consts::U6};
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::backend::BackendName;
use crate::exchange::{Exchange, SessionOutcome};
use crate::lines::{Appended, Lost, Queue};
use crate::mcp::{ClientSessionId, Era, McpMethod};
use crate::metrics::Finished;
use crate::route::RoutePath;
use crate::setting::{Text, parse};

/// `mcp.access_log` in the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogSettings {
    /// What a line looks like.
    pub format: Format,
    /// The file that lines are added to; `None` is standard output.
    pub path: Option<LogPath>,
    /// What the sessions' hashes depend on; `None` is another key at each start.
    pub key: Option<LogKey>,
}

impl AccessLogSettings {
    /// The file, where there is a log that goes to one.
    pub(crate) fn file(&self) -> Option<&Path> {
        let path = self.path.as_ref().filter(|_| self.format != Format::None)?;
        Some(&path.0)
    }
}

/// What a line of the access log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// There is no access log.
    #[default]
    None,
    /// A JSON object.
    Json,
    /// `key=value`, with spaces between.
    Text,
}

/// The access log's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPath(PathBuf);

impl<'de> Deserialize<'de> for LogPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for LogPath {
    type Error = &'static str;

    fn try_from(Text(path): Text) -> Result<Self, Self::Error> {
        // The file is opened anew after a rotation, when the working directory may be another.
        let path = std::path::absolute(path);
        path.map(Self).map_err(|_| "empty: expected a file's path")
    }
}

/// A secret, kept out of `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct LogKey(String);

impl<'de> Deserialize<'de> for LogKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for LogKey {
    type Error = &'static str;

    fn try_from(Text(key): Text) -> Result<Self, Self::Error> {
        match key.len() {
            16..=32 => Ok(Self(key)),
            _ => Err("not a key: expected 16 to 32 bytes that nobody can guess"),
        }
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LogKey(redacted)")
    }
}

/// An access log that is open. Clones write to the same.
#[derive(Clone, Debug)]
pub struct AccessLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` where there is no thread to write.
    records: OnceLock<Option<Queue<Record>>>,
    /// Until the first record starts it.
    writer: Mutex<Option<Writer>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the log that `settings` describe, if they want one.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(settings: AccessLogSettings) -> io::Result<Option<Self>> {
        if settings.format == Format::None {
            return Ok(None);
        }
        let sink = match settings.path {
            None => Sink::Stdout(None),
            Some(LogPath(path)) => Sink::File {
                file: open(&path)?,
                path,
            },
        };
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            format: settings.format,
            hasher: hasher(settings.key.as_ref()),
            sink,
            lines: Vec::new(),
            is_failing: false,
            dropped: Arc::clone(&dropped),
        };
        Ok(Some(Self(Arc::new(Shared {
            records: OnceLock::new(),
            writer: Mutex::new(Some(writer)),
            dropped,
        }))))
    }

    /// The lines that were not written, as they came too fast or the file could not take them.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Hands a request over that is over.
    pub(super) fn write(&self, exchange: &Exchange, mcp: Option<McpMethod>, request: &Finished) {
        let record = Record {
            ended: SystemTime::now(),
            client: exchange.connection.client,
            route: exchange.route.as_ref().map(|route| route.path.clone()),
            backend: exchange.backend().map(|backend| backend.name().clone()),
            mcp,
            request: *request,
            session: exchange.client_session(),
            outcome: exchange.outcome(),
            refusal: exchange.rejection().map(|rejection| rejection.name()),
        };
        // Started here and not with the log: a process that goes to the background loses its threads.
        let records = self.0.records.get_or_init(|| self.start());
        if !records.as_ref().is_some_and(|records| records.push(record)) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns when the lines of all requests that are over are written, or cannot be for a while.
    pub fn flush(&self) {
        let records = self.0.records.get().and_then(Option::as_ref);
        if records.is_some_and(|records| !records.flush()) {
            log::warn!("the access log's last lines are lost: nobody takes them");
        }
    }

    fn start(&self) -> Option<Queue<Record>> {
        let writer = &self.0.writer;
        let mut writer = writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        let started = Queue::start("access log", move |records| writer.write(records));
        started
            .inspect_err(|error| log::error!("no access log: {error}"))
            .ok()
    }
}

/// What is known of a request that is over.
#[derive(Debug)]
struct Record {
    ended: SystemTime,
    client: Option<IpAddr>,
    route: Option<RoutePath>,
    backend: Option<BackendName>,
    mcp: Option<McpMethod>,
    request: Finished,
    session: Option<ClientSessionId>,
    outcome: SessionOutcome,
    refusal: Option<&'static str>,
}

/// What a field of a line says.
#[derive(Serialize)]
#[serde(untagged)]
enum Value<'r> {
    Text(Cow<'r, str>),
    Count(u64),
    Seconds(f64),
}

/// A line: its fields in their order, of which those without a value are left out.
type Line<'r> = [(&'static str, Option<Value<'r>>); 16];

fn line<'r>(record: &'r Record, hasher: &Blake2sMac<U6>) -> Line<'r> {
    use Value::{Count, Seconds};
    let text = |text: String| Value::Text(Cow::Owned(text));
    let name = |name: &'r str| Value::Text(Cow::Borrowed(name));
    let Record { request, .. } = record;
    let arrived = record.ended.checked_sub(request.duration);
    let arrived = humantime::format_rfc3339_millis(arrived.unwrap_or(record.ended));
    let client = record.client.map(|client| client.to_string());
    let route = record.route.as_ref().map(RoutePath::as_str);
    let status = request.status.map(|status| status.as_u16().into());
    let backend = record.backend.as_ref().map(BackendName::as_str);
    let outcome = match record.outcome {
        SessionOutcome::None => None,
        SessionOutcome::Opened(_) => Some("opened"),
        SessionOutcome::Kept => Some("kept"),
        SessionOutcome::Ended => Some("ended"),
        SessionOutcome::Lost => Some("lost"),
    };
    [
        ("time", Some(text(arrived.to_string()))),
        ("client", client.map(text)),
        ("route", route.map(name)),
        ("method", Some(name(request.method.name()))),
        ("era", request.era.map(Era::name).map(name)),
        ("mcp_method", record.mcp.map(McpMethod::name).map(name)),
        ("status", status.map(Count)),
        ("backend", backend.map(name)),
        ("first_byte", request.first_byte.map(seconds).map(Seconds)),
        ("duration", Some(Seconds(seconds(request.duration)))),
        ("received", Some(Count(request.received))),
        ("sent", Some(Count(request.sent))),
        ("session", record.session.map(|id| text(hash(hasher, id)))),
        ("outcome", outcome.map(name)),
        ("refusal", record.refusal.map(name)),
        ("ended", Some(name(request.ending.name()))),
    ]
}

/// Adds `line` to `lines`.
fn append(line: Line<'_>, format: Format, lines: &mut Vec<u8>) -> io::Result<()> {
    let [first, next, is, end] = match format {
        Format::None => return Ok(()),
        Format::Json => ["{\"", ",\"", "\":", "}\n"],
        Format::Text => ["", " ", "=", "\n"],
    };
    let mut begin = first;
    for (name, value) in line {
        let Some(value) = value else { continue };
        for part in [begin, name, is] {
            lines.extend(part.as_bytes());
        }
        begin = next;
        match &value {
            Value::Text(text) if format == Format::Text && is_word(text) => {
                lines.extend(text.as_bytes());
            }
            quoted => serde_json::to_writer(&mut *lines, quoted)?,
        }
    }
    lines.extend(end.as_bytes());
    Ok(())
}

/// Whether `text` needs no quotes to be one value.
fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"=".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain)
}

/// To the microsecond.
#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 microseconds are 285 years"
)]
fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

fn hasher(key: Option<&LogKey>) -> Blake2sMac<U6> {
    let random;
    let key = match key {
        Some(LogKey(key)) => key.as_bytes(),
        None => {
            random = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
            &random
        }
    };
    Blake2sMac::new_from_slice(key).expect("a key has at most 32 bytes")
}

/// 48 bits, in hex digits: enough to tell sessions apart, too few to find an id by.
fn hash(hasher: &Blake2sMac<U6>, id: ClientSessionId) -> String {
    let hashed = hasher.clone().chain_update(id.to_header()).finalize();
    let digits = hashed.into_bytes();
    digits.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where lines go.
#[derive(Debug)]
enum Sink {
    /// `None` until the first is written: in the background it is another than at the start.
    Stdout(Option<Appended>),
    File {
        file: Appended,
        path: PathBuf,
    },
}

impl Sink {
    fn now(&mut self) -> io::Result<&mut Appended> {
        match self {
            Self::Stdout(Some(stdout)) => Ok(stdout),
            Self::Stdout(stdout) => {
                let descriptor = io::stdout().as_fd().try_clone_to_owned()?;
                Ok(stdout.insert(Appended::new(descriptor.into())))
            }
            Self::File { file, path } => {
                let named = std::fs::metadata(&*path);
                let opened = file.file().metadata()?;
                let is_same = named
                    .is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino()));
                if !is_same {
                    *file = open(path)?;
                }
                Ok(file)
            }
        }
    }
}

fn open(path: &PathBuf) -> io::Result<Appended> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map(Appended::new)
}

/// The one that writes.
struct Writer {
    format: Format,
    hasher: Blake2sMac<U6>,
    sink: Sink,
    lines: Vec<u8>,
    is_failing: bool,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    fn write(&mut self, records: &mut dyn Iterator<Item = Record>) {
        let mut count = 0;
        for record in records {
            count += 1;
            let line = line(&record, &self.hasher);
            if let Err(error) = append(line, self.format, &mut self.lines) {
                log::error!("no line in the access log: {error}");
            }
        }
        let written = match self.sink.now() {
            Ok(sink) => sink.add(&self.lines),
            Err(cause) => Err(Lost {
                lines: count,
                cause,
            }),
        };
        self.lines.clear();
        if let Err(Lost { lines, cause }) = &written {
            self.dropped.fetch_add(*lines, Ordering::Relaxed);
            if !self.is_failing {
                log::error!("the access log cannot be written: {cause}");
            }
        }
        self.is_failing = written.is_err();
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Writer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_one_hash_with_one_key_and_another_with_another() {
        let id = ClientSessionId::mint();
        let key = |key: &str| LogKey::try_from(Text(key.to_owned())).unwrap();
        let [a, b] = ["0123456789abcdef", "another key of a proxy"].map(key);
        let hash = |key: Option<&LogKey>, id| hash(&hasher(key), id);
        assert_eq!(hash(Some(&a), id), hash(Some(&a), id));
        assert_ne!(hash(Some(&a), id), hash(Some(&b), id));
        assert_ne!(hash(Some(&a), id), hash(Some(&a), ClientSessionId::mint()));
        assert_ne!(hash(None, id), hash(None, id));
    }
}
