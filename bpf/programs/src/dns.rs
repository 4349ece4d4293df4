//! `recvmsg4`, `recvmsg6`: answers to captured DNS queries.
//!
//! On the pods' cgroup they show an application the server that it asked. On the broker's they tell
//! the worker which server that was: a datagram carries nothing of it, and the port of a socket that
//! connects is not chosen yet when capture sees it, so the socket is looked up from its query.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CURRENT_NETNS, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_lookup_udp, bpf_sk_release},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use sluice_abi::{
    Addr, Ip,
    maps::{ASKING, OrigDst, Tuple},
    ports,
    verdict::{self, Reason},
};

use crate::{
    ctx::{self, read},
    maps::{ASKED, ORIG_DST, count, storage_get},
};

/// The only outcome that the kernel allows here.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(recvmsg4)]
pub fn sluice_recvmsg4(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr4(context.sock_addr);
    match server_asked(&context, &from) {
        Some(server) if server.ip.is_v4() => ctx::set_user_addr4(context.sock_addr, &server),
        _ => {}
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sluice_recvmsg6(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr6(context.sock_addr);
    if let Some(server) = server_asked(&context, &from) {
        ctx::set_user_addr6(context.sock_addr, &server);
    }
    PROCEED
}

#[inline(always)]
fn server_asked(context: &SockAddrContext, from: &Addr) -> Option<Addr> {
    if !verdict::is_answer(from) {
        return None;
    }
    // SAFETY: the context's own socket.
    let sk = unsafe { (*context.sock_addr).__bindgen_anon_1.sk };
    storage_get(&ORIG_DST, sk)
        .filter(|orig| orig.end == ASKING)
        .map(|orig| orig.dst)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sluice_asked4(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr4(context.sock_addr);
    if is_query(&context) {
        let ipv4 = Tuple4 {
            saddr: Ip::LOOPBACK4.0[3],
            daddr: from.ip.0[3],
            sport: ports::DNS.to_be(),
            dport: (from.port as u16).to_be(),
        };
        let size = size_of::<Tuple4>();
        note(&context, &from, bpf_sock_tuple__bindgen_ty_1 { ipv4 }, size);
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sluice_asked6(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr6(context.sock_addr);
    if is_query(&context) {
        let ipv6 = Tuple6 {
            saddr: Ip::LOOPBACK6.0,
            daddr: from.ip.0,
            sport: ports::DNS.to_be(),
            dport: (from.port as u16).to_be(),
        };
        let size = size_of::<Tuple6>();
        note(&context, &from, bpf_sock_tuple__bindgen_ty_1 { ipv6 }, size);
    }
    PROCEED
}

/// Whether the receiving socket is the one that queries come to.
#[inline(always)]
fn is_query(context: &SockAddrContext) -> bool {
    // SAFETY: the context's own socket.
    let sk = unsafe { (*context.sock_addr).__bindgen_anon_1.sk };
    !sk.is_null() && read!((*sk).src_port) == ports::DNS as u32
}

/// Notes which server the socket at `from` asked.
#[inline(always)]
fn note(
    context: &SockAddrContext,
    from: &Addr,
    tuple: bpf_sock_tuple__bindgen_ty_1,
    size: usize,
) {
    let key = Tuple {
        // SAFETY: the helper takes the context itself.
        netns: unsafe { bpf_get_netns_cookie(context.as_ptr()) },
        ip: from.ip,
        port: from.port,
        pad: 0,
    };
    let noted = match asking(context, tuple, size) {
        Some(OrigDst { dst, end: ASKING }) => ASKED.insert(&key, &dst, 0).is_ok(),
        _ => false,
    };
    if !noted {
        // What another socket of this port asked is not what this one did.
        let _ = ASKED.remove(&key);
        count(Reason::OrphanQuery);
    }
}

/// What is stored with the socket that `tuple` leads to.
#[inline(always)]
fn asking(
    context: &SockAddrContext,
    tuple: bpf_sock_tuple__bindgen_ty_1,
    size: usize,
) -> Option<OrigDst> {
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: tuple,
    };
    let current = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: the tuple is as large as said, and the socket is released once, unless it is null.
    unsafe {
        let sk = bpf_sk_lookup_udp(context.as_ptr(), &mut tuple, size as u32, current, 0);
        if sk.is_null() {
            return None;
        }
        let orig = storage_get(&ORIG_DST, sk);
        bpf_sk_release(sk.cast());
        orig
    }
}
