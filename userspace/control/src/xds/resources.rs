//! What is served, encoded once and shared by all clients.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
};

use prost::Message;
use sluice_model::{Name, NetworkAddress};
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
#[derive(Debug, Default)]
pub struct Resources {
    addresses: Set,
    authorizations: Set,
}

/// The resources of one type.
#[derive(Debug, Default)]
pub(crate) struct Set {
    pub(crate) by_name: BTreeMap<Name, Entry>,
    /// Other names for a resource.
    aliases: HashMap<Name, Name>,
    /// Changes when anything in the set does.
    pub(crate) version: String,
}

/// A resource as it is sent.
#[derive(Debug)]
pub(crate) struct Entry {
    /// A hash of the content: the same after a restart, so that nothing is sent twice.
    pub(crate) version: Name,
    pub(crate) wire: discovery::Resource,
}

impl Resources {
    /// Encodes what the objects describe.
    pub fn of(translation: &Translation) -> Self {
        let mut addresses = Set::default();
        for workload in &translation.workloads {
            let name = &workload.uid.0;
            let address: workload::Address = workload::Workload::from(workload).into();
            addresses.insert(Type::Address, name, &address);
            // The address of a node does not name a pod.
            if !workload.host_network {
                for ip in &workload.ips {
                    addresses.alias(&NetworkAddress::new(workload.network.clone(), *ip), name);
                }
            }
        }
        for service in &translation.services {
            let name: Name = service.key().to_string().into();
            let address: workload::Address = workload::Service::from(service).into();
            addresses.insert(Type::Address, &name, &address);
            for vip in &service.vips {
                addresses.alias(vip, &name);
            }
        }
        let mut authorizations = Set::default();
        for policy in &translation.policies {
            let name: Name = policy.key.to_string().into();
            let message = security::Authorization::from(policy);
            authorizations.insert(Type::Authorization, &name, &message);
        }
        addresses.seal();
        authorizations.seal();
        Self {
            addresses,
            authorizations,
        }
    }

    /// How many there are, of all types.
    pub fn len(&self) -> usize {
        self.addresses.by_name.len() + self.authorizations.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn set(&self, kind: Type) -> &Set {
        match kind {
            Type::Address => &self.addresses,
            Type::Authorization => &self.authorizations,
        }
    }
}

impl Set {
    /// The resource of that name or alias, with its own name.
    pub(crate) fn find(&self, name: &Name) -> Option<(&Name, &Entry)> {
        let own = self.aliases.get(name).unwrap_or(name);
        self.by_name.get_key_value(own)
    }

    fn insert(&mut self, kind: Type, name: &Name, message: &impl Message) {
        let value = message.encode_to_vec();
        let version: Name = hash(&value).into();
        let wire = discovery::Resource {
            name: name.to_string(),
            version: version.to_string(),
            resource: Some(prost_types::Any {
                type_url: kind.url().to_owned(),
                value,
            }),
            ..discovery::Resource::default()
        };
        self.by_name.insert(name.clone(), Entry { version, wire });
    }

    fn alias(&mut self, address: &NetworkAddress, name: &Name) {
        self.aliases
            .insert(names::alias(address).into(), name.clone());
    }

    fn seal(&mut self) {
        let entries = self
            .by_name
            .iter()
            .map(|(name, entry)| (name, &entry.version));
        self.version = hash(&entries.collect::<Vec<_>>());
    }
}

/// 128 bits from two differently seeded hashes: nobody attacks it, and by accident it never
/// collides. Another build may hash differently, which costs one full push.
fn hash(content: &(impl Hash + ?Sized)) -> String {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        content.hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}
