//! A session's binding, sealed into the id that its client holds: whoever has the key serves the
//! session, and needs to ask nobody where it lives.
//!
//! On the wire, the id is its 32 hex digits, and behind them in base64url (RFC 4648 5) the key's id
//! and, sealed with XChaCha20-Poly1305, when the session was opened, its backend's name and the
//! backend's id. The digits and the route are authenticated with it: a seal is of one id on one
//! route. The nonce is the id itself, 122 bits of which are random and which is sealed once.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{Tag, XNonce};
use http::HeaderValue;
use serde::{Deserialize, Deserializer};

use super::secret::{KEY_ID, Secret, SecretKey};
use super::{Binding, Opened, SessionSettings};
use crate::backend::BackendName;
use crate::mcp::{BackendSessionId, ClientSessionId};
use crate::route::RoutePath;
use crate::setting::{Entries, Entry, Text, parse};

/// What follows the 32 digits of a sealed id.
#[derive(Clone, PartialEq, Eq)]
pub struct Seal(Arc<str>);

impl Seal {
    /// As it stands on the wire, for a store to keep beside the binding.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole id of a client, marked sensitive so that `Debug` does not print it.
    pub(crate) fn to_header(&self, id: ClientSessionId) -> HeaderValue {
        let mut whole = id.to_header().as_bytes().to_vec();
        whole.extend(self.0.as_bytes());
        let mut value = HeaderValue::try_from(whole).expect("base64url is visible ASCII");
        value.set_sensitive(true);
        value
    }
}

impl FromStr for Seal {
    type Err = SealError;

    /// Takes what [`as_str`](Self::as_str) gave. Whether it is a seal is seen when it is opened.
    fn from_str(text: &str) -> Result<Self, SealError> {
        let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if text.is_empty() || text.len() > MAX_TEXT || !text.bytes().all(is_base64url) {
            return Err(SealError::Broken);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Seal(redacted)")
    }
}

/// Seals ids with the first of its keys, and opens what was sealed with any of them. Without a key,
/// it does neither.
#[derive(Debug)]
pub struct Seals {
    keys: Vec<SealKey>,
    lifetime: Duration,
    has_told_of_length: AtomicBool,
}

impl Seals {
    /// Those that `settings` describe.
    pub fn new(settings: &SessionSettings) -> Self {
        let keys = settings.seal.keys.clone();
        Self {
            keys: keys.map_or_else(Vec::new, |Entries(keys)| keys),
            lifetime: settings.lifetime.0,
            has_told_of_length: AtomicBool::new(false),
        }
    }

    /// Goes on with what `former` has of the store's settings, and has told.
    pub(crate) fn succeed(&mut self, former: &Self) {
        self.lifetime = former.lifetime;
        *self.has_told_of_length.get_mut() = former.has_told_of_length.load(Ordering::Relaxed);
    }

    /// The seal of `binding` for the client that holds `id`. `None` where there is no key, and where
    /// the id would have 512 bytes or more, which the log then tells once.
    ///
    /// An id is sealed once, as its nonce is made of it.
    pub fn seal(&self, id: ClientSessionId, binding: &Binding) -> Option<Seal> {
        let SealKey(key) = self.keys.first()?;
        let session = binding.session.to_header();
        let backend = binding.backend.as_str();
        let mut sealed = Vec::with_capacity(MAX_SEALED);
        sealed.extend(key.id);
        sealed.extend(binding.opened.milliseconds().to_be_bytes());
        sealed.push(u8::try_from(backend.len()).ok()?);
        sealed.extend(backend.as_bytes());
        sealed.extend(session.as_bytes());
        if sealed.len() + TAG > MAX_SEALED {
            if !self.has_told_of_length.swap(true, Ordering::Relaxed) {
                let route = &binding.route;
                log::warn!(
                    "session ids of backend {backend} of {route} are too long to be sealed: \
                     these sessions are known to the store alone"
                );
            }
            return None;
        }
        let with = associated(id, &binding.route);
        let plain = &mut sealed[KEY_ID..];
        let tag = key
            .cipher
            .encrypt_in_place_detached(&nonce(id), &with, plain);
        sealed.extend(tag.ok()?);
        Some(Seal(BASE64_URL_SAFE_NO_PAD.encode(sealed).into()))
    }

    /// The binding that was sealed for the client that holds `id`, on `route`. It costs one pass of
    /// the cipher at the most.
    ///
    /// # Errors
    /// Nothing can be said of the session, or that there is none.
    pub fn open(
        &self,
        id: ClientSessionId,
        seal: &[u8],
        route: &RoutePath,
    ) -> Result<Binding, SealError> {
        if seal.len() > MAX_TEXT {
            return Err(SealError::Broken);
        }
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(seal);
        let mut sealed = decoded.map_err(|_| SealError::Broken)?;
        let Some((key, sealed)) = sealed.split_first_chunk_mut() else {
            return Err(SealError::KeyUnknown);
        };
        let mut keys = self.keys.iter();
        let key = keys.find(|SealKey(known)| known.id == *key);
        let SealKey(key) = key.ok_or(SealError::KeyUnknown)?;
        let (sealed, tag) = sealed
            .split_last_chunk_mut::<TAG>()
            .ok_or(SealError::Broken)?;
        let (with, tag) = (associated(id, route), Tag::from(*tag));
        let opened = key
            .cipher
            .decrypt_in_place_detached(&nonce(id), &with, sealed, &tag);
        opened.map_err(|_| SealError::Broken)?;
        let binding = read(sealed, seal, route).ok_or(SealError::Broken)?;
        if binding.opened.age() >= self.lifetime {
            return Err(SealError::Expired);
        }
        Ok(binding)
    }
}

/// Why a seal does not tell where a session lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// There is no seal, or none of a key that is known here: its session may live.
    #[error("the session id is not sealed with a key that is known here")]
    KeyUnknown,
    /// It is of no session of this id on this route.
    #[error("the session id is malformed or forged")]
    Broken,
    /// Its session was opened longer ago than a session may live.
    #[error("the session has outlived its lifetime")]
    Expired,
}

/// `seal` of `mcp.sessions` in the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SealSettings {
    /// Secrets that proxies share: the first seals, each opens. `None`: ids are not sealed.
    pub keys: Option<Entries<SealKey>>,
}

/// What a secret of at least 32 characters becomes: a key, and the name that it has in ids. Both are
/// kept out of `Debug`.
#[derive(Clone)]
pub struct SealKey(SecretKey);

impl<'de> Deserialize<'de> for SealKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for SealKey {
    type Error = &'static str;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        let secret = Secret::try_from(text)?;
        Ok(Self(SecretKey::new(&secret, ID_PURPOSE, KEY_PURPOSE)))
    }
}

impl Entry for SealKey {
    const DUPLICATE: &'static str = "duplicate key: expected each once";

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

impl PartialEq for SealKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for SealKey {}

impl fmt::Debug for SealKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SealKey(redacted)")
    }
}

/// XChaCha20 makes a key of its own out of the first 16 bytes of a nonce.
fn nonce(id: ClientSessionId) -> XNonce {
    let mut nonce = XNonce::default();
    nonce[..16].copy_from_slice(&id.to_bytes());
    nonce
}

/// What is authenticated with a seal, and not in it.
fn associated(id: ClientSessionId, route: &RoutePath) -> Vec<u8> {
    [&id.to_bytes(), route.as_str().as_bytes()].concat()
}

/// Reads what [`Seals::seal`] wrote.
fn read(content: &[u8], seal: &[u8], route: &RoutePath) -> Option<Binding> {
    let (opened, content) = content.split_first_chunk()?;
    let (length, content) = content.split_first()?;
    let (backend, session) = content.split_at_checked(usize::from(*length))?;
    let session = HeaderValue::from_bytes(session).ok()?;
    Some(Binding {
        route: route.clone(),
        backend: BackendName::from_str(str::from_utf8(backend).ok()?).ok()?,
        session: BackendSessionId::try_from(&session).ok()?,
        opened: Opened::from_milliseconds(u64::from_be_bytes(*opened)),
        seal: Some(Seal(str::from_utf8(seal).ok()?.into())),
    })
}

/// Bytes of Poly1305's tag.
const TAG: usize = 16;

/// With 32 digits before it, an id has less than 512 bytes: what some clients and proxies allow.
const MAX_TEXT: usize = 479;

/// The same, before it is encoded.
const MAX_SEALED: usize = MAX_TEXT / 4 * 3 + 2;

// A seal of another form gets purposes of its own, so that none is read as the other.
const ID_PURPOSE: &str = "pingora-mcp seal 1 id";
const KEY_PURPOSE: &str = "pingora-mcp seal 1 key";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_flipped_bit_anywhere_and_an_id_is_none() {
        let seals = seals(&[KEY]);
        let (id, binding) = (ClientSessionId::mint(), binding(SESSION));
        let whole = seals.seal(id, &binding).unwrap().to_header(id);
        assert_eq!(open(&seals, whole.as_bytes()), Ok((id, binding)));
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.as_bytes().to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let Ok(flipped) = HeaderValue::from_bytes(&flipped) else {
                continue;
            };
            assert!(open(&seals, flipped.as_bytes()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_cut_off_or_added_makes_an_id_none() {
        let seals = seals(&[KEY]);
        let id = ClientSessionId::mint();
        let seal = seals.seal(id, &binding(SESSION)).unwrap();
        let whole = seal.to_header(id);
        for length in 0..whole.len() {
            assert!(open(&seals, &whole.as_bytes()[..length]).is_err());
        }
        for added in ["A", "AAAA", "=", "==", ".", "\u{e9}", seal.as_str()] {
            let longer = [whole.as_bytes(), added.as_bytes()].concat();
            assert!(open(&seals, &longer).is_err(), "{added}");
        }
    }

    #[test]
    fn a_seal_is_of_one_id_on_one_route_by_one_key() {
        let sealing = seals(&[KEY]);
        let (id, binding) = (ClientSessionId::mint(), binding(SESSION));
        let seal = sealing.seal(id, &binding).unwrap();
        let seal = seal.as_str().as_bytes();
        let (other, route) = (ClientSessionId::mint(), &"/other".parse().unwrap());
        let broken = Err(SealError::Broken);
        assert_eq!(sealing.open(other, seal, &binding.route), broken);
        assert_eq!(sealing.open(id, seal, route), broken);
        let unknown = Err(SealError::KeyUnknown);
        assert_eq!(seals(&[OTHER_KEY]).open(id, seal, &binding.route), unknown);
        assert_eq!(seals(&[]).open(id, seal, &binding.route), unknown);
        assert_eq!(sealing.open(id, b"", &binding.route), unknown);
    }

    #[test]
    fn each_key_opens_and_the_first_seals() {
        let (id, binding) = (ClientSessionId::mint(), binding(SESSION));
        let route = &binding.route;
        let [old, both, new] = [&[KEY][..], &[OTHER_KEY, KEY], &[OTHER_KEY]].map(seals);
        let sealed = |by: &Seals| by.seal(id, &binding).unwrap().as_str().to_owned();
        assert_eq!(sealed(&both), sealed(&new));
        for (by, opening) in [(&old, &both), (&both, &new), (&new, &both)] {
            let opened = opening.open(id, sealed(by).as_bytes(), route);
            assert_eq!(
                opened.as_ref(),
                Ok(&Binding {
                    seal: by.seal(id, &binding),
                    ..binding.clone()
                })
            );
        }
        assert!(new.open(id, sealed(&old).as_bytes(), route).is_err());
    }

    #[test]
    fn an_id_stays_below_512_bytes_or_is_not_sealed() {
        let seals = seals(&[KEY]);
        let id = ClientSessionId::mint();
        let longest = (1..=BackendSessionId::MAX_LENGTH)
            .rev()
            .find(|length| seals.seal(id, &binding(&"s".repeat(*length))).is_some());
        let longest = longest.unwrap();
        let seal = seals.seal(id, &binding(&"s".repeat(longest))).unwrap();
        let whole = seal.to_header(id);
        assert_eq!(whole.len(), 511);
        assert!(open(&seals, whole.as_bytes()).is_ok());
        for length in [1, 36, 256, longest] {
            assert!(seals.seal(id, &binding(&"s".repeat(length))).is_some());
        }
        assert!(longest > 256, "{longest}");
    }

    #[test]
    fn a_sealed_session_lives_no_longer_than_any_other() {
        let seals = seals(&[KEY]);
        let id = ClientSessionId::mint();
        let days = |days: u64| days * 24 * 60 * 60 * 1000;
        let opened_ago = |age| {
            let opened = Opened::now().milliseconds() - age;
            let opened = Opened::from_milliseconds(opened);
            let seal = seals.seal(
                id,
                &Binding {
                    opened,
                    ..binding(SESSION)
                },
            );
            seals.open(
                id,
                seal.unwrap().as_str().as_bytes(),
                &"/mcp".parse().unwrap(),
            )
        };
        assert!(opened_ago(0).is_ok());
        assert!(opened_ago(days(7) - 60_000).is_ok());
        assert_eq!(opened_ago(days(7)), Err(SealError::Expired));
    }

    /// Clients hold ids of the process before across an upgrade.
    #[test]
    fn the_form_of_a_seal_stays() {
        let digits = HeaderValue::from_static("00112233445566778899aabbccddeeff");
        let id = ClientSessionId::try_from(&digits).unwrap();
        let opened = Opened::from_milliseconds(1_764_000_000_000);
        let binding = Binding {
            opened,
            ..binding(SESSION)
        };
        let seal = seals(&[KEY]).seal(id, &binding).unwrap();
        assert_eq!(seal.as_str(), FIRST);
    }

    #[test]
    fn no_secret_and_no_id_prints() {
        let seals = seals(&[KEY]);
        let id = ClientSessionId::mint();
        let seal = seals.seal(id, &binding(SESSION)).unwrap();
        let printed = format!("{seals:?} {seal:?} {:?}", seal.to_header(id));
        for secret in [KEY, seal.as_str(), SESSION] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_opened(
            backend in "[A-Za-z0-9._-]{1,63}", session in "[!-~]{1,256}", route in "(/[a-z]{1,9}){1,4}",
            opened in Opened::now().milliseconds() - 1000..u64::MAX
        ) {
            let seals = seals(&[KEY]);
            let id = ClientSessionId::mint();
            let mut binding = Binding {
                route: route.parse().unwrap(),
                backend: backend.parse().unwrap(),
                opened: Opened::from_milliseconds(opened),
                ..binding(&session)
            };
            binding.seal = seals.seal(id, &binding);
            let whole = binding.seal.as_ref().unwrap().to_header(id);
            prop_assert!(whole.len() < 512 && whole.as_bytes().iter().all(u8::is_ascii_graphic));
            let (id, seal) = ClientSessionId::split(&whole).unwrap();
            prop_assert_eq!(seals.open(id, seal, &binding.route), Ok(binding));
        }

        #[test]
        fn no_text_is_more_than_broken(text in "[A-Za-z0-9_-]{0,600}") {
            let (id, route) = (ClientSessionId::mint(), "/mcp".parse().unwrap());
            prop_assert!(seals(&[KEY]).open(id, text.as_bytes(), &route).is_err());
        }
    }

    fn open(seals: &Seals, whole: &[u8]) -> Result<(ClientSessionId, Binding), SealError> {
        let whole = HeaderValue::from_bytes(whole).unwrap();
        let (id, seal) = ClientSessionId::split(&whole).map_err(|_| SealError::Broken)?;
        let mut binding = seals.open(id, seal, &"/mcp".parse().unwrap())?;
        binding.seal = None;
        Ok((id, binding))
    }

    fn seals(secrets: &[&str]) -> Seals {
        let keys = secrets.iter().map(|secret| Text((*secret).to_owned()));
        let mut seals = Seals::new(&SessionSettings::default());
        seals.keys = keys
            .map(|secret| SealKey::try_from(secret).unwrap())
            .collect();
        seals
    }

    fn binding(session: &str) -> Binding {
        Binding {
            route: "/mcp".parse().unwrap(),
            backend: "local".parse().unwrap(),
            session: BackendSessionId::try_from(&session.parse().unwrap()).unwrap(),
            opened: Opened::now(),
            seal: None,
        }
    }

    const KEY: &str = "63c0e2c9a1f74d0e8b5a927d1346fd08";
    const OTHER_KEY: &str = "a key of words, with more than thirty-two characters";
    const SESSION: &str = "7f9c2d1e-4b6a-4f0e-9a57-0c8d3e5b1a24";
    const FIRST: &str = "MAC9FxFfTHaw4skbC3qD_IkgAKsVie2uwFwsHrg4tRz_cg0uaI_di0MItvwPtUTTAGlTpZAv4tzHcUgmosDHAnYtFRwkFA";
}
