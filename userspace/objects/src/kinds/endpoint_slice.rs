//! EndpointSlices: endpoints that no selector finds.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as raw;
use sluice_model::Name;

use super::{Protocol, service::protocol};
use crate::{Code, report::Report};

/// The label that says which service an EndpointSlice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub namespace: Name,
    pub name: Name,
    /// The service of the same namespace that it belongs to, if any.
    pub service: Option<Name>,
    pub endpoints: Vec<Endpoint>,
    pub ports: Vec<EndpointPort>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ips: Vec<IpAddr>,
    pub ready: bool,
    /// It answers, whether or not it is about to end.
    pub serving: bool,
    pub terminating: bool,
    /// The node it runs on; may be empty.
    pub node: Name,
    pub zone: Name,
    /// The pod of the same namespace that it is, if any.
    pub pod: Option<Name>,
}

/// A port that every endpoint of a slice serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the service's port; may be empty.
    pub name: Name,
    pub port: u16,
    pub protocol: Protocol,
}

pub(super) fn endpoint_slice(raw: raw::EndpointSlice, report: &mut Report<'_>) -> EndpointSlice {
    let service = raw
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(SERVICE_NAME));
    if service.is_none() {
        report.warning(
            Code::NoEndpoints,
            "metadata.labels",
            format!("without the label {SERVICE_NAME} it belongs to no service"),
        );
    }
    EndpointSlice {
        namespace: report.namespace(),
        name: report.name(),
        service: service.map(|name| name.as_str().into()),
        endpoints: endpoints(&raw, report),
        ports: ports(&raw, report),
    }
}

fn endpoints(raw: &raw::EndpointSlice, report: &mut Report<'_>) -> Vec<Endpoint> {
    let ipv6 = match raw.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        "FQDN" => {
            report.warning(
                Code::NoEndpoints,
                "addressType",
                "endpoints by host name are not dialled",
            );
            return Vec::new();
        }
        other => {
            let message = format!("{other:?} is not an address type; known are IPv4, IPv6, FQDN");
            report.error(Code::InvalidValue, "addressType", message);
            return Vec::new();
        }
    };
    let all = raw.endpoints.iter().flatten().enumerate();
    all.map(|(i, endpoint)| self::endpoint(i, endpoint, ipv6, report))
        .collect()
}

fn endpoint(i: usize, raw: &raw::Endpoint, ipv6: bool, report: &mut Report<'_>) -> Endpoint {
    let mut ips = Vec::new();
    for (a, text) in raw.addresses.iter().enumerate() {
        let field = format!("endpoints[{i}].addresses[{a}]");
        let Some(ip) = report.address(field.clone(), text) else {
            continue;
        };
        if ip.is_ipv6() != ipv6 {
            report.error(
                Code::ConflictingFields,
                field,
                format!("{ip} is not of the slice's addressType"),
            );
        }
        ips.push(ip);
    }
    if raw.addresses.is_empty() {
        let field = format!("endpoints[{i}].addresses");
        report.error(Code::MissingField, field, "an endpoint needs an address");
    }
    let conditions = raw.conditions.clone().unwrap_or_default();
    let target = raw.target_ref.as_ref();
    let pod = target.filter(|target| target.kind.as_deref() == Some("Pod"));
    Endpoint {
        ips,
        // The API says that an unknown state is to be taken as ready.
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.or(conditions.ready).unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: raw.node_name.as_deref().unwrap_or_default().into(),
        zone: raw.zone.as_deref().unwrap_or_default().into(),
        pod: pod.and_then(|pod| pod.name.as_deref()).map(Name::from),
    }
}

fn ports(raw: &raw::EndpointSlice, report: &mut Report<'_>) -> Vec<EndpointPort> {
    let mut ports = Vec::new();
    for (i, port) in raw.ports.iter().flatten().enumerate() {
        let field = format!("ports[{i}]");
        let protocol = protocol(&field, port.protocol.as_deref(), report);
        let Some(number) = port.port else {
            report.error(
                Code::MissingField,
                format!("{field}.port"),
                "an endpoint's port needs a number",
            );
            continue;
        };
        let number = report.port(format!("{field}.port"), number);
        ports.extend(number.map(|number| EndpointPort {
            name: port.name.as_deref().unwrap_or_default().into(),
            port: number,
            protocol,
        }));
    }
    ports
}
