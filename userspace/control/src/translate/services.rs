//! Services.

use sluice_model::{
    Name, NetworkAddress, Service, ServiceKey,
    service::{LoadBalancing, Mode, Port, Scope, Visibility},
};
use sluice_objects::{
    Objects,
    kinds::{self, Addressing, ExportTo, Protocol, ServicePort, TargetPort, TrafficDistribution},
};

use super::Config;

/// Every service that has endpoints of its own. An ExternalName only renames another host.
pub(super) fn services(objects: &Objects, config: &Config) -> Vec<Service> {
    let services = objects.services.values();
    services
        .filter(|service| is_present(service))
        .map(|located| service(located, objects, config))
        .collect()
}

pub(super) fn is_present(service: &kinds::Service) -> bool {
    !matches!(service.addressing, Addressing::ExternalName(_))
}

pub(super) fn key(service: &kinds::Service, config: &Config) -> ServiceKey {
    ServiceKey {
        namespace: service.namespace.clone(),
        hostname: hostname(service, config),
    }
}

/// The ports that the mesh carries.
pub(super) fn tcp_ports(service: &kinds::Service) -> impl Iterator<Item = &ServicePort> {
    service
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp)
}

fn hostname(service: &kinds::Service, config: &Config) -> Name {
    let kinds::Service {
        name, namespace, ..
    } = service;
    format!("{name}.{namespace}.svc.{}", config.cluster_domain).into()
}

fn service(service: &kinds::Service, objects: &Objects, config: &Config) -> Service {
    let vips = match &service.addressing {
        Addressing::Virtual(vips) => vips.as_slice(),
        Addressing::Headless | Addressing::ExternalName(_) => &[],
    };
    let address = |ip: &std::net::IpAddr| NetworkAddress::new(config.network.clone(), *ip);
    Service {
        name: service.name.clone(),
        namespace: service.namespace.clone(),
        hostname: hostname(service, config),
        vips: vips.iter().map(address).collect(),
        ranges: Vec::new(),
        ports: tcp_ports(service).map(port).collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: load_balancing(service, objects),
        // A name of the cluster's own DNS: no ServiceEntry of another namespace takes it over.
        canonical: true,
        visibility: visibility(&service.export_to),
    }
}

fn port(port: &ServicePort) -> Port {
    Port {
        service_port: port.port,
        target_port: match port.target {
            TargetPort::Number(number) => number,
            // Each workload says which number its name stands for.
            TargetPort::Name(_) => 0,
        },
    }
}

fn load_balancing(service: &kinds::Service, objects: &Objects) -> LoadBalancing {
    let balancing = match service.node_local {
        true => LoadBalancing {
            mode: Mode::Strict,
            preference: vec![Scope::Node],
            allow_unhealthy: false,
        },
        false => preferring(service.traffic_distribution, &service.namespace, objects),
    };
    LoadBalancing {
        allow_unhealthy: service.publish_not_ready_addresses,
        ..balancing
    }
}

/// What a service prefers, or else its namespace.
pub(super) fn preferring(
    own: Option<TrafficDistribution>,
    namespace: &Name,
    objects: &Objects,
) -> LoadBalancing {
    use Scope::{Network, Node, Region, Subzone, Zone};
    let inherited = || objects.namespace(namespace)?.traffic_distribution;
    let preference: &[Scope] = match own.or_else(inherited) {
        None | Some(TrafficDistribution::Any) => return LoadBalancing::default(),
        Some(TrafficDistribution::SameNetwork) => &[Network],
        Some(TrafficDistribution::SameRegion) => &[Network, Region],
        Some(TrafficDistribution::SameZone) => &[Network, Region, Zone],
        Some(TrafficDistribution::SameNode) => &[Network, Region, Zone, Subzone, Node],
    };
    LoadBalancing {
        mode: Mode::Failover,
        preference: preference.to_vec(),
        allow_unhealthy: false,
    }
}

pub(super) fn visibility(export_to: &ExportTo) -> Visibility {
    match export_to {
        ExportTo::Everybody => Visibility::Public,
        ExportTo::OwnNamespace => Visibility::Namespace,
    }
}
