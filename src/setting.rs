//! Values that several sections of the configuration file are made of.
//!
//! None of their errors repeats the value: it may be a secret that stands in the wrong place,
//! and the line and column say where to look.

use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, DeserializeSeed, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

/// A text value. `${NAME}` in it has been taken from the environment. Where one is left, as it was
/// quoted or escaped, the file is refused rather than a literal `${NAME}` sent to a backend.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.contains("${") {
            return Err(refuse(UNEXPANDED));
        }
        Ok(Self(text))
    }
}

/// A length of time above zero, with its unit: `500ms`, `3s`, `30m`, `24h`, `7d`. At most 100
/// years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period(pub Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        period(&text.0).map_err(refuse)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The crate goes on to months of 30.44 days, in which none is written.
        let days = self.0.as_secs() / DAY;
        let rest = self.0 - Duration::from_secs(days * DAY);
        match (days, rest) {
            (0, _) => write!(formatter, "{}", humantime::format_duration(rest)),
            (_, Duration::ZERO) => write!(formatter, "{days}d"),
            _ => write!(formatter, "{days}d {}", humantime::format_duration(rest)),
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A time limit: a [`Period`], or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Duration>);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        if text.0 == "none" {
            return Ok(Self(None));
        }
        match period(&text.0) {
            Ok(Period(duration)) => Ok(Self(Some(duration))),
            Err(problem) => Err(refuse(&format!("{problem}, or 'none'"))),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        or_none(self.0.map(Period), serializer)
    }
}

/// A whole number above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count(pub u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            0 => Err(refuse("zero: expected a whole number above zero")),
            count => Ok(Self(count)),
        }
    }
}

/// The most there may be of something: a [`Count`], or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most(pub Option<usize>);

impl<'de> Deserialize<'de> for Most {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        match text.0.parse() {
            Ok(0) => Err(refuse(
                "zero: expected a whole number above zero, or 'none'",
            )),
            Ok(count) => Ok(Self(Some(count))),
            Err(_) if text.0 == "none" => Ok(Self(None)),
            Err(_) => Err(refuse(
                "not a whole number: expected one above zero, or 'none'",
            )),
        }
    }
}

impl Serialize for Most {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        or_none(self.0, serializer)
    }
}

/// A number of bytes above zero, with its unit: `512B`, `64KiB`, `4MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        size(&text.0).map_err(refuse)
    }
}

impl Serialize for Size {
    /// In the largest unit that it is a whole number of.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")].into_iter();
        let mut whole = units.filter(|(shift, _)| self.0.is_multiple_of(1 << shift));
        let (shift, unit) = whole.next().unwrap_or((0, "B"));
        serializer.collect_str(&format_args!("{}{unit}", self.0 >> shift))
    }
}

/// The most bytes that something may have: a [`Size`], or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MostBytes(pub Option<u64>);

impl<'de> Deserialize<'de> for MostBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        if text.0 == "none" {
            return Ok(Self(None));
        }
        match size(&text.0) {
            Ok(Size(bytes)) => Ok(Self(Some(bytes))),
            Err(problem) => Err(refuse(&format!("{problem}, or 'none'"))),
        }
    }
}

impl Serialize for MostBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        or_none(self.0.map(Size), serializer)
    }
}

/// An IP address and a port that can be listened on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for Address {
    type Error = &'static str;

    fn try_from(Text(text): Text) -> Result<Self, Self::Error> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self(address)),
            Ok(_) => Err("port zero: expected the port that clients connect to"),
            Err(_) => {
                Err("not an address: expected an IP address and a port, such as 127.0.0.1:8080")
            }
        }
    }
}

/// What a list consists of whose entries must differ.
pub trait Entry {
    /// What is said of an entry that is there already.
    const DUPLICATE: &'static str;

    /// Whether both would be known by one name.
    fn is_same(&self, other: &Self) -> bool;
}

/// A list of at least one entry, each there once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries<T>(pub Vec<T>);

impl<'de, T: Entry + Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<T>(PhantomData<T>);

impl<'de, T: Entry + Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
    type Value = Entries<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries<T>, A::Error> {
        let mut entries = Vec::new();
        while list.next_element_seed(NextEntry(&mut entries))?.is_some() {}
        if entries.is_empty() {
            return Err(refuse("empty: expected at least one entry"));
        }
        Ok(Entries(entries))
    }
}

/// Reads one entry onto those before it, so that the error of a duplicate has its position.
struct NextEntry<'e, T>(&'e mut Vec<T>);

impl<'de, T: Entry + Deserialize<'de>> DeserializeSeed<'de> for NextEntry<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let entry = T::deserialize(deserializer)?;
        if self.0.iter().any(|other| other.is_same(&entry)) {
            return Err(refuse(T::DUPLICATE));
        }
        self.0.push(entry);
        Ok(())
    }
}

/// A `T` made of the `S` that stands in the file: `#[serde(try_from)]` with [`refuse`].
///
/// # Errors
/// There is no `S`, or `T` refuses it.
pub fn parse<'de, S, T, D>(deserializer: D) -> Result<T, D::Error>
where
    S: Deserialize<'de>,
    T: TryFrom<S, Error: AsRef<str>>,
    D: Deserializer<'de>,
{
    T::try_from(S::deserialize(deserializer)?).map_err(|problem| refuse(problem.as_ref()))
}

/// An error that says `problem`, which must not repeat a value of the file.
///
/// `Error::custom` would lose it: where a value near came from the environment, serde-saphyr
/// puts a text of its own in place of ours, as it cannot know that ours is harmless.
pub fn refuse<E: de::Error>(problem: &str) -> E {
    E::invalid_value(Unexpected::Other("value"), &problem)
}

/// Whether `url` says where something is and no more: no user, query or fragment.
pub fn is_bare(url: &Url) -> bool {
    url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
}

fn or_none<S: Serializer>(value: Option<impl Serialize>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(serializer),
        None => serializer.serialize_str("none"),
    }
}

fn period(text: &str) -> Result<Period, &'static str> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("zero: expected a duration above zero, such as 30s"),
        Ok(duration) if duration > LONGEST => Err("too long: expected at most 100y"),
        Ok(duration) => Ok(Period(duration)),
        Err(_) => Err("not a duration: expected a number with its unit, such as 500ms, 30s or 24h"),
    }
}

fn size(text: &str) -> Result<Size, &'static str> {
    const EXPECTED: &str = "not a size: expected a number with its unit, such as 64KiB or 4MiB";
    if !text.ends_with(['b', 'B']) {
        return Err(EXPECTED);
    }
    match text.parse() {
        Ok(ByteSize(0)) => Err("zero: expected a size above zero, such as 64KiB"),
        Ok(ByteSize(bytes)) => Ok(Size(bytes)),
        Err(_) => Err(EXPECTED),
    }
}

/// moka panics where a session may live for more than 1000 years. A year is 365.25 days.
const LONGEST: Duration = Duration::from_secs((100 * 365 + 25) * DAY);

/// In seconds.
const DAY: u64 = 86_400;

/// What is said of `${` in a value, after all that can be expanded has been.
pub const UNEXPANDED: &str = "'${' is left in it: expected ${NAME} in a value without quotes";
