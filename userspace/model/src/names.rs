//! Services by host name.

use std::{collections::HashMap, sync::Arc};

use crate::{Name, Service, service::Visibility};

/// The services of each host name, in the order of their namespaces. Names are compared as DNS does,
/// without regard to case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    by_name: HashMap<Name, Arc<[Arc<Service>]>>,
}

/// What the host names of services for all names of a domain begin with.
const WILDCARD: &str = "*.";

impl Names {
    pub(crate) fn insert(&mut self, service: &Arc<Service>) {
        self.set(service, Some(service));
    }

    pub(crate) fn remove(&mut self, service: &Service) {
        self.set(service, None);
    }

    fn set(&mut self, old: &Service, new: Option<&Arc<Service>>) {
        let name = match old.hostname.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => folded(&old.hostname),
            false => old.hostname.clone(),
        };
        let known = self.by_name.get(&name);
        let known = known.iter().flat_map(|services| services.iter());
        let others = known.filter(|other| other.namespace != old.namespace);
        let mut all: Vec<Arc<Service>> = others.chain(new).cloned().collect();
        all.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        if all.is_empty() {
            self.by_name.remove(&name);
        } else {
            self.by_name.insert(name, all.into());
        }
    }

    /// The service that a host name means to a client.
    pub(crate) fn resolve(&self, host: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let host = folded(host.strip_suffix('.').unwrap_or(host));
        if let Some(service) = self.visible(&host, client_namespace) {
            return Some(service);
        }
        // From the longest domain to the shortest.
        let mut domain = &*host;
        while let Some((_, parent)) = domain.split_once('.') {
            let wildcard = format!("{WILDCARD}{parent}");
            if let Some(service) = self.visible(&wildcard, client_namespace) {
                return Some(service);
            }
            domain = parent;
        }
        None
    }

    fn visible(&self, name: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let services = self.by_name.get(name)?;
        let own = |service: &&Arc<Service>| *service.namespace == *client_namespace;
        let public = |service: &&Arc<Service>| service.visibility == Visibility::Public;
        let others = || services.iter().filter(public);
        services
            .iter()
            .find(own)
            .or_else(|| others().find(|service| service.canonical))
            .or_else(|| others().next())
    }
}

fn folded(name: &str) -> Name {
    name.to_ascii_lowercase().into()
}
