//! `sockops`, on the pods' cgroup and on the broker's: carries what a socket stands for from the
//! connecting end to the accepted one, and reports connections.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE, BPF_TCP_SYN_SENT, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_setsockopt},
    macros::sock_ops,
    programs::SockOpsContext,
};
use sluice_abi::{
    Addr,
    event::{Event, Kind},
    maps::{ACCEPTED, CAPTURED, DIRECT, OUTSIDE, OrigDst, Tuple},
    ports,
    verdict::Reason,
};

use crate::{
    ctx::{self, read},
    events, flows,
    maps::{
        CLIENT, CLIENT_PENDING, ORIG_DST, ORIG_PENDING, PODS, PROXY, count, storage_get,
        storage_set,
    },
    neighbour,
};

#[sock_ops]
pub fn sluice_sockops(context: SockOpsContext) -> u32 {
    let ops = context.ops;
    match read!((*ops).op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&context),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&context),
        BPF_SOCK_OPS_STATE_CB => changed(&context),
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
    let (local, remote) = ctx::ends(ops);
    let orig = storage_get(&ORIG_DST, sk);
    if let Some(orig) = orig
        && goes_straight(&orig)
    {
        if orig.end == DIRECT {
            neighbour::announce(netns(context), &local, &remote);
        }
        // How it ends is told in any case.
        follow(context);
    } else if let Some(orig) = orig
        && orig.end == CAPTURED
    {
        follow(context);
        unpace(context);
        if ORIG_PENDING
            .insert(&tuple(context, &local), &orig.dst, 0)
            .is_err()
        {
            count(Reason::PendingFull);
        }
    } else if storage_get(&PROXY, sk).is_some() {
        if is_enrolled(context) {
            follow(context);
        }
        if let Some(client) = storage_get(&CLIENT, sk) {
            unpace(context);
            if CLIENT_PENDING
                .insert(&tuple(context, &local), &client, 0)
                .is_err()
            {
                count(Reason::PendingFull);
            }
        }
    }
}

const IPPROTO_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;

/// Spares the leg between an application and the ztunnel what the node's congestion control does
/// for a network: this leg is memory, and a model of its bandwidth with a timer for each packet, as
/// BBR's, halves its throughput. Reno is in every kernel, and allowed in every network namespace.
#[inline(always)]
fn unpace(context: &SockOpsContext) {
    let mut name = *b"reno";
    // SAFETY: the helper takes the context itself, and copies the name.
    let _ = unsafe {
        bpf_setsockopt(
            context.as_ptr(),
            IPPROTO_TCP,
            TCP_CONGESTION,
            name.as_mut_ptr().cast(),
            name.len() as i32,
        )
    };
}

/// Has the socket's end reported.
#[inline(always)]
fn follow(context: &SockOpsContext) {
    let _ = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

#[inline(always)]
fn is_enrolled(context: &SockOpsContext) -> bool {
    // SAFETY: values are only looked at.
    unsafe { PODS.get(&netns(context)) }.is_some()
}

#[inline(always)]
fn accepted(context: &SockOpsContext) {
    let ops = context.ops;
    let sk = socket(ops);
    let (local, remote) = ctx::ends(ops);
    let key = tuple(context, &remote);
    // SAFETY, for both maps: values are only copied.
    if let Some(dst) = unsafe { ORIG_PENDING.get(&key) }.copied() {
        unpace(context);
        if storage_set(&ORIG_DST, sk, &OrigDst { dst, end: ACCEPTED }) {
            let _ = ORIG_PENDING.remove(&key);
        } else {
            count(Reason::OrphanAccept);
        }
    } else if let Some(client) = unsafe { CLIENT_PENDING.get(&key) }.copied() {
        unpace(context);
        if storage_set(&CLIENT, sk, &client) {
            let _ = CLIENT_PENDING.remove(&key);
        }
    } else if local.port == u32::from(ports::HBONE) {
        if is_enrolled(context) {
            follow(context);
        }
    } else {
        neighbour::forget(&remote, &local);
    }
    report_open(context, Kind::Passive);
}

/// Whether the ztunnel has no part in what the socket dialled.
#[inline(always)]
fn goes_straight(orig: &OrigDst) -> bool {
    orig.end == DIRECT || orig.end == OUTSIDE
}

/// What the application dialled, of a socket that goes straight there.
#[inline(always)]
fn dialled(context: &SockOpsContext) -> Option<OrigDst> {
    storage_get(&ORIG_DST, socket(context.ops)).filter(goes_straight)
}

#[inline(always)]
fn connected(context: &SockOpsContext) {
    let Some(orig) = dialled(context) else {
        return report_open(context, Kind::Active);
    };
    let kind = if orig.end == DIRECT {
        Kind::DirectOpen
    } else {
        Kind::OutsideOpen
    };
    report(context, kind, 0, orig.dst);
}

#[inline(always)]
fn report_open(context: &SockOpsContext, kind: Kind) {
    if !events::enabled() {
        return;
    }
    if !is_enrolled(context) {
        return;
    }
    follow(context);
    report(context, kind, 0, Addr::default());
}

/// The arguments of the callback are the state that the socket leaves, and the one that it enters.
#[inline(always)]
fn changed(context: &SockOpsContext) {
    let (before, now) = (context.arg(0), context.arg(1));
    if now != BPF_TCP_CLOSE {
        return;
    }
    if before == BPF_TCP_SYN_SENT {
        withdraw(context);
    } else {
        account(context);
    }
    let Some(orig) = dialled(context) else {
        // A socket whose ends are told of for another reason may have been used again.
        if events::enabled() {
            report(context, Kind::Close, 0, Addr::default());
        }
        return;
    };
    if orig.end == OUTSIDE {
        return report(context, Kind::OutsideClose, before, orig.dst);
    }
    report(context, Kind::DirectClose, before, orig.dst);
}

/// Takes back what [`connecting`] has announced: nobody accepted it, and whoever dials from there
/// next is somebody else.
#[inline(always)]
fn withdraw(context: &SockOpsContext) {
    let sk = socket(context.ops);
    let (local, remote) = ctx::ends(context.ops);
    match storage_get(&ORIG_DST, sk).map(|orig| orig.end) {
        Some(DIRECT) => neighbour::forget(&local, &remote),
        Some(CAPTURED) => _ = ORIG_PENDING.remove(&tuple(context, &local)),
        _ if storage_get(&CLIENT, sk).is_some() => {
            let _ = CLIENT_PENDING.remove(&tuple(context, &local));
        }
        _ => {}
    }
}

/// Counts a connection that has ended.
#[inline(always)]
fn account(context: &SockOpsContext) {
    let ops = context.ops;
    let sk = socket(ops);
    let (local, remote) = ctx::ends(ops);
    let path = flows::path(
        storage_get(&ORIG_DST, sk),
        storage_get(&PROXY, sk).is_some(),
        storage_get(&CLIENT, sk).is_some(),
        &local,
        &remote,
    );
    if let Some(path) = path {
        flows::count(ops, path);
    }
}

#[inline(always)]
fn report(context: &SockOpsContext, kind: Kind, state: u32, dialled: Addr) {
    let ops = context.ops;
    let (local, remote) = ctx::ends(ops);
    events::emit(&Event {
        time: 0,
        netns: netns(context),
        // SAFETY: the helper takes the context itself.
        socket: unsafe { bpf_get_socket_cookie(context.as_ptr()) },
        bytes_acked: read!((*ops).bytes_acked),
        bytes_received: read!((*ops).bytes_received),
        local,
        remote,
        dialled,
        state,
        kind: kind as u32,
        reason: 0,
        // The kernel keeps eighths of a microsecond.
        srtt: read!((*ops).srtt_us) >> 3,
        retransmits: read!((*ops).total_retrans),
    });
}
