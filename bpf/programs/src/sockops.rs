//! `sockops`, on the pods' cgroup and on the broker's: carries what a socket stands for from the
//! connecting end to the accepted one, and reports connections.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::sock_ops,
    programs::SockOpsContext,
};
use sluice_abi::{
    Addr,
    event::{Event, Kind},
    maps::{ACCEPTED, CAPTURED, OrigDst, Tuple},
    verdict::Reason,
};

use crate::{
    ctx::{self, read},
    events,
    maps::{
        CLIENT, CLIENT_PENDING, ORIG_DST, ORIG_PENDING, PODS, PROXY, count, storage_get,
        storage_set,
    },
};

#[sock_ops]
pub fn sluice_sockops(context: SockOpsContext) -> u32 {
    let ops = context.ops;
    match read!((*ops).op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&context),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => report_open(&context, Kind::Active),
        BPF_SOCK_OPS_STATE_CB => report_close(&context),
        _ => {}
    }
    1
}

#[inline(always)]
fn socket(ops: *mut bpf_sock_ops) -> *mut bpf_sock {
    // SAFETY: the context's own socket.
    unsafe { (*ops).__bindgen_anon_2.sk }
}

#[inline(always)]
fn netns(context: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context itself.
    unsafe { bpf_get_netns_cookie(context.as_ptr()) }
}

#[inline(always)]
fn tuple(context: &SockOpsContext, end: &Addr) -> Tuple {
    Tuple {
        netns: netns(context),
        ip: end.ip,
        port: end.port,
        pad: 0,
    }
}

/// The source port is chosen and the SYN not yet sent: whoever accepts will find the entry.
#[inline(always)]
fn connecting(context: &SockOpsContext) {
    let ops = context.ops;
    let sk = socket(ops);
    let (local, _) = ctx::ends(ops);
    if let Some(orig) = storage_get(&ORIG_DST, sk)
        && orig.end == CAPTURED
    {
        if ORIG_PENDING
            .insert(&tuple(context, &local), &orig.dst, 0)
            .is_err()
        {
            count(Reason::PendingFull);
        }
    } else if storage_get(&PROXY, sk).is_some()
        && let Some(client) = storage_get(&CLIENT, sk)
        && CLIENT_PENDING
            .insert(&tuple(context, &local), &client, 0)
            .is_err()
    {
        count(Reason::PendingFull);
    }
}

#[inline(always)]
fn accepted(context: &SockOpsContext) {
    let ops = context.ops;
    let sk = socket(ops);
    let (_, remote) = ctx::ends(ops);
    let key = tuple(context, &remote);
    // SAFETY, for both maps: values are only copied.
    if let Some(dst) = unsafe { ORIG_PENDING.get(&key) }.copied() {
        if storage_set(&ORIG_DST, sk, &OrigDst { dst, end: ACCEPTED }) {
            let _ = ORIG_PENDING.remove(&key);
        } else {
            count(Reason::OrphanAccept);
        }
    } else if let Some(client) = unsafe { CLIENT_PENDING.get(&key) }.copied()
        && storage_set(&CLIENT, sk, &client)
    {
        let _ = CLIENT_PENDING.remove(&key);
    }
    report_open(context, Kind::Passive);
}

#[inline(always)]
fn report_open(context: &SockOpsContext, kind: Kind) {
    if !events::enabled() {
        return;
    }
    let netns = netns(context);
    // SAFETY: values are only looked at.
    if unsafe { PODS.get(&netns) }.is_none() {
        return;
    }
    let _ = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    report(context, netns, kind);
}

#[inline(always)]
fn report_close(context: &SockOpsContext) {
    // The second argument of the callback is the state that the socket enters.
    if context.arg(1) == BPF_TCP_CLOSE {
        report(context, netns(context), Kind::Close);
    }
}

#[inline(always)]
fn report(context: &SockOpsContext, netns: u64, kind: Kind) {
    let ops = context.ops;
    let (local, remote) = ctx::ends(ops);
    events::emit(&Event {
        time: 0,
        netns,
        // SAFETY: the helper takes the context itself.
        socket: unsafe { bpf_get_socket_cookie(context.as_ptr()) },
        bytes_sent: read!((*ops).bytes_acked),
        bytes_received: read!((*ops).bytes_received),
        local,
        remote,
        kind: kind as u32,
        reason: 0,
        // The kernel keeps eighths of a microsecond.
        srtt: read!((*ops).srtt_us) >> 3,
        retransmits: read!((*ops).total_retrans),
    });
}
