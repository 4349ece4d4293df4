//! What is served, encoded once and shared by all clients.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, string},
};
use sluice_model::{Name, NetworkAddress, NetworkRange};
use sluice_proto::{convert::names, discovery, security, workload};

use crate::translate::Translation;

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Type {
    /// Workloads and services.
    Address,
    /// Authorization policies.
    Authorization,
}

impl Type {
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// The type with this URL.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    pub fn url(self) -> &'static str {
        match self {
            Self::Address => workload::TYPE_URL,
            Self::Authorization => security::TYPE_URL,
        }
    }
}

/// Every resource at one moment.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    addresses: Arc<Set>,
    authorizations: Arc<Set>,
}

/// The resources of one type, and how they differ from those before.
#[derive(Debug, Default)]
pub(crate) struct Set {
    pub(crate) by_name: BTreeMap<Name, Arc<Entry>>,
    /// Other names for a resource.
    aliases: HashMap<Name, Name>,
    /// Services that have ranges of addresses, the longest prefix first.
    ranges: Vec<(NetworkRange, Name)>,
    /// The workloads of each service.
    members: HashMap<Name, Vec<Name>>,
    /// Changes when anything in the set does.
    pub(crate) version: String,
    generation: u64,
    /// What is new since the generation before.
    pub(super) changes: Changes,
    /// All of them, encoded when somebody first wants that.
    all: OnceLock<Bytes>,
}

/// What has changed from one generation to the next, made once and sent to everybody.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) resources: Bytes,
    pub(super) removed: Vec<Name>,
}

/// A resource as it is sent.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) version: Version,
    /// The encoded `Resource`, without its aliases.
    wire: Bytes,
    aliases: Box<[Name]>,
}

/// A hash of a resource's content: the same after a restart, so that nothing is sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Version(u128);

/// Fields of the contract's `DeltaDiscoveryResponse` and `Resource`.
const RESOURCES: u32 = 2;
const ALIASES: u32 = 4;

impl Resources {
    /// Encodes what the objects describe.
    pub fn of(translation: &Translation) -> Self {
        Self::default().next(translation)
    }

    /// Encodes what the objects describe now; what has not changed is shared with what was.
    #[must_use]
    pub fn next(&self, translation: &Translation) -> Self {
        let mut addresses = Builder::after(&self.addresses, Type::Address);
        for workload in &translation.workloads {
            let name = &workload.uid.0;
            let address: workload::Address = workload::Workload::from(workload).into();
            // The address of a node does not name a pod.
            let own = workload.ips.iter().filter(|_| !workload.host_network);
            let aliases = own.map(|ip| NetworkAddress::new(workload.network.clone(), *ip));
            addresses.insert(name, &address, aliases);
            for service in workload.services.keys() {
                addresses.member(&service.to_string(), name);
            }
        }
        for service in &translation.services {
            let name: Name = service.key().to_string().into();
            let address: workload::Address = workload::Service::from(service).into();
            addresses.insert(&name, &address, service.vips.iter().cloned());
            let ranges = service.ranges.iter().cloned();
            let ranges = ranges.map(|range| (range, name.clone()));
            addresses.set.ranges.extend(ranges);
        }
        let mut authorizations = Builder::after(&self.authorizations, Type::Authorization);
        for policy in &translation.policies {
            let name: Name = policy.key.to_string().into();
            let message = security::Authorization::from(policy);
            authorizations.insert(&name, &message, []);
        }
        Self {
            addresses: addresses.finish(),
            authorizations: authorizations.finish(),
        }
    }

    /// How many there are, of all types.
    pub fn len(&self) -> usize {
        self.addresses.by_name.len() + self.authorizations.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn set(&self, kind: Type) -> &Arc<Set> {
        match kind {
            Type::Address => &self.addresses,
            Type::Authorization => &self.authorizations,
        }
    }
}

impl Set {
    /// The resource of that name or alias, with its own name.
    pub(crate) fn find(&self, name: &Name) -> Option<(&Name, &Entry)> {
        let alias = self.aliases.get(name);
        let own = alias.or_else(|| self.with_range(name)).unwrap_or(name);
        let (name, entry) = self.by_name.get_key_value(own)?;
        Some((name, entry))
    }

    /// The service in whose range an address is, as `NETWORK/IP`.
    fn with_range(&self, address: &str) -> Option<&Name> {
        if self.ranges.is_empty() {
            return None;
        }
        let (network, ip) = address.split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let mut ranges = self.ranges.iter();
        let found = ranges.find(|(of, _)| *of.network == *network && of.range.contains(&ip));
        found.map(|(_, name)| name)
    }

    /// Whoever asks for a service needs to know its workloads.
    pub(super) fn members(&self, service: &Name) -> impl Iterator<Item = (&Name, &Entry)> {
        let all = self.members.get(service).into_iter().flatten();
        all.filter_map(|name| self.find(name))
    }

    pub(super) fn is_alias(&self, name: &Name) -> bool {
        self.aliases.contains_key(name) || self.with_range(name).is_some()
    }

    /// Whether [`Set::changes`] leads from `other` to this.
    pub(super) fn follows(&self, other: &Self) -> bool {
        self.generation == other.generation + 1
    }

    /// Every resource, encoded for a response.
    pub(super) fn all(&self) -> Bytes {
        let all = self.all.get_or_init(|| {
            let mut batch = BytesMut::new();
            for entry in self.by_name.values() {
                entry.encode(false, &mut batch);
            }
            batch.freeze()
        });
        all.clone()
    }
}

/// The next generation of a set, while it is put together.
struct Builder<'a> {
    kind: Type,
    before: &'a Arc<Set>,
    set: Set,
    changed: BytesMut,
}

impl<'a> Builder<'a> {
    fn after(before: &'a Arc<Set>, kind: Type) -> Self {
        Self {
            kind,
            before,
            set: Set {
                generation: before.generation + 1,
                ..Set::default()
            },
            changed: BytesMut::new(),
        }
    }

    fn insert(
        &mut self,
        name: &Name,
        message: &impl Message,
        aliases: impl IntoIterator<Item = NetworkAddress>,
    ) {
        let value = message.encode_to_vec();
        let version = Version(hash(&value));
        let aliases = aliases.into_iter();
        let aliases: Box<[Name]> = aliases.map(|a| names::alias(&a).into()).collect();
        for alias in &aliases {
            self.set.aliases.insert(alias.clone(), name.clone());
        }
        let before = self.before.by_name.get_key_value(name);
        let same = before.filter(|(_, entry)| entry.version == version && entry.aliases == aliases);
        let (name, entry) = match same {
            Some((name, entry)) => (name.clone(), entry.clone()),
            None => {
                let wire = discovery::Resource {
                    name: name.to_string(),
                    version: version.to_string(),
                    resource: Some(prost_types::Any {
                        type_url: self.kind.url().to_owned(),
                        value,
                    }),
                    ..discovery::Resource::default()
                };
                let entry = Entry {
                    version,
                    wire: wire.encode_to_vec().into(),
                    aliases,
                };
                entry.encode(false, &mut self.changed);
                (name.clone(), Arc::new(entry))
            }
        };
        self.set.by_name.insert(name, entry);
    }

    fn member(&mut self, service: &str, workload: &Name) {
        match self.set.members.get_mut(service) {
            Some(members) => members.push(workload.clone()),
            None => {
                let members = vec![workload.clone()];
                self.set.members.insert(service.into(), members);
            }
        }
    }

    /// The set, or the one before when there is no difference.
    fn finish(self) -> Arc<Set> {
        let mut set = self.set;
        set.ranges
            .sort_by_key(|(of, _)| Reverse(of.range.prefix_len()));
        let gone = self.before.by_name.keys();
        let gone = gone.filter(|name| !set.by_name.contains_key(*name));
        set.changes = Changes {
            removed: gone.cloned().collect(),
            resources: self.changed.freeze(),
        };
        if self.before.by_name.is_empty() {
            // Everything is new, and encoded already.
            set.all = OnceLock::from(set.changes.resources.clone());
        }
        let begins = self.before.version.is_empty();
        if !begins && set.changes.resources.is_empty() && set.changes.removed.is_empty() {
            return self.before.clone();
        }
        let entries = set.by_name.iter();
        let entries = entries.map(|(name, entry)| (name, entry.version));
        set.version = Version(hash(&entries.collect::<Vec<_>>())).to_string();
        Arc::new(set)
    }
}

impl Entry {
    /// Appends this to a response, with all its other names or without.
    pub(super) fn encode(&self, with_aliases: bool, response: &mut BytesMut) {
        let aliases: Vec<String> = match with_aliases {
            true => self.aliases.iter().map(ToString::to_string).collect(),
            false => Vec::new(),
        };
        let length = self.wire.len() + string::encoded_len_repeated(ALIASES, &aliases);
        encode_key(RESOURCES, WireType::LengthDelimited, response);
        encode_varint(length as u64, response);
        response.extend_from_slice(&self.wire);
        string::encode_repeated(ALIASES, &aliases, response);
    }
}

impl Version {
    /// A version that a client says to have; `None` when it is not one of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let version = Self(u128::from_str_radix(text, 16).ok()?);
        (version.to_string() == text).then_some(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// 128 bits from two differently seeded hashes: nobody attacks it, and by accident it never
/// collides. Another build may hash differently, which costs one full push.
fn hash(content: &(impl Hash + ?Sized)) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        content.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}
