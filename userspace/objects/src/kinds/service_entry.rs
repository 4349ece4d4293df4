//! ServiceEntries: services that no Service describes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use sluice_model::{Name, SpiffeId};

use super::{
    ExportTo, External, ExternalAddress, Labels, Protocol, TrafficDistribution, export,
    external::{RawExternal, external},
    labels,
    resource::Resource,
    service::annotated_distribution,
};
use crate::{Code, report::Report};

const AUTO_ADDRESS: &str = "networking.istio.io/enable-autoallocate-ip";

/// A service that no Service describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    pub namespace: Name,
    pub name: Name,
    /// The oldest of several for the same host counts.
    pub created: Option<Timestamp>,
    /// Each a host name, or `*.` and a domain; at least one.
    pub hosts: Vec<Name>,
    /// Single addresses are ranges of one.
    pub addresses: Vec<IpNet>,
    /// Its hosts that have no address, and may be given one; see [`ServiceEntry::may_be_given`].
    pub auto_address: bool,
    pub ports: Vec<EntryPort>,
    pub resolution: Resolution,
    /// Listed endpoints. Empty with a selector.
    pub endpoints: Vec<External>,
    /// The labels of its endpoints, which are pods and WorkloadEntries.
    pub selector: Option<Labels>,
    pub export_to: ExportTo,
    /// Identities accepted from its endpoints besides their own.
    pub subject_alt_names: Vec<SpiffeId>,
    pub traffic_distribution: Option<TrafficDistribution>,
}

impl ServiceEntry {
    /// Whether this host of it shall be given an address, so that connections are known to be to it.
    pub fn may_be_given(&self, host: &Name) -> bool {
        self.auto_address && !is_wildcard(host)
    }
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    pub name: Name,
    pub port: u16,
    pub target: u16,
    pub protocol: Protocol,
}

/// How an endpoint is found for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// It is the address that was dialled.
    None,
    /// It is one of those that are known.
    Static,
    /// Their names, or else the service's own, are resolved.
    Dns,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSpec {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    addresses: Option<Vec<String>>,
    #[serde(default)]
    ports: Option<Vec<RawPort>>,
    #[serde(default)]
    location: Option<String>,
    #[serde(default)]
    resolution: Option<String>,
    #[serde(default)]
    endpoints: Option<Vec<RawExternal>>,
    #[serde(default)]
    workload_selector: Option<RawSelector>,
    #[serde(default)]
    export_to: Option<Vec<String>>,
    #[serde(default)]
    subject_alt_names: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    number: i32,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    target_port: Option<i32>,
}

#[derive(Default, Deserialize)]
struct RawSelector {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

pub(super) fn service_entry(raw: Resource<RawSpec>, report: &mut Report<'_>) -> ServiceEntry {
    let mut spec = raw.spec.unwrap_or_default();
    let metadata = raw.metadata;
    location(spec.location.as_deref(), report);
    let hosts = hosts(&spec.hosts, report);
    let ports = ports(spec.ports.take().unwrap_or_default(), report);
    let raw_endpoints = spec.endpoints.take().unwrap_or_default();
    let endpoints: Vec<External> = raw_endpoints
        .into_iter()
        .enumerate()
        .map(|(i, raw)| endpoint(&format!("spec.endpoints[{i}]"), raw, &ports, report))
        .collect();
    let selector = spec.workload_selector.take();
    let selector = selector.map(|selector| workload_selector(selector, report));
    if selector.is_some() && !endpoints.is_empty() {
        let message = "a ServiceEntry has endpoints or a workloadSelector, not both";
        report.error(Code::ConflictingFields, "spec.workloadSelector", message);
    }
    let resolution = resolution(&spec, &hosts, &endpoints, selector.as_ref(), report);
    let addresses = addresses(&spec, report);
    let wanted = auto_address(metadata.labels.as_ref(), report);
    let auto_address = wanted && addresses.is_empty() && resolution != Resolution::None;
    let lonely = hosts.iter().find(|host| !auto_address || is_wildcard(host));
    if let Some(host) = lonely.filter(|_| addresses.is_empty() && !report.has_errors()) {
        let message = format!(
            "without addresses no connection is known to be to {host:?}: a connection has only an \
             address. One is given to hosts without a wildcard, with a resolution, unless \
             {AUTO_ADDRESS} is \"false\""
        );
        report.warning(Code::NoAddress, "spec.addresses", message);
    }
    ServiceEntry {
        namespace: report.namespace(),
        name: report.name(),
        created: metadata.creation_timestamp.map(|time| time.0),
        addresses,
        auto_address,
        resolution,
        hosts,
        ports,
        endpoints,
        selector,
        export_to: export::listed(&spec.export_to.unwrap_or_default(), report),
        subject_alt_names: sans(&spec.subject_alt_names.unwrap_or_default(), report),
        traffic_distribution: annotated_distribution(metadata.annotations.as_ref(), report),
    }
}

fn workload_selector(raw: RawSelector, report: &mut Report<'_>) -> Labels {
    let labels = labels(raw.labels);
    if labels.is_empty() {
        let message = "a workloadSelector needs a label";
        report.error(Code::MissingField, "spec.workloadSelector.labels", message);
    }
    labels
}

/// A ztunnel treats both alike: whether an endpoint is part of the mesh is the endpoint's to say.
fn location(text: Option<&str>, report: &mut Report<'_>) {
    if let Some(text) = text
        && !matches!(text, "MESH_EXTERNAL" | "MESH_INTERNAL")
    {
        let message = format!("{text:?} is neither MESH_EXTERNAL nor MESH_INTERNAL");
        report.error(Code::InvalidValue, "spec.location", message);
    }
}

fn hosts(raw: &[String], report: &mut Report<'_>) -> Vec<Name> {
    if raw.is_empty() {
        let message = "a ServiceEntry needs a host";
        report.error(Code::MissingField, "spec.hosts", message);
    }
    let mut hosts: Vec<Name> = Vec::new();
    for (i, host) in raw.iter().enumerate() {
        let domain = host.strip_prefix("*.").unwrap_or(host);
        report.dns_name(format!("spec.hosts[{i}]"), domain);
        if !hosts.iter().any(|known| **known == **host) {
            hosts.push(host.as_str().into());
        }
    }
    hosts
}

fn is_wildcard(host: &Name) -> bool {
    host.starts_with("*.")
}

/// Whether hosts without an address shall be given one, which is what happens unless it is refused.
fn auto_address(labels: Option<&BTreeMap<String, String>>, report: &mut Report<'_>) -> bool {
    let text = labels.and_then(|labels| labels.get(AUTO_ADDRESS));
    match text.map(String::as_str) {
        None | Some("true") => true,
        Some("false") => false,
        Some(other) => {
            report.warning(
                Code::IgnoredLabel,
                format!("metadata.labels[\"{AUTO_ADDRESS}\"]"),
                format!("{other:?} has no effect; known are true and false"),
            );
            true
        }
    }
}

fn addresses(spec: &RawSpec, report: &mut Report<'_>) -> Vec<IpNet> {
    let mut addresses = Vec::new();
    for (i, text) in spec.addresses.iter().flatten().enumerate() {
        let field = format!("spec.addresses[{i}]");
        let range = match text.contains('/') {
            false => report.address(field, text).map(IpNet::from),
            true => range(field, text, report),
        };
        addresses.extend(range.filter(|range| !addresses.contains(range)));
    }
    addresses
}

fn range(field: String, text: &str, report: &mut Report<'_>) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(range) => Some(range.trunc()),
        Err(_) => {
            let message = format!("{text:?} is neither an IP address nor a range of them (CIDR)");
            report.error(Code::InvalidValue, field, message);
            None
        }
    }
}

/// What a ztunnel carries without looking inside.
const OVER_TCP: [&str; 12] = [
    "",
    "TCP",
    "TLS",
    "HTTP",
    "HTTP2",
    "HTTPS",
    "HTTP_PROXY",
    "GRPC",
    "GRPC-WEB",
    "MONGO",
    "MYSQL",
    "REDIS",
];

fn ports(raw: Vec<RawPort>, report: &mut Report<'_>) -> Vec<EntryPort> {
    let mut ports = Vec::new();
    let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
    for (i, raw) in raw.into_iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let upper = raw.protocol.to_ascii_uppercase();
        let protocol = match upper.as_str() {
            "UDP" => {
                let message = "UDP is not carried: this port is left out";
                report.warning(Code::UnsupportedValue, field("protocol"), message);
                Protocol::Udp
            }
            known if OVER_TCP.contains(&known) => Protocol::Tcp,
            _ => {
                let message = format!(
                    "{:?} is not a protocol, such as TCP, TLS, HTTP",
                    raw.protocol
                );
                report.error(Code::InvalidValue, field("protocol"), message);
                continue;
            }
        };
        if raw.name.is_empty() {
            report.error(Code::MissingField, field("name"), "a port needs a name");
        }
        let Some(port) = report.port(field("number"), raw.number) else {
            continue;
        };
        let target = raw.target_port.filter(|target| *target != 0);
        let target = target.map_or(Some(port), |target| {
            report.port(field("targetPort"), target)
        });
        if !numbers.insert((port, protocol == Protocol::Udp)) {
            let message = format!("{port} is given twice");
            report.error(Code::ConflictingFields, field("number"), message);
        }
        if !names.insert(raw.name.clone()) {
            let message = format!("{:?} is given twice", raw.name);
            report.error(Code::ConflictingFields, field("name"), message);
        }
        ports.extend(target.map(|target| EntryPort {
            name: raw.name.as_str().into(),
            port,
            target,
            protocol,
        }));
    }
    ports
}

fn endpoint(
    field: &str,
    raw: RawExternal,
    ports: &[EntryPort],
    report: &mut Report<'_>,
) -> External {
    let endpoint = external(field, raw, report);
    for name in endpoint.ports.keys() {
        if !ports.iter().any(|port| port.name == *name) {
            let message = "no port of this ServiceEntry has this name";
            report.error(
                Code::ConflictingFields,
                format!("{field}.ports[\"{name}\"]"),
                message,
            );
        }
    }
    endpoint
}

fn resolution(
    spec: &RawSpec,
    hosts: &[Name],
    endpoints: &[External],
    selector: Option<&Labels>,
    report: &mut Report<'_>,
) -> Resolution {
    const FIELD: &str = "spec.resolution";
    let wildcard = hosts.iter().find(|host| is_wildcard(host));
    let alone = endpoints.is_empty() && selector.is_none();
    match spec.resolution.as_deref() {
        None | Some("NONE") => {
            if !endpoints.is_empty() {
                let message = "with resolution NONE the address that was dialled is the endpoint; \
                               endpoints need STATIC or DNS";
                report.error(Code::ConflictingFields, "spec.endpoints", message);
            }
            Resolution::None
        }
        Some("STATIC") => {
            for (i, endpoint) in endpoints.iter().enumerate() {
                if let ExternalAddress::Hostname(name) = &endpoint.address {
                    let message =
                        format!("{name:?} is a host name; with STATIC it is an IP address");
                    let field = format!("spec.endpoints[{i}].address");
                    report.error(Code::ConflictingFields, field, message);
                }
            }
            if alone {
                let message =
                    "STATIC without endpoints or workloadSelector: connections to it fail";
                report.warning(Code::NoEndpoints, FIELD, message);
            }
            Resolution::Static
        }
        Some(dns @ ("DNS" | "DNS_ROUND_ROBIN")) => {
            if let Some(host) = wildcard.filter(|_| alone) {
                let message = format!("{dns} cannot resolve {host:?}; give endpoints");
                report.error(Code::ConflictingFields, FIELD, message);
            }
            if dns == "DNS_ROUND_ROBIN" && endpoints.len() > 1 {
                let message = "DNS_ROUND_ROBIN takes one endpoint; use DNS";
                report.error(Code::ConflictingFields, "spec.endpoints", message);
            }
            Resolution::Dns
        }
        Some("DYNAMIC_DNS") => {
            if let Some(host) = wildcard {
                let message = format!(
                    "only a waypoint sees which host of {host:?} is meant: connections to it fail"
                );
                report.warning(Code::UnsupportedValue, FIELD, message);
            }
            Resolution::Dns
        }
        Some(other) => {
            let message = format!(
                "{other:?} is not a resolution; known are NONE, STATIC, DNS, DNS_ROUND_ROBIN, \
                 DYNAMIC_DNS"
            );
            report.error(Code::InvalidValue, FIELD, message);
            Resolution::None
        }
    }
}

fn sans(raw: &[String], report: &mut Report<'_>) -> Vec<SpiffeId> {
    let mut sans = Vec::new();
    for (i, text) in raw.iter().enumerate() {
        match text.parse() {
            Ok(id) => sans.push(id),
            Err(_) => {
                let message =
                    format!("{text:?} is no SPIFFE ID, and no workload proves another name");
                let field = format!("spec.subjectAltNames[{i}]");
                report.warning(Code::UnsupportedValue, field, message);
            }
        }
    }
    sans
}
