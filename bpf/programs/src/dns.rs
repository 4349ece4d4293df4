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
    maps::{Query, Servers},
    verdict::{self, Reason},
};

use crate::{
    ctx::{self, read},
    maps::{ASKED, SERVERS, count, storage_get},
};

/// The only outcome that the kernel allows here.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(recvmsg4)]
pub fn sluice_recvmsg4(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr4(context.sock_addr);
    match server(&context, &from) {
        Some(server) if server.ip.is_v4() => ctx::set_user_addr4(context.sock_addr, &server),
        _ => {}
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sluice_recvmsg6(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr6(context.sock_addr);
    if let Some(server) = server(&context, &from) {
        ctx::set_user_addr6(context.sock_addr, &server);
    }
    PROCEED
}

/// The server that the socket takes `from` for, when that is one of the ztunnel's ports.
#[inline(always)]
pub fn server(context: &SockAddrContext, from: &Addr) -> Option<Addr> {
    let number = verdict::answered(from)?;
    // SAFETY: the context's own socket.
    let sk = unsafe { (*context.sock_addr).__bindgen_anon_1.sk };
    storage_get(&SERVERS, sk)?.get(number)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sluice_asked4(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr4(context.sock_addr);
    if let Some((port, number)) = port(&context) {
        let ipv4 = Tuple4 {
            saddr: Ip::LOOPBACK4.0[3],
            daddr: from.ip.0[3],
            sport: (port as u16).to_be(),
            dport: (from.port as u16).to_be(),
        };
        let tuple = bpf_sock_tuple__bindgen_ty_1 { ipv4 };
        let servers = asking(&context, tuple, size_of::<Tuple4>());
        note(&context, &from, port, servers.and_then(|s| s.get(number)));
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sluice_asked6(context: SockAddrContext) -> i32 {
    let from = ctx::user_addr6(context.sock_addr);
    if let Some((port, number)) = port(&context) {
        let ipv6 = Tuple6 {
            saddr: Ip::LOOPBACK6.0,
            daddr: from.ip.0,
            sport: (port as u16).to_be(),
            dport: (from.port as u16).to_be(),
        };
        let tuple = bpf_sock_tuple__bindgen_ty_1 { ipv6 };
        let servers = asking(&context, tuple, size_of::<Tuple6>());
        note(&context, &from, port, servers.and_then(|s| s.get(number)));
    }
    PROCEED
}

/// The receiving socket's port, if it is one that queries come to, and which of them.
#[inline(always)]
fn port(context: &SockAddrContext) -> Option<(u32, u32)> {
    // SAFETY: the context's own socket.
    let sk = unsafe { (*context.sock_addr).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    let port = read!((*sk).src_port);
    verdict::dns_port(port).map(|number| (port, number))
}

/// Notes which server the socket at `from` asked by this port.
#[inline(always)]
fn note(context: &SockAddrContext, from: &Addr, port: u32, server: Option<Addr>) {
    let key = Query {
        // SAFETY: the helper takes the context itself.
        netns: unsafe { bpf_get_netns_cookie(context.as_ptr()) },
        ip: from.ip,
        port: from.port,
        to: port,
    };
    let noted = match server {
        Some(server) => ASKED.insert(&key, &server, 0).is_ok(),
        None => false,
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
) -> Option<Servers> {
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
        let servers = storage_get(&SERVERS, sk);
        bpf_sk_release(sk.cast());
        servers
    }
}
