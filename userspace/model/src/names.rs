//! What a host name stands for, as DNS answers it.

use std::{net::IpAddr, sync::Arc};

use crate::{Mesh, Name, Service};

/// Who asks for a name.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub namespace: &'a str,
    pub network: &'a Name,
    /// The DNS domain of the cluster's services, in lower case.
    pub cluster_domain: &'a str,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// What the name is an alias of: a search domain was appended to it.
    pub alias_of: Option<String>,
    pub service: Arc<Service>,
    /// Of both families, and never empty.
    pub addresses: Vec<IpAddr>,
}

impl Mesh {
    /// What `name` (in lower case, without a final dot) stands for when it is asked for.
    ///
    /// `None` for what the mesh does not know, and for services without any address in the asker's
    /// network: others may know one.
    pub fn resolve(&self, name: &str, asker: &Asker<'_>) -> Option<Host> {
        if let Some(service) = self.host(name, asker) {
            return self.as_host(service, None, asker);
        }
        // A pod behind a headless service is named below it. It must not be taken for a service
        // that is named with a search domain, as CATALOG.SHOP.web.svc.cluster.local is.
        let parent = name.split_once('.').map(|(_, parent)| parent);
        if parent.is_some_and(|parent| self.services_of_host(parent).next().is_some()) {
            return None;
        }
        let full = asker.full_name(name);
        if let Some(service) = full.and_then(|full| self.host(&full, asker)) {
            return self.as_host(service, None, asker);
        }
        for stripped in asker.without_search_domains(name) {
            let own = std::iter::once(stripped.to_owned());
            for candidate in own.chain(asker.full_name(stripped)) {
                if let Some(service) = self.host(&candidate, asker) {
                    return self.as_host(service, Some(candidate), asker);
                }
            }
        }
        None
    }

    /// The service of a host name, or of the longest wildcard that it matches.
    fn host(&self, name: &str, asker: &Asker<'_>) -> Option<&Arc<Service>> {
        if let Some(service) = self.preferred(name, asker) {
            return Some(service);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(service) = self.preferred(&format!("*.{parent}"), asker) {
                return Some(service);
            }
            rest = parent;
        }
        None
    }

    /// The asker's own namespace counts before the one that Kubernetes puts into the name, and that
    /// before all others.
    fn preferred(&self, host: &str, asker: &Asker<'_>) -> Option<&Arc<Service>> {
        self.services_of_host(host).min_by_key(|service| {
            if *service.namespace == *asker.namespace {
                0
            } else if service.is_named_by_kubernetes(asker.cluster_domain) {
                1
            } else {
                2
            }
        })
    }

    fn as_host(
        &self,
        service: &Arc<Service>,
        alias_of: Option<String>,
        asker: &Asker<'_>,
    ) -> Option<Host> {
        let addresses = self.host_addresses(service, asker.network);
        (!addresses.is_empty()).then(|| Host {
            alias_of,
            service: service.clone(),
            addresses,
        })
    }

    /// Virtual addresses, or those of the endpoints of a service that has none.
    fn host_addresses(&self, service: &Service, network: &Name) -> Vec<IpAddr> {
        if !service.vips.is_empty() {
            let here = service.vips.iter().filter(|vip| vip.network == *network);
            return here.map(|vip| vip.ip).collect();
        }
        let wanted = |healthy| healthy || service.load_balancing.allow_unhealthy;
        self.backends(service)
            .filter(|workload| wanted(workload.healthy) && workload.network == *network)
            .flat_map(|workload| workload.ips.iter().copied())
            .collect()
    }
}

impl Asker<'_> {
    /// The full name that a short one is meant as: NAME, NAME.NAMESPACE or NAME.NAMESPACE.svc.
    fn full_name(&self, name: &str) -> Option<String> {
        let domain = self.cluster_domain;
        let labels: Vec<&str> = name.split('.').collect();
        match labels[..] {
            [_] => Some(format!("{name}.{}.svc.{domain}", self.namespace)),
            [_, _] => Some(format!("{name}.svc.{domain}")),
            [_, _, "svc"] => Some(format!("{name}.{domain}")),
            _ => None,
        }
    }

    /// What is left of a name when a search domain that pods usually have is taken off its end.
    fn without_search_domains<'n>(&self, name: &'n str) -> impl Iterator<Item = &'n str> {
        let domain = self.cluster_domain;
        let domains = [
            format!(".{}.svc.{domain}", self.namespace),
            format!(".svc.{domain}"),
            format!(".{domain}"),
        ];
        domains
            .into_iter()
            .filter_map(|domain| name.strip_suffix(&domain))
            .filter(|rest| !rest.is_empty())
    }
}

impl Service {
    fn is_named_by_kubernetes(&self, domain: &str) -> bool {
        let rest = self.hostname.strip_suffix(domain);
        let rest = rest.and_then(|rest| rest.strip_suffix(".svc."));
        rest.and_then(|rest| rest.strip_suffix(&*self.namespace))
            .is_some_and(|rest| rest.ends_with('.'))
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
