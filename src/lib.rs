//! An edge proxy for MCP servers, as a library: a plugin for Cloudflare's Pingora.
//!
//! ```text
//!  client  -- its own session id -->  McpProxy  -- the server's session id -->  MCP server
//!          <-- JSON or SSE ---------            <-- chunk by chunk -----------
//! ```

pub mod backend;
pub mod config;
pub mod cors;
pub mod exchange;
pub mod gateway;
pub mod host;
pub mod mcp;
pub mod rejection;
pub mod route;
pub mod session;
pub mod setting;

pub use exchange::Exchange;
