//! Objects into what the mesh distributes: workloads, services and policies.

mod authorization;
mod egress;
mod endpoints;
mod external;
mod mesh_config;
mod owner;
mod peer_authentication;
mod service_entries;
mod services;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use clap::Args;
use sluice_model::{Name, Service, ServiceKey, TrustDomain, Workload, authz::Policy};
use sluice_objects::{Diagnostic, Key, Located, Objects, Pod};

pub use peer_authentication::{PortMtls, Reach, mtls};

/// What the objects themselves do not say.
///
/// The flags are declared here because every program that translates must have the same ones.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// The trust domain of all identities.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// A trust domain that counts as the same, since identities are moving from one to the other; may
    /// be repeated.
    #[arg(long = "trust-domain-alias", value_name = "TRUST_DOMAIN")]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The cluster's name, the first part of every workload's uid.
    #[arg(
        long = "cluster-id",
        value_name = "CLUSTER_ID",
        default_value = "Kubernetes"
    )]
    pub cluster: Name,
    /// The network that all addresses are part of; empty in a mesh of one network.
    #[arg(long, default_value = "")]
    pub network: Name,
    /// The namespace whose policies count for the whole mesh.
    #[arg(long, default_value = "istio-system")]
    pub root_namespace: Name,
    /// What the host names of services end in.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: Name,
}

/// The mesh that the objects describe.
#[derive(Debug, Default)]
pub struct Translation {
    pub workloads: Vec<Workload>,
    pub services: Vec<Service>,
    /// Those without an address that shall be given one.
    pub unaddressed: BTreeSet<ServiceKey>,
    pub policies: Vec<Policy>,
    /// Trust domains that are one with the mesh's own.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// What the objects ask for and the mesh does not do.
    pub diagnostics: Vec<Diagnostic>,
}

/// Translates every object in force.
pub fn translate(objects: &Objects, config: &Config) -> Translation {
    let config = &mesh_config::with_aliases(objects, config);
    let mut translation = Translation {
        services: services::services(objects, config),
        trust_domain_aliases: config.trust_domain_aliases.clone(),
        ..Translation::default()
    };
    let entries = service_entries::Entries::of(objects, config, &mut translation.diagnostics);
    for entry in entries.iter() {
        let services = entry.services(objects, config);
        translation.services.extend(services);
        translation.unaddressed.extend(entry.unaddressed());
    }
    let diagnostics = &mut translation.diagnostics;
    let mut membership = endpoints::Membership::of(objects, config, &entries, diagnostics);
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

/// Oldest first: where several objects say something of the same, the oldest counts. Those without a
/// date, as in a directory, come after those with one, by name.
fn oldest_first<T, C: Ord>(
    objects: &BTreeMap<Key, Arc<Located<T>>>,
    created: impl Fn(&T) -> Option<C>,
) -> Vec<&Located<T>> {
    // They come by namespace and name, and stay so where their age does not differ.
    let mut all: Vec<&Located<T>> = objects.values().map(|object| &**object).collect();
    all.sort_by_key(|object| {
        let created = created(object);
        (created.is_none(), created)
    });
    all
}

/// Pods, each with the workload that it becomes.
type Pods<'a> = Vec<(&'a Pod, Workload)>;

#[cfg(test)]
#[path = "translate/translate_tests.rs"]
pub(crate) mod tests;
