//! `mcp.sessions.store.redis` in the configuration file.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use url::Url;

use crate::session::secret::Secret;
use crate::setting::{Entries, Entry, Period, Text, is_bare, parse};
use crate::tls::{StoreTls, StoreTlsSection};

/// Where the store is, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    pub(super) servers: Servers,
    pub(super) login: Login,
    /// `None` without TLS.
    pub(super) tls: Option<StoreTls>,
    /// What sessions are sealed with: the first seals, each opens.
    pub(super) keys: Vec<Secret>,
    /// What each key in the store begins with.
    pub(super) prefix: Prefix,
    /// How long an operation may take.
    pub(super) timeout: Period,
    /// Whether the proxy is not ready while the store is away.
    pub(crate) unready_when_away: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Servers {
    One(ServerUrl),
    Sentinel(Sentinels),
    Cluster(Vec<ServerUrl>),
}

/// Who knows which server is the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sentinels {
    /// What they call it.
    pub(super) name: String,
    pub(super) urls: Vec<ServerUrl>,
    pub(super) login: Login,
}

/// As whom the proxy comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<Password>,
}

/// A password, kept out of `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Password(String);

impl Password {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(redacted)")
    }
}

/// `redis://host:port/database`, or `rediss` for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerUrl {
    is_tls: bool,
    host: String,
    port: u16,
    database: i64,
}

impl ServerUrl {
    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn database(&self) -> i64 {
        self.database
    }
}

impl<'de> Deserialize<'de> for ServerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for ServerUrl {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        const EXPECTED: &str = "not a URL of a server: expected one such as redis://10.0.0.5:6379, \
                                or rediss:// for TLS";
        let url = Url::parse(&text).map_err(|_| EXPECTED)?;
        let is_tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(EXPECTED),
        };
        if !is_bare(&url) {
            return Err(
                "more than where a server is: expected 'username' and 'password' beside it",
            );
        }
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or(EXPECTED)?.trim_matches(['[', ']']).to_owned();
        let database = match url.path().trim_matches('/') {
            "" => 0,
            number => number.parse::<u16>().map_err(|_| EXPECTED)?.into(),
        };
        Ok(Self {
            is_tls,
            host,
            port: url.port().filter(|port| *port != 0).ok_or(EXPECTED)?,
            database,
        })
    }
}

impl Entry for ServerUrl {
    const DUPLICATE: &'static str = "a server that is there already: expected each once";

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Entry for Secret {
    const DUPLICATE: &'static str = "a key that is there already: expected each once";

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// What the names of all that is stored begin with: 1 to 32 letters, digits, `-`, `_` or `.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(pub(super) String);

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for Prefix {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > 32 || !text.bytes().all(is_plain) {
            return Err("not a prefix: expected 1 to 32 letters, digits, '-', '_' or '.'");
        }
        Ok(Self(text))
    }
}

impl<'de> Deserialize<'de> for RedisSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<RedisSection, _, _>(deserializer)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedisSection {
    /// The one server.
    #[serde(default)]
    url: Option<ServerUrl>,
    /// Those who know the master, in place of its URL.
    #[serde(default)]
    sentinel: Option<SentinelSection>,
    /// Some nodes of a cluster, in place of a server's URL.
    #[serde(default)]
    cluster: Option<Entries<ServerUrl>>,
    #[serde(default)]
    username: Option<Text>,
    #[serde(default)]
    password: Option<Text>,
    #[serde(default)]
    tls: Option<StoreTlsSection>,
    keys: Entries<Secret>,
    #[serde(default = "default_prefix")]
    prefix: Prefix,
    #[serde(default = "default_timeout")]
    timeout: Period,
    #[serde(default)]
    unready_when_away: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SentinelSection {
    name: Text,
    urls: Entries<ServerUrl>,
    #[serde(default)]
    username: Option<Text>,
    #[serde(default)]
    password: Option<Text>,
}

fn default_prefix() -> Prefix {
    Prefix("pmcp".to_owned())
}

fn default_timeout() -> Period {
    Period(Duration::from_millis(500))
}

impl TryFrom<RedisSection> for RedisSettings {
    type Error = String;

    fn try_from(section: RedisSection) -> Result<Self, String> {
        let servers = match (section.url, section.sentinel, section.cluster) {
            (Some(url), None, None) => Servers::One(url),
            (None, Some(sentinel), None) => Servers::Sentinel(Sentinels {
                name: sentinel.name.0,
                urls: sentinel.urls.0,
                login: Login::new(sentinel.username, sentinel.password),
            }),
            (None, None, Some(Entries(urls))) => Servers::Cluster(urls),
            _ => return Err("expected one of 'url', 'sentinel' and 'cluster'".to_owned()),
        };
        let urls = match &servers {
            Servers::One(url) => std::slice::from_ref(url),
            Servers::Sentinel(Sentinels { urls, .. }) | Servers::Cluster(urls) => urls,
        };
        let is_tls = urls.iter().all(ServerUrl::is_tls);
        if !is_tls && urls.iter().any(ServerUrl::is_tls) {
            return Err("servers with TLS and without: expected one or the other".to_owned());
        }
        if !matches!(servers, Servers::One(_)) && urls.iter().any(|url| url.database != 0) {
            return Err("a database of a cluster or a Sentinel: expected none".to_owned());
        }
        let tls = match (is_tls, section.tls) {
            (true, section) => Some(section.unwrap_or_default().try_into()?),
            (false, None) => None,
            (false, Some(_)) => {
                return Err("'tls' with a redis:// URL: expected rediss://".to_owned());
            }
        };
        Ok(Self {
            servers,
            login: Login::new(section.username, section.password),
            tls,
            keys: section.keys.0,
            prefix: section.prefix,
            timeout: section.timeout,
            unready_when_away: section.unready_when_away,
        })
    }
}

impl Login {
    fn new(username: Option<Text>, password: Option<Text>) -> Self {
        Self {
            username: username.map(|Text(name)| name),
            password: password.map(|Text(password)| Password(password)),
        }
    }
}
