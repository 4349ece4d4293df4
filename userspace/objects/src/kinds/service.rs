//! Services.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1 as raw;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sluice_model::Name;

use super::{ExportTo, Labels, export, labels};
use crate::{Code, report::Report};

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: Name,
    pub name: Name,
    pub labels: Labels,
    pub addressing: Addressing,
    pub ports: Vec<ServicePort>,
    /// The labels of its pods; `None` when EndpointSlices list its endpoints instead.
    pub selector: Option<Labels>,
    pub publish_not_ready_addresses: bool,
    /// Only endpoints on the client's own node (`internalTrafficPolicy: Local`).
    pub node_local: bool,
    pub traffic_distribution: Option<TrafficDistribution>,
    pub export_to: ExportTo,
}

/// How a service is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// By these virtual addresses; there is at least one.
    Virtual(Vec<IpAddr>),
    /// By the addresses of its endpoints.
    Headless,
    /// It is another name for a host elsewhere.
    ExternalName(Name),
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the service has only one port.
    pub name: Name,
    pub port: u16,
    pub target: TargetPort,
    pub protocol: Protocol,
}

/// The port of an endpoint behind a service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    /// Each pod says which port has this name.
    Name(Name),
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// Which endpoints a client prefers (`trafficDistribution`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrafficDistribution {
    /// None, though the namespace may say otherwise.
    Any,
    SameNetwork,
    SameRegion,
    /// Of the client's own network, region and zone, in this order (`PreferClose` too).
    SameZone,
    SameNode,
}

/// Where it stood before Kubernetes had a field for it, and where a ServiceEntry and a namespace
/// have it.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

pub(super) fn service(raw: raw::Service, report: &mut Report<'_>) -> Service {
    let spec = raw.spec.unwrap_or_default();
    let annotations = raw.metadata.annotations.as_ref();
    let annotated = annotated_distribution(annotations, report);
    let selector = spec
        .selector
        .clone()
        .filter(|selector| !selector.is_empty());
    Service {
        namespace: report.namespace(),
        name: report.name(),
        labels: labels(raw.metadata.labels.clone()),
        addressing: addressing(&spec, report),
        ports: ports(&spec, report),
        selector: selector.map(|selector| labels(Some(selector))),
        publish_not_ready_addresses: spec.publish_not_ready_addresses.unwrap_or(false),
        node_local: node_local(&spec, report),
        traffic_distribution: traffic_distribution(&spec, report).or(annotated),
        export_to: export::annotated(annotations, report),
    }
}

fn addressing(spec: &raw::ServiceSpec, report: &mut Report<'_>) -> Addressing {
    match spec.type_.as_deref() {
        Some("ExternalName") => {
            let name = spec.external_name.as_deref().unwrap_or_default();
            let name = report.dns_name("spec.externalName", name);
            return Addressing::ExternalName(name);
        }
        None | Some("ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(other) => report.error(
            Code::InvalidValue,
            "spec.type",
            format!("{other:?} is not a type of service"),
        ),
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Addressing::Headless;
    }
    let first = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let mut vips: Vec<IpAddr> = Vec::new();
    vips.extend(first.and_then(|ip| report.address("spec.clusterIP", ip)));
    for (i, ip) in spec.cluster_ips.iter().flatten().enumerate() {
        let ip = report.address(format!("spec.clusterIPs[{i}]"), ip);
        vips.extend(ip.filter(|ip| !vips.contains(ip)));
    }
    if vips.is_empty() {
        if !report.has_errors() {
            report.warning(
                Code::NoAddress,
                "spec.clusterIP",
                "no address, and nothing in a directory assigns one: taken as headless; \
                 give an address, or None",
            );
        }
        return Addressing::Headless;
    }
    Addressing::Virtual(vips)
}

fn ports(spec: &raw::ServiceSpec, report: &mut Report<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{i}]");
        let protocol = protocol(&field, port.protocol.as_deref(), report);
        let number = report.port(format!("{field}.port"), port.port);
        let target = match &port.target_port {
            None => number.map(TargetPort::Number),
            Some(target) => target_port(format!("{field}.targetPort"), target, report),
        };
        let (Some(number), Some(target)) = (number, target) else {
            continue;
        };
        if ports
            .iter()
            .any(|p| (p.port, p.protocol) == (number, protocol))
        {
            report.error(
                Code::ConflictingFields,
                format!("{field}.port"),
                format!("{number} is given twice"),
            );
        }
        ports.push(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            port: number,
            target,
            protocol,
        });
    }
    ports
}

fn target_port(field: String, target: &IntOrString, report: &mut Report<'_>) -> Option<TargetPort> {
    match target {
        IntOrString::Int(port) => report.port(field, *port).map(TargetPort::Number),
        IntOrString::String(name) => {
            let letter = name.chars().any(|c| c.is_ascii_lowercase());
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if letter && name.len() <= 15 && name.chars().all(allowed) {
                return Some(TargetPort::Name(name.as_str().into()));
            }
            report.error(
                Code::InvalidValue,
                field,
                format!("{name:?} is neither a number nor the name of a port (RFC 6335)"),
            );
            None
        }
    }
}

/// The protocol of the port at `field`; anything unknown is an error.
pub(super) fn protocol(field: &str, protocol: Option<&str>, report: &mut Report<'_>) -> Protocol {
    match protocol {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => {
            let message = format!("{other:?} is not a protocol; known are TCP, UDP, SCTP");
            report.error(Code::InvalidValue, format!("{field}.protocol"), message);
            Protocol::Tcp
        }
    }
}

fn node_local(spec: &raw::ServiceSpec, report: &mut Report<'_>) -> bool {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            let message = format!("{other:?} is neither Cluster nor Local");
            report.error(Code::InvalidValue, "spec.internalTrafficPolicy", message);
            false
        }
    }
}

fn traffic_distribution(
    spec: &raw::ServiceSpec,
    report: &mut Report<'_>,
) -> Option<TrafficDistribution> {
    match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => Some(TrafficDistribution::SameZone),
        "PreferSameNode" => Some(TrafficDistribution::SameNode),
        other => {
            report.error(
                Code::InvalidValue,
                "spec.trafficDistribution",
                format!("{other:?} is not PreferClose, PreferSameZone or PreferSameNode"),
            );
            None
        }
    }
}

/// From an object's annotation, which is read without regard to case.
pub(super) fn annotated_distribution(
    annotations: Option<&BTreeMap<String, String>>,
    report: &mut Report<'_>,
) -> Option<TrafficDistribution> {
    const KNOWN: [(&str, TrafficDistribution); 6] = [
        ("Any", TrafficDistribution::Any),
        ("PreferSameNetwork", TrafficDistribution::SameNetwork),
        ("PreferSameRegion", TrafficDistribution::SameRegion),
        ("PreferSameZone", TrafficDistribution::SameZone),
        ("PreferClose", TrafficDistribution::SameZone),
        ("PreferSameNode", TrafficDistribution::SameNode),
    ];
    let text = annotations?.get(TRAFFIC_DISTRIBUTION)?;
    let found = KNOWN
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text));
    if found.is_none() {
        let names = KNOWN.map(|(name, _)| name).join(", ");
        report.warning(
            Code::IgnoredLabel,
            format!("metadata.annotations[\"{TRAFFIC_DISTRIBUTION}\"]"),
            format!("{text:?} has no effect; known are {names}"),
        );
    }
    found.map(|(_, distribution)| *distribution)
}
