//! The kernel's decisions, as pure functions.
//!
//! A decision has three outcomes that never share a code: not ours, ours, refused. Each carries the
//! reason, which is also the index of its counter.

use crate::{Addr, Ip, maps, ports};

/// TCP's protocol number.
pub const TCP: u32 = 6;

/// Why a verdict came out as it did; also the index into the `COUNTERS` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    // connect: not ours
    NotEnrolled = 1,
    NotTcp = 2,
    /// The socket is the ztunnel's own.
    Proxy = 3,
    /// The destination is the pod itself.
    Local = 4,
    LinkLocal = 5,
    // connect: ours
    Captured = 6,
    // connect: refused
    /// The original destination could not be stored: a redirected connection would be lost.
    NoStorage = 7,
    // sk_lookup: not ours
    /// From the pod itself.
    FromSelf = 8,
    /// A tunnel from a peer.
    Tunnel = 9,
    LookupNotTcp = 10,
    // sk_lookup: ours
    Steered = 11,
    // sk_lookup: refused
    /// An address of the pod that enrolment does not know (yet).
    UnknownAddress = 12,
    /// No listener behind the pod's slot.
    NoListener = 13,
    // sockops
    /// The pending original destination could not be stored.
    PendingFull = 14,
    /// An accepted connection on the ztunnel's side has no original destination.
    OrphanAccept = 15,
    // ring
    /// An event did not fit into the ring.
    EventLost = 16,
    // connect: refused
    /// The pod may go only to what the mesh knows, and this is something else.
    NotInRegistry = 17,
}

/// How many counters there are; 0 is unused.
pub const REASONS: u32 = 18;

impl Reason {
    /// Every reason, in order.
    pub const ALL: [Self; REASONS as usize - 1] = [
        Self::NotEnrolled,
        Self::NotTcp,
        Self::Proxy,
        Self::Local,
        Self::LinkLocal,
        Self::Captured,
        Self::NoStorage,
        Self::FromSelf,
        Self::Tunnel,
        Self::LookupNotTcp,
        Self::Steered,
        Self::UnknownAddress,
        Self::NoListener,
        Self::PendingFull,
        Self::OrphanAccept,
        Self::EventLost,
        Self::NotInRegistry,
    ];

    /// The reason with this number, if there is one.
    pub const fn from_u32(number: u32) -> Option<Self> {
        if number == 0 || number >= REASONS {
            return None;
        }
        Some(Self::ALL[number as usize - 1])
    }

    /// The label under which it is counted and shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotEnrolled => "not_enrolled",
            Self::NotTcp => "not_tcp",
            Self::Proxy => "proxy",
            Self::Local => "local",
            Self::LinkLocal => "link_local",
            Self::Captured => "captured",
            Self::NoStorage => "no_storage",
            Self::FromSelf => "from_self",
            Self::Tunnel => "tunnel",
            Self::LookupNotTcp => "lookup_not_tcp",
            Self::Steered => "steered",
            Self::UnknownAddress => "unknown_address",
            Self::NoListener => "no_listener",
            Self::PendingFull => "pending_full",
            Self::OrphanAccept => "orphan_accept",
            Self::EventLost => "event_lost",
            Self::NotInRegistry => "not_in_registry",
        }
    }
}

/// What is known when an application calls `connect`.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    /// The socket's network namespace cookie.
    pub netns: u64,
    pub protocol: u32,
    pub enrolled: bool,
    /// The socket was created by the broker.
    pub proxy: bool,
    pub destination: Ip,
    /// The enrolled pod that owns the destination; `netns` 0 for none.
    pub owner: maps::PodIp,
    /// The pod may go only to what the mesh knows.
    pub registry_only: bool,
    /// The mesh knows the destination. Looked up for such a pod alone.
    pub known: bool,
}

/// What to do with a `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectVerdict {
    NotOurs(Reason),
    /// Rewrite the destination to this address.
    Redirect(Addr),
    Refuse(Reason),
}

/// Judges a `connect`.
#[inline(always)]
pub fn connect(c: &Connect) -> ConnectVerdict {
    let not_ours = ConnectVerdict::NotOurs;
    if !c.enrolled {
        return not_ours(Reason::NotEnrolled);
    }
    if c.protocol != TCP {
        return not_ours(Reason::NotTcp);
    }
    if c.proxy {
        return not_ours(Reason::Proxy);
    }
    let own = c.owner.netns != 0 && c.owner.netns == c.netns;
    if own || c.destination.is_loopback() || c.destination.is_unspecified() {
        return not_ours(Reason::Local);
    }
    // Before link-local ones are let go: a neighbour on the link is outside the mesh as well.
    if c.registry_only && !c.known {
        return ConnectVerdict::Refuse(Reason::NotInRegistry);
    }
    if c.destination.is_link_local6() {
        return not_ours(Reason::LinkLocal);
    }
    // An IPv6 socket with an IPv4-mapped destination speaks IPv4, so its loopback is IPv4's.
    let ip = if c.destination.is_v4() {
        Ip::LOOPBACK4
    } else {
        Ip::LOOPBACK6
    };
    ConnectVerdict::Redirect(Addr {
        ip,
        port: ports::OUTBOUND as u32,
    })
}

/// What is known when a SYN arrives in an enrolled pod's network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    pub protocol: u32,
    pub ingress_ifindex: u32,
    pub local: Addr,
    pub remote: Ip,
    /// The local address belongs to an enrolled pod.
    pub known: bool,
    /// And the remote one to the same pod.
    pub same_pod: bool,
}

/// What to do with an incoming connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupVerdict {
    NotOurs(Reason),
    /// To the ztunnel's listener.
    Steer,
    Refuse(Reason),
}

/// The loopback interface's index, the same in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// Judges an incoming connection to an enrolled pod.
#[inline(always)]
pub fn lookup(l: &Lookup) -> LookupVerdict {
    if l.protocol != TCP {
        return LookupVerdict::NotOurs(Reason::LookupNotTcp);
    }
    // A pod that dials its own address shows its outer interface here, hence the address check. It
    // may dial one of its addresses from another. Without this, what the ztunnel dials in the pod
    // would come back to it, for ever.
    let own_address = l.remote.equals(&l.local.ip) || l.same_pod;
    if l.ingress_ifindex == LOOPBACK_IFINDEX || own_address || l.remote.is_loopback() {
        return LookupVerdict::NotOurs(Reason::FromSelf);
    }
    if l.local.port == ports::HBONE as u32 {
        return LookupVerdict::NotOurs(Reason::Tunnel);
    }
    if !l.known {
        return LookupVerdict::Refuse(Reason::UnknownAddress);
    }
    LookupVerdict::Steer
}

#[cfg(all(test, feature = "user"))]
#[path = "verdict_tests.rs"]
mod tests;
