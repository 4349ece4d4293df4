//! Connections that were let through, to be judged again when something changes.
//!
//! A connection is noted in the same moment in which it is judged, with nothing in between: either
//! it was judged by the newest mesh, or the next review finds it.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use slotmap::{Key as _, SlotMap, new_key_type};
use sluice_identity::{Distrust, Peer};
use sluice_model::{SpiffeId, TrustDomain, Uid, authz::DenyReason};
use sluice_xds::Needed;
use tokio::sync::oneshot;

/// What a connection was let through on.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// A tunnel to the pod, with or without streams.
    Served(Rc<Peer>),
    /// A visitor of the pod: in a tunnel, or in plaintext.
    Inbound {
        peer: Option<Rc<Peer>>,
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// The pod visits a workload, through a tunnel.
    Tunnel {
        /// `None` when the peer has not proven the workload's own identity, but its service's.
        destination: Option<Uid>,
        peer: Rc<Peer>,
        way: Way,
    },
    /// The pod visits an address in plaintext.
    Plain(Way),
}

/// Between which addresses a pod's own connection goes. Every connection has one, so it is small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    source: Address,
    dialled: Address,
    to: Address,
}

impl Way {
    /// What the application dialled is `dialled`, and what was dialled for it is `to`.
    pub(super) fn new(source: SocketAddr, dialled: SocketAddr, to: SocketAddr) -> Self {
        Self {
            source: source.into(),
            dialled: dialled.into(),
            to: to.into(),
        }
    }

    pub(super) fn source(&self) -> SocketAddr {
        self.source.into()
    }

    pub(super) fn dialled(&self) -> SocketAddr {
        self.dialled.into()
    }

    pub(super) fn to(&self) -> SocketAddr {
        self.to.into()
    }
}

/// An address without what only IPv6 sockets of the link have.
#[derive(Clone, Copy, Debug)]
struct Address {
    ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            port: address.port(),
        }
    }
}

impl From<Address> for SocketAddr {
    fn from(Address { ip, port }: Address) -> Self {
        Self::new(ip, port)
    }
}

impl Claim {
    /// Whose certificate it rests on.
    pub(super) fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Served(peer) | Self::Tunnel { peer, .. } => Some(peer),
            Self::Inbound { peer, .. } => peer.as_deref(),
            Self::Plain(_) => None,
        }
    }

    /// Why the peer is not believed any more, if that is so.
    pub(super) fn distrust(&self) -> Option<Cut> {
        self.peer()?.standing().err().map(Cut::Distrusted)
    }
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
    #[error("cut: {0}")]
    Distrusted(Distrust),
    #[error(
        "cut: the mesh does not know {0}, and the workload may now go only where the mesh knows \
         (REGISTRY_ONLY)"
    )]
    NotInRegistry(SocketAddr),
    #[error("cut: what goes to {0} may not go straight from pod to pod any more")]
    NotStraight(SocketAddr),
}

new_key_type! {
    /// A connection among those of its pod; none, when it was cut at once.
    struct FlowId;
}

/// The connections of one pod on one thread.
#[derive(Debug, Default)]
pub(super) struct Flows {
    entries: RefCell<SlotMap<FlowId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    claim: Claim,
    /// In a box, since nearly every connection ends without.
    cut: oneshot::Sender<Box<Cut>>,
}

impl Flows {
    /// Notes a connection until the guard is dropped. If trust has changed since the handshake, it
    /// is cut at once.
    pub(super) fn note(self: &Rc<Self>, claim: Claim) -> Flow {
        let (cut, is_cut) = oneshot::channel();
        let id = match claim.distrust() {
            Some(reason) => {
                // The receiver is below.
                let _ = cut.send(Box::new(reason));
                FlowId::null()
            }
            None => self.entries.borrow_mut().insert(Entry { claim, cut }),
        };
        Flow {
            flows: self.clone(),
            id,
            is_cut,
            needed: Vec::new(),
        }
    }

    /// Cuts the connections for which `judge` has a reason.
    pub(super) fn review(&self, judge: impl Fn(&Claim) -> Option<Cut>) {
        let mut entries = self.entries.borrow_mut();
        let doomed = entries
            .iter()
            .filter_map(|(id, entry)| Some((id, judge(&entry.claim)?)));
        let doomed: Vec<(FlowId, Cut)> = doomed.collect();
        for (id, reason) in doomed {
            if let Some(entry) = entries.remove(id) {
                // One that is ending by itself needs no reason.
                let _ = entry.cut.send(Box::new(reason));
            }
        }
    }

    /// Shows what is under way.
    pub(super) fn for_each(&self, show: impl FnMut(&Claim)) {
        let entries = self.entries.borrow();
        entries.values().map(|entry| &entry.claim).for_each(show);
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
    id: FlowId,
    is_cut: oneshot::Receiver<Box<Cut>>,
    /// What it needs to stay known.
    needed: Vec<Needed>,
}

impl Flow {
    /// Keeps names of the mesh known for as long as the connection lasts.
    pub(super) fn needing(mut self, needed: Vec<Needed>) -> Self {
        self.needed = needed;
        self
    }

    /// Does something for the connection, unless it is cut before that is done. A cut is what is
    /// reported, also when its tunnel ends with it.
    pub(super) async fn unless_cut<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Box<Cut>> {
        tokio::select! {
            biased;
            Ok(reason) = &mut self.is_cut => Err(reason),
            done = work => Ok(done),
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.flows.entries.borrow_mut().remove(self.id);
    }
}
