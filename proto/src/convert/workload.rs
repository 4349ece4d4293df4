//! Workloads.

use std::{collections::BTreeMap, sync::Arc};

use sluice_model::{
    Name, ServiceKey, TrustDomain, Uid, Workload,
    service::Port,
    workload::{Egress, Health, Locality, Memberships, OwnerKind, Profile, TunnelProtocol},
};

use super::extension;
use super::{
    At, Error, InField, Problem, each, each_message,
    gateway::{parse_port, parse_waypoint},
    ip, ip_bytes, known, names, required,
};
use crate::{extension as own, workload as wire};

/// What the contract means by an empty trust domain, service account or cluster.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";

impl TryFrom<wire::Workload> for Workload {
    type Error = Error;

    fn try_from(from: wire::Workload) -> Result<Self, Error> {
        parse(&from).map_err(|at| at.of(format!("workload {}", from.uid)))
    }
}

fn parse(from: &wire::Workload) -> Result<Workload, At> {
    let mode: wire::NetworkMode = known(from.network_mode).field("network_mode")?;
    let status: wire::WorkloadStatus = known(from.status).field("status")?;
    let own: own::Workload = extension::find(&from.extensions)
        .field("extensions")?
        .unwrap_or_default();
    let uid = Uid(required(&from.uid).field("uid")?);
    let profile = Profile {
        namespace: from.namespace.as_str().into(),
        trust_domain: or_default(&from.trust_domain, DEFAULT_TRUST_DOMAIN)
            .parse()
            .field("trust_domain")?,
        equivalent_domains: parse_domains(&own).field("extensions")?,
        service_account: or_default(&from.service_account, DEFAULT_SERVICE_ACCOUNT).into(),
        network: from.network.as_str().into(),
        cluster: or_default(&from.cluster_id, DEFAULT_CLUSTER).into(),
        protocol: parse_protocol(from.tunnel_protocol).field("tunnel_protocol")?,
        host_network: mode == wire::NetworkMode::HostNetwork,
        hostname: (!from.hostname.is_empty()).then(|| from.hostname.as_str().into()),
        canonical_name: from.canonical_name.as_str().into(),
        canonical_revision: from.canonical_revision.as_str().into(),
        owner_kind: parse_owner(from.workload_type),
        owner_name: from.workload_name.as_str().into(),
        services: parse_services(&from.services)?,
        waypoint: parse_waypoint(from.waypoint.as_ref())?,
        policies: each(
            "authorization_policies",
            &from.authorization_policies,
            |name| names::policy(name),
        )?,
        egress: match known(own.egress).field("extensions")? {
            own::Egress::Anywhere => Egress::Anywhere,
            own::Egress::Registry => Egress::Registry,
        },
        capacity: from.capacity.unwrap_or(1),
        locality: from
            .locality
            .as_ref()
            .map(|locality| Locality {
                region: locality.region.as_str().into(),
                zone: locality.zone.as_str().into(),
                subzone: locality.subzone.as_str().into(),
            })
            .unwrap_or_default(),
    };
    Ok(Workload {
        own_name: uid.unless_last_part(&from.name),
        uid,
        ips: each("addresses", &from.addresses, |bytes| ip(bytes))?.into(),
        node: from.node.as_str().into(),
        health: match status {
            wire::WorkloadStatus::Healthy => Health::Ready,
            wire::WorkloadStatus::Unhealthy if own.terminating => Health::Terminating,
            wire::WorkloadStatus::Unhealthy => Health::NotReady,
        },
        profile: Arc::new(profile),
    })
}

fn parse_domains(own: &own::Workload) -> Result<Arc<[TrustDomain]>, Problem> {
    let domains = own.equivalent_trust_domains.iter();
    Ok(domains
        .map(|domain| domain.parse())
        .collect::<Result<_, _>>()?)
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn unless_default(text: &str, default: &str) -> String {
    if text == default {
        String::new()
    } else {
        text.to_owned()
    }
}

fn parse_protocol(value: i32) -> Result<TunnelProtocol, Problem> {
    match known(value)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::None),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => Err(Problem::Unsupported("LEGACY_ISTIO_MTLS")),
    }
}

/// Only telemetry shows the kind, so one that a newer contract added is no reason to refuse.
fn parse_owner(value: i32) -> OwnerKind {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::Deployment) => OwnerKind::Deployment,
        Ok(wire::WorkloadType::Cronjob) => OwnerKind::CronJob,
        Ok(wire::WorkloadType::Job) => OwnerKind::Job,
        Ok(wire::WorkloadType::Pod) | Err(_) => OwnerKind::Pod,
    }
}

fn parse_services(from: &BTreeMap<String, wire::PortList>) -> Result<Memberships, At> {
    from.iter()
        .map(|(name, ports)| {
            let field = || format!("services[{name:?}]");
            let key = names::service(name).field(field())?;
            let ports =
                each_message("ports", &ports.ports, parse_port).map_err(|at| at.within(field()))?;
            Ok((key, ports))
        })
        .collect()
}

impl From<&Workload> for wire::Workload {
    fn from(workload: &Workload) -> Self {
        let text = |name: &Name| name.to_string();
        let mode = if workload.host_network {
            wire::NetworkMode::HostNetwork
        } else {
            wire::NetworkMode::Standard
        };
        let status = match workload.health {
            Health::Ready => wire::WorkloadStatus::Healthy,
            Health::Terminating | Health::NotReady => wire::WorkloadStatus::Unhealthy,
        };
        Self {
            uid: text(&workload.uid.0),
            name: workload.name().to_owned(),
            namespace: text(&workload.namespace),
            trust_domain: unless_default(workload.trust_domain.as_str(), DEFAULT_TRUST_DOMAIN),
            service_account: unless_default(&workload.service_account, DEFAULT_SERVICE_ACCOUNT),
            network: text(&workload.network),
            cluster_id: text(&workload.cluster),
            addresses: workload.ips.iter().copied().map(ip_bytes).collect(),
            hostname: workload.hostname.as_ref().map(text).unwrap_or_default(),
            tunnel_protocol: protocol(workload.protocol).into(),
            node: workload.node.to_string(),
            network_mode: mode.into(),
            canonical_name: text(&workload.canonical_name),
            canonical_revision: text(&workload.canonical_revision),
            workload_type: owner(workload.owner_kind).into(),
            workload_name: text(&workload.owner_name),
            services: workload.services.iter().map(endpoint).collect(),
            waypoint: workload.waypoint.as_ref().map(Into::into),
            authorization_policies: workload.policies.iter().map(ToString::to_string).collect(),
            status: status.into(),
            capacity: (workload.capacity != 1).then_some(workload.capacity),
            locality: locality(&workload.locality),
            extensions: own(workload)
                .as_ref()
                .map(extension::extension)
                .into_iter()
                .collect(),
            ..Self::default()
        }
    }
}

/// What the contract has no field for, if there is anything.
fn own(workload: &Workload) -> Option<own::Workload> {
    let domains = workload.equivalent_domains.iter();
    let own = own::Workload {
        egress: match workload.egress {
            Egress::Anywhere => own::Egress::Anywhere,
            Egress::Registry => own::Egress::Registry,
        }
        .into(),
        equivalent_trust_domains: domains.map(ToString::to_string).collect(),
        terminating: workload.health == Health::Terminating,
    };
    (own != own::Workload::default()).then_some(own)
}

fn endpoint((key, ports): (&ServiceKey, &[Port])) -> (String, wire::PortList) {
    let ports = ports.iter().map(Into::into).collect();
    (key.to_string(), wire::PortList { ports })
}

fn protocol(from: TunnelProtocol) -> wire::TunnelProtocol {
    match from {
        TunnelProtocol::None => wire::TunnelProtocol::None,
        TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone,
    }
}

fn owner(from: OwnerKind) -> wire::WorkloadType {
    match from {
        OwnerKind::Deployment => wire::WorkloadType::Deployment,
        OwnerKind::CronJob => wire::WorkloadType::Cronjob,
        OwnerKind::Pod => wire::WorkloadType::Pod,
        OwnerKind::Job => wire::WorkloadType::Job,
    }
}

fn locality(from: &Locality) -> Option<wire::Locality> {
    (*from != Locality::default()).then(|| wire::Locality {
        region: from.region.to_string(),
        zone: from.zone.to_string(),
        subzone: from.subzone.to_string(),
    })
}
