//! `connect4`, `connect6`: captures outbound connections of enrolled pods, and the sockets by which
//! they ask DNS servers. `sendmsg4`, `sendmsg6`: the same for sockets that do not connect.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use sluice_abi::{
    Addr,
    event::{Event, Kind},
    maps::{BYPASS, CAPTURED, CONFIG_KNOWN_UNTIL, DIRECT, DNS, OUTSIDE, OrigDst, REGISTRY_ONLY},
    verdict::{self, Connect, ConnectVerdict, Reason, UDP},
};

use crate::{
    ctx::{self, read},
    events,
    maps::{
        ORIG_DST, POD_IPS, PODS, PROXY, SERVERS, count, in_force, is_known, storage_clear,
        storage_get, storage_set,
    },
    neighbour,
};

/// Lets the system call go on.
const PROCEED: i32 = 1;
/// Fails the system call with `EPERM`.
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn sluice_connect4(context: SockAddrContext) -> i32 {
    capture(
        &context,
        ctx::user_addr4(context.sock_addr),
        ctx::set_user_addr4,
    )
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sluice_sendmsg4(context: SockAddrContext) -> i32 {
    let dst = ctx::user_addr4(context.sock_addr);
    // Datagrams are many, and few of them are queries: the others pay for nothing but this.
    if !verdict::is_query(UDP, &dst) {
        return PROCEED;
    }
    capture(&context, dst, ctx::set_user_addr4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sluice_sendmsg6(context: SockAddrContext) -> i32 {
    let dst = ctx::user_addr6(context.sock_addr);
    if !verdict::is_query(UDP, &dst) {
        return PROCEED;
    }
    capture(&context, dst, ctx::set_user_addr6)
}

#[cgroup_sock_addr(connect6)]
pub fn sluice_connect6(context: SockAddrContext) -> i32 {
    capture(
        &context,
        ctx::user_addr6(context.sock_addr),
        ctx::set_user_addr6,
    )
}

#[inline(always)]
fn capture(
    context: &SockAddrContext,
    dst: Addr,
    rewrite: impl Fn(*mut bpf_sock_addr, &Addr),
) -> i32 {
    let sa = context.sock_addr;
    // SAFETY: the helper takes the context itself.
    let netns = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    // The common case first: nothing else is looked up for a pod that is not enrolled.
    // SAFETY: the map is not written in place; a stale copy is harmless.
    let Some(flags) = unsafe { PODS.get(&netns) }.map(|pod| pod.flags) else {
        count(Reason::NotEnrolled);
        return PROCEED;
    };
    let registry_only = flags & REGISTRY_ONLY != 0;
    let bypass = flags & BYPASS != 0 && in_force(CONFIG_KNOWN_UNTIL);
    // SAFETY: `sk` is the context's own socket.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    let protocol = read!((*sa).protocol);
    // SAFETY: as for PODS.
    let owner = unsafe { POD_IPS.get(&dst.ip) }.copied().unwrap_or_default();
    let is_pod = owner.netns != 0;
    let known = (registry_only || bypass && !is_pod) && is_known(&dst.ip);
    // What neither the node nor the mesh knows leads to no pod of the node.
    let straight = if protocol == verdict::TCP && (known || is_pod || !bypass) {
        neighbour::route(netns, &dst)
    } else {
        None
    };
    let input = Connect {
        netns,
        protocol,
        enrolled: true,
        proxy: storage_get(&PROXY, sk).is_some(),
        destination: dst,
        owner,
        registry_only,
        bypass,
        known,
        dns: flags & DNS != 0,
        allowed: straight.is_some(),
    };
    let (outcome, reason) = match verdict::connect(&input) {
        ConnectVerdict::NotOurs(reason) => {
            // A socket that dialled before and failed is not what it was then. But one that another
            // broker's program has just captured goes to the ztunnel, and is.
            if protocol == verdict::TCP && !verdict::is_captured(&dst) {
                storage_clear(&ORIG_DST, sk);
            }
            (PROCEED, reason)
        }
        ConnectVerdict::Refuse(reason) => (REFUSE, reason),
        ConnectVerdict::Direct => {
            let stored = storage_set(&ORIG_DST, sk, &OrigDst { dst, end: DIRECT });
            match straight {
                Some(to) if stored => {
                    rewrite(sa, &to);
                    (PROCEED, Reason::Direct)
                }
                _ => (REFUSE, Reason::NoStorage),
            }
        }
        // What cannot be accounted for, nor be cut, does not go.
        ConnectVerdict::Outside => {
            if storage_set(&ORIG_DST, sk, &OrigDst { dst, end: OUTSIDE }) {
                (PROCEED, Reason::Outside)
            } else {
                (REFUSE, Reason::NoStorage)
            }
        }
        ConnectVerdict::Redirect(to) => {
            let (stored, ours) = if input.is_query() {
                (ask(sk, to, &dst), Reason::Query)
            } else {
                let stored = storage_set(&ORIG_DST, sk, &OrigDst { dst, end: CAPTURED });
                (stored.then_some(to), Reason::Captured)
            };
            match stored {
                Some(to) => {
                    rewrite(sa, &to);
                    (PROCEED, ours)
                }
                None => (REFUSE, Reason::NoStorage),
            }
        }
    };
    count(reason);
    debug!(
        context,
        "connect: netns {} port {} reason {}", netns, dst.port, reason as u32
    );
    if events::enabled() {
        events::emit(&Event {
            netns,
            // SAFETY: the helper takes the context itself.
            socket: unsafe { bpf_get_socket_cookie(context.as_ptr()) },
            remote: dst,
            kind: Kind::Connect as u32,
            reason: reason as u32,
            ..Event::default()
        });
    }
    outcome
}

/// Stores a DNS server with the socket; returns where its queries go.
#[inline(always)]
fn ask(sk: *mut bpf_sock, to: Addr, server: &Addr) -> Option<Addr> {
    let mut servers = storage_get(&SERVERS, sk).unwrap_or_default();
    let port = to.port + servers.number(server);
    storage_set(&SERVERS, sk, &servers).then_some(Addr { port, ..to })
}
