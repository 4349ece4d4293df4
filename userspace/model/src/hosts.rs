//! What a host name stands for, as DNS answers it to a pod with the usual search domains.

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
    pub fn host(&self, name: &str, asker: &Asker<'_>) -> Option<Host> {
        let meant = |name: &str| self.resolve(name, asker.namespace);
        if let Some(service) = meant(name) {
            return self.as_host(service, None, asker);
        }
        // A pod behind a headless service is named below it. It must not be taken for a service
        // that is named with a search domain, as CATALOG.SHOP.web.svc.cluster.local is.
        let parent = name.split_once('.').map(|(_, parent)| parent);
        let is_service =
            |host: &str| meant(host).is_some_and(|s| s.hostname.eq_ignore_ascii_case(host));
        if parent.is_some_and(is_service) {
            return None;
        }
        let full = asker.full_name(name);
        if let Some(service) = full.and_then(|full| meant(&full)) {
            return self.as_host(service, None, asker);
        }
        for stripped in asker.without_search_domains(name) {
            let own = std::iter::once(stripped.to_owned());
            for candidate in own.chain(asker.full_name(stripped)) {
                if let Some(service) = meant(&candidate) {
                    return self.as_host(service, Some(candidate), asker);
                }
            }
        }
        None
    }

    fn as_host(
        &self,
        service: &Arc<Service>,
        alias_of: Option<String>,
        asker: &Asker<'_>,
    ) -> Option<Host> {
        let addresses = self.addresses_of(service, asker.network);
        (!addresses.is_empty()).then(|| Host {
            alias_of,
            service: service.clone(),
            addresses,
        })
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

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
