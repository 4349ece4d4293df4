//! The domain of the mesh: identities, addresses, workloads, services and policies, and the
//! questions that are asked about them.
//!
//! Everything here is pure: no I/O, no clock, no randomness of its own. Values are parsed once, at
//! the edge that read them, and are valid from then on.

pub mod address;
pub mod admission;
pub mod authz;
pub mod balance;
pub mod hosts;
pub mod identity;
mod ips;
pub mod mesh;
mod names;
mod policies;
pub mod route;
pub mod service;
mod vips;
pub mod workload;
mod workloads;

pub use address::{NetworkAddress, NetworkRange, OrigDst};
pub use identity::{SpiffeId, TrustDomain};
pub use ips::Ips;
pub use mesh::{Mesh, Update};
pub use service::{Service, ServiceKey};
pub use workload::{Interner, Uid, Workload};

/// A short, shared, immutable string: a Kubernetes name, namespace or label value.
pub type Name = std::sync::Arc<str>;
