//! ServiceEntries as services.

use std::collections::{BTreeSet, HashMap, HashSet};

use ipnet::IpNet;
use sluice_model::{
    Name, NetworkAddress, NetworkRange, Service, ServiceKey,
    service::{LoadBalancing, Mode, Port, Visibility},
};
use sluice_objects::{
    Code, Diagnostic, Located, Objects, Severity,
    kinds::{External, Protocol, Resolution, ServiceEntry},
};

use super::{Config, oldest_first, services};

/// The ServiceEntries, each with those of its hosts that are its own.
pub(super) struct Entries<'a>(Vec<Entry<'a>>);

pub(super) struct Entry<'a> {
    pub(super) entry: &'a Located<ServiceEntry>,
    pub(super) hosts: Vec<&'a Name>,
    /// Of these, the ones that namespaces without a service of that name mean.
    canonical: Vec<&'a Name>,
}

impl<'a> Entries<'a> {
    /// Gives every host of a namespace to one ServiceEntry: the oldest, or the first by name. Of those
    /// of several namespaces, the oldest that all may see is the one that the others mean, unless the
    /// host is a Service's.
    pub(super) fn of(
        objects: &'a Objects,
        config: &Config,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Self {
        let all = objects.services.values();
        let taken: BTreeSet<ServiceKey> = all
            .filter(|service| services::is_present(service))
            .map(|service| services::key(service, config))
            .collect();
        let mut meant: HashSet<Name> = taken.iter().map(|key| key.hostname.clone()).collect();
        let mut owners: HashMap<(&Name, &Name), &Located<ServiceEntry>> = HashMap::new();
        let by_age = oldest_first(&objects.service_entries, |entry| entry.created);
        let entries = by_age.into_iter().map(|entry| {
            let mut hosts = Vec::new();
            let mut canonical = Vec::new();
            let is_public = services::visibility(&entry.export_to) == Visibility::Public;
            for (i, host) in entry.hosts.iter().enumerate() {
                let key = service_key(entry, host);
                let owner = owners.get(&(&entry.namespace, host));
                let other = match owner {
                    _ if taken.contains(&key) => "a Service".to_owned(),
                    Some(owner) => owner.origin.object.to_string(),
                    None => {
                        owners.insert((&entry.namespace, host), entry);
                        hosts.push(host);
                        if is_public && meant.insert(host.clone()) {
                            canonical.push(host);
                        }
                        continue;
                    }
                };
                let message = format!("{host} is the host of {other} too, which counts");
                diagnostics.push(entry.origin.diagnostic(
                    Severity::Warning,
                    Code::DuplicateHost,
                    format!("spec.hosts[{i}]"),
                    message,
                ));
            }
            Entry {
                entry,
                hosts,
                canonical,
            }
        });
        Self(entries.collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<'a>> {
        self.0.iter()
    }
}

impl Entry<'_> {
    /// A service for each host.
    pub(super) fn services(&self, objects: &Objects, config: &Config) -> Vec<Service> {
        let all = self.hosts.iter();
        all.map(|host| self.service(host, objects, config))
            .collect()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = ServiceKey> {
        self.hosts.iter().map(|host| service_key(self.entry, host))
    }

    /// The hosts that shall be given an address.
    pub(super) fn unaddressed(&self) -> impl Iterator<Item = ServiceKey> {
        let hosts = self.hosts.iter();
        hosts
            .filter(|host| self.entry.may_be_given(host))
            .map(|host| service_key(self.entry, host))
    }

    /// The ports that the mesh carries. An endpoint may have its own number for one.
    pub(super) fn ports(&self, endpoint: Option<&External>) -> Vec<Port> {
        let all = self.entry.ports.iter();
        let tcp = all.filter(|port| port.protocol == Protocol::Tcp);
        tcp.map(|port| {
            let own = endpoint.and_then(|endpoint| endpoint.ports.get(&port.name));
            Port {
                service_port: port.port,
                target_port: own.copied().unwrap_or(port.target),
            }
        })
        .collect()
    }

    fn service(&self, host: &Name, objects: &Objects, config: &Config) -> Service {
        let entry = self.entry;
        let is_single = |range: &&IpNet| range.prefix_len() == range.max_prefix_len();
        let network = || config.network.clone();
        let (single, ranges): (Vec<_>, Vec<_>) = entry.addresses.iter().partition(is_single);
        let address = |range: &IpNet| NetworkAddress::new(network(), range.addr());
        let range = |range: &IpNet| NetworkRange::new(network(), *range);
        Service {
            name: entry.name.clone(),
            namespace: entry.namespace.clone(),
            hostname: host.clone(),
            vips: single.into_iter().map(address).collect(),
            ranges: ranges.into_iter().map(range).collect(),
            ports: self.ports(None),
            subject_alt_names: entry.subject_alt_names.clone(),
            waypoint: None,
            load_balancing: match entry.resolution {
                Resolution::None => LoadBalancing {
                    mode: Mode::Passthrough,
                    ..LoadBalancing::default()
                },
                Resolution::Static | Resolution::Dns => {
                    let own = entry.traffic_distribution;
                    services::preferring(own, &entry.namespace, objects)
                }
            },
            canonical: self.canonical.contains(&host),
            visibility: services::visibility(&entry.export_to),
        }
    }
}

pub(super) fn service_key(entry: &ServiceEntry, host: &Name) -> ServiceKey {
    ServiceKey {
        namespace: entry.namespace.clone(),
        hostname: host.clone(),
    }
}
