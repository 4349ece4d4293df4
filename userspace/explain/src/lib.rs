//! What would become of a connection, and why: asked of a mesh, without a byte sent.
//!
//! Nothing is decided here. Each step is put to the function that decides it for connections: the
//! kernel's verdict, the route, the judgement at the door of a pod. What this adds is to walk from
//! one to the next, to look at every endpoint that may be chosen, and to say in words what each rule
//! of a policy wants that the connection has not.

mod door;
mod question;
mod walk;
mod who;
mod words;

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};
use sluice_model::{Mesh, Name, Uid};

pub use question::{Destination, NotUnderstood, Source};

/// Where a question is put.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    pub mesh: &'a Mesh,
    /// The name of the cluster, in which pods are looked for first.
    pub cluster: &'a str,
    /// The network that all addresses are part of.
    pub network: &'a Name,
    /// The DNS domain of the cluster's services, in lower case.
    pub cluster_domain: &'a str,
    /// Pods let connections out of the mesh go straight there, in the kernel.
    pub bypass: bool,
    /// The mesh is known whole; otherwise what is unknown may exist.
    pub whole: bool,
    /// What is known of one node beyond what the control plane says of it.
    pub here: Option<Here<'a>>,
}

/// A node, and which of its pods have been enrolled there in fact.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    pub node: &'a str,
    pub enrolled: &'a BTreeSet<Uid>,
}

/// What would become of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// As it was asked.
    pub source: String,
    pub destination: String,
    pub outcome: Outcome,
    /// What decides, in a sentence.
    pub reason: String,
    /// What happens before it is clear where it ends, in order.
    pub steps: Vec<Step>,
    /// Where it may end.
    pub ends: Vec<End>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Allowed,
    Denied,
    /// What is known does not say.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
        })
    }
}

/// One step of the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub step: Kind,
    pub says: String,
}

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Who connects.
    Source,
    /// What the destination stands for.
    Destination,
    /// What the kernel does with `connect`.
    Capture,
    /// Where the ztunnel sends it.
    Route,
    /// By which means it gets there, and who proves what to whom.
    Way,
    /// What else there is to know.
    Note,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Capture => "capture",
            Self::Route => "route",
            Self::Way => "way",
            Self::Note => "note",
        })
    }
}

/// One place where the connection may end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Who is there, for people.
    pub workload: String,
    /// The application's address; absent where only a name is known.
    pub address: Option<SocketAddr>,
    pub outcome: Outcome,
    pub reason: String,
    pub steps: Vec<Step>,
    /// Absent where nobody enforces it.
    pub mtls: Option<Mtls>,
    /// Every policy that applies there, in the order in which they are asked.
    pub policies: Vec<PolicyView>,
}

/// Whether a port takes plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mtls {
    pub mode: Mode,
    pub port: u16,
    /// What says so.
    pub from: String,
}

/// As PeerAuthentication names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    Strict,
    Permissive,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Strict => "STRICT",
            Self::Permissive => "PERMISSIVE",
        })
    }
}

/// A policy, and how near the connection comes to each of its rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// `NAMESPACE/NAME`.
    pub policy: String,
    pub action: String,
    /// For whom it is: workload, namespace or mesh.
    pub scope: String,
    pub dry_run: bool,
    /// Whether it decides.
    pub decides: bool,
    pub rules: Vec<RuleView>,
}

/// A rule, and what it wants that the connection has not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Its index in `spec.rules`.
    pub rule: usize,
    pub matches: bool,
    pub misses: Vec<String>,
}

/// Explains what would become of a connection.
pub fn explain(world: World<'_>, source: &Source, destination: &Destination) -> Explanation {
    walk::explain(world, source, destination)
}
