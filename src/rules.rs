//! What the gateway goes by, and all that a new configuration replaces while requests run.

use crate::cors::CorsPolicy;
use crate::host::HostPolicy;
use crate::limits::{ClientLimits, ClientTimeouts};
use crate::route::RouteTable;
use crate::session::Seals;

/// Where requests may go, who may send them, and what they may take. A request goes by one set of rules from its
/// beginning to its end.
#[derive(Debug)]
pub struct Rules {
    /// The endpoints, and the backends that serve them.
    pub routes: RouteTable,
    /// Which pages may use this server.
    pub cors: CorsPolicy,
    /// Names by which clients may address this server.
    pub hosts: HostPolicy,
    /// How long clients may take.
    pub timeouts: ClientTimeouts,
    /// How much clients may have.
    pub limits: ClientLimits,
    /// What ids are sealed with.
    pub seals: Seals,
}

impl Rules {
    /// Takes over what `former` counts of the routes and backends that both have, and how long a
    /// sealed session lives.
    pub(crate) fn succeed(&mut self, former: &Self) {
        self.routes.succeed(&former.routes);
        self.seals.succeed(&former.seals);
    }
}
