//! A secret of the configuration file that keys are made of.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use blake2::Blake2sMac;
use blake2::digest::{Mac, consts::U32};
use serde::{Deserialize, Deserializer};

use crate::setting::{Text, parse};

/// At least 32 characters that nobody can guess. It is kept out of `Debug` and of errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// The key that this secret gives for `purpose`, of at most 32 bytes: another for each.
    pub(crate) fn key(&self, purpose: &str) -> [u8; 32] {
        let hasher = Blake2sMac::<U32>::new_from_slice(purpose.as_bytes());
        let hasher = hasher.expect("a purpose has at most 32 bytes");
        hasher.chain_update(&*self.0).finalize().into_bytes().into()
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
        if secret.chars().count() < 32 {
            return Err("too short: expected at least 32 characters that nobody can guess");
        }
        let different: HashSet<_> = secret.chars().collect();
        if different.len() < 10 || PUBLISHED.contains(&&*secret) {
            return Err("easy to guess: expected what 'openssl rand -base64 32' prints");
        }
        Ok(Self(secret.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(redacted)")
    }
}

/// Those that stand in books, and here.
const PUBLISHED: [&str; 3] = [
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
        assert!(secret(&"ab".repeat(40)).is_err());
        assert!(PUBLISHED.iter().all(|published| secret(published).is_err()));
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
