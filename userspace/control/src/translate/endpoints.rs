//! Which workload is an endpoint of which service, and on which ports.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use sluice_model::{
    Name, ServiceKey, Uid, Workload,
    service::Port,
    workload::{Locality, OwnerKind, Profile, TunnelProtocol},
};
use sluice_objects::{
    Key, Objects, Pod,
    kinds::{self, Endpoint, EndpointSlice, Protocol, ServicePort, TargetPort, selects},
};

use super::{Config, services, workloads};

type Ports = BTreeMap<ServiceKey, Vec<Port>>;

/// The endpoints of every service.
#[derive(Default)]
pub(super) struct Membership {
    /// The services of each pod.
    pods: HashMap<Key, Ports>,
    /// Endpoints that are no pod that we know.
    foreign: BTreeMap<Uid, Workload>,
}

impl Membership {
    pub(super) fn of(objects: &Objects, config: &Config) -> Self {
        let mut membership = Self::default();
        let all = objects.services.values();
        for service in all.filter(|service| services::is_present(service)) {
            if let Some(selector) = &service.selector {
                let pods = objects.pods_of(&service.namespace);
                for pod in pods.filter(|pod| selects(selector, &pod.labels)) {
                    membership.add_pod(
                        pod,
                        services::key(service, config),
                        pod_ports(service, pod),
                    );
                }
            }
        }
        let by_ip = pods_by_ip(objects);
        for slice in objects.endpoint_slices.values() {
            membership.add_slice(slice, objects, &by_ip, config);
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

    fn add_slice(
        &mut self,
        slice: &EndpointSlice,
        objects: &Objects,
        by_ip: &HashMap<IpAddr, &Pod>,
        config: &Config,
    ) {
        let Some(name) = &slice.service else {
            return;
        };
        let service = objects
            .services
            .get(&(slice.namespace.clone(), name.clone()));
        // A service with a selector has slices too, written by Kubernetes from the same pods.
        let Some(service) = service.filter(|s| s.selector.is_none() && services::is_present(s))
        else {
            return;
        };
        let key = services::key(service, config);
        let ports = slice_ports(service, slice);
        for endpoint in &slice.endpoints {
            let named = endpoint.pod.as_ref().and_then(|name| {
                let pod = objects.pods.get(&(slice.namespace.clone(), name.clone()))?;
                Some(&pod.value)
            });
            let pod = named.or_else(|| by_ip.get(endpoint.ips.first()?).copied());
            match pod.filter(|pod| workloads::is_present(pod)) {
                Some(pod) => self.add_pod(pod, key.clone(), ports.clone()),
                None => self.add_foreign(slice, endpoint, &key, &ports, config),
            }
        }
    }

    fn add_foreign(
        &mut self,
        slice: &EndpointSlice,
        endpoint: &Endpoint,
        service: &ServiceKey,
        ports: &[Port],
        config: &Config,
    ) {
        let Some(first) = endpoint.ips.first() else {
            return;
        };
        let name: Name = format!("{}/{}/{first}", slice.namespace, slice.name).into();
        let uid = format!("{}/discovery.k8s.io/EndpointSlice/{name}", config.cluster);
        let uid = Uid(uid.into());
        let profile = Profile {
            namespace: slice.namespace.clone(),
            trust_domain: config.trust_domain.clone(),
            equivalent_domains: Default::default(),
            service_account: "default".into(),
            network: config.network.clone(),
            cluster: config.cluster.clone(),
            protocol: TunnelProtocol::None,
            host_network: false,
            canonical_name: slice.name.clone(),
            canonical_revision: "latest".into(),
            owner_kind: OwnerKind::Pod,
            owner_name: slice.name.clone(),
            services: [(service.clone(), ports.to_vec())].into(),
            waypoint: None,
            policies: Vec::new(),
            egress: Default::default(),
            capacity: 1,
            locality: Locality {
                zone: endpoint.zone.clone(),
                ..Locality::default()
            },
        };
        let workload = Workload {
            uid: uid.clone(),
            own_name: uid.unless_last_part(&name),
            ips: endpoint.ips.clone().into(),
            node: endpoint.node.clone(),
            healthy: endpoint.ready && !endpoint.terminating,
            profile: Arc::new(profile),
        };
        self.foreign.insert(uid, workload);
    }
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
