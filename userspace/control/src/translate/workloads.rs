//! Pods into workloads.

use std::{collections::BTreeMap, sync::Arc};

use sluice_model::{
    Name, ServiceKey, Uid, Workload,
    service::Port,
    workload::{Egress, Health, Profile, TunnelProtocol},
};
use sluice_objects::{Labels, Objects, Pod, enrolment::is_enrolled, kinds::Phase};

use super::{Config, owner};

/// Whether a pod is a workload: one that has terminated gave its address back.
pub(super) fn is_present(pod: &Pod) -> bool {
    pod.phase != Phase::Terminated
}

pub(super) fn uid(pod: &Pod, config: &Config) -> Uid {
    Uid::pod(&config.cluster, &pod.namespace, &pod.name)
}

pub(super) fn workload(
    pod: &Pod,
    services: BTreeMap<ServiceKey, Vec<Port>>,
    objects: &Objects,
    config: &Config,
) -> Workload {
    let (owner_kind, owner_name) = owner::of(pod);
    let protocol = if is_enrolled(pod, objects.namespace(&pod.namespace)) {
        TunnelProtocol::Hbone
    } else {
        TunnelProtocol::None
    };
    let uid = uid(pod, config);
    let node = objects.nodes.get(&pod.node);
    let profile = Profile {
        namespace: pod.namespace.clone(),
        trust_domain: config.trust_domain.clone(),
        equivalent_domains: Arc::default(),
        service_account: pod.service_account.clone(),
        network: config.network.clone(),
        cluster: config.cluster.clone(),
        protocol,
        host_network: pod.host_network,
        hostname: None,
        canonical_name: first_label(&pod.labels, CANONICAL_NAME).unwrap_or(owner_name.clone()),
        canonical_revision: first_label(&pod.labels, CANONICAL_REVISION)
            .unwrap_or_else(|| "latest".into()),
        owner_kind,
        owner_name,
        services: services.into(),
        waypoint: None,
        policies: Vec::new(),
        egress: Egress::default(),
        capacity: 1,
        locality: node.map(|node| node.locality.clone()).unwrap_or_default(),
    };
    Workload {
        own_name: uid.unless_last_part(&pod.name),
        uid,
        ips: pod.ips.clone().into(),
        node: (&*pod.node).into(),
        health: match (pod.ready, pod.terminating) {
            (true, false) => Health::Ready,
            (true, true) => Health::Terminating,
            (false, _) => Health::NotReady,
        },
        profile: Arc::new(profile),
    }
}

/// The labels that name a pod's service in telemetry, most specific first.
pub(super) const CANONICAL_NAME: [&str; 3] = [
    "service.istio.io/canonical-name",
    "app.kubernetes.io/name",
    "app",
];

pub(super) const CANONICAL_REVISION: [&str; 3] = [
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
];

pub(super) fn first_label(labels: &Labels, keys: [&str; 3]) -> Option<Name> {
    keys.iter().find_map(|key| labels.get(*key)).cloned()
}
