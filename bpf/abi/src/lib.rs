//! What the eBPF programs and userspace agree on: map keys and values, events, limits, ports, and
//! the verdicts themselves.
//!
//! The verdicts are pure functions, so the kernel's decisions are tested on the host. Layouts are
//! checked at compile time; padding is explicit, since the kernel copies whole values.
#![cfg_attr(not(feature = "user"), no_std)]

pub mod addr;
pub mod event;
pub mod flows;
pub mod maps;
pub mod verdict;

pub use addr::{Addr, Ip};

/// The version of the maps' layout. Maps are pinned below a directory of this name, so programs of
/// another version never read them. Raise it whenever a key, value or event changes.
pub const VERSION: u32 = 5;

/// Ports of the ztunnel inside every enrolled pod's network namespace, and those it looks out for.
pub mod ports {
    /// Captured outbound connections arrive here, on loopback.
    pub const OUTBOUND: u16 = 15001;
    /// Captured inbound plaintext arrives here, steered by `sk_lookup`.
    pub const INBOUND_PLAINTEXT: u16 = 15006;
    /// HBONE tunnels from peers arrive here, unredirected.
    pub const HBONE: u16 = 15008;
    /// Captured DNS queries arrive here, on loopback: by TCP on this port, by UDP also on the ports
    /// after it, since each server that a socket asks has a port of its own.
    pub const DNS: u16 = 15053;
    /// How many such ports there are: as many servers as resolvers use.
    pub const DNS_PORTS: u16 = 3;
    /// Where applications send DNS queries.
    pub const DOMAIN: u16 = 53;
    /// SOCKS5, which other ztunnels serve (wire contract §1).
    const SOCKS5: u16 = 15080;

    /// Whether a port of a pod would lead back to a proxy (wire contract §1).
    pub const fn is_own(port: u16) -> bool {
        matches!(port, OUTBOUND | INBOUND_PLAINTEXT | HBONE | SOCKS5)
    }
}
