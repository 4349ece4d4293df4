//! Whether what the kernel does is what it was told: links, programs, maps and their entries are
//! compared with what must be there, and put right.
//!
//! The broker looks every few seconds, since anybody with its privileges can detach a program or delete
//! an entry, and a pod would then be outside the mesh without a sound. Operators look by the same code,
//! through the same pins.

mod check;
mod heal;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

pub use check::check;
pub use heal::Holdings;
use serde::{Deserialize, Serialize};

/// What must be attached, pinned and written, as long as a broker's pods are to be captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub maps: Vec<Pinned>,
    pub programs: Vec<Pinned>,
    pub hooks: Vec<Hook>,
    /// By the cookie of the network namespace.
    pub pods: BTreeMap<u64, ExpectedPod>,
}

/// A map or a program that is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    pub path: PathBuf,
    /// The kernel's number of it.
    pub id: u32,
}

/// A program that is attached to a cgroup by a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    pub link: PathBuf,
    pub program: String,
    pub program_id: u32,
    pub cgroup: PathBuf,
    pub cgroup_id: u64,
}

/// A pod that is enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedPod {
    pub cookie: u64,
    /// The inode of its network namespace.
    pub inode: u64,
    /// Attaches `sk_lookup` in its network namespace.
    pub link: PathBuf,
    /// The id of that program.
    pub program: u32,
    /// Its place among the listeners.
    pub slot: u32,
    /// The flags of its entry in `PODS`.
    pub flags: u32,
    pub ips: Vec<IpAddr>,
}

/// What is looked at. The words are those of the metric's label `check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A map is pinned where the next broker and the worker look for it.
    Map,
    /// A program is pinned.
    Program,
    /// A program is attached to the cgroup that it is for.
    Hook,
    /// `sk_lookup` is attached in a pod's network namespace.
    Netns,
    /// A pod has its entry in `PODS`.
    Pod,
    /// An address of a pod has its entry in `POD_IPS`.
    Address,
    /// A pod's place in `LISTENERS` has its socket.
    Slot,
    /// The ztunnel's listeners in a pod listen.
    Listener,
    /// A pod that ought to be in the mesh is.
    Enrolment,
}

impl Check {
    /// Every check, in the order in which they are made.
    pub const ALL: [Self; 9] = [
        Self::Map,
        Self::Program,
        Self::Hook,
        Self::Netns,
        Self::Pod,
        Self::Address,
        Self::Slot,
        Self::Listener,
        Self::Enrolment,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Program => "program",
            Self::Hook => "hook",
            Self::Netns => "netns",
            Self::Pod => "pod",
            Self::Address => "address",
            Self::Slot => "slot",
            Self::Listener => "listener",
            Self::Enrolment => "enrolment",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a check was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The place in [`Expected::maps`].
    Map(usize),
    /// The place in [`Expected::programs`].
    Program(usize),
    /// The place in [`Expected::hooks`].
    Hook(usize),
    /// The link in the network namespace with this cookie.
    Netns(u64),
    /// The entry of the pod with this cookie.
    Pod(u64),
    Address(u64, IpAddr),
}

impl Subject {
    pub fn check(&self) -> Check {
        match self {
            Self::Map(_) => Check::Map,
            Self::Program(_) => Check::Program,
            Self::Hook(_) => Check::Hook,
            Self::Netns(_) => Check::Netns,
            Self::Pod(_) => Check::Pod,
            Self::Address(..) => Check::Address,
        }
    }

    /// The cookie of the pod that it is about, if it is about one.
    pub fn pod(&self) -> Option<u64> {
        match *self {
            Self::Netns(cookie) | Self::Pod(cookie) | Self::Address(cookie, _) => Some(cookie),
            Self::Map(_) | Self::Program(_) | Self::Hook(_) => None,
        }
    }
}

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Finding {
    pub subject: Subject,
    /// What was looked at, for people, who are told beside it which check it was.
    pub what: String,
    /// How it is not as it must be.
    pub drift: Option<String>,
}

/// What a broker leaves in its run directory for whoever verifies its work: what must be so, and whom
/// it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    pub node: String,
    pub config_dir: PathBuf,
    /// The worker's endpoint for operators, on the node's loopback.
    pub admin: SocketAddr,
    pub pods: Vec<LedgerPod>,
    pub expected: Expected,
    /// What was found of late, the oldest first.
    pub drifts: Vec<Drift>,
}

/// A pod that is enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPod {
    pub namespace: String,
    pub name: String,
    /// The cookie of its network namespace, and the path.
    pub cookie: u64,
    pub netns: PathBuf,
    /// Ports on which the ztunnel must listen in it by TCP.
    pub ports: Vec<u16>,
}

/// Something that was not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// Seconds since the epoch.
    pub at: u64,
    pub check: Check,
    pub what: String,
    /// Why it could not be put right.
    pub failure: Option<String>,
}

impl Ledger {
    /// The file's name in the run directory.
    pub const FILE: &str = "ledger.json";
}
