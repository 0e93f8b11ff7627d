//! What of a session is stored: a name that tells nothing, and a value that only a key opens.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use blake2::Blake2s;
use blake2::digest::{Digest, consts::U16};
use chacha20poly1305::aead::{Aead, AeadCore, OsRng, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use http::HeaderValue;

use crate::mcp::{BackendSessionId, ClientSessionId};
use crate::session::secret::{KEY_ID, Secret, SecretKey};
use crate::session::{Binding, Claim, Opened, Seal};

/// What a session is called in the store: the hash of its client's id. An id is 122 random bits,
/// which nobody finds by trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name([u8; 16]);

impl Name {
    pub(super) fn of(id: ClientSessionId) -> Self {
        let hasher = Blake2s::<U16>::new_with_prefix(NAME_CONTEXT);
        Self(hasher.chain_update(id.to_bytes()).finalize().into())
    }

    /// Where the session is kept, with all that is asked for with it.
    pub(super) fn shard(self) -> usize {
        usize::from(self.0[0]) % SHARDS
    }

    /// Its last part, as a text.
    pub(super) fn digits(self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    pub(super) fn from_digits(digits: &[u8]) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(digits).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    pub(super) fn to_claim(self) -> Claim {
        Claim(self.0)
    }

    pub(super) fn of_claim(Claim(name): Claim) -> Self {
        Self(name)
    }
}

/// The key that values are sealed with, and those that open them.
pub(super) struct Keys {
    /// The first one seals.
    keys: Vec<SecretKey>,
}

/// Why a value is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// By a key, or in a format, that another proxy may know.
    Unknown,
    /// It is not what was sealed.
    Broken,
}

impl Keys {
    pub(super) fn new(secrets: &[Secret]) -> Self {
        let key = |secret| SecretKey::new(secret, ID_CONTEXT, KEY_CONTEXT);
        Self {
            keys: secrets.iter().map(key).collect(),
        }
    }

    /// Seals `text` for the one `place` that it is good in.
    pub(super) fn seal(&self, place: &str, text: &[u8]) -> Vec<u8> {
        let key = self.keys.first().expect("the configuration has a key");
        let nonce = XChaCha20Poly1305::generate_nonce(OsRng);
        let payload = Payload {
            msg: text,
            aad: place.as_bytes(),
        };
        let sealed = key.cipher.encrypt(&nonce, payload);
        let sealed = sealed.expect("a binding is far shorter than what a key may seal");
        [[VERSION].as_slice(), &key.id, &nonce, &sealed].concat()
    }

    pub(super) fn open(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
        let (&version, rest) = sealed.split_first().ok_or(Unopened::Broken)?;
        if version != VERSION {
            return Err(Unopened::Unknown);
        }
        let (id, rest) = rest.split_first_chunk::<KEY_ID>().ok_or(Unopened::Broken)?;
        let (nonce, msg) = rest.split_first_chunk::<24>().ok_or(Unopened::Broken)?;
        let payload = || Payload {
            msg,
            aad: place.as_bytes(),
        };
        let mut known = self.keys.iter().filter(|key| key.id == *id).peekable();
        known.peek().ok_or(Unopened::Unknown)?;
        let mut opened = known.map(|key| key.cipher.decrypt(&XNonce::from(*nonce), payload()));
        opened.find_map(Result::ok).ok_or(Unopened::Broken)
    }
}

/// `binding` as the bytes that are sealed.
pub(super) fn write(binding: &Binding) -> Vec<u8> {
    let mut bytes = binding.opened.milliseconds().to_be_bytes().to_vec();
    let seal = binding.seal.as_ref().map_or("", Seal::as_str);
    for part in [binding.route.as_str(), binding.backend.as_str(), seal] {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_be_bytes());
        bytes.extend(part.as_bytes());
    }
    bytes.extend(binding.session.to_header().as_bytes());
    bytes
}

/// What [`write`] wrote.
pub(super) fn read(bytes: &[u8]) -> Option<Binding> {
    let (opened, rest) = bytes.split_first_chunk()?;
    let (route, rest) = part(rest)?;
    let (backend, rest) = part(rest)?;
    let (seal, session) = part(rest)?;
    let seal = match seal {
        "" => None,
        seal => Some(seal.parse().ok()?),
    };
    let session = HeaderValue::from_bytes(session).ok()?;
    Some(Binding {
        route: route.parse().ok()?,
        backend: backend.parse().ok()?,
        session: BackendSessionId::try_from(&session).ok()?,
        opened: Opened::from_milliseconds(u64::from_be_bytes(*opened)),
        seal,
    })
}

fn part(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length).try_into().ok()?)?;
    Some((std::str::from_utf8(part).ok()?, rest))
}

/// How many parts of a cluster sessions are spread over, at the most. What a script touches is in
/// one, with the list of what is due there.
pub(super) const SHARDS: usize = 16;

/// The first byte of what is sealed.
const VERSION: u8 = 1;

const NAME_CONTEXT: &[u8] = b"pingora-mcp store name 1";
const KEY_CONTEXT: &str = "pingora-mcp store key 1";
const ID_CONTEXT: &str = "pingora-mcp store key id 1";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::setting::Text;

    fn keys(secrets: &[&str]) -> Keys {
        let secret = |secret: &&str| Secret::try_from(Text((*secret).to_owned())).unwrap();
        Keys::new(&secrets.iter().map(secret).collect::<Vec<_>>())
    }

    const OLD: &str = "MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4f";
    const NEW: &str = "qE6mE3cPpbfDMJZuO7Vd7ZrDL1kBv5cN";

    #[test]
    fn a_key_that_is_rotated_opens_what_it_sealed() {
        let (old, both, new) = (keys(&[OLD]), keys(&[NEW, OLD]), keys(&[NEW]));
        let before = old.seal("here", b"text");
        let after = both.seal("here", b"text");
        assert_eq!(both.open("here", &before).unwrap(), b"text");
        assert_eq!(both.open("here", &after).unwrap(), b"text");
        assert_eq!(new.open("here", &after).unwrap(), b"text");
        assert_eq!(new.open("here", &before), Err(Unopened::Unknown));
        assert_eq!(old.open("here", &after), Err(Unopened::Unknown));
    }

    #[test]
    fn what_is_sealed_is_good_in_one_place_and_whole() {
        let keys = keys(&[OLD]);
        let sealed = keys.seal("here", b"text");
        assert_eq!(keys.open("there", &sealed), Err(Unopened::Broken));
        for position in 5..sealed.len() {
            let mut changed = sealed.clone();
            changed[position] ^= 1;
            assert_eq!(keys.open("here", &changed), Err(Unopened::Broken));
            assert!(keys.open("here", &sealed[..position]).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_binding_is_read_as_it_was_written(
            route in "(/[a-z]{1,20}){1,4}", backend in "[a-z0-9.-]{1,63}", session in "[!-~]{1,1024}",
            opened in any::<u64>(), seal in proptest::option::of("[A-Za-z0-9_-]{1,400}")
        ) {
            let session = HeaderValue::try_from(session).unwrap();
            let binding = Binding {
                route: route.parse().unwrap(),
                backend: backend.parse().unwrap(),
                session: BackendSessionId::try_from(&session).unwrap(),
                opened: Opened::from_milliseconds(opened),
                seal: seal.map(|seal| seal.parse().unwrap()),
            };
            prop_assert_eq!(read(&write(&binding)), Some(binding));
        }

        #[test]
        fn other_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes);
            prop_assert!(keys(&[OLD]).open("here", &bytes).is_err());
        }
    }
}
