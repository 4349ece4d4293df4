//! Who is meant by a name, and what is known of them.

use std::sync::Arc;

use sluice_model::{Service, ServiceKey, Uid, Workload, workload::TunnelProtocol};

use crate::World;

/// Whether a workload is part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    Member,
    /// It should be, and its node does not have it.
    Missing,
    Stranger,
}

pub(crate) const MISSING: &str = "the pod should be part of the mesh, and has not been enrolled on its \
                                  node; the log and the `pods` file of the ztunnel there say why";

impl<'a> World<'a> {
    /// A pod of this cluster, which its uid names, or else whoever else has that name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&'a Arc<Workload>> {
        let own = Uid::pod(self.cluster, namespace, name);
        let is_meant = |one: &&Arc<Workload>| *one.namespace == *namespace && one.name() == name;
        let own = self.mesh.workload(&own).filter(is_meant);
        own.or_else(|| self.mesh.workloads().find(is_meant))
    }

    /// By its name, or by its host name.
    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&'a Arc<Service>> {
        let own = self.mesh.service(&ServiceKey {
            namespace: namespace.into(),
            hostname: format!("{name}.{namespace}.svc.{}", self.cluster_domain).into(),
        });
        let is_meant = |one: &&Arc<Service>| {
            *one.namespace == *namespace && (*one.name == *name || *one.hostname == *name)
        };
        own.or_else(|| self.mesh.services().find(is_meant))
    }

    pub(crate) fn membership(&self, workload: &Workload) -> Membership {
        if workload.protocol == TunnelProtocol::None || workload.host_network {
            return Membership::Stranger;
        }
        match self.here {
            Some(here) if *workload.node == *here.node => {
                match here.enrolled.contains(&workload.uid) {
                    true => Membership::Member,
                    false => Membership::Missing,
                }
            }
            _ => Membership::Member,
        }
    }

    pub(crate) fn describe(&self, workload: &Workload) -> String {
        let mut parts = vec![workload_name(workload)];
        parts.extend(workload.ips.iter().map(ToString::to_string));
        if !workload.node.is_empty() {
            parts.push(format!("node {}", workload.node));
        }
        parts.push(match self.membership(workload) {
            Membership::Member => match workload.identity() {
                Ok(identity) => format!("in the mesh as {identity}"),
                Err(_) => "in the mesh, without an identity".to_owned(),
            },
            Membership::Missing => "announced as part of the mesh".to_owned(),
            Membership::Stranger if workload.host_network => {
                "outside the mesh, on its node's network".to_owned()
            }
            Membership::Stranger => "outside the mesh".to_owned(),
        });
        parts.join(", ")
    }
}

pub(crate) fn workload_name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name())
}
