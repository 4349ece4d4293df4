//! `sk_lookup`, one link per enrolled pod's network namespace: steers inbound plaintext, on any
//! port, to the ztunnel.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};
use sluice_abi::{
    Addr,
    event::{Event, Kind},
    maps::PodIp,
    verdict::{self, LookupVerdict, Reason},
};

use crate::{
    ctx::{self, read},
    events,
    maps::{LISTENERS, POD_IPS, count},
    neighbour,
};

/// Lets the lookup go on, with the socket that was assigned, if any.
const PASS: u32 = 1;
/// Answers as if no socket listened: a reset.
const DROP: u32 = 0;

#[sk_lookup]
pub fn sluice_lookup(context: SkLookupContext) -> u32 {
    let (mut input, remote_port) = ctx::lookup(context.lookup);
    // The kernel offers no namespace cookie here; the address names the pod.
    // SAFETY, for both: values are only copied.
    let pod: Option<PodIp> = unsafe { POD_IPS.get(&input.local.ip) }.copied();
    let owner: Option<PodIp> = unsafe { POD_IPS.get(&input.remote) }.copied();
    let remote = Addr {
        ip: input.remote,
        port: remote_port,
    };
    input.known = pod.is_some();
    if let (Some(pod), Some(owner)) = (pod, owner) {
        input.same_pod = pod.netns == owner.netns;
        input.allowed = neighbour::expected(&remote, owner.netns, &input.local);
    }
    let (outcome, reason) = match (verdict::lookup(&input), pod) {
        (LookupVerdict::NotOurs(reason), _) => (PASS, reason),
        (LookupVerdict::Refuse(reason), _) => (DROP, reason),
        (LookupVerdict::Steer, None) => (DROP, Reason::UnknownAddress),
        (LookupVerdict::Steer, Some(pod)) => steer(&context, &pod),
    };
    count(reason);
    if events::enabled() {
        events::emit(&Event {
            local: input.local,
            remote,
            kind: Kind::Lookup as u32,
            reason: reason as u32,
            ..Event::default()
        });
    }
    // LLVM takes a flag that it knows to be true for the 1, and the verifier does not know it.
    read!(outcome) & PASS
}

/// The flags let the kernel choose among the listener's reuseport group: one per worker thread.
#[inline(always)]
fn steer(context: &SkLookupContext, pod: &PodIp) -> (u32, Reason) {
    match LISTENERS.redirect_sk_lookup(context, pod.slot, 0) {
        Ok(()) => (PASS, Reason::Steered),
        Err(_) => (DROP, Reason::NoListener),
    }
}
