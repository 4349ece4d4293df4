//! The kernel's decisions, as pure functions.
//!
//! A decision has three outcomes that never share a code: not ours, ours, refused. Each carries the
//! reason, which is also the index of its counter.

use crate::{Addr, Ip, maps, ports};

/// TCP's protocol number.
pub const TCP: u32 = 6;
/// UDP's.
pub const UDP: u32 = 17;

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
    // connect, sendmsg: ours
    /// A DNS query, or a socket for some.
    Query = 18,
    // recvmsg
    /// The application's socket behind a DNS query is gone, or it was not captured.
    OrphanQuery = 19,
    // connect: ours, and let go
    /// Straight to another pod of the node, as policy allows.
    Direct = 20,
    // sk_lookup: ours, and let in
    /// Straight from another pod of the node.
    FromNeighbour = 21,
    // connect: let go, and accounted for
    /// Straight to what the mesh does not know.
    Outside = 22,
}

/// How many counters there are; 0 is unused.
pub const REASONS: u32 = 23;

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
        Self::Query,
        Self::OrphanQuery,
        Self::Direct,
        Self::FromNeighbour,
        Self::Outside,
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
            Self::Query => "query",
            Self::OrphanQuery => "orphan_query",
            Self::Direct => "direct",
            Self::FromNeighbour => "from_neighbour",
            Self::Outside => "outside",
        }
    }
}

/// What is known when an application calls `connect`, or `sendmsg` with an address.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    /// The socket's network namespace cookie.
    pub netns: u64,
    pub protocol: u32,
    pub enrolled: bool,
    /// The socket was created by the broker.
    pub proxy: bool,
    pub destination: Addr,
    /// The enrolled pod that owns the destination; `netns` 0 for none.
    pub owner: maps::PodIp,
    /// The pod may go only to what the mesh knows.
    pub registry_only: bool,
    /// What the mesh does not know need not be captured.
    pub bypass: bool,
    /// The mesh knows the destination. Looked up for such pods alone.
    pub known: bool,
    /// The pod's DNS queries are captured.
    pub dns: bool,
    /// Policy allows the pod to go there without the ztunnel.
    pub allowed: bool,
}

/// What to do with a `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectVerdict {
    NotOurs(Reason),
    /// Rewrite the destination to this address; a query's, to the port for its server.
    Redirect(Addr),
    /// Let it go straight to the pod of this node that it is for.
    Direct,
    /// Let it go straight out of the mesh.
    Outside,
    Refuse(Reason),
}

/// Judges a `connect`.
#[inline(always)]
pub fn connect(c: &Connect) -> ConnectVerdict {
    let not_ours = ConnectVerdict::NotOurs;
    if !c.enrolled {
        return not_ours(Reason::NotEnrolled);
    }
    let query = c.is_query();
    if c.protocol != TCP && !query {
        return not_ours(Reason::NotTcp);
    }
    if c.proxy {
        return not_ours(Reason::Proxy);
    }
    // A DNS server of the pod's own is among these: what it asks of others is captured.
    let (own, to) = (
        c.owner.netns != 0 && c.owner.netns == c.netns,
        c.destination.ip,
    );
    if own || to.is_loopback() || to.is_unspecified() {
        return not_ours(Reason::Local);
    }
    // Before link-local ones are let go: a neighbour on the link is outside the mesh as well.
    if c.registry_only && !c.known && !query {
        return ConnectVerdict::Refuse(Reason::NotInRegistry);
    }
    if to.is_link_local6() {
        return not_ours(Reason::LinkLocal);
    }
    if c.allowed && c.protocol == TCP && !c.is_dns() {
        return ConnectVerdict::Direct;
    }
    // A pod that has just been enrolled is known to the node before it is to the mesh.
    let stranger = !c.known && c.owner.netns == 0;
    if c.bypass && stranger && c.protocol == TCP && !c.is_dns() {
        return ConnectVerdict::Outside;
    }
    // An IPv6 socket with an IPv4-mapped destination speaks IPv4, so its loopback is IPv4's.
    let ip = if to.is_v4() {
        Ip::LOOPBACK4
    } else {
        Ip::LOOPBACK6
    };
    let port = if c.is_dns() {
        ports::DNS
    } else {
        ports::OUTBOUND
    };
    ConnectVerdict::Redirect(Addr {
        ip,
        port: port as u32,
    })
}

impl Connect {
    /// Whether it is DNS, by any protocol, of a pod whose queries are captured.
    #[inline(always)]
    fn is_dns(&self) -> bool {
        self.dns && self.destination.port == ports::DOMAIN as u32
    }

    /// Whether it is a DNS query by UDP that is captured if it leaves the pod.
    #[inline(always)]
    pub fn is_query(&self) -> bool {
        self.dns && is_query(self.protocol, &self.destination)
    }
}

/// Whether a datagram to `destination` is a DNS query.
#[inline(always)]
pub fn is_query(protocol: u32, destination: &Addr) -> bool {
    protocol == UDP && destination.port == ports::DOMAIN as u32
}

/// Whether this is where captured connections are sent.
#[inline(always)]
pub fn is_captured(destination: &Addr) -> bool {
    let port = destination.port;
    let ours = port == ports::OUTBOUND as u32 || dns_port(port).is_some();
    ours && destination.ip.is_loopback()
}

/// Which of the ztunnel's ports for DNS queries this is, counted from 0.
#[inline(always)]
pub fn dns_port(port: u32) -> Option<u32> {
    let number = port.wrapping_sub(ports::DNS as u32);
    (number < ports::DNS_PORTS as u32).then_some(number)
}

/// The number of the server that a datagram from `source`, as an application's socket receives it,
/// answers for; `None` when it is not the ztunnel's.
#[inline(always)]
pub fn answered(source: &Addr) -> Option<u32> {
    if source.ip.is_loopback() {
        dns_port(source.port)
    } else {
        None
    }
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
    /// Policy allows the pod at the other end to connect without the ztunnel, and it is that pod.
    pub allowed: bool,
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
    if l.allowed {
        return LookupVerdict::NotOurs(Reason::FromNeighbour);
    }
    LookupVerdict::Steer
}

#[cfg(all(test, feature = "user"))]
#[path = "verdict_tests.rs"]
mod tests;
