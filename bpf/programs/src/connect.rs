//! `connect4`, `connect6`: captures outbound connections of enrolled pods.

use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use sluice_abi::{
    Addr,
    event::{Event, Kind},
    maps::{CAPTURED, OrigDst, REGISTRY_ONLY},
    verdict::{self, Connect, ConnectVerdict, Reason},
};

use crate::{
    ctx::{self, read},
    events,
    maps::{ORIG_DST, POD_IPS, PODS, PROXY, REGISTRY, count, storage_get, storage_set},
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
    // SAFETY: `sk` is the context's own socket.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    let input = Connect {
        netns,
        protocol: read!((*sa).protocol),
        enrolled: true,
        proxy: storage_get(&PROXY, sk).is_some(),
        destination: dst.ip,
        // SAFETY: as for PODS.
        owner: unsafe { POD_IPS.get(&dst.ip) }.copied().unwrap_or_default(),
        registry_only,
        // SAFETY: only whether there is an entry is asked.
        known: registry_only && unsafe { REGISTRY.get(&dst.ip) }.is_some(),
    };
    let (outcome, reason) = match verdict::connect(&input) {
        ConnectVerdict::NotOurs(reason) => (PROCEED, reason),
        ConnectVerdict::Refuse(reason) => (REFUSE, reason),
        ConnectVerdict::Redirect(to) => {
            if storage_set(&ORIG_DST, sk, &OrigDst { dst, end: CAPTURED }) {
                rewrite(sa, &to);
                (PROCEED, Reason::Captured)
            } else {
                (REFUSE, Reason::NoStorage)
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
