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
/// How many ranges of addresses `RANGES` holds. Where the mesh knows more, the worker enforces alone.
pub const MAX_RANGES: u32 = 65_536;
/// How many sockets can have DNS queries under way at one time on a node.
pub const MAX_ASKING: u32 = 16_384;
/// How many entries `ALLOW` and `ROUTES` have each.
pub const MAX_DIALS: u32 = 16_384;
/// Bytes of the event ring.
pub const EVENTS_BYTES: u32 = 1 << 19;

/// `PODS`: network namespace cookie → an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its listener's index in `LISTENERS`.
    pub slot: u32,
    /// [`REGISTRY_ONLY`], [`DNS`], [`BYPASS`].
    pub flags: u32,
}

/// A flag of [`Pod`]: it may connect only to addresses in `REGISTRY` and `RANGES`.
pub const REGISTRY_ONLY: u32 = 1;
/// A flag of [`Pod`]: its DNS queries are captured.
pub const DNS: u32 = 2;
/// A flag of [`Pod`]: what it dials that is neither in `REGISTRY` nor in `RANGES` is not captured, as
/// long as they are in force.
pub const BYPASS: u32 = 4;

/// `RANGES`: an address, or the beginning of one.
///
/// The family comes first, so that a range of all IPv6 addresses holds no IPv4 ones, which are
/// written as IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// 4 or 6.
    pub family: u32,
    pub ip: Ip,
}

impl Block {
    /// Bits before those of the address.
    const FAMILY_BITS: u32 = 32;
    /// Bits before those of an IPv4 address in its mapped form.
    const MAPPED_BITS: u32 = 96;
    /// Bits of a single address.
    pub const WHOLE: u32 = Self::FAMILY_BITS + 128;

    #[inline(always)]
    pub const fn new(ip: Ip) -> Self {
        let family = if ip.is_v4() { 4 } else { 6 };
        Self { family, ip }
    }

    /// How many bits of it count when it stands for those addresses that share so many with it.
    #[inline(always)]
    pub const fn bits(&self, prefix: u32) -> u32 {
        let before = if self.ip.is_v4() {
            Self::MAPPED_BITS
        } else {
            0
        };
        Self::FAMILY_BITS + before + prefix
    }
}

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
    /// [`CAPTURED`], [`ACCEPTED`], [`DIRECT`] or [`OUTSIDE`].
    pub end: u32,
}

/// The socket is the application's: its peer's name is shown as what it dialled.
pub const CAPTURED: u32 = 1;
/// The socket is the ztunnel's, accepted from the application's.
pub const ACCEPTED: u32 = 2;
/// The socket is the application's, and goes straight to another pod of the node.
pub const DIRECT: u32 = 3;
/// The socket is the application's, and goes straight out of the mesh.
pub const OUTSIDE: u32 = 4;

/// `ALLOW`: what a pod may dial without the ztunnel → the network namespace cookie of the pod that
/// must be there. `ROUTES`: a service that it dials → the pod behind it.
///
/// Routes permit nothing: where they lead is looked up in `ALLOW` like everything else.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dial {
    /// The network namespace cookie of the pod that dials.
    pub netns: u64,
    pub to: Addr,
    pub pad: u32,
}

impl Dial {
    #[inline(always)]
    pub const fn new(netns: u64, to: Addr) -> Self {
        Self { netns, to, pad: 0 }
    }
}

/// `AUTH`: both ends of a connection that goes straight from pod to pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    pub client: Addr,
    pub server: Addr,
}

/// `AUTH`: who is at these ends, from SYN to accept. Cookies name the pods for good, while their
/// addresses may get other owners.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Authorized {
    pub client: u64,
    pub server: u64,
    /// Nanoseconds since boot.
    pub since: u64,
}

/// For how many nanoseconds an entry of `AUTH` counts: a little more than Linux repeats a SYN.
pub const AUTH_AGE: u64 = 150_000_000_000;

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
/// `CONFIG` index: until when, in seconds since boot, `ALLOW` is in force. The broker puts it off
/// again and again, so that nobody is let through on the word of one that is gone.
pub const CONFIG_ALLOW_UNTIL: u32 = 1;
/// `CONFIG` index: until when, in seconds since boot, `REGISTRY` and `RANGES` are all that the mesh
/// knows, so that the rest need not be captured.
pub const CONFIG_KNOWN_UNTIL: u32 = 2;
/// How many words `CONFIG` has.
pub const CONFIG_LEN: u32 = 4;

const _: () = {
    assert!(size_of::<Pod>() == 8);
    assert!(size_of::<Block>() == 20);
    assert!(size_of::<PodIp>() == 16);
    assert!(size_of::<Tuple>() == 32);
    assert!(size_of::<OrigDst>() == 24);
    assert!(size_of::<Dial>() == 32);
    assert!(size_of::<Pair>() == 40);
    assert!(size_of::<Authorized>() == 24);
    assert!(size_of::<Servers>() == 64);
    assert!(size_of::<Query>() == 32);
};

/// Marks the layouts as safe to copy from and to the kernel.
#[cfg(feature = "user")]
mod user {
    use super::{Block, Dial, OrigDst, Pod, PodIp, Query, Tuple};
    use crate::{Addr, Ip};

    // SAFETY, for each: `repr(C)`, only integers, no implicit padding (asserted sizes above), and
    // every bit pattern is a value.
    unsafe impl aya::Pod for Ip {}
    unsafe impl aya::Pod for Addr {}
    unsafe impl aya::Pod for Pod {}
    unsafe impl aya::Pod for PodIp {}
    unsafe impl aya::Pod for Tuple {}
    unsafe impl aya::Pod for Block {}
    unsafe impl aya::Pod for Dial {}
    unsafe impl aya::Pod for OrigDst {}
    unsafe impl aya::Pod for Query {}
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// Whether a range has an address, as the trie compares them: bit by bit from the first.
    fn has(range: &str, prefix: u32, address: &str) -> bool {
        let block = |text: &str| Block::new(text.parse::<IpAddr>().unwrap().into());
        let bytes = |block: &Block| -> Vec<u8> {
            let words = [
                block.family,
                block.ip.0[0],
                block.ip.0[1],
                block.ip.0[2],
                block.ip.0[3],
            ];
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        let range = block(range);
        let (one, other) = (bytes(&range), bytes(&block(address)));
        let bit = |bytes: &[u8], at: u32| bytes[at as usize / 8] >> (7 - at % 8) & 1;
        (0..range.bits(prefix)).all(|at| bit(&one, at) == bit(&other, at))
    }

    #[test]
    fn ranges_have_what_is_in_them_and_nothing_of_the_other_family() {
        assert!(has("10.1.0.0", 16, "10.1.255.3"));
        assert!(!has("10.1.0.0", 16, "10.2.0.3"));
        assert!(has("0.0.0.0", 0, "10.2.0.3"));
        assert!(!has("0.0.0.0", 0, "fd00::1"));
        assert!(has("::", 0, "fd00::1"));
        assert!(!has("::", 0, "10.2.0.3"));
        assert!(has("fd00::", 8, "fd12::1"));
        assert!(!has("fd00::", 16, "fd12::1"));
        assert_eq!(Block::new(Ip::LOOPBACK6).bits(128), Block::WHOLE);
        assert_eq!(Block::new(Ip::LOOPBACK4).bits(32), Block::WHOLE);
    }
}
