//! Whom a session store must prove to be, and what the proxy shows it.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ChainFile, KeyFile, Problem, RootsFile, has_system_roots, identity, read};

/// The files for a connection by TLS. They are read anew for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreTls {
    /// `None`: the system's.
    pub(crate) authorities: Option<PathBuf>,
    /// A certificate and its key. `None`: the proxy shows nothing.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// `tls` of the session store in the configuration file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StoreTlsSection {
    /// Authorities that vouch for it, in place of the system's.
    ca: Option<RootsFile>,
    /// The proxy's own certificate, for a store that asks for one.
    certificate: Option<ChainFile>,
    /// Its private key.
    key: Option<KeyFile>,
}

impl TryFrom<StoreTlsSection> for StoreTls {
    type Error = Problem;

    fn try_from(section: StoreTlsSection) -> Result<Self, Problem> {
        if section.ca.is_none() && !has_system_roots() {
            return Err("this system has no list of authorities: expected 'tls.ca'".to_owned());
        }
        let identity = match (section.certificate, section.key) {
            (Some(ChainFile(certificate)), Some(KeyFile(key))) => {
                identity(&read(&certificate)?, &read(&key)?)?;
                Some((certificate, key))
            }
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err("one of 'certificate' and 'key' alone: expected both".to_owned());
            }
        };
        Ok(Self {
            authorities: section.ca.map(|RootsFile(path)| path),
            identity,
        })
    }
}
