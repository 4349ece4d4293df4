//! Loading and attaching the programs.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapInfo, SockMap},
    programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramInfo, SockOps, links::FdLink},
};
use nix::sys::statfs;
use sluice_abi::{Ip, maps};

use crate::{
    Error, EventReader, SocketMapFds,
    counters::COUNTERS,
    events::{self, Events},
    flow_stats::FLOW_STATS,
    neighbours::{ALLOW, Neighbours, ROUTES},
    pins::Pins,
    registry::{RANGES, REGISTRY, Registry},
    sys,
    verify::{Expected, Hook, Pinned},
};

/// Where the programs are attached and pinned.
#[derive(Clone, Debug)]
pub struct Config {
    /// A mounted BPF file system, or a directory of one.
    pub bpffs: PathBuf,
    /// Tells the brokers of one machine apart; letters, digits, `-` and `_`.
    pub instance: String,
    /// The cgroup (v2) that holds every pod of the node.
    pub pods_cgroup: PathBuf,
    /// The cgroup (v2) that the broker itself runs in.
    pub broker_cgroup: PathBuf,
    /// How much the programs log; see [`Config::LOG_OFF`].
    pub log_level: u8,
}

impl Config {
    /// The programs log nothing, and pay nothing for it.
    pub const LOG_OFF: u8 = 0;
    /// The programs log every verdict.
    pub const LOG_DEBUG: u8 = 4;
}

/// The loaded, attached and pinned kernel half. Dropping it detaches everything.
pub struct Kernel {
    pub(crate) ebpf: Ebpf,
    pub(crate) pods: HashMap<MapData, u64, maps::Pod>,
    pub(crate) pod_ips: HashMap<MapData, Ip, maps::PodIp>,
    pub(crate) listeners: SockMap<MapData>,
    pub(crate) registry: Registry,
    pub(crate) neighbours: Neighbours,
    pub(crate) config: Array<MapData, u32>,
    pub(crate) slots: Vec<bool>,
    /// Slots of pods that an earlier broker enrolled; `None` once they have been let go.
    pub(crate) inherited: Option<HashSet<u32>>,
    pub(crate) pins: Pins,
    /// What must be attached and written: see [`crate::verify`].
    pub(crate) expected: Expected,
    /// The id of the program in the pods' network namespaces.
    pub(crate) lookup_program: u32,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("pins", &self.pins)
            .finish_non_exhaustive()
    }
}

/// An aligned home for the object: the ELF reader refuses unaligned bytes.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);
static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sluice.bpf.o")));

/// The maps that outlive a broker: the next one finds connections that were under way. Not among
/// them is what a broker alone stands for, as what may go straight from pod to pod.
const PINNED: [&str; 14] = [
    "PODS",
    "POD_IPS",
    "LISTENERS",
    REGISTRY,
    RANGES,
    COUNTERS,
    FLOW_STATS,
    "ORIG_PENDING",
    "CLIENT_PENDING",
    "ASKED",
    "SERVERS",
    "ORIG_DST",
    "CLIENT",
    "PROXY",
];

const CAPTURE: [&str; 8] = [
    "sluice_connect4",
    "sluice_connect6",
    "sluice_sendmsg4",
    "sluice_sendmsg6",
    "sluice_recvmsg4",
    "sluice_recvmsg6",
    "sluice_peername4",
    "sluice_peername6",
];
/// On the broker's cgroup: what the worker must know of the queries it receives.
const ASKED: [&str; 2] = ["sluice_asked4", "sluice_asked6"];
const CREATE: &str = "sluice_create";
const SOCKOPS: &str = "sluice_sockops";
pub(crate) const LOOKUP: &str = "sluice_lookup";

impl Kernel {
    /// Loads the programs, attaches them, and takes over from an earlier broker of this instance:
    /// its pods stay captured, though nobody serves them, until [`Self::release_inherited`].
    ///
    /// # Errors
    /// See [`Error`]; nothing but what an earlier broker left stays attached then.
    pub fn load(config: &Config) -> Result<(Self, EventReader), Error> {
        if OBJECT.0.is_empty() {
            return Err(Error::NoPrograms);
        }
        let pins = Pins::create(&config.bpffs, &config.instance)?;
        load_and_attach(config, &pins)
            .and_then(|(ebpf, hooks)| Self::take_over(ebpf, hooks, pins.clone()))
            .inspect_err(|_| pins.abandon())
    }

    fn take_over(
        mut ebpf: Ebpf,
        hooks: Vec<Hook>,
        pins: Pins,
    ) -> Result<(Self, EventReader), Error> {
        let expected = expected(hooks, &pins)?;
        let reader = events::reader(&mut ebpf)?;
        let mut kernel = Self {
            pods: take_map(&mut ebpf, "PODS")?,
            pod_ips: take_map(&mut ebpf, "POD_IPS")?,
            listeners: take_map(&mut ebpf, "LISTENERS")?,
            registry: Registry::new(take_map(&mut ebpf, REGISTRY)?, take_map(&mut ebpf, RANGES)?),
            neighbours: Neighbours {
                allow: take_map(&mut ebpf, ALLOW)?,
                routes: take_map(&mut ebpf, ROUTES)?,
            },
            config: take_map(&mut ebpf, "CONFIG")?,
            slots: vec![false; maps::MAX_PODS as usize],
            inherited: None,
            lookup_program: program_id(&pins, LOOKUP)?,
            ebpf,
            pins,
            expected,
        };
        kernel.inherit();
        Ok((kernel, reader))
    }

    /// Turns events on or off. Off, they cost one map lookup per connection.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_events(&mut self, events: Events) -> Result<(), Error> {
        self.config
            .set(maps::CONFIG_EVENTS, u32::from(events == Events::On), 0)
            .map_err(Error::map("CONFIG"))
    }

    /// Descriptors of the maps that a worker needs, restricted to what it may do with them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn socket_maps(&self) -> Result<SocketMapFds, Error> {
        SocketMapFds::open(&self.pins.maps())
    }

    /// Keeps the slots of an earlier broker's pods from being given to others: until these pods are
    /// let go, the slots name them.
    fn inherit(&mut self) {
        let pods = self.pods.iter().filter_map(Result::ok);
        let ips = self.pod_ips.iter().filter_map(Result::ok);
        let slots: HashSet<u32> = pods
            .map(|(_, pod)| pod.slot)
            .chain(ips.map(|(_, ip)| ip.slot))
            .collect();
        for slot in &slots {
            self.slots[*slot as usize] = true;
        }
        self.inherited = Some(slots);
    }

    /// Lets go of the pods of an earlier broker that have not been enrolled anew, and detaches its
    /// programs. Called when all others have been, so that none is out of the mesh in between.
    ///
    /// # Errors
    /// The kernel's.
    pub fn release_inherited(&mut self) -> Result<(), Error> {
        let Some(slots) = self.inherited.take() else {
            return Ok(());
        };
        let pods = self.pods.iter().filter_map(Result::ok);
        let pods: Vec<u64> = pods
            .filter(|(_, pod)| slots.contains(&pod.slot))
            .map(|(cookie, _)| cookie)
            .collect();
        for cookie in pods {
            self.pods.remove(&cookie).map_err(Error::map("PODS"))?;
        }
        let ips = self.pod_ips.iter().filter_map(Result::ok);
        let ips: Vec<Ip> = ips
            .filter(|(_, owner)| slots.contains(&owner.slot))
            .map(|(ip, _)| ip)
            .collect();
        for ip in ips {
            self.pod_ips.remove(&ip).map_err(Error::map("POD_IPS"))?;
        }
        for slot in slots {
            self.slots[slot as usize] = false;
        }
        self.pins
            .remove_other_generations()
            .map_err(Error::system("remove old pins"))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.inherited.is_some() {
            // It never came to serve anybody, so that an earlier broker's pods stay captured.
            return self.pins.abandon();
        }
        if let Err(error) = self.pins.remove_all() {
            tracing::warn!(%error, "cannot remove the pins; `ztunnel cleanup` does");
        }
    }
}

fn take_map<T: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    let map = ebpf
        .take_map(name)
        .ok_or(Error::Missing { kind: "map", name })?;
    T::try_from(map).map_err(Error::map(name))
}

fn load_and_attach(config: &Config, pins: &Pins) -> Result<(Ebpf, Vec<Hook>), Error> {
    let mut loader = EbpfLoader::new();
    for name in PINNED {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    let mut ebpf = loader
        .override_global(aya_log::LEVEL, &config.log_level, true)
        .load(&OBJECT.0)?;
    let hooks = attach_all(&mut ebpf, config, pins)?;
    Ok((ebpf, hooks))
}

/// What must be pinned and attached as long as the programs are in force.
fn expected(hooks: Vec<Hook>, pins: &Pins) -> Result<Expected, Error> {
    let map = |name| {
        let path = pins.maps().join(name);
        let info = MapInfo::from_pin(&path).map_err(Error::map(name))?;
        Ok(Pinned {
            id: info.id(),
            path,
        })
    };
    let programs = hooks.iter().map(|hook| &*hook.program);
    let programs: BTreeSet<&str> = programs.chain([LOOKUP]).collect();
    let program = |name| {
        Ok(Pinned {
            id: program_id(pins, name)?,
            path: pins.programs().join(name),
        })
    };
    Ok(Expected {
        maps: PINNED.into_iter().map(map).collect::<Result<_, Error>>()?,
        programs: programs
            .into_iter()
            .map(program)
            .collect::<Result<_, Error>>()?,
        hooks,
        pods: BTreeMap::new(),
    })
}

/// The id of a program that is pinned.
fn program_id(pins: &Pins, name: &str) -> Result<u32, Error> {
    let path = pins.programs().join(name);
    match ProgramInfo::from_pin(&path) {
        Ok(info) => Ok(info.id()),
        Err(error) => Err(Error::Pin {
            path,
            source: Box::new(error),
        }),
    }
}

fn attach_all(ebpf: &mut Ebpf, config: &Config, pins: &Pins) -> Result<Vec<Hook>, Error> {
    let mut hooks = Vec::new();
    let pods = Target::open(&config.pods_cgroup, PODS_LABEL)?;
    let broker = Target::open(&config.broker_cgroup, BROKER_LABEL)?;
    // The flag on the ztunnel's sockets comes first, so that capture never meets one without it.
    hooks.push(attach::<CgroupSock>(ebpf, pins, CREATE, &broker)?);
    hooks.push(attach::<SockOps>(ebpf, pins, SOCKOPS, &pods)?);
    // A program runs for each cgroup on the way to the root; once is enough.
    if !broker.path.starts_with(&pods.path) {
        hooks.push(attach::<SockOps>(ebpf, pins, SOCKOPS, &broker)?);
    }
    // Before queries are captured.
    for name in ASKED {
        hooks.push(attach::<CgroupSockAddr>(ebpf, pins, name, &broker)?);
    }
    for name in CAPTURE {
        hooks.push(attach::<CgroupSockAddr>(ebpf, pins, name, &pods)?);
    }
    let lookup: &mut aya::programs::SkLookup = program(ebpf, LOOKUP)?;
    lookup.load().map_err(|e| Error::Program {
        name: LOOKUP,
        source: Box::new(e),
    })?;
    pin_program(ebpf, pins, LOOKUP)?;
    Ok(hooks)
}

/// Attaches the program of a hook once more, in place of what is pinned there.
pub(crate) fn attach_again(ebpf: &mut Ebpf, pins: &Pins, hook: &Hook) -> Result<(), Error> {
    let (name, attach): (_, Attach) = match &*hook.program {
        CREATE => (CREATE, attach::<CgroupSock>),
        SOCKOPS => (SOCKOPS, attach::<SockOps>),
        other => match CAPTURE.into_iter().chain(ASKED).find(|name| *name == other) {
            Some(name) => (name, attach::<CgroupSockAddr>),
            None => return Ok(()),
        },
    };
    let label = if hook.link == link_path(pins, name, PODS_LABEL) {
        PODS_LABEL
    } else {
        BROKER_LABEL
    };
    attach(ebpf, pins, name, &Target::open(&hook.cgroup, label)?).map(drop)
}

type Attach = fn(&mut Ebpf, &Pins, &'static str, &Target) -> Result<Hook, Error>;

const PODS_LABEL: &str = "pods";
const BROKER_LABEL: &str = "broker";

fn link_path(pins: &Pins, program: &str, label: &str) -> PathBuf {
    pins.link(&format!("{program}-{label}"))
}

/// A cgroup to attach to.
struct Target {
    path: PathBuf,
    label: &'static str,
    dir: File,
}

impl Target {
    fn open(path: &Path, label: &'static str) -> Result<Self, Error> {
        let failed = |source| Error::Cgroup {
            label,
            path: path.to_owned(),
            source,
        };
        let path = fs::canonicalize(path).map_err(failed)?;
        let dir = File::open(&path).map_err(failed)?;
        let is_cgroup = statfs::fstatfs(&dir)
            .is_ok_and(|fs| fs.filesystem_type() == statfs::CGROUP2_SUPER_MAGIC);
        if !is_cgroup {
            return Err(Error::NoCgroup(path));
        }
        Ok(Self { path, label, dir })
    }
}

/// A kind of program that attaches to a cgroup.
trait CgroupProgram: Sized {
    fn of(program: &mut aya::programs::Program) -> Option<&mut Self>;
    fn load_once(&mut self) -> Result<(), aya::programs::ProgramError>;
    fn attach_link(&mut self, cgroup: &File) -> Result<FdLink, aya::programs::ProgramError>;
}

macro_rules! cgroup_program {
    ($type:ty) => {
        impl CgroupProgram for $type {
            fn of(program: &mut aya::programs::Program) -> Option<&mut Self> {
                program.try_into().ok()
            }

            fn load_once(&mut self) -> Result<(), aya::programs::ProgramError> {
                match self.load() {
                    Err(aya::programs::ProgramError::AlreadyLoaded) => Ok(()),
                    other => other,
                }
            }

            fn attach_link(
                &mut self,
                cgroup: &File,
            ) -> Result<FdLink, aya::programs::ProgramError> {
                // For links the kernel takes this for "beside others", the only mode there is.
                let id = self.attach(cgroup, CgroupAttachMode::Single)?;
                let link = self.take_link(id)?;
                link.try_into()
                    .map_err(|_| aya::programs::ProgramError::NotAttached)
            }
        }
    };
}
cgroup_program!(CgroupSock);
cgroup_program!(CgroupSockAddr);
cgroup_program!(SockOps);

fn attach<P: CgroupProgram>(
    ebpf: &mut Ebpf,
    pins: &Pins,
    name: &'static str,
    target: &Target,
) -> Result<Hook, Error> {
    let missing = || Error::Missing {
        kind: "program",
        name,
    };
    let program = P::of(ebpf.program_mut(name).ok_or_else(missing)?).ok_or_else(missing)?;
    program.load_once().map_err(|e| Error::Program {
        name,
        source: Box::new(e),
    })?;
    let link = program
        .attach_link(&target.dir)
        .map_err(|source| Error::Attach {
            name,
            target: target.path.display().to_string(),
            source: Box::new(source),
        })?;
    let path = link_path(pins, name, target.label);
    pin_link(link, &path)?;
    pin_program(ebpf, pins, name)?;
    Ok(Hook {
        link: path,
        program: name.to_owned(),
        program_id: program_id(pins, name)?,
        cgroup: target.path.clone(),
        cgroup_id: sys::inode(&target.dir).map_err(Error::system("look at a cgroup"))?,
    })
}

/// Pins a link; from here on its file is what keeps it attached. What was pinned there is detached
/// only then, so that there is no gap.
pub(crate) fn pin_link(link: FdLink, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Pin {
        path: path.to_owned(),
        source,
    };
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("-new");
    let fresh = PathBuf::from(fresh);
    // Left by one that failed half-way.
    let _ = fs::remove_file(&fresh);
    link.pin(&fresh).map_err(|e| failed(Box::new(e)))?;
    fs::rename(&fresh, path).map_err(|e| failed(Box::new(e)))
}

/// Pins a program once more, by its name.
pub(crate) fn pin_again(ebpf: &mut Ebpf, pins: &Pins, wanted: &str) -> Result<(), Error> {
    let mut all = CAPTURE
        .into_iter()
        .chain(ASKED)
        .chain([CREATE, SOCKOPS, LOOKUP]);
    match all.find(|name| *name == wanted) {
        Some(name) => pin_program(ebpf, pins, name),
        None => Ok(()),
    }
}

fn pin_program(ebpf: &mut Ebpf, pins: &Pins, name: &'static str) -> Result<(), Error> {
    let path = pins.programs().join(name);
    // An earlier broker's program, or the same one attached twice.
    let _ = fs::remove_file(&path);
    let program = ebpf.program_mut(name).ok_or(Error::Missing {
        kind: "program",
        name,
    })?;
    program.pin(&path).map_err(|e| Error::Pin {
        path,
        source: Box::new(e),
    })
}

pub(crate) fn program<'e, P>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut P, Error>
where
    &'e mut P: TryFrom<&'e mut aya::programs::Program>,
{
    let missing = || Error::Missing {
        kind: "program",
        name,
    };
    ebpf.program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|_| missing())
}
