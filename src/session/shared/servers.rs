//! How connections to the store are made: to one server, to what Sentinels name, to a cluster.

use redis::aio::AsyncPushSender;
use redis::cluster::ClusterClientBuilder;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisResult, TlsCertificates,
    TlsMode,
};
use tokio::fs::read;

use super::link::Connection;
use super::settings::{Login, RedisSettings, Sentinels, ServerUrl, Servers};

impl RedisSettings {
    /// Connects, with what files and names stand for now. What the server sends by itself goes to
    /// `push`.
    pub(super) async fn connect(&self, push: impl AsyncPushSender) -> RedisResult<Connection> {
        let most = self.timeout.0;
        let certificates = self.certificates().await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(most))
            .set_response_timeout(Some(most))
            .set_pipeline_buffer_size(UNDER_WAY)
            .set_concurrency_limit(UNDER_WAY);
        match &self.servers {
            Servers::One(url) => {
                let info = url.address().into_connection_info()?;
                let info = info
                    .set_tcp_settings(tcp())
                    .set_redis_settings(login(&self.login).set_db(url.database()));
                let client = match certificates {
                    Some(certificates) => Client::build_with_tls(info, certificates)?,
                    None => Client::open(info)?,
                };
                let config = config.set_push_sender(push);
                let server = client.get_multiplexed_async_connection_with_config(&config);
                Ok(Connection::Server(server.await?))
            }
            Servers::Sentinel(sentinels) => {
                let mut sentinel = self.sentinel(sentinels, certificates)?;
                let config = config.set_push_sender(push);
                let server = sentinel.get_async_connection_with_config(&config);
                Ok(Connection::Server(server.await?))
            }
            Servers::Cluster(urls) => {
                let nodes: RedisResult<Vec<ConnectionInfo>> = urls
                    .iter()
                    .map(|url| url.address().into_connection_info())
                    .collect();
                let mut cluster = ClusterClientBuilder::new(nodes?)
                    .use_protocol(ProtocolVersion::RESP3)
                    .tcp_settings(tcp())
                    .connection_timeout(most)
                    .response_timeout(most)
                    .overall_response_timeout(Some(most))
                    .connection_concurrency_limit(UNDER_WAY)
                    .push_sender(push);
                if let Some(username) = &self.login.username {
                    cluster = cluster.username(username);
                }
                if let Some(password) = &self.login.password {
                    cluster = cluster.password(password.expose());
                }
                if let Some(certificates) = certificates {
                    cluster = cluster.tls(TlsMode::Secure).certs(certificates);
                }
                let cluster = cluster.build()?.get_async_connection().await?;
                Ok(Connection::Cluster(cluster))
            }
        }
    }

    fn sentinel(
        &self,
        sentinels: &Sentinels,
        certificates: Option<TlsCertificates>,
    ) -> RedisResult<SentinelClient> {
        let mut sentinel = SentinelClientBuilder::new(
            sentinels.urls.iter().map(ServerUrl::address),
            &sentinels.name,
            SentinelServerType::Master,
        )?
        .set_client_to_redis_protocol(ProtocolVersion::RESP3)
        .set_client_to_redis_tcp_settings(tcp());
        if let Some(username) = &self.login.username {
            sentinel = sentinel.set_client_to_redis_username(username);
        }
        if let Some(password) = &self.login.password {
            sentinel = sentinel.set_client_to_redis_password(password.expose());
        }
        if let Some(username) = &sentinels.login.username {
            sentinel = sentinel.set_client_to_sentinel_username(username);
        }
        if let Some(password) = &sentinels.login.password {
            sentinel = sentinel.set_client_to_sentinel_password(password.expose());
        }
        if let Some(certificates) = certificates {
            sentinel = sentinel
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_certificates(certificates);
        }
        sentinel.build()
    }

    /// What the files hold now. `None` without TLS.
    async fn certificates(&self) -> RedisResult<Option<TlsCertificates>> {
        let Some(tls) = &self.tls else {
            return Ok(None);
        };
        let root_cert = match &tls.authorities {
            Some(authorities) => Some(read(authorities).await?),
            None => None,
        };
        let client_tls = match &tls.identity {
            Some((certificate, key)) => Some(ClientTlsConfig {
                client_cert: read(certificate).await?,
                client_key: read(key).await?,
            }),
            None => None,
        };
        Ok(Some(TlsCertificates {
            client_tls,
            root_cert,
        }))
    }
}

impl ServerUrl {
    fn address(&self) -> ConnectionAddr {
        let (host, port) = (self.host().to_owned(), self.port());
        if self.is_tls() {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    }
}

fn login(login: &Login) -> RedisConnectionInfo {
    // What the server sends by itself comes over the same connection.
    let mut info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    if let Some(username) = &login.username {
        info = info.set_username(username);
    }
    if let Some(password) = &login.password {
        info = info.set_password(password.expose());
    }
    info
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// Operations that a connection takes before others wait, for no longer than theirs may take.
const UNDER_WAY: usize = 1024;
