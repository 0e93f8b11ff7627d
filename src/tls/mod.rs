//! TLS: the certificates and keys of listeners and backends, read from files and read again when
//! these change.
//!
//! Versions and ciphers are rustls's own: TLS 1.2 and 1.3, nothing that is known to be weak. The
//! cryptography is ring's, as Pingora's is.

mod backend;
mod listener;
mod store;
mod watch;

use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Deserializer};

pub(crate) use backend::{BackendTls, BackendTlsSection, has_system_roots};
pub(crate) use listener::Handshake;
pub use listener::ListenerTls;
pub(crate) use store::{StoreTls, StoreTlsSection};
pub use watch::CertificateWatch;
pub(crate) use watch::{Expires, Watched, WatchedFiles};

use crate::setting::{Text, parse};

/// What is wrong with a file, without anything of what is in it.
type Problem = String;

/// A file of a certificate and of those between it and its authority.
struct ChainFile(PathBuf);

/// A file of a private key.
struct KeyFile(PathBuf);

/// A file of authorities' certificates.
struct RootsFile(PathBuf);

impl<'de> Deserialize<'de> for ChainFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for ChainFile {
    type Error = Problem;

    fn try_from(Text(path): Text) -> Result<Self, Problem> {
        let path = absolute(path)?;
        chain(&read(&path)?)?;
        Ok(Self(path))
    }
}

impl<'de> Deserialize<'de> for KeyFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for KeyFile {
    type Error = Problem;

    fn try_from(Text(path): Text) -> Result<Self, Problem> {
        let path = absolute(path)?;
        let key = key(&read(&path)?)?;
        let loaded = default_provider().key_provider.load_private_key(key);
        loaded.map_err(|_| UNSUPPORTED_KEY.to_owned())?;
        Ok(Self(path))
    }
}

impl<'de> Deserialize<'de> for RootsFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<Text, _, _>(deserializer)
    }
}

impl TryFrom<Text> for RootsFile {
    type Error = Problem;

    fn try_from(Text(path): Text) -> Result<Self, Problem> {
        let path = absolute(path)?;
        roots(&chain(&read(&path)?)?)?;
        Ok(Self(path))
    }
}

/// The file is looked for again later, when a daemon may have left the directory.
fn absolute(path: String) -> Result<PathBuf, Problem> {
    std::path::absolute(path).map_err(|_| "no path: expected that of a file in PEM".to_owned())
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Problem> {
    let read = std::fs::read(path);
    read.map_err(|error| format!("cannot be read: {error}: expected a file in PEM"))
}

/// All certificates of a file, each of which parses.
fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let whole = chain
        .ok()
        .filter(|chain| chain.iter().all(|der| is_certificate(der)));
    let chain = whole.ok_or("a certificate in it is broken: expected whole ones in PEM")?;
    if chain.is_empty() {
        return Err("no certificate in it: expected one or more in PEM".to_owned());
    }
    Ok(chain)
}

/// The first private key of a file.
fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Problem> {
    let key = PrivateKeyDer::from_pem_slice(pem);
    key.map_err(|_| "no private key in it: expected one in PEM, not encrypted".to_owned())
}

/// The authorities of `chain`.
fn roots(chain: &[CertificateDer<'static>]) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    for certificate in chain {
        let added = roots.add(certificate.clone());
        added.map_err(|_| {
            "a certificate in it cannot be an authority's: expected only such".to_owned()
        })?;
    }
    Ok(roots)
}

/// The certificate and the key of two files that belong together.
fn identity(certificate: &[u8], private_key: &[u8]) -> Result<CertifiedKey, Problem> {
    let identity =
        CertifiedKey::from_der(chain(certificate)?, key(private_key)?, &default_provider());
    identity.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            "the key is of another certificate: expected the certificate's own".to_owned()
        }
        rustls::Error::InvalidCertificate(_) => {
            "a certificate of a kind that is not supported: expected X.509 version 3".to_owned()
        }
        _ => UNSUPPORTED_KEY.to_owned(),
    })
}

/// Pingora panics on what `x509_parser` does not parse.
fn is_certificate(der: &[u8]) -> bool {
    x509_parser::parse_x509_certificate(der).is_ok()
}

const UNSUPPORTED_KEY: &str =
    "a key of a kind that is not supported: expected RSA, ECDSA (P-256, P-384) or Ed25519";
