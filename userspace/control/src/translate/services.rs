//! Services.

use sluice_model::{
    Name, NetworkAddress, Service, ServiceKey,
    service::{LoadBalancing, Mode, Port, Scope},
};
use sluice_objects::{
    Objects,
    kinds::{self, Addressing, Protocol, ServicePort, TargetPort, TrafficDistribution},
};

use super::Config;

/// Every service that has endpoints of its own. An ExternalName only renames another host.
pub(super) fn services(objects: &Objects, config: &Config) -> Vec<Service> {
    let services = objects.services.values();
    services
        .filter(|service| is_present(service))
        .map(|located| service(located, config))
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

fn service(service: &kinds::Service, config: &Config) -> Service {
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
        ports: tcp_ports(service).map(port).collect(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: load_balancing(service),
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

fn load_balancing(service: &kinds::Service) -> LoadBalancing {
    let (mode, preference) = match (service.node_local, service.traffic_distribution) {
        (true, _) => (Mode::Strict, vec![Scope::Node]),
        (false, Some(TrafficDistribution::SameZone)) => (
            Mode::Failover,
            vec![Scope::Network, Scope::Region, Scope::Zone],
        ),
        (false, Some(TrafficDistribution::SameNode)) => (
            Mode::Failover,
            vec![
                Scope::Network,
                Scope::Region,
                Scope::Zone,
                Scope::Subzone,
                Scope::Node,
            ],
        ),
        (false, None) => (Mode::Standard, Vec::new()),
    };
    LoadBalancing {
        mode,
        preference,
        allow_unhealthy: service.publish_not_ready_addresses,
    }
}
