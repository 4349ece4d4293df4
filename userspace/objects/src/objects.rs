//! Every object in force, as one immutable snapshot.

use std::{collections::BTreeMap, sync::Arc};

use sluice_model::Name;

use crate::{
    AuthorizationPolicy, EndpointSlice, Located, MeshConfig, Namespace, Node, PeerAuthentication,
    Pod, Service, ServiceAccount, ServiceEntry, Sidecar, WorkloadEntry, kinds::Object,
    read::DEFAULT_NAMESPACE,
};

/// The namespace and name of an object.
pub type Key = (Name, Name);

/// The objects of a kind, ordered by namespace and name.
type Map<T> = BTreeMap<Key, Arc<Located<T>>>;

/// The objects in force at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub namespaces: BTreeMap<Name, Arc<Located<Namespace>>>,
    pub service_accounts: Map<ServiceAccount>,
    pub pods: Map<Pod>,
    pub services: Map<Service>,
    pub endpoint_slices: Map<EndpointSlice>,
    pub authorization_policies: Map<AuthorizationPolicy>,
    pub peer_authentications: Map<PeerAuthentication>,
    pub nodes: BTreeMap<Name, Arc<Located<Node>>>,
    pub service_entries: Map<ServiceEntry>,
    pub workload_entries: Map<WorkloadEntry>,
    pub sidecars: Map<Sidecar>,
    /// One for a namespace; which counts is the control plane's to say.
    pub mesh_configs: Map<MeshConfig>,
}

impl Objects {
    /// The pods of one namespace.
    pub fn pods_of<'a>(&'a self, namespace: &'a Name) -> impl Iterator<Item = &'a Located<Pod>> {
        of(&self.pods, namespace)
    }

    /// The WorkloadEntries of one namespace.
    pub fn workload_entries_of<'a>(
        &'a self,
        namespace: &'a Name,
    ) -> impl Iterator<Item = &'a Located<WorkloadEntry>> {
        of(&self.workload_entries, namespace)
    }

    /// Whether there is a namespace of that name; every cluster has `default`.
    pub fn has_namespace(&self, name: &Name) -> bool {
        **name == *DEFAULT_NAMESPACE || self.namespaces.contains_key(name)
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &Name) -> Option<&Namespace> {
        self.namespaces.get(name).map(|namespace| &namespace.value)
    }
}

fn of<'a, T>(
    objects: &'a Map<T>,
    namespace: &'a Name,
) -> impl Iterator<Item = &'a Located<T>> + use<'a, T> {
    let first: Key = (namespace.clone(), "".into());
    objects
        .range(first..)
        .take_while(move |((at, _), _)| at == namespace)
        .map(|(_, object)| &**object)
}

impl FromIterator<Object> for Objects {
    fn from_iter<I: IntoIterator<Item = Object>>(all: I) -> Self {
        let mut objects = Self::default();
        for object in all {
            let reference = &object.origin().object;
            let key = (reference.namespace.clone(), reference.name.clone());
            match object {
                Object::Namespace(o) => {
                    objects.namespaces.insert(key.1, o);
                }
                Object::ServiceAccount(o) => {
                    objects.service_accounts.insert(key, o);
                }
                Object::Pod(o) => {
                    objects.pods.insert(key, o);
                }
                Object::Service(o) => {
                    objects.services.insert(key, o);
                }
                Object::EndpointSlice(o) => {
                    objects.endpoint_slices.insert(key, o);
                }
                Object::AuthorizationPolicy(o) => {
                    objects.authorization_policies.insert(key, o);
                }
                Object::PeerAuthentication(o) => {
                    objects.peer_authentications.insert(key, o);
                }
                Object::Node(o) => {
                    objects.nodes.insert(key.1, o);
                }
                Object::ServiceEntry(o) => {
                    objects.service_entries.insert(key, o);
                }
                Object::WorkloadEntry(o) => {
                    objects.workload_entries.insert(key, o);
                }
                Object::Sidecar(o) => {
                    objects.sidecars.insert(key, o);
                }
                Object::MeshConfig(o) => {
                    objects.mesh_configs.insert(key, o);
                }
            }
        }
        objects
    }
}
