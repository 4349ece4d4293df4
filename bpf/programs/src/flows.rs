//! What is counted of connections when they end, whether anybody traces or not.

use aya_ebpf::bindings::bpf_sock_ops;
use sluice_abi::{
    Addr,
    flows::{FlowPath, rtt_bucket},
    maps::{ACCEPTED, CAPTURED, DIRECT, OrigDst},
    ports,
};

use crate::{ctx::read, maps::FLOW_STATS};

/// The way of a connection at an end, if it is counted there.
///
/// `orig` is what the socket's storage holds, `proxy` whether the broker made the socket, and `client`
/// whether the socket stands for somebody else's.
#[inline(always)]
pub fn path(
    orig: Option<OrigDst>,
    proxy: bool,
    client: bool,
    local: &Addr,
    remote: &Addr,
) -> Option<FlowPath> {
    match orig.map(|orig| orig.end) {
        Some(CAPTURED) => return Some(FlowPath::Captured),
        Some(DIRECT) => return Some(FlowPath::Direct),
        // The application's end counts.
        Some(ACCEPTED) => return None,
        Some(_) => return Some(FlowPath::Outside),
        None => {}
    }
    let hbone = u32::from(ports::HBONE);
    if proxy && remote.port == hbone || local.port == hbone {
        return Some(FlowPath::Tunnel);
    }
    if !proxy {
        return None;
    }
    Some(if client {
        FlowPath::Application
    } else {
        FlowPath::Plaintext
    })
}

/// Counts a connection that has ended.
#[inline(always)]
pub fn count(ops: *mut bpf_sock_ops, path: FlowPath) {
    let Some(stats) = FLOW_STATS.get_ptr_mut(path as u32) else {
        return;
    };
    let (sent, received) = (read!((*ops).bytes_acked), read!((*ops).bytes_received));
    let retransmits = u64::from(read!((*ops).total_retrans));
    // The kernel keeps eighths of a microsecond.
    let rtt = read!((*ops).srtt_us) >> 3;
    // SAFETY: the map's value; per CPU, so nobody else writes it now.
    let stats = unsafe { &mut *stats };
    stats.connections += 1;
    stats.sent += sent;
    stats.received += received;
    stats.retransmits += retransmits;
    stats.rtt_sum += u64::from(rtt);
    if let Some(bucket) = stats.rtt.get_mut(rtt_bucket(rtt) as usize) {
        *bucket += 1;
    }
}
