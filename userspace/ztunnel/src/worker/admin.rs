//! What operators and scrapers can ask: readiness, metrics, and a dump of what the worker knows.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sluice_model::{
    Mesh, Service, Workload,
    authz::{Action, Policy, Scope},
    workload::{Egress, Health, TunnelProtocol},
};
use sluice_telemetry::serve::{JSON, Readiness, Reply, Router, serve};
use tokio::net::TcpListener;

use super::Shared;

/// Binds the endpoints and serves them in the background.
pub(super) async fn start(shared: &Arc<Shared>, readiness: &Readiness) -> Result<()> {
    let settings = &shared.settings;
    let dumped = shared.clone();
    let admin = Router::new()
        .get("/config_dump", move |_| {
            Reply::ok(JSON, format!("{:#}\n", dump(&dumped)))
        })
        .stream("/trace", {
            let trace = shared.trace.clone();
            move |query, sender| super::trace::open(&trace, query, sender)
        })
        .readiness(readiness.clone());
    let metrics = Router::new().metrics(shared.metrics.clone());
    let ready = Router::new().readiness(readiness.clone());
    let endpoints = [
        (settings.admin, admin),
        (settings.metrics, metrics),
        (settings.readiness, ready),
    ];
    for (address, router) in endpoints {
        let listener = listen(address).await?;
        tokio::spawn(serve(listener, router));
    }
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for operators"))
}

fn dump(shared: &Shared) -> Value {
    let mesh: &Mesh = &shared.mesh.load();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": shared.settings.node,
        "trustDomain": shared.trust_domain.as_str(),
        "workloads": mesh.workloads().map(|w| workload(w)).collect::<Vec<_>>(),
        "services": mesh.services().map(|s| service(s)).collect::<Vec<_>>(),
        "policies": mesh.policies().map(|p| policy(p)).collect::<Vec<_>>(),
        "certificates": certificates(shared),
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
        "node": &*workload.node,
        "network": &*workload.network,
        "clusterId": &*workload.cluster,
        "canonicalName": &*workload.canonical_name,
        "canonicalRevision": &*workload.canonical_revision,
        "workloadName": &*workload.owner_name,
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
        "hostname": workload.hostname.as_deref(),
        "authorizationPolicies": strings(&workload.policies),
        "outboundTrafficPolicy": match workload.egress {
            Egress::Anywhere => "ALLOW_ANY",
            Egress::Registry => "REGISTRY_ONLY",
        },
        "services": strings(workload.services.keys()),
    })
}

fn service(service: &Service) -> Value {
    let ports = service
        .ports
        .iter()
        .map(|port| (port.service_port.to_string(), port.target_port));
    json!({
        "name": &*service.name,
        "namespace": &*service.namespace,
        "hostname": &*service.hostname,
        "vips": strings(&service.vips),
        "ranges": strings(&service.ranges),
        "ports": ports.collect::<std::collections::BTreeMap<_, _>>(),
        "subjectAltNames": strings(&service.subject_alt_names),
    })
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
        "rules": policy.rules.len(),
        "dryRun": policy.dry_run,
    })
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

fn certificates(shared: &Shared) -> Vec<Value> {
    let status = shared.identities.status();
    let entries = status.iter().map(|certificate| {
        json!({
            "identity": certificate.identity.to_string(),
            "state": format!("{:?}", certificate.state),
            "serialNumber": certificate.serial,
            "validFrom": certificate.not_before.map(unix_seconds),
            "expirationTime": certificate.not_after.map(unix_seconds),
            "lastError": certificate.last_error,
        })
    });
    entries.collect()
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
