//! Keys and values of the maps, by the map's name in `programs/src/maps.rs`.

use crate::{Addr, Ip, ports};

/// How many pods one node can enrol, and so how many slots `LISTENERS` has.
pub const MAX_PODS: u32 = 4096;
/// How many addresses all enrolled pods of a node can have together.
pub const MAX_POD_ADDRESSES: u32 = 4 * MAX_PODS;
/// How many connections can be between `connect` and `accept` at one time on a node.
pub const MAX_PENDING: u32 = 65_536;
/// How many addresses `REGISTRY` holds. Where the mesh knows more, the worker enforces alone.
pub const MAX_REGISTRY: u32 = 262_144;
/// How many sockets can have DNS queries under way at one time on a node.
pub const MAX_ASKING: u32 = 16_384;
/// Bytes of the event ring.
pub const EVENTS_BYTES: u32 = 1 << 20;

/// `PODS`: network namespace cookie → an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its listener's index in `LISTENERS`.
    pub slot: u32,
    /// [`REGISTRY_ONLY`], [`DNS`].
    pub flags: u32,
}

/// A flag of [`Pod`]: it may connect only to addresses in `REGISTRY`.
pub const REGISTRY_ONLY: u32 = 1;
/// A flag of [`Pod`]: its DNS queries are captured.
pub const DNS: u32 = 2;

/// `POD_IPS`: [`Ip`] → the enrolled pod that owns the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodIp {
    /// The network namespace cookie.
    pub netns: u64,
    /// The pod's listener's index in `LISTENERS`.
    pub slot: u32,
    pub pad: u32,
}

/// `ORIG_PENDING`, `CLIENT_PENDING`: the connecting end of a connection, from SYN to accept.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// The network namespace cookie, since loopback addresses repeat in every namespace.
    pub netns: u64,
    pub ip: Ip,
    /// In host order.
    pub port: u32,
    pub pad: u32,
}

/// `ORIG_DST`: what a captured socket dialled. Written by the kernel only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrigDst {
    pub dst: Addr,
    /// [`CAPTURED`] or [`ACCEPTED`].
    pub end: u32,
}

/// The socket is the application's: its peer's name is shown as what it dialled.
pub const CAPTURED: u32 = 1;
/// The socket is the ztunnel's, accepted from the application's.
pub const ACCEPTED: u32 = 2;

/// `SERVERS`: the DNS servers that an application's socket asks, by the ztunnel's port for each.
/// Written by the kernel only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    pub asked: [Addr; ports::DNS_PORTS as usize],
    /// Which of them is forgotten when there is another.
    pub oldest: u32,
}

impl Servers {
    /// The number of a server, which is new or not.
    #[inline(always)]
    pub fn number(&mut self, server: &Addr) -> u32 {
        // Written out: the verifier has to see that no other is touched.
        if self.asked[0].equals(server) {
            return 0;
        }
        if self.asked[1].equals(server) {
            return 1;
        }
        if self.asked[2].equals(server) {
            return 2;
        }
        match self.oldest {
            0 => {
                self.asked[0] = *server;
                self.oldest = 1;
                0
            }
            1 => {
                self.asked[1] = *server;
                self.oldest = 2;
                1
            }
            _ => {
                self.asked[2] = *server;
                self.oldest = 0;
                2
            }
        }
    }

    /// The server with this number, if there is one.
    #[inline(always)]
    pub fn get(&self, number: u32) -> Option<Addr> {
        let server = match number {
            0 => self.asked[0],
            1 => self.asked[1],
            2 => self.asked[2],
            _ => return None,
        };
        (server.port != 0).then_some(server)
    }
}

/// `ASKED`: a socket that sent a DNS query, and the ztunnel's port that it was sent to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The network namespace cookie.
    pub netns: u64,
    pub ip: Ip,
    /// In host order.
    pub port: u32,
    /// The ztunnel's, in host order.
    pub to: u32,
}

/// `CONFIG` index: whether events are written to the ring (0 or 1).
pub const CONFIG_EVENTS: u32 = 0;
/// How many words `CONFIG` has.
pub const CONFIG_LEN: u32 = 4;

const _: () = {
    assert!(size_of::<Pod>() == 8);
    assert!(size_of::<PodIp>() == 16);
    assert!(size_of::<Tuple>() == 32);
    assert!(size_of::<OrigDst>() == 24);
    assert!(size_of::<Servers>() == 64);
    assert!(size_of::<Query>() == 32);
};

/// Marks the layouts as safe to copy from and to the kernel.
#[cfg(feature = "user")]
mod user {
    use super::{OrigDst, Pod, PodIp, Query, Tuple};
    use crate::{Addr, Ip};

    // SAFETY, for each: `repr(C)`, only integers, no implicit padding (asserted sizes above), and
    // every bit pattern is a value.
    unsafe impl aya::Pod for Ip {}
    unsafe impl aya::Pod for Addr {}
    unsafe impl aya::Pod for Pod {}
    unsafe impl aya::Pod for PodIp {}
    unsafe impl aya::Pod for Tuple {}
    unsafe impl aya::Pod for OrigDst {}
    unsafe impl aya::Pod for Query {}
}
