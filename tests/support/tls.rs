//! Certificates made on the spot, and clients and backends that speak TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use h2::client::SendRequest;
use http::{Method, Request, Response};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ALL_VERSIONS, ClientConfig, HandshakeKind, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::process::scratch_file;
use super::within;

/// A certification authority with a folder for what it issues, until it is dropped.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

/// Two files in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        let folder = scratch_file("tls");
        std::fs::create_dir(&folder).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&folder.display().to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            folder,
        };
        std::fs::write(authority.file(), authority.pem()).unwrap();
        authority
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    pub fn pem(&self) -> String {
        self.issuer.as_ref().pem()
    }

    /// Issues a certificate for `names` (or addresses) into the files `stem.pem` and `stem.key`.
    pub fn issue(&self, stem: &str, names: &[&str]) -> Files {
        self.issue_with(stem, names, |_| {})
    }

    /// The same for `localhost`, good until `end`.
    pub fn issue_until(&self, stem: &str, end: SystemTime) -> Files {
        self.issue_with(stem, &["localhost"], |params| params.not_after = end.into())
    }

    fn issue_with(
        &self,
        stem: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Files {
        let files = Files {
            certificate: self.folder.join(format!("{stem}.pem")),
            key: self.folder.join(format!("{stem}.key")),
        };
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = named(stem);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.as_ref().der().clone()).unwrap();
        Arc::new(roots)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Files {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        let chain = CertificateDer::pem_file_iter(&self.certificate).unwrap();
        chain.map(Result::unwrap).collect()
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }
}

/// Two authorities of one name would be one to a client.
fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// The keys of a listener that has `certificates` and asks for clients of `client_ca`.
pub fn listener(certificates: &[&Files], client_ca: Option<&Path>) -> String {
    let mut yaml = String::from("      tls:\n        certificates:\n");
    for Files { certificate, key } in certificates {
        yaml += &format!("          - certificate: {}\n", certificate.display());
        yaml += &format!("            key: {}\n", key.display());
    }
    if let Some(file) = client_ca {
        yaml += &format!("        client_ca: {}\n", file.display());
    }
    yaml
}

/// A client that trusts one authority.
#[derive(Clone)]
pub struct TlsClient {
    config: ClientConfig,
}

impl TlsClient {
    pub fn trusting(authority: &Authority) -> Self {
        Self::speaking(ALL_VERSIONS, authority)
    }

    /// One that speaks some of TLS's versions, and resumes its sessions, as its clones do.
    pub fn speaking(versions: &[&'static SupportedProtocolVersion], authority: &Authority) -> Self {
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
        let builder = builder.with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(authority.roots());
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { config }
    }

    /// The same with a certificate of its own.
    pub fn with(mut self, identity: &Files) -> Self {
        let provider = ring::default_provider();
        let certified =
            CertifiedKey::from_der(identity.chain(), identity.private_key(), &provider).unwrap();
        let resolver = SingleCertAndKey::from(certified);
        self.config.client_auth_cert_resolver = Arc::new(resolver);
        self
    }

    /// Connects to `address` as to `name`. The handshake of TLS 1.3 is over for a client before the
    /// server has looked at its certificate.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        within("the handshake", connector.connect(name, stream)).await
    }

    /// Whether a session is resumed.
    pub async fn resumes(&self, address: SocketAddr) -> bool {
        let stream = self.connect(address, "localhost").await.unwrap();
        stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The certificate that is shown to who asks for `name`.
    pub async fn certificate_of(&self, address: SocketAddr, name: &str) -> CertificateDer<'static> {
        let stream = self.connect(address, name).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    }

    /// An HTTP/2 connection.
    pub async fn http2(&self, address: SocketAddr, name: &str) -> Http2 {
        let stream = self.connect(address, name).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Http2::over(stream, &format!("https://{name}:{}", address.port())).await
    }

    /// Sends `request` of HTTP/1.1 as it is, and returns all that comes until the end.
    pub async fn raw(&self, address: SocketAddr, request: &str) -> std::io::Result<String> {
        let mut client = self.clone();
        client.config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut stream = client.connect(address, "localhost").await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        within("the answer", stream.read_to_end(&mut answer)).await?;
        Ok(String::from_utf8(answer).unwrap())
    }
}

/// A client's HTTP/2 connection.
pub struct Http2 {
    pub send: SendRequest<bytes::Bytes>,
    base: String,
}

impl Http2 {
    /// Without TLS, beginning with HTTP/2's preface.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream, &format!("http://{address}")).await
    }

    async fn over<S>(stream: S, base: &str) -> Self
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let mut windows = h2::client::Builder::new();
        // As browsers have it: room for other streams beside one that is not read.
        windows.initial_connection_window_size(1 << 20);
        let handshake = windows.handshake(stream);
        let (send, connection) = within("HTTP/2's handshake", handshake).await.unwrap();
        tokio::spawn(connection);
        Self {
            send,
            base: base.to_owned(),
        }
    }

    /// A request as MCP clients send it.
    pub fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
    }

    /// A POST to `/mcp`.
    pub fn post(&self) -> http::request::Builder {
        self.request(Method::POST, "/mcp")
    }

    /// Sends a request with `body` and returns the answer, its body still to come.
    pub async fn send(
        &self,
        request: http::request::Builder,
        body: &'static str,
    ) -> Response<h2::RecvStream> {
        let ready = within("room for a stream", self.send.clone().ready()).await;
        let request = request.body(()).unwrap();
        let (answer, mut sending) = ready.unwrap().send_request(request, false).unwrap();
        sending.send_data(body.into(), true).unwrap();
        within("an answer", answer).await.unwrap()
    }
}

/// The next bytes of a body.
pub async fn next(body: &mut h2::RecvStream) -> Option<bytes::Bytes> {
    let bytes = within("the next bytes", body.data()).await?.unwrap();
    body.flow_control().release_capacity(bytes.len()).unwrap();
    Some(bytes)
}

/// The rest of a body.
pub async fn rest(mut body: h2::RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = next(&mut body).await {
        all.extend(bytes);
    }
    all
}

/// A backend that speaks TLS. It answers a GET with a stream of one event that stays open, any other
/// request with the certificate that it was shown.
pub struct TlsBackend {
    pub address: SocketAddr,
}

impl TlsBackend {
    /// Shows `identity`, and lets in clients of `clients` only.
    pub async fn start(identity: &Files, clients: Option<&Authority>) -> Self {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let roots = authority.roots();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = builder.with_single_cert(identity.chain(), identity.private_key());
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        answer_requests(stream).await;
                    }
                });
            }
        });
        Self { address }
    }
}

/// All requests of a connection, which must have no body or a short one.
async fn answer_requests(mut stream: tokio_rustls::server::TlsStream<TcpStream>) {
    let shown = stream.get_ref().1.peer_certificates();
    let shown = shown.map_or(&[][..], |chain| &chain[0]).to_vec();
    let mut request = vec![0; 4096];
    while let Ok(1..) = stream.read(&mut request).await {
        if request.starts_with(b"GET") {
            stream.write_all(ONE_EVENT.as_bytes()).await.unwrap();
            continue;
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            shown.len()
        );
        stream
            .write_all(&[head.as_bytes(), &shown].concat())
            .await
            .unwrap();
    }
}

const ONE_EVENT: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                         Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
