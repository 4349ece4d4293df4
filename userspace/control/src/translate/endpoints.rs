//! Which workload is an endpoint of which service, and on which ports.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use sluice_model::{
    Name, ServiceKey, Uid, Workload,
    service::Port,
    workload::{Health, Locality},
};
use sluice_objects::{
    Diagnostic, Key, Labels, Located, Objects, Pod,
    kinds::{
        self, Endpoint, EndpointSlice, External, ExternalAddress, Protocol, Resolution,
        ServicePort, TargetPort, WorkloadEntry, selects,
    },
};

use super::{
    Config,
    external::{self, Foreign},
    service_entries::{Entries, Entry, service_key},
    services, workloads,
};

pub(super) type Ports = BTreeMap<ServiceKey, Vec<Port>>;

/// The endpoints of every service.
pub(super) struct Membership<'a> {
    objects: &'a Objects,
    config: &'a Config,
    by_ip: HashMap<IpAddr, &'a Pod>,
    /// The services of each pod.
    pods: HashMap<Key, Ports>,
    /// Those of each WorkloadEntry.
    entries: HashMap<Key, Ports>,
    /// Endpoints that are no pod that we know.
    foreign: BTreeMap<Uid, Workload>,
}

impl<'a> Membership<'a> {
    pub(super) fn of(
        objects: &'a Objects,
        config: &'a Config,
        entries: &Entries<'a>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Self {
        let mut membership = Self {
            objects,
            config,
            by_ip: pods_by_ip(objects),
            pods: HashMap::new(),
            entries: HashMap::new(),
            foreign: BTreeMap::new(),
        };
        let all = objects.services.values();
        for service in all.filter(|service| services::is_present(service)) {
            membership.add_selected(service);
        }
        for slice in objects.endpoint_slices.values() {
            membership.add_slice(slice);
        }
        for entry in entries.iter() {
            match entry.entry.resolution {
                // Its endpoint is whatever was dialled.
                Resolution::None => {}
                Resolution::Static | Resolution::Dns => membership.add_entry(entry, diagnostics),
            }
        }
        for entry in objects.workload_entries.values() {
            diagnostics.extend(membership.add_workload_entry(entry));
        }
        membership
    }

    /// The services of a pod.
    pub(super) fn take_pod(&mut self, namespace: &Name, name: &Name) -> Ports {
        let key = (namespace.clone(), name.clone());
        self.pods.remove(&key).unwrap_or_default()
    }

    /// Endpoints that are no pods, as workloads of their own.
    pub(super) fn into_foreign(self) -> impl Iterator<Item = Workload> {
        self.foreign.into_values()
    }

    fn add_pod(&mut self, pod: &Pod, service: ServiceKey, ports: Vec<Port>) {
        let key = (pod.namespace.clone(), pod.name.clone());
        self.pods.entry(key).or_default().insert(service, ports);
    }

    fn add_selected(&mut self, service: &kinds::Service) {
        let Some(selector) = &service.selector else {
            return;
        };
        let key = services::key(service, self.config);
        let (pods, entries) = self.selected(&service.namespace, selector);
        for pod in pods {
            self.add_pod(pod, key.clone(), pod_ports(service, pod));
        }
        for entry in entries {
            let ports = external_ports(service, &entry.external);
            self.add_to_entry(entry, key.clone(), ports);
        }
    }

    fn selected(
        &self,
        namespace: &'a Name,
        selector: &Labels,
    ) -> (Vec<&'a Located<Pod>>, Vec<&'a Located<WorkloadEntry>>) {
        let objects = self.objects;
        let pods = objects.pods_of(namespace);
        let entries = objects.workload_entries_of(namespace);
        (
            pods.filter(|pod| selects(selector, &pod.labels)).collect(),
            entries
                .filter(|entry| selects(selector, &entry.external.labels))
                .collect(),
        )
    }

    fn add_to_entry(&mut self, entry: &WorkloadEntry, service: ServiceKey, ports: Vec<Port>) {
        let key = (entry.namespace.clone(), entry.name.clone());
        self.entries.entry(key).or_default().insert(service, ports);
    }

    fn add_slice(&mut self, slice: &EndpointSlice) {
        let Some(name) = &slice.service else {
            return;
        };
        let objects = self.objects;
        let service = objects
            .services
            .get(&(slice.namespace.clone(), name.clone()));
        // A service with a selector has slices too, written by Kubernetes from the same pods.
        let Some(service) = service.filter(|s| s.selector.is_none() && services::is_present(s))
        else {
            return;
        };
        let key = services::key(service, self.config);
        let ports = slice_ports(service, slice);
        for endpoint in &slice.endpoints {
            let named = endpoint.pod.as_ref().and_then(|name| {
                let pod = objects.pods.get(&(slice.namespace.clone(), name.clone()))?;
                Some(&pod.value)
            });
            let pod = named.or_else(|| self.by_ip.get(endpoint.ips.first()?).copied());
            match pod.filter(|pod| workloads::is_present(pod)) {
                Some(pod) => self.add_pod(pod, key.clone(), ports.clone()),
                None => self.add_slice_endpoint(slice, endpoint, &key, &ports),
            }
        }
    }

    fn add_slice_endpoint(
        &mut self,
        slice: &EndpointSlice,
        endpoint: &Endpoint,
        service: &ServiceKey,
        ports: &[Port],
    ) {
        let Some(first) = endpoint.ips.first() else {
            return;
        };
        let node = self.objects.nodes.get(&endpoint.node);
        let mut locality = node.map(|node| node.locality.clone()).unwrap_or_default();
        if !endpoint.zone.is_empty() && endpoint.zone != locality.zone {
            locality = Locality {
                zone: endpoint.zone.clone(),
                ..Locality::default()
            };
        }
        let foreign = Foreign {
            namespace: &slice.namespace,
            name: &slice.name,
            labels: &Labels::new(),
            ips: endpoint.ips.clone().into(),
            hostname: None,
            service_account: None,
            node: endpoint.node.clone(),
            locality,
            capacity: 1,
            health: match (endpoint.ready, endpoint.terminating) {
                (true, false) => Health::Ready,
                (_, true) if endpoint.serving => Health::Terminating,
                _ => Health::NotReady,
            },
        };
        let uid = self.uid("discovery.k8s.io/EndpointSlice", slice_name(slice), first);
        let services = [(service.clone(), ports.to_vec())].into();
        let mut workload = foreign.workload(uid.clone(), services, self.config);
        // Metrics and logs tell endpoints of a slice apart by their addresses.
        let name = format!("{}/{}/{first}", slice.namespace, slice.name);
        workload.own_name = uid.unless_last_part(&name);
        self.foreign.insert(uid, workload);
    }

    fn uid(&self, kind: &str, (namespace, name): (&str, &str), part: impl ToString) -> Uid {
        let part = part.to_string();
        let cluster = &self.config.cluster;
        Uid(format!("{cluster}/{kind}/{namespace}/{name}/{part}").into())
    }

    fn add_entry(&mut self, entry: &Entry<'a>, diagnostics: &mut Vec<Diagnostic>) {
        let object = entry.entry;
        if let Some(selector) = &object.selector {
            self.add_selected_by(entry, selector);
        }
        for (i, endpoint) in object.endpoints.iter().enumerate() {
            let field = format!("spec.endpoints[{i}]");
            match external::elsewhere(endpoint, &field, &object.origin, self.config) {
                Some(warning) => diagnostics.push(warning),
                None => {
                    let ports = entry.ports(Some(endpoint));
                    let services = entry.keys().map(|key| (key, ports.clone()));
                    self.add_endpoint(entry, endpoint, services.collect());
                }
            }
        }
        let alone = object.endpoints.is_empty() && object.selector.is_none();
        if object.resolution == Resolution::Dns && alone {
            for host in entry.hosts.iter().filter(|host| !host.starts_with("*.")) {
                let itself = External::host((*host).clone());
                let services = [(service_key(object, host), entry.ports(None))].into();
                self.add_endpoint(entry, &itself, services);
            }
        }
    }

    fn add_selected_by(&mut self, entry: &Entry<'a>, selector: &Labels) {
        let (pods, machines) = self.selected(&entry.entry.namespace, selector);
        for key in entry.keys() {
            for pod in &pods {
                self.add_pod(pod, key.clone(), entry.ports(None));
            }
            for machine in &machines {
                let ports = entry.ports(Some(&machine.external));
                self.add_to_entry(machine, key.clone(), ports);
            }
        }
    }

    /// Adds an endpoint that a ServiceEntry lists: a pod, if it has the address of one, so that it is
    /// reached as that pod always is.
    fn add_endpoint(&mut self, entry: &Entry<'a>, endpoint: &External, services: Ports) {
        let address = match &endpoint.address {
            ExternalAddress::Ip(ip) => ip.to_string(),
            ExternalAddress::Hostname(host) => host.to_string(),
            ExternalAddress::None => return,
        };
        if let ExternalAddress::Ip(ip) = &endpoint.address
            && let Some(pod) = self.by_ip.get(ip).copied()
        {
            for (key, ports) in services {
                self.add_pod(pod, key, ports);
            }
            return;
        }
        let object = entry.entry;
        let Some(foreign) = Foreign::of(endpoint, &object.namespace, &object.name) else {
            return;
        };
        let kind = "networking.istio.io/ServiceEntry";
        let name = (&*object.namespace, &*object.name);
        let mut uid = self.uid(kind, name, &address);
        // The same address again, on other ports.
        let mut again = 1;
        while self.foreign.contains_key(&uid) {
            again += 1;
            uid = self.uid(kind, name, format!("{address}-{again}"));
        }
        let workload = foreign.workload(uid.clone(), services, self.config);
        self.foreign.insert(uid, workload);
    }

    fn add_workload_entry(&mut self, entry: &Located<WorkloadEntry>) -> Option<Diagnostic> {
        let key = (entry.namespace.clone(), entry.name.clone());
        let services = self.entries.remove(&key).unwrap_or_default();
        let elsewhere = external::elsewhere(&entry.external, "spec", &entry.origin, self.config);
        if elsewhere.is_some() {
            return elsewhere;
        }
        if let ExternalAddress::Ip(ip) = &entry.external.address
            && let Some(pod) = self.by_ip.get(ip).copied()
        {
            // It has been reported that they share the address.
            for (key, ports) in services {
                self.add_pod(pod, key, ports);
            }
            return None;
        }
        let foreign = Foreign::of(&entry.external, &entry.namespace, &entry.name)?;
        let (cluster, kind) = (&self.config.cluster, "networking.istio.io/WorkloadEntry");
        let uid = format!("{cluster}/{kind}/{}/{}", entry.namespace, entry.name);
        let uid = Uid(uid.into());
        let workload = foreign.workload(uid.clone(), services, self.config);
        self.foreign.insert(uid, workload);
        None
    }
}

fn slice_name(slice: &EndpointSlice) -> (&str, &str) {
    (&slice.namespace, &slice.name)
}

/// A service's ports on one pod, which says what number a named port has.
fn pod_ports(service: &kinds::Service, pod: &Pod) -> Vec<Port> {
    services::tcp_ports(service)
        .filter_map(|port| {
            let target_port = match &port.target {
                TargetPort::Number(number) => *number,
                TargetPort::Name(name) => {
                    let mut ports = pod.ports.iter();
                    let has_name = |name_of: &Option<Name>| name_of.as_ref() == Some(name);
                    let tcp = |protocol| protocol == Protocol::Tcp;
                    ports.find(|p| has_name(&p.name) && tcp(p.protocol))?.port
                }
            };
            Some(resolved(port, target_port))
        })
        .collect()
}

/// A service's ports on what is no pod, which may have its own number for a port's name.
fn external_ports(service: &kinds::Service, external: &External) -> Vec<Port> {
    let own = |name: &Name| external.ports.get(name).copied();
    services::tcp_ports(service)
        .filter_map(|port| {
            let target = match &port.target {
                TargetPort::Number(number) => own(&port.name).unwrap_or(*number),
                TargetPort::Name(target) => own(target).or_else(|| own(&port.name))?,
            };
            Some(resolved(port, target))
        })
        .collect()
}

/// A service's ports on a slice's endpoints; slice and service agree by the port's name.
fn slice_ports(service: &kinds::Service, slice: &EndpointSlice) -> Vec<Port> {
    services::tcp_ports(service)
        .filter_map(|port| {
            let mut ports = slice.ports.iter();
            let found = ports.find(|p| p.name == port.name && p.protocol == Protocol::Tcp)?;
            Some(resolved(port, found.port))
        })
        .collect()
}

fn resolved(port: &ServicePort, target_port: u16) -> Port {
    Port {
        service_port: port.port,
        target_port,
    }
}

/// Pods by address. Pods of the host's network share theirs, so it does not name them.
fn pods_by_ip(objects: &Objects) -> HashMap<IpAddr, &Pod> {
    let pods = objects.pods.values().map(|pod| &pod.value);
    pods.filter(|pod| workloads::is_present(pod) && !pod.host_network)
        .flat_map(|pod| pod.ips.iter().map(move |ip| (*ip, pod)))
        .collect()
}
