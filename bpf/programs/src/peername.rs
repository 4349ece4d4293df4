//! `getpeername4`, `getpeername6`: shows an application whom it really talks to, though the ztunnel
//! stands between. `accept`, `accept4` and `getpeername` all pass here.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use sluice_abi::{
    Addr,
    maps::{ACCEPTED, Tuple},
};

use crate::{
    ctx, dns,
    maps::{CLIENT, CLIENT_PENDING, ORIG_DST, storage_get},
};

const PROCEED: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn sluice_peername4(context: SockAddrContext) -> i32 {
    let shown = ctx::user_addr4(context.sock_addr);
    match real_peer(&context, &shown) {
        // An IPv4 socket cannot show an IPv6 peer.
        Some(peer) if peer.ip.is_v4() => ctx::set_user_addr4(context.sock_addr, &peer),
        _ => {}
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn sluice_peername6(context: SockAddrContext) -> i32 {
    let shown = ctx::user_addr6(context.sock_addr);
    if let Some(peer) = real_peer(&context, &shown) {
        ctx::set_user_addr6(context.sock_addr, &peer);
    }
    PROCEED
}

#[inline(always)]
fn real_peer(context: &SockAddrContext, shown: &Addr) -> Option<Addr> {
    // SAFETY: the context's own socket.
    let sk = unsafe { (*context.sock_addr).__bindgen_anon_1.sk };
    if let Some(orig) = storage_get(&ORIG_DST, sk)
        && orig.end != ACCEPTED
    {
        return Some(orig.dst);
    }
    if let Some(server) = dns::server(context, shown) {
        return Some(server);
    }
    if let Some(client) = storage_get(&CLIENT, sk) {
        return Some(client);
    }
    // accept(2) may run before PASSIVE_ESTABLISHED has moved the entry to the socket.
    // SAFETY: the helper takes the context itself; the map's values are only copied.
    unsafe {
        let netns = bpf_get_netns_cookie(context.as_ptr());
        let key = Tuple {
            netns,
            ip: shown.ip,
            port: shown.port,
            pad: 0,
        };
        CLIENT_PENDING.get(&key).copied()
    }
}
