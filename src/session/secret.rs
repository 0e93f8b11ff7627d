//! A secret of the configuration file that keys are made of.

use std::fmt;
use std::sync::Arc;

use blake2::Blake2sMac;
use blake2::digest::{Mac, consts::U32};
use chacha20poly1305::XChaCha20Poly1305;
use serde::{Deserialize, Deserializer};

use crate::setting::{Text, parse};

/// At least 32 characters that nobody can guess. It is kept out of `Debug` and of errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// The key that this secret gives for `purpose`, of at most 32 bytes: another for each.
    fn key(&self, purpose: &str) -> [u8; 32] {
        let hasher = Blake2sMac::<U32>::new_from_slice(purpose.as_bytes());
        let hasher = hasher.expect("a purpose has at most 32 bytes");
        hasher.chain_update(&*self.0).finalize().into_bytes().into()
    }
}

/// A key that a secret gives, and what tells it from others, and nothing of it.
#[derive(Clone)]
pub(super) struct SecretKey {
    pub(super) id: [u8; KEY_ID],
    pub(super) cipher: XChaCha20Poly1305,
}

impl SecretKey {
    /// What `secret` gives for these two purposes.
    pub(super) fn new(secret: &Secret, id_purpose: &str, key_purpose: &str) -> Self {
        let id = secret.key(id_purpose);
        Self {
            id: [id[0], id[1], id[2], id[3]],
            cipher: chacha20poly1305::KeyInit::new(&secret.key(key_purpose).into()),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for Secret {
    type Error = &'static str;

    fn try_from(Text(secret): Text) -> Result<Self, Self::Error> {
        if secret.chars().count() < MIN_LENGTH {
            return Err("too short: expected at least 32 random characters");
        }
        if is_guessable(&secret) {
            return Err("easy to guess: expected at least 32 random characters");
        }
        Ok(Self(secret.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(redacted)")
    }
}

/// Whether a secret is one that was published, has few characters, or is a short one repeated.
fn is_guessable(secret: &str) -> bool {
    let mut characters: Vec<char> = secret.chars().collect();
    let half = characters.len() / 2;
    let is_repeated =
        (1..=half).any(|period| characters[period..] == characters[..characters.len() - period]);
    characters.sort_unstable();
    characters.dedup();
    is_repeated || characters.len() < MIN_DIFFERENT || PUBLISHED.contains(&secret)
}

/// Bytes of a key's id: whose key it is, is known before the cipher runs.
pub(super) const KEY_ID: usize = 4;

const MIN_LENGTH: usize = 32;

/// One of 32 random hex digits has fewer in one of twenty million cases.
const MIN_DIFFERENT: usize = 8;

/// What somebody may have copied: the example of docs/configuration.md, the SHA-256 of nothing, and those
/// that stand in books.
const PUBLISHED: [&str; 5] = [
    "b6f1d0a94c2e5783d91c0f4ab8276e35f09d1b7ce4a86235719e0dcb5f48a263",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "0123456789abcdef0123456789abcdef",
    "abcdefghijklmnopqrstuvwxyz012345",
    "abcdefghijklmnopqrstuvwxyz123456",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Result<Secret, &'static str> {
        Secret::try_from(Text(text.to_owned()))
    }

    #[test]
    fn what_can_be_guessed_is_refused() {
        assert!(secret("MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4").is_err());
        let repeated = [
            "a".repeat(64),
            "abcdefg".repeat(10),
            "9d41f0c67be2a385".repeat(2),
        ];
        assert!(repeated.iter().all(|repeated| secret(repeated).is_err()));
        assert!(PUBLISHED.iter().all(|published| secret(published).is_err()));
        assert!(secret("a key of words, with more than thirty-two characters").is_ok());
        assert!(secret("MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4f").is_ok());
    }

    #[test]
    fn each_purpose_has_a_key_of_its_own() {
        let secret = secret("MYzAIbkCPXaZjGZuUFJJzuEzzNzG2x4f").unwrap();
        assert_eq!(secret.key("one"), secret.key("one"));
        assert_ne!(secret.key("one"), secret.key("another"));
        assert_eq!(format!("{secret:?}"), "Secret(redacted)");
    }
}
