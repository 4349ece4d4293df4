//! Kubernetes and Istio objects read from YAML, with the place of every error.
//!
//! A directory of YAML stands in for a cluster: it holds the same objects. They are parsed once,
//! here, into types that cannot be wrong. Whatever is wrong is a [`Diagnostic`] that names file,
//! line, object and field; the last good version of that object stays in force, and everything
//! else is applied.

mod code;
mod decode;
pub mod diagnostic;
pub mod directory;
pub mod enrolment;
mod error;
pub mod kinds;
mod memory;
mod objects;
pub mod origin;
mod outline;
mod read;
mod relations;
mod report;
pub mod scan;
pub mod stamp;
mod stand_in;
pub mod store;
mod yaml;

pub use code::{Code, UnknownCode};
pub use diagnostic::{Diagnostic, ObjectRef, Severity};
pub use directory::Directory;
pub use error::Error;
pub use kinds::{
    AuthorizationPolicy, EndpointSlice, Kind, Labels, MeshConfig, Namespace, Node, OutboundPolicy,
    PeerAuthentication, Pod, Service, ServiceAccount, ServiceEntry, Sidecar, WorkloadEntry,
};
pub use memory::{LastGood, Memory};
pub use objects::{Key, Objects};
pub use origin::{Located, Origin};
pub use store::{Snapshot, Store};
