//! Connections that were let through, to be judged again when something changes.
//!
//! A connection is noted in the same moment in which it is judged, with nothing in between: either
//! it was judged by the newest mesh, or the next review finds it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use sluice_model::{SpiffeId, TrustDomain, Uid, authz::DenyReason};
use tokio::sync::oneshot;

/// What a connection was let through on.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// A visitor of the pod.
    Inbound {
        identity: Option<SpiffeId>,
        source_ip: IpAddr,
        destination: SocketAddr,
    },
    /// The pod visits a workload that has proven its own identity.
    Tunnel {
        destination: Uid,
        identity: SpiffeId,
    },
    /// The pod visits an address in plaintext.
    Plain { destination: SocketAddr },
}

/// Why an established connection was cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    #[error("cut, since policy has changed: {0}")]
    Denied(DenyReason),
    #[error("cut: identities of the trust domain {0} are not accepted any more")]
    Untrusted(TrustDomain),
    #[error("cut: the pod's service account has changed, and with it its identity {0}")]
    OwnIdentity(SpiffeId),
    #[error("cut: {0} is not the destination's identity any more")]
    PeerIdentity(SpiffeId),
    #[error(
        "cut: the mesh does not know {0}, and the workload may now go only where the mesh knows \
         (REGISTRY_ONLY)"
    )]
    NotInRegistry(SocketAddr),
}

/// The connections of one pod on one thread.
#[derive(Debug, Default)]
pub(super) struct Flows {
    entries: RefCell<HashMap<u64, Entry>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Entry {
    claim: Claim,
    cut: oneshot::Sender<Cut>,
}

impl Flows {
    /// Notes a connection until the guard is dropped.
    pub(super) fn note(self: &Rc<Self>, claim: Claim) -> Flow {
        let id = self.next.get();
        self.next.set(id + 1);
        let (cut, is_cut) = oneshot::channel();
        self.entries.borrow_mut().insert(id, Entry { claim, cut });
        Flow {
            flows: self.clone(),
            id,
            is_cut,
        }
    }

    /// Cuts the connections for which `judge` has a reason.
    pub(super) fn review(&self, judge: impl Fn(&Claim) -> Option<Cut>) {
        let mut entries = self.entries.borrow_mut();
        let doomed = entries
            .iter()
            .filter_map(|(id, entry)| Some((*id, judge(&entry.claim)?)));
        let doomed: Vec<(u64, Cut)> = doomed.collect();
        for (id, reason) in doomed {
            if let Some(entry) = entries.remove(&id) {
                // One that is ending by itself needs no reason.
                let _ = entry.cut.send(reason);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }
}

/// A connection that is noted.
#[derive(Debug)]
#[must_use = "the connection is not judged again after this is dropped"]
pub(super) struct Flow {
    flows: Rc<Flows>,
    id: u64,
    is_cut: oneshot::Receiver<Cut>,
}

impl Flow {
    /// Does something for the connection, unless it is cut before that is done.
    pub(super) async fn unless_cut<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Cut> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            Ok(reason) = &mut self.is_cut => Err(reason),
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.flows.entries.borrow_mut().remove(&self.id);
    }
}
