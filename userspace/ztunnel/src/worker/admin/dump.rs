//! What the worker knows, in the form that the contract has for it (§13): the names of fields are
//! those that operators' tools read.

use std::{collections::BTreeMap, time::SystemTime};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sluice_identity::{CertificateState, CertificateStatus, Description, describe};
use sluice_model::{
    Mesh, Service, Workload,
    authz::{Action, Match, Policy, Rule, Scope, StringMatch, Values},
    service::{GatewayAddress, Visibility},
    workload::{Egress, Health, OwnerKind, TunnelProtocol},
};

use super::Operators;
use crate::worker::Shared;

/// Everything.
pub(super) async fn all(operators: &Operators) -> Value {
    let shared = &operators.shared;
    let states = states(operators).await;
    let mesh: &Mesh = &shared.mesh.load();
    let settings = &shared.settings;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": settings.node,
        "trustDomain": shared.trust_domain.as_str(),
        "config": {
            "clusterId": settings.cluster,
            "clusterDomain": &*settings.cluster_domain,
            "network": settings.network,
            "control": settings.control,
            "bypass": settings.bypass,
            "onDemand": settings.on_demand,
            "secretTtlSeconds": settings.certificate_ttl,
        },
        "workloads": mesh.workloads().map(|one| workload(one)).collect::<Vec<_>>(),
        "services": mesh.services().map(|one| service(mesh, one)).collect::<Vec<_>>(),
        "policies": mesh.policies().map(|one| policy(one)).collect::<Vec<_>>(),
        "certificates": certificates(shared),
        "workloadState": states,
        "controlPlane": control_plane(shared),
    })
}

fn workload(workload: &Workload) -> Value {
    json!({
        "uid": workload.uid.to_string(),
        "name": workload.name(),
        "namespace": &*workload.namespace,
        "serviceAccount": &*workload.service_account,
        "trustDomain": workload.trust_domain.as_str(),
        "workloadIps": &*workload.ips,
        "protocol": match workload.protocol {
            TunnelProtocol::None => "TCP",
            TunnelProtocol::Hbone => "HBONE",
        },
        "waypoint": workload.waypoint.as_ref().map(gateway),
        "node": &*workload.node,
        "network": &*workload.network,
        "clusterId": &*workload.cluster,
        "canonicalName": &*workload.canonical_name,
        "canonicalRevision": &*workload.canonical_revision,
        "workloadName": &*workload.owner_name,
        "workloadType": match workload.owner_kind {
            OwnerKind::Deployment => "deployment",
            OwnerKind::CronJob => "cronjob",
            OwnerKind::Pod => "pod",
            OwnerKind::Job => "job",
        },
        "status": match workload.health {
            Health::Ready => "Healthy",
            Health::Terminating => "Terminating",
            Health::NotReady => "Unhealthy",
        },
        "capacity": workload.capacity,
        "locality": {
            "region": &*workload.locality.region,
            "zone": &*workload.locality.zone,
            "subzone": &*workload.locality.subzone,
        },
        "hostname": workload.hostname.as_deref().unwrap_or_default(),
        "hostNetwork": workload.host_network,
        "authorizationPolicies": strings(&workload.policies),
        "outboundTrafficPolicy": match workload.egress {
            Egress::Anywhere => "ALLOW_ANY",
            Egress::Registry => "REGISTRY_ONLY",
        },
        "services": strings(workload.services.keys()),
    })
}

fn gateway(address: &GatewayAddress) -> Value {
    json!({
        "destination": address.destination.to_string(),
        "hboneMtlsPort": address.hbone_port,
    })
}

fn service(mesh: &Mesh, service: &Service) -> Value {
    let ports = service
        .ports
        .iter()
        .map(|port| (port.service_port.to_string(), port.target_port));
    let balancing = &service.load_balancing;
    let (v4, v6): (Vec<_>, Vec<_>) = service.vips.iter().partition(|vip| vip.ip.is_ipv4());
    json!({
        "name": &*service.name,
        "namespace": &*service.namespace,
        "hostname": &*service.hostname,
        "vips": strings(&service.vips),
        "cidrVips": strings(&service.ranges),
        "ports": ports.collect::<BTreeMap<_, _>>(),
        "endpoints": endpoints(mesh, service),
        "subjectAltNames": strings(&service.subject_alt_names),
        "waypoint": service.waypoint.as_ref().map(gateway),
        "loadBalancer": {
            "mode": format!("{:?}", balancing.mode),
            "routingPreferences": balancing
                .preference
                .iter()
                .map(|scope| format!("{scope:?}"))
                .collect::<Vec<_>>(),
            "healthPolicy": if balancing.allow_unhealthy { "AllowAll" } else { "OnlyHealthy" },
        },
        "ipFamilies": match (v4.is_empty(), v6.is_empty()) {
            (true, true) => None,
            (false, true) => Some("IPv4"),
            (true, false) => Some("IPv6"),
            (false, false) => Some("Dual"),
        },
        "canonical": service.canonical,
        "visibility": match service.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    })
}

/// By uid and address, each with the target of every port of the service.
fn endpoints(mesh: &Mesh, service: &Service) -> Map<String, Value> {
    let mut ports: BTreeMap<String, (Value, Map<String, Value>)> = BTreeMap::new();
    for port in &service.ports {
        for endpoint in mesh.endpoints(service, port.service_port) {
            let workload = &endpoint.workload;
            let address = workload.ips.first();
            let address = address.map(|ip| format!("{}/{ip}", workload.network));
            let key = match &address {
                Some(address) => format!("{}:{address}", workload.uid),
                None => workload.uid.to_string(),
            };
            let said = json!({
                "workloadUid": workload.uid.to_string(),
                "service": service.key().to_string(),
                "address": address,
            });
            let (_, targets) = ports.entry(key).or_insert((said, Map::new()));
            targets.insert(port.service_port.to_string(), endpoint.port.into());
        }
    }
    let endpoints = ports.into_iter().map(|(key, (mut said, targets))| {
        said["port"] = targets.into();
        (key, said)
    });
    endpoints.collect()
}

fn policy(policy: &Policy) -> Value {
    json!({
        "name": &*policy.key.name,
        "namespace": &*policy.key.namespace,
        "scope": match policy.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::Workload => "WorkloadSelector",
        },
        "action": match policy.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
            Action::Audit => "Audit",
        },
        // Any rule, every clause, any match.
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
        "dryRun": policy.dry_run,
    })
}

fn rule(rule: &Rule) -> Vec<Vec<Value>> {
    let clauses = rule.clauses.iter();
    clauses
        .map(|clause| clause.matches.iter().map(match_of).collect())
        .collect()
}

fn match_of(one: &Match) -> Value {
    let terms = one.terms().iter().map(|term| {
        let (name, negated, values) = match &term.values {
            Values::Namespaces(list) => ("namespaces", "notNamespaces", patterns(list)),
            Values::Principals(list) => ("principals", "notPrincipals", patterns(list)),
            Values::ServiceAccounts(list) => {
                let accounts = list.iter().map(
                    |one| json!({ "namespace": &*one.namespace, "serviceAccount": &*one.name }),
                );
                let accounts = accounts.collect();
                ("serviceAccounts", "notServiceAccounts", accounts)
            }
            Values::SourceIps(list) => ("sourceIps", "notSourceIps", json!(strings(list))),
            Values::DestinationIps(list) => {
                ("destinationIps", "notDestinationIps", json!(strings(list)))
            }
            Values::DestinationPorts(list) => {
                ("destinationPorts", "notDestinationPorts", json!(list))
            }
        };
        let name = if term.negated { negated } else { name };
        (name.to_owned(), values)
    });
    Value::Object(terms.collect())
}

fn patterns(list: &[StringMatch]) -> Value {
    let patterns = list.iter().map(|pattern| match pattern {
        StringMatch::Exact(text) => json!({ "Exact": &**text }),
        StringMatch::Prefix(text) => json!({ "Prefix": &**text }),
        StringMatch::Suffix(text) => json!({ "Suffix": &**text }),
        StringMatch::Presence => json!({ "Presence": {} }),
    });
    patterns.collect()
}

/// The pods of this node that are in the mesh, with the connections that the worker carries.
async fn states(operators: &Operators) -> Map<String, Value> {
    let mut connections = operators.threads.connections().await;
    let shared = &operators.shared;
    let mesh = shared.mesh.load();
    let pods: Vec<_> = operators.pods.borrow().values().cloned().collect();
    let states = pods.into_iter().map(|uid| {
        let key = uid.to_string();
        let info = mesh.workload(&uid).map(|workload| {
            json!({
                "name": workload.name(),
                "namespace": &*workload.namespace,
                "trustDomain": workload.trust_domain.as_str(),
                "serviceAccount": &*workload.service_account,
            })
        });
        let state = json!({
            // The control plane may not have told of a new pod yet.
            "state": if info.is_some() { "Up" } else { "Pending" },
            "connections": connections.remove(&key).unwrap_or_default(),
            "info": info,
        });
        (key, state)
    });
    states.collect()
}

fn control_plane(shared: &Shared) -> Value {
    let status = shared.mesh.status();
    json!({
        "address": shared.control_plane.current(),
        "connected": status.connected,
        // Of what is in force in its place.
        "snapshotTaken": status.snapshot.map(unix_seconds),
    })
}

/// The certificates of this node's identities, without their keys, and what they are trusted by.
pub(super) fn certificates(shared: &Shared) -> Vec<Certificates> {
    let roots = shared.identities.trust().roots();
    let roots: Vec<Certificate> = roots
        .iter()
        .flat_map(|roots| roots.certificates())
        .filter_map(|root| describe(root).ok())
        .map(Certificate::from)
        .collect();
    let status = shared.identities.status();
    status
        .into_iter()
        .map(|status| Certificates {
            identity: status.identity.to_string(),
            state: state(&status),
            serial_number: status.serial,
            valid_from: status.not_before.map(time),
            expiration_time: status.not_after.map(time),
            cert_chain: status.chain.into_iter().map(Certificate::from).collect(),
            root_certs: roots.clone(),
            last_error: status.last_error,
        })
        .collect()
}

fn state(status: &CertificateStatus) -> &'static str {
    match status.state {
        CertificateState::Requested => "Initializing",
        CertificateState::Valid => "Available",
        CertificateState::Expired => "Unavailable",
    }
}

/// What there is of an identity.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Certificates {
    identity: String,
    state: &'static str,
    /// Of the leaf, in hexadecimal.
    serial_number: Option<String>,
    valid_from: Option<String>,
    expiration_time: Option<String>,
    cert_chain: Vec<Certificate>,
    root_certs: Vec<Certificate>,
    last_error: Option<String>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    pem: String,
    /// In decimal.
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

impl From<Description> for Certificate {
    fn from(described: Description) -> Self {
        Self {
            pem: described.pem,
            serial_number: described.serial,
            valid_from: time(described.not_before),
            expiration_time: time(described.not_after),
        }
    }
}

/// As in RFC 3339.
fn time(time: SystemTime) -> String {
    // Any time that a certificate can name is one.
    Timestamp::try_from(time).map_or_else(|error| error.to_string(), |time| time.to_string())
}

/// Seconds since the epoch.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn strings<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}
