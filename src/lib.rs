//! An edge proxy for MCP servers, as a library: a plugin for Cloudflare's Pingora.
//!
//! ```text
//!  client  -- its own session id -->  McpProxy  -- the server's session id -->  MCP server
//!          <-- JSON or SSE ---------            <-- chunk by chunk -----------
//! ```
//!
//! Two ways to use it: [`McpProxy`] whole, as here, or a `ProxyHttp` of your own that keeps an
//! [`Exchange`] in its context and calls the five functions of the [`Gateway`].
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::Arc;
//!
//! use pingora_mcp::{Settings, server};
//!
//! let yaml = "
//! mcp:
//!   listeners:
//!     - address: 127.0.0.1:8080
//!   routes:
//!     - path: /mcp
//!       backends:
//!         - name: local
//!           url: http://127.0.0.1:3000/mcp
//! ";
//! let Settings { server: conf, mcp, .. } = Settings::parse("edge.yaml", yaml, HashMap::new())?;
//! let listeners = mcp.listeners.clone();
//! // A service for `pingora_core::server::Server::add_service`.
//! let service = server::proxy_service(&Arc::new(conf), server::gateway(mcp), &listeners);
//! # let _ = service;
//! # Ok::<(), pingora_mcp::ConfigError>(())
//! ```

pub mod backend;
pub mod backend_watch;
pub mod compatibility;
pub mod config;
pub mod connections;
pub mod cors;
pub mod discovery;
pub mod drain;
pub mod early_signals;
pub mod exchange;
mod fields;
pub mod gateway;
mod handover;
mod headers;
pub mod host;
pub mod limits;
mod lines;
pub mod listener;
pub mod load;
#[doc(hidden)] // The log of the binary, which is one for the process.
pub mod logging;
pub mod mcp;
pub mod message;
pub mod metrics;
pub mod observe;
pub mod policy;
pub mod proxy;
pub mod reaper;
pub mod rejection;
pub mod reload;
pub mod route;
pub mod rules;
pub mod server;
pub mod session;
pub mod setting;
pub mod start;
pub mod stream_watch;
pub mod streams;
pub mod tls;

pub use config::{Config, ConfigError, Settings};
pub use exchange::{Connection, Exchange, SessionOutcome};
pub use gateway::{Admission, Gateway};
pub use load::Load;
pub use proxy::McpProxy;
pub use rejection::Rejection;
pub use rules::Rules;
