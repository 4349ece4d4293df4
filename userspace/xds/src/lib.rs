//! Delta xDS client: keeps the mesh snapshot in step with a control plane.
//!
//! [`Client::run`] holds one stream and applies what comes, a response at a time. [`View`] is the
//! snapshot as everybody else sees it. What was once learnt stays when the control plane goes away,
//! and what is wrong with a resource stays with that resource.

mod acknowledgement;
mod answers;
mod client;
mod decode;
mod demand;
mod error;
mod node;
mod resource;
mod snapshot;
mod store;
mod traffic;
mod version;
mod view;
mod wire;

pub use client::{Client, Config, OnDemand};
pub use decode::Malformed;
pub use demand::{Key, Needed, Unanswered};
pub use error::Error;
pub use node::Node;
pub use snapshot::{Snapshot, SnapshotError};
pub use traffic::{Responses, Termination, Traffic};
pub use view::{Status, View};
