//! The harness that builds nodes and pods out of network namespaces and cgroups, and the tests
//! that use it. `cargo xtask demo` and `cargo xtask bench` stand on the same pieces.
//!
//! A harness is a [`Run`]: it has a short unique id, a directory that lists what it made, and
//! removes all of it at the end. What a crashed run left behind is removed by the next one
//! ([`cleanup::sweep`]), so several runs live side by side: tests while a demo is up.
//!
//! ```text
//! Run ─ Topology ─┬─ Wire       a bridge between the nodes; the control plane runs here
//!                 ├─ Node a ─┬─ Pod shop/web
//!                 │          └─ Pod legacy/web
//!                 └─ Node b ─── Pod shop/catalog
//!       Mesh      control process + a ztunnel per node + the directory of YAML they obey
//! ```

pub mod access_log;
pub mod binaries;
pub mod capture;
pub mod cgroup;
pub mod cleanup;
pub mod config;
pub mod eventually;
pub mod http;
pub mod kept;
pub mod mesh;
pub mod netns;
pub mod objects;
pub mod outcome;
pub mod place;
pub mod podtool;
pub mod process;
pub mod run;
pub mod samples;
pub mod scenario;
pub mod settle;
pub mod sluicectl;
pub mod topology;
pub mod ztunnel;

pub use eventually::{eventually, eventually_within};
pub use mesh::Mesh;
pub use run::Run;
pub use topology::{Node, Pod, PodSpec, Topology, Wire};
