//! Whether what the kernel does is what it was told: links, programs, maps and their entries are
//! compared with what must be there, and put right.
//!
//! The broker looks every few seconds, since anybody with its privileges can detach a program or delete
//! an entry, and a pod would then be outside the mesh without a sound. Operators look by the same code,
//! through the same pins.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    maps::{HashMap, Map, MapData, MapError, MapInfo},
    programs::ProgramInfo,
};
use serde::{Deserialize, Serialize};
use sluice_abi::{Ip, maps};

use crate::{
    EnrolledPod, Error, Kernel,
    load::{self, LOOKUP},
    registry::Outbound,
    sys,
};

/// Updates an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

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
    /// What was looked at, for people.
    pub what: String,
    /// How it is not as it must be.
    pub drift: Option<String>,
}

/// Makes every check that can be made through the pins; needs their owner's rights.
pub fn check(expected: &Expected) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |subject, what: String, result: Result<(), String>| {
        findings.push(Finding {
            subject,
            what,
            drift: result.err(),
        });
    };
    for (place, map) in expected.maps.iter().enumerate() {
        let id = MapInfo::from_pin(&map.path).map(|info| info.id());
        let result = pinned(map, id.map_err(|e| map_gone(&e)));
        find(
            Subject::Map(place),
            format!("map {}", name(&map.path)),
            result,
        );
    }
    for (place, program) in expected.programs.iter().enumerate() {
        let id = ProgramInfo::from_pin(&program.path).map(|info| info.id());
        let result = pinned(program, id.map_err(|e| e.to_string()));
        let what = format!("program {}", name(&program.path));
        find(Subject::Program(place), what, result);
    }
    for (place, hook) in expected.hooks.iter().enumerate() {
        let what = format!("{} on {}", hook.program, hook.cgroup.display());
        let result = attached(&hook.link, hook.program_id, hook.cgroup_id);
        find(Subject::Hook(place), what, result);
    }
    let pods = Entries::<u64, maps::Pod>::open(expected, "PODS");
    let ips = Entries::<Ip, maps::PodIp>::open(expected, "POD_IPS");
    for pod in expected.pods.values() {
        let cookie = pod.cookie;
        let what = format!("{LOOKUP} in its network namespace");
        let result = attached(&pod.link, pod.program, pod.inode);
        find(Subject::Netns(cookie), what, result);
        let result = pods.get(&cookie).and_then(|entry| entry_of(pod, entry));
        let what = format!("entry in PODS (cookie {cookie}, slot {})", pod.slot);
        find(Subject::Pod(cookie), what, result);
        for ip in &pod.ips {
            let result = ips
                .get(&(*ip).into())
                .and_then(|owner| owner_of(pod, owner));
            let what = format!("entry of {ip} in POD_IPS");
            find(Subject::Address(cookie, *ip), what, result);
        }
    }
    for cookie in pods.keys().filter(|key| !expected.pods.contains_key(key)) {
        let what = format!("entry in PODS (cookie {cookie})");
        let why =
            "no pod of this node has this network namespace, and whoever is in it is captured";
        find(Subject::Pod(cookie), what, Err(why.to_owned()));
    }
    findings
}

fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn pinned(expected: &Pinned, found: Result<u32, String>) -> Result<(), String> {
    match found {
        Ok(id) if id == expected.id => Ok(()),
        Ok(id) => Err(format!(
            "id {id} is pinned in place of {}: not what this broker uses",
            expected.id
        )),
        Err(error) => Err(format!(
            "not pinned at {}: {error}",
            expected.path.display()
        )),
    }
}

fn map_gone(error: &MapError) -> String {
    match error {
        MapError::SyscallError(error) => error.io_error.to_string(),
        other => other.to_string(),
    }
}

/// Whether a link attaches this program to this target.
fn attached(link: &Path, program: u32, target: u64) -> Result<(), String> {
    match sys::link_info(link) {
        Ok(found) if found.target == 0 => Err("the link is detached: nothing runs here".to_owned()),
        Ok(found) if found.program != program => Err(format!(
            "program {} is attached in place of ours, {program}",
            found.program
        )),
        Ok(found) if found.target != target => Err(format!(
            "attached to another place: {} in place of {target}",
            found.target
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("the link's pin is gone, and the link with it".to_owned())
        }
        Err(error) => Err(format!("the link cannot be looked at: {error}")),
    }
}

fn entry_of(pod: &ExpectedPod, entry: Option<maps::Pod>) -> Result<(), String> {
    let wanted = maps::Pod {
        slot: pod.slot,
        flags: pod.flags,
    };
    match entry {
        None => Err("missing: nothing that the pod dials is captured".to_owned()),
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(format!(
            "slot {} and flags {} ({:?}) in place of slot {} and flags {} ({:?})",
            found.slot,
            found.flags,
            Outbound::of(found.flags),
            wanted.slot,
            wanted.flags,
            Outbound::of(wanted.flags),
        )),
    }
}

fn owner_of(pod: &ExpectedPod, owner: Option<maps::PodIp>) -> Result<(), String> {
    match owner {
        None => Err("missing: what comes for it is refused".to_owned()),
        Some(owner) if owner.netns == pod.cookie && owner.slot == pod.slot => Ok(()),
        Some(owner) => Err(format!(
            "another pod's: cookie {} and slot {}",
            owner.netns, owner.slot
        )),
    }
}

/// A pinned map to look things up in.
struct Entries<K: aya::Pod, V: aya::Pod>(Result<HashMap<MapData, K, V>, String>);

impl<K: aya::Pod, V: aya::Pod> Entries<K, V> {
    fn open(expected: &Expected, wanted: &str) -> Self {
        // The map that the programs use, whatever is pinned by now.
        let found = expected.maps.iter().find(|map| name(&map.path) == wanted);
        let open = || {
            let map = found.ok_or_else(|| format!("no map {wanted} is known"))?;
            MapData::from_id(map.id)
                .and_then(|data| HashMap::try_from(Map::HashMap(data)))
                .map_err(|error| format!("{wanted} cannot be read: {error}"))
        };
        Self(open())
    }

    fn get(&self, key: &K) -> Result<Option<V>, String> {
        match self.0.as_ref().map_err(Clone::clone)?.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn keys(&self) -> impl Iterator<Item = K> {
        let keys = self.0.iter().flat_map(HashMap::keys);
        keys.filter_map(Result::ok)
    }
}

/// What a broker holds for a pod, to put things right with.
#[derive(Clone, Copy, Debug)]
pub struct Holdings<'a> {
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// See [`crate::PodSpec::listener`].
    pub listener: BorrowedFd<'a>,
}

impl Kernel {
    /// What must be so.
    pub fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Looks for what is not as it must be.
    pub fn drift(&self) -> Vec<Finding> {
        let mut findings = check(&self.expected);
        // An earlier broker's pods are let go later.
        let foreign = |finding: &Finding| matches!(finding.subject, Subject::Pod(cookie) if !self.expected.pods.contains_key(&cookie));
        findings.retain(|finding| {
            finding.drift.is_some() && !(self.inherited.is_some() && foreign(finding))
        });
        findings
    }

    /// Puts right what a check has found. `holdings` are those of the pod, where it is about one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn heal(&mut self, subject: &Subject, holdings: Option<Holdings<'_>>) -> Result<(), Error> {
        let pod = subject
            .pod()
            .map(|cookie| (cookie, self.expected.pods.get(&cookie).cloned()));
        match (subject, pod) {
            (Subject::Map(place), _) => {
                let Pinned { path, id } = &self.expected.maps[*place];
                let _ = std::fs::remove_file(path);
                let map = MapData::from_id(*id).map_err(Error::map("a pinned one"))?;
                map.pin(path).map_err(|error| Error::Pin {
                    path: path.clone(),
                    source: Box::new(error),
                })
            }
            (Subject::Program(place), _) => {
                let wanted = name(&self.expected.programs[*place].path).into_owned();
                load::pin_again(&mut self.ebpf, &self.pins, &wanted)
            }
            (Subject::Hook(place), _) => {
                let hook = self.expected.hooks[*place].clone();
                load::attach_again(&mut self.ebpf, &self.pins, &hook)
            }
            (Subject::Netns(cookie), Some((_, Some(pod)))) => match holdings {
                Some(holdings) => self.attach_lookup(holdings.netns, *cookie, &pod.link),
                None => Ok(()),
            },
            (Subject::Pod(cookie), Some((_, Some(pod)))) => {
                let value = maps::Pod {
                    slot: pod.slot,
                    flags: pod.flags,
                };
                self.pods
                    .insert(cookie, value, 0)
                    .map_err(Error::map("PODS"))
            }
            // An entry that stands for no pod.
            (Subject::Pod(cookie), _) => crate::error::removed("PODS", self.pods.remove(cookie)),
            (Subject::Address(cookie, ip), Some((_, Some(pod)))) => {
                let value = maps::PodIp {
                    netns: *cookie,
                    slot: pod.slot,
                    pad: 0,
                };
                let inserted = self.pod_ips.insert(Ip::from(*ip), value, 0);
                inserted.map_err(Error::map("POD_IPS"))
            }
            // The pod has left since.
            (Subject::Netns(_) | Subject::Address(..), _) => Ok(()),
        }
    }

    /// Puts a pod's listener into its place if that is empty; true when it was. Nobody can read who is
    /// in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn refill_slot(
        &mut self,
        pod: &EnrolledPod,
        listener: BorrowedFd<'_>,
    ) -> Result<bool, Error> {
        match self
            .listeners
            .set(pod.slot, &listener.as_raw_fd(), BPF_NOEXIST)
        {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::AlreadyExists =>
            {
                Ok(false)
            }
            Err(error) => Err(Error::map("LISTENERS")(error)),
        }
    }

    /// Steers what comes for a pod to another listener.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_listener(
        &mut self,
        pod: &EnrolledPod,
        listener: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let set = self.listeners.set(pod.slot, &listener.as_raw_fd(), 0);
        set.map_err(Error::map("LISTENERS"))
    }
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
