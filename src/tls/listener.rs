//! What a listener shows its clients, and which of them it lets in.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pingora_core::Result;
use pingora_core::listeners::ALPN;
use pingora_core::listeners::tls::{Acceptor, TlsSettings};
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::tls::TlsStream;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, ParsedCertificate, ResolvesServerCert, ServerSessionMemoryCache,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use serde::{Deserialize, Deserializer};

use super::{
    ChainFile, Expires, KeyFile, Problem, RootsFile, Watched, WatchedFiles, chain,
    default_provider, identity, is_certificate, roots,
};
use crate::setting::{Entries, Entry, parse};

/// `tls` of a listener: its certificates, and whose clients it lets in.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTls {
    certificates: Arc<Certificates>,
    clients: Option<Arc<Clients>>,
}

impl ListenerTls {
    /// For Pingora: HTTP/2 with clients that know it, else HTTP/1.1.
    pub(crate) fn settings(&self) -> TlsSettings {
        // The paths are for files that Pingora would read itself, once.
        let mut settings = TlsSettings::intermediate("", "").expect("no file is looked at");
        settings.set_cert_resolver(Arc::clone(&self.certificates) as _);
        if let Some(clients) = &self.clients {
            settings.set_client_cert_verifier(Arc::clone(clients) as _);
        }
        settings.set_alpn(ALPN::H2H1);
        settings
    }

    /// Makes the handshake with its clients.
    pub(crate) fn handshake(&self) -> Handshake {
        Handshake {
            acceptor: self.settings().build(),
            clients: self.clients.clone(),
        }
    }

    /// When the first of its certificates expires.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        let certificates = self.certificates.0.iter();
        certificates
            .filter_map(|Identity(files)| files.current().expires())
            .min()
    }

    pub(crate) fn files(&self) -> Vec<Arc<dyn WatchedFiles>> {
        let certificates = self.certificates.0.iter();
        let mut files: Vec<Arc<dyn WatchedFiles>> = certificates
            .map(|Identity(files)| Arc::clone(files) as _)
            .collect();
        files.extend(
            self.clients
                .iter()
                .map(|clients| Arc::clone(&clients.0) as _),
        );
        files
    }
}

impl<'de> Deserialize<'de> for ListenerTls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<ListenerTlsSection, _, _>(deserializer)
    }
}

impl TryFrom<ListenerTlsSection> for ListenerTls {
    type Error = Problem;

    fn try_from(section: ListenerTlsSection) -> Result<Self, Problem> {
        let Entries(identities) = section.certificates;
        let clients = section.client_ca.map(|RootsFile(path)| {
            let admission = Watched::new(vec![path], |files| Admission::by(&files[0]))?;
            Ok::<_, Problem>(Arc::new(Clients(Arc::new(admission))))
        });
        Ok(Self {
            certificates: Arc::new(Certificates(identities)),
            clients: clients.transpose()?,
        })
    }
}

/// A listener's part in the handshakes with its clients.
pub(crate) struct Handshake {
    acceptor: Acceptor,
    clients: Option<Arc<Clients>>,
}

impl Handshake {
    pub(crate) async fn accept(&self, stream: Stream) -> Result<TlsStream<Stream>> {
        let Some(Clients(admission)) = self.clients.as_deref() else {
            return self.acceptor.tls_handshake(stream).await;
        };
        // Who resumes a session is not checked again: it is kept with the authorities of now, and
        // goes with them, also where they change while it is begun.
        let mut config = ServerConfig::clone(self.acceptor.acceptor.config());
        config.session_storage = Arc::clone(&admission.current().sessions) as _;
        let acceptor = Acceptor::from_server_config(Arc::new(config));
        acceptor.tls_handshake(stream).await
    }
}

/// `tls` of a listener in the configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerTlsSection {
    /// The first is also for clients that name no server, or none of these.
    certificates: Entries<Identity>,
    /// Authorities whose clients are let in, and no others.
    #[serde(default)]
    client_ca: Option<RootsFile>,
}

/// A certificate with its key.
#[derive(Debug, PartialEq)]
struct Identity(Arc<Watched<CertifiedKey>>);

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse::<IdentitySection, _, _>(deserializer)
    }
}

impl TryFrom<IdentitySection> for Identity {
    type Error = Problem;

    fn try_from(section: IdentitySection) -> Result<Self, Problem> {
        let paths = vec![section.certificate.0, section.key.0];
        let files = Watched::new(paths, |files| identity(&files[0], &files[1]))?;
        Ok(Self(Arc::new(files)))
    }
}

impl Expires for CertifiedKey {
    /// The first of its chain: clients need all of it.
    fn expires(&self) -> Option<SystemTime> {
        let end = |der: &CertificateDer<'_>| {
            let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
            let end = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(end))
        };
        self.cert.iter().filter_map(end).min()
    }
}

impl Entry for Identity {
    const DUPLICATE: &'static str = "duplicate certificate: expected each once";

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// An entry of `certificates` in the configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentitySection {
    /// The certificate, then those between it and its authority.
    certificate: ChainFile,
    /// Its private key.
    key: KeyFile,
}

/// The certificates of a listener, in the order of the configuration.
#[derive(Debug, PartialEq)]
struct Certificates(Vec<Identity>);

impl ResolvesServerCert for Certificates {
    /// The first that has the name and whose key the client can check; where none has, the first.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(ServerName::try_from);
        let all = || self.0.iter().map(|Identity(files)| files.current());
        let fits = |identity: &Arc<CertifiedKey>| {
            let has_name = match &name {
                Some(Ok(name)) => is_for(identity, name),
                Some(Err(_)) | None => false,
            };
            has_name
                && identity
                    .key
                    .choose_scheme(hello.signature_schemes())
                    .is_some()
        };
        all().find(fits).or_else(|| all().next())
    }
}

fn is_for(identity: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let certificate = identity
        .end_entity_cert()
        .and_then(ParsedCertificate::try_from);
    certificate.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}

/// Which clients are let in, as the file says now.
#[derive(Debug, PartialEq)]
struct Clients(Arc<Watched<Admission>>);

/// The check of clients by some authorities, and the TLS sessions of those that it has let in.
struct Admission {
    verifier: Arc<dyn ClientCertVerifier>,
    sessions: Arc<ServerSessionMemoryCache>,
}

impl Expires for Admission {}

impl Admission {
    fn by(authorities: &[u8]) -> Result<Self, Problem> {
        let roots = roots(&chain(authorities)?)?;
        let provider = default_provider().into();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
        Ok(Self {
            verifier: verifier.map_err(|error| error.to_string())?,
            sessions: ServerSessionMemoryCache::new(SESSIONS),
        })
    }
}

impl ClientCertVerifier for Clients {
    /// None: they cannot be lent while the file may change. A client then sends what it has
    /// (RFC 8446 4.2.4).
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !is_certificate(end_entity) {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        let verifier = &self.0.current().verifier;
        verifier.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = &self.0.current().verifier;
        verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = &self.0.current().verifier;
        verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.current().verifier.supported_verify_schemes()
    }
}

/// TLS sessions that are remembered: rustls's own number.
const SESSIONS: usize = 256;
