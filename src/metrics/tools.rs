//! The names of tools as labels: few, and none that only a client knows.

use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};

use prometheus::Histogram;

use super::labels::ERRORS;
use crate::mcp::OTHER;

/// The handles of one operation, by how it ended.
pub(super) type Operation = [OnceLock<Histogram>; ERRORS.len()];

/// The tools that are told apart: the first so many that were called with success.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) most: usize,
    known: RwLock<HashMap<String, Operation>>,
    others: Operation,
}

impl Tools {
    /// None yet, and at most so many.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            known: RwLock::default(),
            others: [const { OnceLock::new() }; _],
        }
    }

    /// Gives `observe` the label and the handles of `tool`. Beyond the cap all share one label. So
    /// does a name that no server can have, and one that has only failed: a client may make those
    /// up.
    pub(super) fn with(&self, tool: &str, error: &str, observe: impl Fn(&str, &Operation)) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = known.get(tool) {
            return observe(tool, slots);
        }
        let may_join = known.len() < self.most && error.is_empty() && is_tool_name(tool);
        drop(known);
        if may_join {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            // Others may have come between the two locks.
            if known.contains_key(tool) || known.len() < self.most {
                let slots = known.entry(tool.to_owned());
                return observe(tool, slots.or_insert([const { OnceLock::new() }; _]));
            }
        }
        observe(OTHER, &self.others);
    }
}

/// MCP 2025-11-25, Tool Names.
fn is_tool_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(is_plain)
}
