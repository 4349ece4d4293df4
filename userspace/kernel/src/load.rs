//! Loading the programs and their maps, and what an earlier broker left of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapInfo, SockMap},
};
use sluice_abi::{Ip, maps};

use crate::{
    Error, EventReader, SocketMapFds, TcpSockets,
    attach::{self, LOOKUP, program_id},
    counters::COUNTERS,
    events::{self, Events},
    flow_stats::FLOW_STATS,
    neighbours::{ALLOW, Neighbours, ROUTES},
    pins::Pins,
    registry::{RANGES, REGISTRY, Registry},
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
    PROXY,
];

const PROXY: &str = "PROXY";

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

    /// Lists TCP sockets, the ztunnel's own among them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn tcp_sockets(&self) -> Result<TcpSockets, Error> {
        let path = self.pins.maps().join(PROXY);
        TcpSockets::open(&path).map_err(Error::system(format!("open {}", path.display())))
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
    let hooks = attach::attach_all(&mut ebpf, pins, &config.pods_cgroup, &config.broker_cgroup)?;
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
