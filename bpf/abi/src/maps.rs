//! Keys and values of the maps, by the map's name in `programs/src/maps.rs`.

use crate::{Addr, Ip};

/// How many pods one node can enrol, and so how many slots `LISTENERS` has.
pub const MAX_PODS: u32 = 4096;
/// How many addresses all enrolled pods of a node can have together.
pub const MAX_POD_ADDRESSES: u32 = 4 * MAX_PODS;
/// How many connections can be between `connect` and `accept` at one time on a node.
pub const MAX_PENDING: u32 = 65_536;
/// How many addresses `REGISTRY` holds. Where the mesh knows more, the worker enforces alone.
pub const MAX_REGISTRY: u32 = 262_144;
/// Bytes of the event ring.
pub const EVENTS_BYTES: u32 = 1 << 20;

/// `PODS`: network namespace cookie → an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its listener's index in `LISTENERS`.
    pub slot: u32,
    /// [`REGISTRY_ONLY`] or 0.
    pub flags: u32,
}

/// A flag of [`Pod`]: it may connect only to addresses in `REGISTRY`.
pub const REGISTRY_ONLY: u32 = 1;

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

/// `CONFIG` index: whether events are written to the ring (0 or 1).
pub const CONFIG_EVENTS: u32 = 0;
/// How many words `CONFIG` has.
pub const CONFIG_LEN: u32 = 4;

const _: () = {
    assert!(size_of::<Pod>() == 8);
    assert!(size_of::<PodIp>() == 16);
    assert!(size_of::<Tuple>() == 32);
    assert!(size_of::<OrigDst>() == 24);
};

/// Marks the layouts as safe to copy from and to the kernel.
#[cfg(feature = "user")]
mod user {
    use super::{OrigDst, Pod, PodIp, Tuple};
    use crate::{Addr, Ip};

    // SAFETY, for each: `repr(C)`, only integers, no implicit padding (asserted sizes above), and
    // every bit pattern is a value.
    unsafe impl aya::Pod for Ip {}
    unsafe impl aya::Pod for Addr {}
    unsafe impl aya::Pod for Pod {}
    unsafe impl aya::Pod for PodIp {}
    unsafe impl aya::Pod for Tuple {}
    unsafe impl aya::Pod for OrigDst {}
}
