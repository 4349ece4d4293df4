//! Reading and writing the kernel's context structures.
//!
//! Every field is read with `read_volatile`, and all fields before any choice between them: LLVM
//! otherwise merges the branches into one load from a computed context pointer, which the verifier
//! refuses ("dereference of modified ctx ptr").

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock_addr, bpf_sock_ops};
use sluice_abi::{Addr, Ip, verdict::Lookup};

/// `AF_INET`
pub const INET: u32 = 2;

macro_rules! read {
    // SAFETY: a field of the program's own context, which lives as long as the program runs.
    ($field:expr) => {
        unsafe { core::ptr::addr_of!($field).read_volatile() }
    };
}

macro_rules! write {
    // SAFETY: as for `read`; the verifier allows only writable fields.
    ($field:expr, $value:expr) => {
        unsafe { core::ptr::addr_of_mut!($field).write_volatile($value) }
    };
}
pub(crate) use read;

/// `local_port` and the like of `sockops` hold the port in the upper half, in network order.
#[inline(always)]
fn remote_port(word: u32) -> u32 {
    u32::from_be(word) & 0xffff
}

#[inline(always)]
fn pick(v4: bool, word4: u32, words6: [u32; 4]) -> Ip {
    if v4 { Ip::v4(word4) } else { Ip(words6) }
}

/// The IPv4 address and port of a `sock_addr` context.
#[inline(always)]
pub fn user_addr4(sa: *mut bpf_sock_addr) -> Addr {
    Addr {
        ip: Ip::v4(read!((*sa).user_ip4)),
        port: user_port(sa),
    }
}

/// The IPv6 address and port of a `sock_addr` context.
#[inline(always)]
pub fn user_addr6(sa: *mut bpf_sock_addr) -> Addr {
    let ip = Ip([
        read!((*sa).user_ip6[0]),
        read!((*sa).user_ip6[1]),
        read!((*sa).user_ip6[2]),
        read!((*sa).user_ip6[3]),
    ]);
    Addr {
        ip,
        port: user_port(sa),
    }
}

#[inline(always)]
fn user_port(sa: *mut bpf_sock_addr) -> u32 {
    u32::from(u16::from_be(read!((*sa).user_port) as u16))
}

/// Replaces the IPv4 address and port of a `sock_addr` context.
#[inline(always)]
pub fn set_user_addr4(sa: *mut bpf_sock_addr, addr: &Addr) {
    write!((*sa).user_ip4, addr.ip.0[3]);
    write!((*sa).user_port, u32::from((addr.port as u16).to_be()));
}

/// Replaces the IPv6 address and port of a `sock_addr` context.
#[inline(always)]
pub fn set_user_addr6(sa: *mut bpf_sock_addr, addr: &Addr) {
    write!((*sa).user_ip6[0], addr.ip.0[0]);
    write!((*sa).user_ip6[1], addr.ip.0[1]);
    write!((*sa).user_ip6[2], addr.ip.0[2]);
    write!((*sa).user_ip6[3], addr.ip.0[3]);
    write!((*sa).user_port, u32::from((addr.port as u16).to_be()));
}

/// Both ends of a `sockops` context: local, remote.
#[inline(always)]
pub fn ends(ops: *mut bpf_sock_ops) -> (Addr, Addr) {
    let v4 = read!((*ops).family) == INET;
    let (local4, remote4) = (read!((*ops).local_ip4), read!((*ops).remote_ip4));
    let local6 = [
        read!((*ops).local_ip6[0]),
        read!((*ops).local_ip6[1]),
        read!((*ops).local_ip6[2]),
        read!((*ops).local_ip6[3]),
    ];
    let remote6 = [
        read!((*ops).remote_ip6[0]),
        read!((*ops).remote_ip6[1]),
        read!((*ops).remote_ip6[2]),
        read!((*ops).remote_ip6[3]),
    ];
    let local = Addr {
        ip: pick(v4, local4, local6),
        port: read!((*ops).local_port),
    };
    let remote = Addr {
        ip: pick(v4, remote4, remote6),
        port: remote_port(read!((*ops).remote_port)),
    };
    (local, remote)
}

/// What a `sk_lookup` context says, but for whose addresses these are; and the remote end's port.
#[inline(always)]
pub fn lookup(l: *mut bpf_sk_lookup) -> (Lookup, u32) {
    let v4 = read!((*l).family) == INET;
    let (local4, remote4) = (read!((*l).local_ip4), read!((*l).remote_ip4));
    let local6 = [
        read!((*l).local_ip6[0]),
        read!((*l).local_ip6[1]),
        read!((*l).local_ip6[2]),
        read!((*l).local_ip6[3]),
    ];
    let remote6 = [
        read!((*l).remote_ip6[0]),
        read!((*l).remote_ip6[1]),
        read!((*l).remote_ip6[2]),
        read!((*l).remote_ip6[3]),
    ];
    let remote_port = u32::from(u16::from_be(read!((*l).remote_port)));
    let lookup = Lookup {
        protocol: read!((*l).protocol),
        ingress_ifindex: read!((*l).ingress_ifindex),
        local: Addr {
            ip: pick(v4, local4, local6),
            port: read!((*l).local_port),
        },
        remote: pick(v4, remote4, remote6),
        known: false,
        same_pod: false,
        allowed: false,
    };
    (lookup, remote_port)
}
