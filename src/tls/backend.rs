//! Whom a backend must prove to be, and what the proxy shows it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use pingora_core::protocols::tls::CaType;
use pingora_core::tls::load_platform_certs_incl_env_into_store;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::RootCertStore;
use serde::Deserialize;

use super::watch::fingerprint;
use super::{
    ChainFile, Expires, KeyFile, Problem, RootsFile, Watched, WatchedFiles, chain, identity, key,
    roots,
};

/// How a backend is connected to by TLS.
#[derive(Debug)]
pub(crate) struct BackendTls {
    /// `None`: the system's.
    authorities: Option<Arc<Watched<Authorities>>>,
    /// `None`: the proxy shows the backend nothing.
    identity: Option<Arc<Watched<Identity>>>,
}

impl BackendTls {
    /// Has `peer` connect so, with what the files hold now.
    pub(crate) fn apply(&self, peer: &mut HttpPeer) {
        // A connection made with other files must not be used again.
        let mut group = DefaultHasher::new();
        if let Some(files) = &self.authorities {
            let authorities = files.current();
            authorities.fingerprint.hash(&mut group);
            peer.options.ca = Some(Arc::clone(&authorities.certificates));
        }
        if let Some(files) = &self.identity {
            let identity = files.current();
            identity.fingerprint.hash(&mut group);
            peer.client_cert_key = Some(Arc::clone(&identity.certificate));
        }
        peer.group_key = group.finish();
    }

    pub(crate) fn files(&self) -> Vec<Arc<dyn WatchedFiles>> {
        let mut files: Vec<Arc<dyn WatchedFiles>> = Vec::new();
        files.extend(self.authorities.iter().map(|files| Arc::clone(files) as _));
        files.extend(self.identity.iter().map(|files| Arc::clone(files) as _));
        files
    }
}

/// `tls` of a backend in the configuration file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BackendTlsSection {
    /// Authorities that vouch for it, in place of the system's.
    ca: Option<RootsFile>,
    /// The proxy's own certificate, for a backend that asks for one.
    certificate: Option<ChainFile>,
    /// Its private key.
    key: Option<KeyFile>,
}

impl TryFrom<BackendTlsSection> for BackendTls {
    type Error = Problem;

    fn try_from(section: BackendTlsSection) -> Result<Self, Problem> {
        let authorities = match section.ca {
            Some(RootsFile(path)) => Some(Arc::new(Watched::new(vec![path], Authorities::read)?)),
            None if has_system_roots() => None,
            None => return Err("this system has no list of authorities: expected 'ca'".to_owned()),
        };
        let identity = match (section.certificate, section.key) {
            (Some(ChainFile(certificate)), Some(KeyFile(key))) => {
                let files = Watched::new(vec![certificate, key], Identity::read)?;
                Some(Arc::new(files))
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err("one of 'certificate' and 'key' alone: expected both".to_owned());
            }
        };
        Ok(Self {
            authorities,
            identity,
        })
    }
}

/// Whether Pingora finds the system's authorities. It looks for them at its start only, and panics
/// where there are none.
pub(crate) fn has_system_roots() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        load_platform_certs_incl_env_into_store(&mut roots).is_ok() && !roots.is_empty()
    });
    *FOUND
}

struct Authorities {
    fingerprint: u64,
    certificates: Arc<CaType>,
}

impl Expires for Authorities {}

impl Authorities {
    fn read(files: &[Vec<u8>]) -> Result<Self, Problem> {
        let chain = chain(&files[0])?;
        roots(&chain)?;
        let certificates = chain
            .iter()
            .map(|der| WrappedX509::new(der.to_vec(), parse_x509));
        Ok(Self {
            fingerprint: fingerprint(&files),
            certificates: certificates.collect(),
        })
    }
}

struct Identity {
    fingerprint: u64,
    certificate: Arc<CertKey>,
}

impl Expires for Identity {}

impl Identity {
    fn read(files: &[Vec<u8>]) -> Result<Self, Problem> {
        identity(&files[0], &files[1])?;
        let chain = chain(&files[0])?.iter().map(|der| der.to_vec()).collect();
        let key = key(&files[1])?.secret_der().to_vec();
        Ok(Self {
            fingerprint: fingerprint(&files),
            certificate: Arc::new(CertKey::new(chain, key)),
        })
    }
}
