//! The event ring.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use sluice_abi::{event::Event, maps::CONFIG_EVENTS, verdict::Reason};

use crate::maps::{CONFIG, EVENTS, count};

/// Whether somebody wants events.
#[inline(always)]
pub fn enabled() -> bool {
    CONFIG.get(CONFIG_EVENTS).copied().unwrap_or(0) != 0
}

/// Writes an event with the time of now. A full ring loses it, counted.
#[inline(always)]
pub fn emit(event: &Event) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            // SAFETY: no arguments, no effects.
            let time = unsafe { bpf_ktime_get_ns() };
            entry.write(Event { time, ..*event });
            entry.submit(0);
        }
        None => count(Reason::EventLost),
    }
}
