//! Processes of the control plane's own host, known by what the kernel says of them.

use std::collections::BTreeSet;

use sluice_model::Name;

use super::Refusal;

/// Which local users may call, and for which node.
#[derive(Clone, Debug)]
pub struct PeerCredentials {
    /// The node that the host is.
    pub node: Name,
    pub uids: BTreeSet<u32>,
}

impl PeerCredentials {
    pub(super) fn node_of(&self, uid: u32) -> Result<Name, Refusal> {
        if self.uids.contains(&uid) {
            Ok(self.node.clone())
        } else {
            Err(Refusal(format!("uid {uid} is not among those admitted")))
        }
    }
}
