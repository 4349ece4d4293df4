//! Pods.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use k8s_openapi::api::core::v1 as raw;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sluice_model::Name;

use super::{Labels, OutboundPolicy, Protocol, labels, outbound, service::protocol};
use crate::{Code, report::Report};

/// The label that says whether a pod, or every pod of a namespace, is part of the mesh.
pub(crate) const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The annotation that names a pod's network namespace, in place of a container runtime.
pub(crate) const NETNS: &str = "sluice.io/netns";
/// The annotation by which a pod keeps its DNS queries to itself, or has them captured.
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// The annotation of a namespace or pod that says whether its connections may go straight to other
/// pods of the node, and theirs to it.
pub(super) const SAME_NODE: &str = "sluice.io/same-node";
/// The annotation of a namespace or pod that says whether its connections to what the mesh does not
/// know go straight out of it.
pub(super) const BYPASS: &str = "sluice.io/bypass";

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub namespace: Name,
    pub name: Name,
    pub labels: Labels,
    pub service_account: Name,
    /// The node it runs on; empty while it is not scheduled.
    pub node: Name,
    /// Its addresses, primary first, in canonical form. Empty only when it has terminated.
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
    pub phase: Phase,
    /// Its readiness condition; a running pod without conditions is ready.
    pub ready: bool,
    /// Its deletion has begun.
    pub terminating: bool,
    pub ports: Vec<ContainerPort>,
    /// The object that controls it.
    pub owner: Option<Owner>,
    /// The path of its network namespace, from the annotation `sluice.io/netns`.
    pub netns: Option<PathBuf>,
    /// From its own label `istio.io/dataplane-mode`.
    pub dataplane_mode: Option<DataplaneMode>,
    /// From its own annotation `sluice.io/outbound-traffic-policy`.
    pub outbound: Option<OutboundPolicy>,
    /// From its own annotation `ambient.istio.io/dns-capture`.
    pub dns_capture: Option<bool>,
    /// From its own annotation `sluice.io/same-node`.
    pub same_node: Option<bool>,
    /// From its own annotation `sluice.io/bypass`.
    pub bypass: Option<bool>,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    Pending,
    Running,
    /// All its containers have ended, well or not; it will not run again.
    Terminated,
    Unknown,
}

/// A port that a container names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: Option<Name>,
    pub port: u16,
    pub protocol: Protocol,
}

/// What controls a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub kind: Name,
    pub name: Name,
}

/// A value of the label `istio.io/dataplane-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataplaneMode {
    /// Part of the mesh.
    Ambient,
    /// Left out of it.
    None,
}

pub(super) fn dataplane_mode(labels: &Labels, report: &mut Report<'_>) -> Option<DataplaneMode> {
    match labels.get(DATAPLANE_MODE)?.as_ref() {
        "ambient" => Some(DataplaneMode::Ambient),
        "none" => Some(DataplaneMode::None),
        other => {
            report.warning(
                Code::IgnoredLabel,
                format!("metadata.labels[\"{DATAPLANE_MODE}\"]"),
                format!("{other:?} has no effect; known are \"ambient\" and \"none\""),
            );
            None
        }
    }
}

pub(super) fn pod(raw: raw::Pod, report: &mut Report<'_>) -> Pod {
    let metadata = raw.metadata;
    let spec = raw.spec.unwrap_or_default();
    let status = raw.status.unwrap_or_default();
    let phase = phase(&status, report);
    let labels = labels(metadata.labels.clone());
    Pod {
        namespace: report.namespace(),
        name: report.name(),
        dataplane_mode: dataplane_mode(&labels, report),
        labels,
        service_account: service_account(&spec, report),
        node: spec.node_name.as_deref().unwrap_or_default().into(),
        ips: ips(&status, phase, report),
        host_network: spec.host_network.unwrap_or(false),
        phase,
        ready: phase == Phase::Running && is_ready(&status),
        terminating: metadata.deletion_timestamp.is_some(),
        ports: ports(&spec, report),
        owner: owner(&metadata),
        netns: netns(&metadata, report),
        dns_capture: annotated_bool(metadata.annotations.as_ref(), DNS_CAPTURE, report),
        same_node: annotated_bool(metadata.annotations.as_ref(), SAME_NODE, report),
        bypass: annotated_bool(metadata.annotations.as_ref(), BYPASS, report),
        outbound: outbound::annotated(metadata.annotations.as_ref(), report),
    }
}

fn phase(status: &raw::PodStatus, report: &mut Report<'_>) -> Phase {
    match status.phase.as_deref() {
        // A directory describes pods that run; their phase need not be spelled out.
        None | Some("Running") => Phase::Running,
        Some("Pending") => Phase::Pending,
        Some("Succeeded" | "Failed") => Phase::Terminated,
        Some("Unknown") => Phase::Unknown,
        Some(other) => {
            report.error(
                Code::InvalidValue,
                "status.phase",
                format!(
                    "{other:?} is not a phase; phases are Pending, Running, Succeeded, Failed, \
                     Unknown"
                ),
            );
            Phase::Unknown
        }
    }
}

fn is_ready(status: &raw::PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions
        .find(|condition| condition.type_ == "Ready")
        .is_none_or(|condition| condition.status == "True")
}

fn service_account(spec: &raw::PodSpec, report: &mut Report<'_>) -> Name {
    let (field, name) = match (&spec.service_account_name, &spec.service_account) {
        (Some(name), _) => ("spec.serviceAccountName", name.as_str()),
        (None, Some(name)) => ("spec.serviceAccount", name.as_str()),
        (None, None) => return "default".into(),
    };
    report.dns_name(field, name)
}

fn ips(status: &raw::PodStatus, phase: Phase, report: &mut Report<'_>) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    if let Some(text) = &status.pod_ip {
        ips.extend(report.address("status.podIP", text));
    }
    for (i, pod_ip) in status.pod_ips.iter().flatten().enumerate() {
        let Some(ip) = report.address(format!("status.podIPs[{i}].ip"), &pod_ip.ip) else {
            continue;
        };
        if i == 0 && ips.first().is_some_and(|first| *first != ip) {
            let message = format!("{ip} is not status.podIP, which comes first");
            report.error(Code::ConflictingFields, "status.podIPs[0].ip", message);
        }
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let given = status.pod_ip.is_some() || status.pod_ips.iter().flatten().next().is_some();
    if !given && phase != Phase::Terminated {
        report.error(
            Code::MissingField,
            "status.podIP",
            "a pod needs an address; nothing in a directory assigns one",
        );
    }
    ips
}

fn ports(spec: &raw::PodSpec, report: &mut Report<'_>) -> Vec<ContainerPort> {
    let mut ports = Vec::new();
    let containers = [
        ("containers", Some(&spec.containers)),
        ("initContainers", spec.init_containers.as_ref()),
    ];
    for (list, containers) in containers {
        for (c, container) in containers.into_iter().flatten().enumerate() {
            for (p, port) in container.ports.iter().flatten().enumerate() {
                let field = format!("spec.{list}[{c}].ports[{p}]");
                let number = report.port(format!("{field}.containerPort"), port.container_port);
                let protocol = protocol(&field, port.protocol.as_deref(), report);
                ports.extend(number.map(|port_number| ContainerPort {
                    name: port.name.as_deref().map(Name::from),
                    port: port_number,
                    protocol,
                }));
            }
        }
    }
    ports
}

fn owner(metadata: &ObjectMeta) -> Option<Owner> {
    let is_controller = |owner: &&OwnerReference| owner.controller == Some(true);
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(is_controller).or(owners.first())?;
    Some(Owner {
        kind: owner.kind.as_str().into(),
        name: owner.name.as_str().into(),
    })
}

fn netns(metadata: &ObjectMeta, report: &mut Report<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(metadata.annotations.as_ref()?.get(NETNS)?);
    if !path.is_absolute() {
        report.error(
            Code::InvalidValue,
            format!("metadata.annotations[\"{NETNS}\"]"),
            format!(
                "{:?} is not an absolute path, such as /run/netns/NAME",
                path
            ),
        );
    }
    Some(path)
}

/// What an annotation says that is either true or false, if the object has it.
pub(super) fn annotated_bool(
    annotations: Option<&BTreeMap<String, String>>,
    name: &str,
    report: &mut Report<'_>,
) -> Option<bool> {
    match annotations?.get(name)?.as_str() {
        "true" => Some(true),
        "false" => Some(false),
        other => {
            report.error(
                Code::InvalidValue,
                format!("metadata.annotations[\"{name}\"]"),
                format!("{other:?} is neither \"true\" nor \"false\""),
            );
            None
        }
    }
}
