//! Events on the ring buffer, for tracing and flow metrics.

use crate::{Addr, verdict::Reason};

/// States of a TCP connection, by their numbers in the kernel.
pub mod tcp {
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const CLOSE_WAIT: u32 = 8;
    pub const LAST_ACK: u32 = 9;
}

/// What happened.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A `connect` was judged; `local` is unknown, `remote` is what was dialled.
    Connect = 1,
    /// A SYN to an enrolled pod was judged.
    Lookup = 2,
    /// A connection was established by this side.
    Active = 3,
    /// A connection was accepted.
    Passive = 4,
    /// A connection ended; the counters are final.
    Close = 5,
    /// A connection straight to another pod of the node was established by this side.
    DirectOpen = 6,
    /// Such a connection ended, or never came to be; the counters are final.
    DirectClose = 7,
    /// A connection straight out of the mesh was established.
    OutsideOpen = 8,
    /// Such a connection ended, or never came to be; the counters are final.
    OutsideClose = 9,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Connect,
            2 => Self::Lookup,
            3 => Self::Active,
            4 => Self::Passive,
            5 => Self::Close,
            6 => Self::DirectOpen,
            7 => Self::DirectClose,
            8 => Self::OutsideOpen,
            9 => Self::OutsideClose,
            _ => return None,
        })
    }

    /// Whether the counters are final.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Close | Self::DirectClose | Self::OutsideClose)
    }
}

/// One event. What a kind does not have is zero, but for the counters of bytes, which count to an end
/// ([`Kind::is_end`]) and say nothing before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since boot.
    pub time: u64,
    /// The pod's network namespace cookie; 0 in `Lookup`, where the kernel cannot tell.
    pub netns: u64,
    /// The socket's cookie; 0 in `Lookup`.
    pub socket: u64,
    /// What the peer has acknowledged. A client's SYN counts as a byte, and so does a FIN.
    pub bytes_acked: u64,
    /// What has come; the peer's FIN counts as a byte.
    pub bytes_received: u64,
    pub local: Addr,
    pub remote: Addr,
    /// What the application dialled, a service for instance; only where the ztunnel has no part.
    pub dialled: Addr,
    /// The state that a connection ended in, as TCP numbers them; only where the
    /// ztunnel has no part.
    pub state: u32,
    /// [`Kind`].
    pub kind: u32,
    /// [`Reason`] of a verdict, else 0.
    pub reason: u32,
    /// Smoothed round-trip time in microseconds.
    pub srtt: u32,
    pub retransmits: u32,
}

const _: () = assert!(size_of::<Event>() == 120);

impl Event {
    /// The reason of a verdict, if the event holds one.
    pub const fn verdict(&self) -> Option<Reason> {
        Reason::from_u32(self.reason)
    }
}
