//! Objects into what the mesh distributes: workloads, services and policies.

mod authorization;
mod egress;
mod endpoints;
mod mesh_config;
mod owner;
mod peer_authentication;
mod services;
mod workloads;

use sluice_model::{Name, Service, TrustDomain, Workload, authz::Policy};
use sluice_objects::{Diagnostic, Objects, Pod};

/// What the objects themselves do not say.
#[derive(Clone, Debug)]
pub struct Config {
    pub trust_domain: TrustDomain,
    /// Trust domains that are one with it; the mesh's own settings may name more.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The cluster's name, the first part of every uid.
    pub cluster: Name,
    /// The network that all addresses are part of; empty in a mesh of one network.
    pub network: Name,
    /// Where policies for the whole mesh live.
    pub root_namespace: Name,
    /// What host names of services end in, `cluster.local`.
    pub cluster_domain: Name,
}

/// The mesh that the objects describe.
#[derive(Debug, Default)]
pub struct Translation {
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    pub policies: Vec<Policy>,
    /// What the objects ask for and the mesh does not do.
    pub diagnostics: Vec<Diagnostic>,
}

/// Translates every object in force.
pub fn translate(objects: &Objects, config: &Config) -> Translation {
    let mut translation = Translation {
        services: services::services(objects, config),
        ..Translation::default()
    };
    let mut membership = endpoints::Membership::of(objects, config);
    let present = objects
        .pods
        .values()
        .filter(|pod| workloads::is_present(pod));
    let mut pods: Pods<'_> = present
        .map(|pod| {
            let services = membership.take_pod(&pod.namespace, &pod.name);
            (
                &pod.value,
                workloads::workload(pod, services, objects, config),
            )
        })
        .collect();
    authorization::apply(objects, config, &mut pods, &mut translation);
    peer_authentication::apply(objects, config, &mut pods, &mut translation);
    egress::apply(objects, config, &mut pods, &mut translation);
    translation.workloads = pods.into_iter().map(|(_, workload)| workload).collect();
    translation.workloads.extend(membership.into_foreign());
    mesh_config::apply(objects, config, &mut translation);
    translation
}

/// Pods, each with the workload that it becomes.
type Pods<'a> = Vec<(&'a Pod, Workload)>;

#[cfg(test)]
#[path = "translate/translate_tests.rs"]
mod tests;
