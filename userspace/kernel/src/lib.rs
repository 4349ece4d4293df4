//! The kernel half, seen from userspace: loads, attaches, pins and talks to the eBPF programs.
//!
//! The broker owns a [`Kernel`]; the worker, which has no privileges, gets [`SocketMaps`] built from
//! map descriptors that the broker handed over.

mod attach;
mod counters;
mod diag;
mod dump;
mod error;
mod events;
mod flow_stats;
pub mod heap;
mod load;
mod neighbours;
mod netns;
mod pins;
mod pods;
pub mod program;
mod registry;
mod sockets;
mod sys;
pub mod verify;

pub use counters::Counters;
pub use diag::{TcpSocket, TcpSockets};
pub use dump::{Dump, Entry, dump};
pub use error::Error;
pub use events::{EventReader, Events};
pub use flow_stats::FlowCounters;
pub use load::{Config, Kernel};
pub use neighbours::{StraightConnections, Way};
pub use netns::{cookie_of, within};
pub use pins::cleanup;
pub use pods::{Dns, EnrolledPod, PodSpec};
pub use registry::Outbound;
pub use sluice_abi::{
    flows::{FlowPath, FlowStats},
    maps::{MAX_DIALS, MAX_RANGES, MAX_REGISTRY},
    ports,
    verdict::Reason,
};
pub use sockets::{SocketMapFds, SocketMaps};
pub use sys::netns_cookie;
