//! Services.

use sluice_model::{
    Service,
    service::{LoadBalancing, Mode, Scope, Visibility},
};

use super::{
    At, Error, InField, Problem, each, each_message,
    gateway::{AddressOrRange, parse_address_or_range, parse_port, parse_waypoint},
    known, required,
};
use crate::workload::{self as wire, load_balancing as lb};

impl TryFrom<wire::Service> for Service {
    type Error = Error;

    fn try_from(from: wire::Service) -> Result<Self, Error> {
        parse(&from).map_err(|at| at.of(format!("service {}/{}", from.namespace, from.hostname)))
    }
}

fn parse(from: &wire::Service) -> Result<Service, At> {
    let mut vips = Vec::new();
    let mut ranges = Vec::new();
    for address in each("addresses", &from.addresses, parse_address_or_range)? {
        match address {
            AddressOrRange::Address(address) => vips.push(address),
            AddressOrRange::Range(range) => ranges.push(range),
        }
    }
    Ok(Service {
        name: from.name.as_str().into(),
        namespace: required(&from.namespace).field("namespace")?,
        hostname: required(&from.hostname).field("hostname")?,
        vips,
        ranges,
        ports: each_message("ports", &from.ports, parse_port)?,
        // A name that is no workload identity cannot equal a peer's, so it is as good as absent.
        subject_alt_names: from
            .subject_alt_names
            .iter()
            .filter_map(|san| san.parse().ok())
            .collect(),
        waypoint: parse_waypoint(from.waypoint.as_ref())?,
        load_balancing: from
            .load_balancing
            .as_ref()
            .map(parse_load_balancing)
            .transpose()
            .map_err(|at| at.within("load_balancing"))?
            .unwrap_or_default(),
        canonical: from.canonical,
        visibility: match known(from.visibility).field("visibility")? {
            wire::service::Visibility::Public => Visibility::Public,
            wire::service::Visibility::Namespace => Visibility::Namespace,
        },
    })
}

fn parse_load_balancing(from: &wire::LoadBalancing) -> Result<LoadBalancing, At> {
    let mode = match known(from.mode).field("mode")? {
        lb::Mode::UnspecifiedMode => Mode::Standard,
        lb::Mode::Strict => Mode::Strict,
        lb::Mode::Failover => Mode::Failover,
        lb::Mode::Passthrough => Mode::Passthrough,
    };
    let scope = |value: &i32| {
        Ok(match known(*value)? {
            lb::Scope::UnspecifiedScope => return Err(Problem::Missing),
            lb::Scope::Region => Scope::Region,
            lb::Scope::Zone => Scope::Zone,
            lb::Scope::Subzone => Scope::Subzone,
            lb::Scope::Node => Scope::Node,
            lb::Scope::Cluster => Scope::Cluster,
            lb::Scope::Network => Scope::Network,
        })
    };
    let health: lb::HealthPolicy = known(from.health_policy).field("health_policy")?;
    Ok(LoadBalancing {
        mode,
        preference: each("routing_preference", &from.routing_preference, scope)?,
        allow_unhealthy: health == lb::HealthPolicy::AllowAll,
    })
}

impl From<&Service> for wire::Service {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.to_string(),
            namespace: service.namespace.to_string(),
            hostname: service.hostname.to_string(),
            addresses: {
                let ranges = service.ranges.iter().map(Into::into);
                service.vips.iter().map(Into::into).chain(ranges).collect()
            },
            ports: service.ports.iter().map(Into::into).collect(),
            subject_alt_names: service
                .subject_alt_names
                .iter()
                .map(ToString::to_string)
                .collect(),
            waypoint: service.waypoint.as_ref().map(Into::into),
            load_balancing: (service.load_balancing != LoadBalancing::default())
                .then(|| (&service.load_balancing).into()),
            canonical: service.canonical,
            visibility: match service.visibility {
                Visibility::Public => wire::service::Visibility::Public,
                Visibility::Namespace => wire::service::Visibility::Namespace,
            }
            .into(),
            ..Self::default()
        }
    }
}

impl From<&LoadBalancing> for wire::LoadBalancing {
    fn from(from: &LoadBalancing) -> Self {
        let mode = match from.mode {
            Mode::Standard => lb::Mode::UnspecifiedMode,
            Mode::Strict => lb::Mode::Strict,
            Mode::Failover => lb::Mode::Failover,
            Mode::Passthrough => lb::Mode::Passthrough,
        };
        let scope = |scope: &Scope| match scope {
            Scope::Region => lb::Scope::Region,
            Scope::Zone => lb::Scope::Zone,
            Scope::Subzone => lb::Scope::Subzone,
            Scope::Node => lb::Scope::Node,
            Scope::Cluster => lb::Scope::Cluster,
            Scope::Network => lb::Scope::Network,
        };
        let health = if from.allow_unhealthy {
            lb::HealthPolicy::AllowAll
        } else {
            lb::HealthPolicy::OnlyHealthy
        };
        Self {
            routing_preference: from
                .preference
                .iter()
                .map(|s| i32::from(scope(s)))
                .collect(),
            mode: mode.into(),
            health_policy: health.into(),
        }
    }
}
