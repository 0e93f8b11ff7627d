//! Pingora by itself, which only forwards: what the load bench measures pingora-mcp against.
//!
//! ```text
//! bare_proxy PLAIN TLS CERTIFICATE KEY BACKEND    two addresses to listen on, two files, an address
//! ```

use std::error::Error;
use std::net::SocketAddr;

use async_trait::async_trait;
use mimalloc::MiMalloc;
use pingora_core::Result;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [plain, tls, certificate, key, backend] = &arguments[..] else {
        return Err("usage: bare_proxy PLAIN TLS CERTIFICATE KEY BACKEND".into());
    };
    let backend = backend.parse()?;
    // One thread by default. The pool is as large as the others', the runtime is pingora-mcp's.
    let conf = ServerConf {
        upstream_keepalive_pool_size: 1024,
        work_stealing: false,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, BareProxy { backend });
    service.add_tcp(plain);
    let mut settings = TlsSettings::intermediate(certificate, key)?;
    settings.enable_h2();
    service.add_tls_with_settings(tls, None, settings);
    server.add_service(service);
    server.run_forever();
}

struct BareProxy {
    backend: SocketAddr,
}

#[async_trait]
impl ProxyHttp for BareProxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.backend, false, String::new())))
    }
}
