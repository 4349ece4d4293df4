//! Connections that were let through, to be judged again when something changes.
//!
//! A connection is noted in the same moment in which it is judged, with nothing in between: either
//! it was judged by the newest mesh, or the next review finds it.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use slotmap::{SlotMap, SparseSecondaryMap, new_key_type};
use sluice_hbone::{AbortHandle, Meter};
use sluice_identity::{Distrust, Peer};
use sluice_model::{SpiffeId, TrustDomain, Uid, authz::DenyReason};
use sluice_xds::Needed;

use super::{address::Address, live::Live};

/// What a connection was let through on.
#[derive(Clone, Debug)]
pub(super) enum Claim {
    /// A tunnel to the pod, with or without streams.
    Served(Rc<Peer>),
    /// A visitor of the pod: in a tunnel, or in plaintext.
    Inbound {
        peer: Option<Rc<Peer>>,
        source: Address,
        destination: Address,
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
    #[error("cut: this ztunnel has been stopped")]
    Stopped,
}

new_key_type! {
    /// A connection among those of its pod.
    struct FlowId;
}

/// The connections of one pod on one thread.
#[derive(Debug, Default)]
pub(super) struct Flows {
    entries: RefCell<SlotMap<FlowId, Entry>>,
    /// Those that a task carries, without a tunnel.
    joined: RefCell<SparseSecondaryMap<FlowId, Rc<Live>>>,
}

#[derive(Debug)]
struct Entry {
    claim: Claim,
    state: State,
}

/// Each connection under way holds one, and most of them idle.
const _: () = assert!(size_of::<Entry>() <= 112);

/// Who is told when a connection is cut.
#[derive(Debug)]
enum State {
    /// Nobody waits for that yet.
    Noted,
    /// A task.
    Served(Waker),
    /// The engine, which gives it up then.
    Carried(AbortHandle),
    /// It was cut. In a box, since nearly every connection ends without.
    Cut(Box<Cut>),
}

impl Entry {
    fn cut(&mut self, reason: Cut) {
        match std::mem::replace(&mut self.state, State::Cut(Box::new(reason))) {
            State::Noted | State::Cut(_) => {}
            State::Served(waker) => waker.wake(),
            State::Carried(handle) => handle.abort(),
        }
    }

    fn is_cut(&self) -> bool {
        matches!(self.state, State::Cut(_))
    }
}

impl Flows {
    /// Notes a connection until the guard is dropped. If trust has changed since the handshake, it
    /// is cut at once.
    pub(super) fn note(self: &Rc<Self>, claim: Claim) -> Flow {
        let state = match claim.distrust() {
            Some(reason) => State::Cut(Box::new(reason)),
            None => State::Noted,
        };
        Flow {
            id: self.entries.borrow_mut().insert(Entry { claim, state }),
            flows: self.clone(),
            _needed: Needs::default(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Cuts the connections for which `judge` has a reason.
    pub(super) fn review(&self, judge: impl Fn(&Claim) -> Option<Cut>) {
        let mut entries = self.entries.borrow_mut();
        for entry in entries.values_mut().filter(|entry| !entry.is_cut()) {
            if let Some(reason) = judge(&entry.claim) {
                entry.cut(reason);
            }
        }
    }

    /// Shows what is under way, and how many bytes it has carried, once it does.
    pub(super) fn for_each(&self, mut show: impl FnMut(&Claim, Option<Meter>)) {
        let (entries, joined) = (self.entries.borrow(), self.joined.borrow());
        for (id, entry) in entries.iter().filter(|(_, entry)| !entry.is_cut()) {
            let meter = match &entry.state {
                State::Carried(handle) => handle.so_far(),
                _ => joined.get(id).map(|live| live.meter().clone()),
            };
            show(&entry.claim, meter);
        }
    }

    /// Counts what was carried until now, without a tunnel; the engine has what is in tunnels.
    pub(super) fn count_joined(&self) {
        self.joined.borrow().values().for_each(|live| live.count());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }
}

/// What a connection needs to stay known: whom it goes to, and who is on the way there.
pub(super) type Needs = [Needed; 2];

/// A connection that is noted.
#[derive(Debug)]
#[must_use = "the connection is not judged again after this is dropped"]
pub(super) struct Flow {
    flows: Rc<Flows>,
    id: FlowId,
    _needed: Needs,
}

impl Flow {
    /// Keeps names of the mesh known for as long as the connection lasts.
    pub(super) fn needing(mut self, needed: Needs) -> Self {
        self._needed = needed;
        self
    }

    /// From now on the engine carries the connection. A cut is known by [`Self::cut`] at the end of
    /// that, which comes then.
    pub(super) fn carried(&self, handle: AbortHandle) {
        if let Some(entry) = self.flows.entries.borrow_mut().get_mut(self.id) {
            match &mut entry.state {
                State::Cut(_) => handle.abort(),
                state => *state = State::Carried(handle),
            }
        }
    }

    /// From now on a task carries the connection, without a tunnel.
    pub(super) fn joined(self, live: Rc<Live>) -> Self {
        self.flows.joined.borrow_mut().insert(self.id, live);
        self
    }

    /// Why it was cut, if that is so.
    pub(super) fn cut(&self) -> Option<Box<Cut>> {
        let mut entries = self.flows.entries.borrow_mut();
        if !entries.get(self.id)?.is_cut() {
            return None;
        }
        match entries.remove(self.id)?.state {
            State::Cut(reason) => Some(reason),
            _ => None,
        }
    }

    fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<Box<Cut>> {
        if let Some(reason) = self.cut() {
            return Poll::Ready(reason);
        }
        if let Some(entry) = self.flows.entries.borrow_mut().get_mut(self.id) {
            entry.state = State::Served(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Does something for the connection, unless it is cut before that is done. A cut is what is
    /// reported, also when its tunnel ends with it. The work stays where it is, so that there is room
    /// for it once in whatever waits here.
    pub(super) async fn unless_cut<T>(
        &self,
        work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Box<Cut>> {
        tokio::select! {
            biased;
            reason = poll_fn(|cx| self.poll_cut(cx)) => Err(reason),
            done = work => Ok(done),
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.flows.entries.borrow_mut().remove(self.id);
        self.flows.joined.borrow_mut().remove(self.id);
    }
}
