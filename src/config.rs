//! One YAML document: Pingora's keys at its top level, this proxy's under `mcp`.
//!
//! Nothing passes unnoticed: an unknown key, a duplicate, a value out of range is an error with
//! its line, its column and its path. No error repeats a value, as it may be a secret.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use pingora_core::server::configuration::ServerConf;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Error as YamlError;

use crate::cors::CorsPolicy;
use crate::drain::DrainSettings;
use crate::host::HostPolicy;
use crate::limits::{ClientLimits, ClientTimeouts};
use crate::listener::Listeners;
use crate::metrics::MetricsSettings;
use crate::observe::{AccessLogSettings, AdminSettings};
use crate::route::RouteTable;
use crate::rules::Rules;
use crate::session::{Seals, SessionSettings};
use crate::setting::{Count, Text, UNEXPANDED, parse, refuse};
use crate::tls::has_system_roots;

/// A whole configuration file.
#[derive(Debug)]
pub struct Settings {
    /// Pingora's own settings.
    pub server: ServerConf,
    /// This proxy's settings.
    pub mcp: Config,
}

/// `mcp` in the configuration file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where clients connect.
    pub listeners: Listeners,
    /// The endpoints, and the backends that serve them.
    pub routes: RouteTable,
    /// Names by which clients may address this server.
    #[serde(default)]
    pub allowed_hosts: HostPolicy,
    /// How sessions are kept.
    #[serde(default)]
    pub sessions: SessionSettings,
    /// How long clients may take.
    #[serde(default)]
    pub timeouts: ClientTimeouts,
    /// How much clients may have.
    #[serde(default)]
    pub limits: ClientLimits,
    /// Which pages may use this server.
    #[serde(default)]
    pub cors: CorsPolicy,
    /// How the process ends.
    #[serde(default)]
    pub drain: DrainSettings,
    /// Where the operator looks.
    #[serde(default)]
    pub admin: AdminSettings,
    /// What is counted beyond what always is.
    #[serde(default)]
    pub metrics: MetricsSettings,
    /// A line for each request.
    #[serde(default)]
    pub access_log: AccessLogSettings,
}

impl From<Config> for Rules {
    fn from(config: Config) -> Self {
        Self {
            routes: config.routes,
            cors: config.cors,
            hosts: config.allowed_hosts,
            timeouts: config.timeouts,
            limits: config.limits,
            seals: Seals::new(&config.sessions),
        }
    }
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    file: String,
    /// Line and column, from 1. `None` where it is not the text that is wrong.
    position: Option<(u64, u64)>,
    /// The key's path, such as `mcp.routes[0].path`; empty at the document's root.
    path: String,
    problem: String,
}

impl ConfigError {
    /// Of a value that is well formed and cannot be used where the process runs.
    pub(crate) fn of_key(file: &str, key: &str, problem: String) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            path: key.to_owned(),
            problem,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.file)?;
        if let Some((line, column)) = self.position {
            write!(formatter, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(formatter, ": {}", self.path)?;
        }
        write!(formatter, ": {}", self.problem)
    }
}

impl Settings {
    /// Reads the file at `path` as [`check`](Self::check) does, and
    /// [looks host names up](RouteTable::look_names_up).
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let mut settings = Self::check(path)?;
        settings.mcp.routes.look_names_up();
        Ok(settings)
    }

    /// Reads the file at `path`, with `${NAME}` in its values taken from the process's
    /// environment.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let file = path.as_ref().display().to_string();
        let yaml = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: file.clone(),
            position: None,
            path: String::new(),
            problem: format!("cannot be read: {error}"),
        })?;
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::parse(&file, &yaml, environment)
    }

    /// Parses `yaml`, and looks no host name up. `file` is its name in errors; `environment` is where
    /// `${NAME}` is taken from.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(
        file: &str,
        yaml: &str,
        environment: HashMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let document: Document = from_yaml(file, yaml, environment.clone())?;
        // Pingora's keys were checked above and are read here; it skips the others itself.
        let mut server: ServerConf = from_yaml(file, yaml, environment)?;
        if document.max_retries.is_none() {
            server.max_retries = DEFAULT_ATTEMPTS;
        }
        if !has_system_roots() {
            server.ca_file = Some(NO_AUTHORITIES.to_owned());
        }
        Ok(Self {
            server,
            mcp: document.mcp,
        })
    }
}

/// The document's top level: `mcp`, and Pingora's keys, of which only what Pingora itself does
/// not check is looked at.
struct Document {
    mcp: Config,
    max_retries: Option<Count>,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a mapping with the key 'mcp'")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut mcp = None;
        let mut max_retries = None;
        while let Some(key) = map.next_key::<TopLevelKey>()? {
            match key {
                TopLevelKey::Mcp => mcp = Some(map.next_value()?),
                TopLevelKey::MaxRetries => max_retries = Some(map.next_value()?),
                TopLevelKey::Count => drop(map.next_value::<Count>()?),
                TopLevelKey::OptionalCount => drop(map.next_value::<Option<Count>>()?),
                TopLevelKey::Ipv4 => drop(map.next_value::<Vec<Ip<Ipv4Addr>>>()?),
                TopLevelKey::Ipv6 => drop(map.next_value::<Vec<Ip<Ipv6Addr>>>()?),
                TopLevelKey::CaFile => {
                    let _: Option<OfBackend> = map.next_value()?;
                }
                TopLevelKey::Other => {
                    let Expanded = map.next_value()?;
                }
            }
        }
        let mcp: Config = mcp.ok_or_else(|| de::Error::missing_field("mcp"))?;
        let public = |admin| {
            mcp.listeners
                .iter()
                .position(|public| public.overlaps(admin))
        };
        if let Some(position) = mcp.admin.address.and_then(public) {
            return Err(refuse(&format!(
                "the address of 'admin' is taken by 'listeners[{position}]': expected one that no \
                 client reaches"
            )));
        }
        Ok(Document { mcp, max_retries })
    }
}

enum TopLevelKey {
    Mcp,
    /// Pingora answers nothing at all where it is zero.
    MaxRetries,
    /// Pingora panics where it is zero.
    Count,
    /// The same, or `null`.
    OptionalCount,
    /// Pingora panics where one is no address.
    Ipv4,
    Ipv6,
    /// Pingora panics where it holds none, and does not read it again.
    CaFile,
    Other,
}

impl<'de> Deserialize<'de> for TopLevelKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<String, _, _>(deserializer)
    }
}

impl TryFrom<String> for TopLevelKey {
    type Error = &'static str;

    fn try_from(key: String) -> Result<Self, Self::Error> {
        match key.as_str() {
            "mcp" => Ok(Self::Mcp),
            "max_retries" => Ok(Self::MaxRetries),
            "threads" | "listener_tasks_per_fd" => Ok(Self::Count),
            "max_blocking_threads"
            | "runtime_metrics_poll_time_histogram_buckets"
            | "runtime_metrics_poll_time_histogram_resolution_micros" => Ok(Self::OptionalCount),
            "client_bind_to_ipv4" => Ok(Self::Ipv4),
            "client_bind_to_ipv6" => Ok(Self::Ipv6),
            "grace_period_seconds" | "graceful_shutdown_timeout_seconds" => {
                Err("not used by this proxy: expected 'mcp.drain.deadline' in its place")
            }
            "daemon_wait_for_ready"
            | "daemon_ready_timeout_seconds"
            | "daemon_notify_timeout_seconds" => Err(
                "not used by this proxy: expected none, as it listens before it goes to the background",
            ),
            "working_directory" => {
                Err("not used by this proxy: expected a start in that directory in its place")
            }
            "ca_file" => Ok(Self::CaFile),
            _ if pingora_keys().contains(&key) => Ok(Self::Other),
            _ => Err("unknown key: expected 'mcp' or one of Pingora's keys"),
        }
    }
}

/// An address of this machine that backends are connected to from.
struct Ip<A>(PhantomData<A>);

impl<'de, A: FromStr> Deserialize<'de> for Ip<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(text) = Text::deserialize(deserializer)?;
        match text.parse::<A>() {
            Ok(_) => Ok(Self(PhantomData)),
            Err(_) => Err(refuse(
                "not an address: expected one of the IP version that the key names",
            )),
        }
    }
}

/// What stands with each backend here.
struct OfBackend;

impl<'de> Deserialize<'de> for OfBackend {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Text(_) = Text::deserialize(deserializer)?;
        Err(refuse("not used here: expected 'tls.ca' of a backend"))
    }
}

/// Any value without `${`, as [`Text`] is.
struct Expanded;

impl<'de> Deserialize<'de> for Expanded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        if value.to_string().contains("${") {
            return Err(refuse(UNEXPANDED));
        }
        Ok(Self)
    }
}

/// The names of Pingora's own keys, from Pingora itself.
fn pingora_keys() -> Vec<String> {
    let Ok(serde_json::Value::Object(keys)) = serde_json::to_value(ServerConf::default()) else {
        return Vec::new();
    };
    keys.into_iter().map(|(key, _)| key).collect()
}

fn from_yaml<T: de::DeserializeOwned>(
    file: &str,
    yaml: &str,
    environment: HashMap<String, String>,
) -> Result<T, ConfigError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        reject_unsupported_tags: true,
    };
    let options = options.with_properties(environment);
    let mut path = String::new();
    serde_saphyr::with_deserializer_from_str_with_options(yaml, options, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            path = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error| ConfigError {
        file: file.to_owned(),
        position: error
            .location()
            .map(|location| (location.line(), location.column())),
        path: path
            .trim_end_matches(['.', '?'])
            .replace(char::is_control, "?"),
        problem: problem(error.without_snippet()),
    })
}

/// What is wrong, without the value that it is wrong with.
fn problem(error: &YamlError) -> String {
    match error {
        YamlError::AliasError { error, .. } => problem(error),
        // What `refuse` says.
        YamlError::SerdeInvalidValue { expected, .. } => expected.clone(),
        YamlError::SerdeInvalidType { expected, .. } => wrong_kind(expected),
        YamlError::Unexpected { expected, .. } => wrong_kind(expected),
        YamlError::InvalidScalar { ty, .. } => wrong_kind(ty),
        YamlError::InvalidBooleanStrict { .. } => wrong_kind("boolean"),
        YamlError::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => {
            wrong_kind("string scalar")
        }
        YamlError::NullIntoString { .. } => "no value: expected one".to_owned(),
        YamlError::SerdeUnknownField { expected, .. } => {
            format!("unknown key: expected one of {}", expected.join(", "))
        }
        YamlError::SerdeUnknownVariant { expected, .. } => {
            format!("unknown value: expected one of {}", expected.join(", "))
        }
        YamlError::SerdeMissingField { field, .. } => {
            format!("missing key '{field}': expected it here")
        }
        YamlError::DuplicateMappingKey { .. } => "duplicate key: expected each once".to_owned(),
        YamlError::UnresolvedProperty { name, .. }
        | YamlError::PropertyRequiredButUnset { name, .. }
        | YamlError::PropertyRequiredButEmpty { name, .. } => {
            format!("environment variable {name} is not set: expected it, or another value")
        }
        YamlError::InvalidPropertyName { .. } => {
            "'${' without a name: expected ${NAME}, of letters, digits and '_'".to_owned()
        }
        YamlError::Eof { .. } => "nothing in it: expected the key 'mcp'".to_owned(),
        YamlError::MultipleDocuments { .. } => "a second document: expected one".to_owned(),
        YamlError::UnknownAnchor { .. } => {
            "unknown alias: expected quotes around a value that begins with '*'".to_owned()
        }
        YamlError::UnsupportedTag { .. } => {
            "unknown tag: expected quotes around a value that begins with '!'".to_owned()
        }
        // The one message of the parser that repeats what it read.
        YamlError::ExternalMessage { msg, .. } if msg.starts_with("unexpected character") => {
            "not YAML: unexpected character: expected quotes around a value that begins with it"
                .to_owned()
        }
        YamlError::ExternalMessage { msg, .. } => format!("not YAML: {msg}"),
        // What else there is may repeat a value.
        _ => "not understood: expected YAML of plain keys, values and lists".to_owned(),
    }
}

/// `expected` as serde and serde-saphyr name types.
fn wrong_kind(expected: &str) -> String {
    let kind = match expected {
        "boolean" => "true or false",
        "mapping start" => "a mapping",
        "sequence start" => "a list",
        "string scalar" => "a single value",
        "u64" | "usize" => "a whole number",
        other => other,
    };
    format!("wrong kind of value: expected {kind}")
}

/// How many backends are tried for a request before it is given up.
const DEFAULT_ATTEMPTS: usize = 3;

/// Pingora reads the system's authorities at the start where it is given no file of others, and
/// panics where there are none.
const NO_AUTHORITIES: &str = "/dev/null";
