//! Workloads: what sends and receives traffic.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use crate::{
    Name, SpiffeId, TrustDomain,
    authz::PolicyKey,
    identity::ParseSpiffeIdError,
    service::{GatewayAddress, Port, ServiceKey},
};

/// A workload's unique name, `CLUSTER//Pod/NAMESPACE/NAME` for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(pub Name);

impl Uid {
    /// The uid of a pod.
    pub fn pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload, as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub uid: Uid,
    pub name: Name,
    pub namespace: Name,
    pub trust_domain: TrustDomain,
    /// The trust domains that are one, its own among them, so that what is said of one is said of
    /// all; empty where there is but one.
    pub equivalent_domains: Arc<[TrustDomain]>,
    pub service_account: Name,
    pub network: Name,
    pub cluster: Name,
    /// Canonical addresses: no IPv4-mapped IPv6.
    pub ips: Vec<IpAddr>,
    pub protocol: TunnelProtocol,
    /// The node it runs on.
    pub node: Name,
    /// It shares its node's network namespace, and so has no address of its own.
    pub host_network: bool,
    /// The service identity shown in telemetry, from `service.istio.io/canonical-name`.
    pub canonical_name: Name,
    pub canonical_revision: Name,
    pub owner_kind: OwnerKind,
    /// The name of the Deployment, Job or other owner, or of the pod itself.
    pub owner_name: Name,
    /// The services it is an endpoint of, with its resolved ports.
    pub services: BTreeMap<ServiceKey, Vec<Port>>,
    pub waypoint: Option<GatewayAddress>,
    /// Policies that select this workload; policies of wider scope are not listed.
    pub policies: Vec<PolicyKey>,
    /// Where its own connections may go.
    pub egress: Egress,
    pub healthy: bool,
    /// Its share of a service's connections.
    pub capacity: u32,
    pub locality: Locality,
}

impl Workload {
    /// Its identity.
    ///
    /// # Errors
    /// When namespace or service account cannot be part of a SPIFFE ID.
    pub fn identity(&self) -> Result<SpiffeId, ParseSpiffeIdError> {
        SpiffeId::new(
            self.trust_domain.clone(),
            &self.namespace,
            &self.service_account,
        )
    }

    /// Its identity in each of the trust domains that are one with its own.
    ///
    /// # Errors
    /// As [`Workload::identity`].
    pub fn identities(&self) -> Result<Vec<SpiffeId>, ParseSpiffeIdError> {
        let own = self.identity()?;
        let others = self.equivalent_domains.iter();
        let others = others.filter(|domain| **domain != self.trust_domain);
        let others: Vec<SpiffeId> = others.map(|domain| own.in_domain(domain.clone())).collect();
        Ok([vec![own], others].concat())
    }

    /// Whether it accepts identities of a trust domain.
    pub fn trusts(&self, domain: &TrustDomain) -> bool {
        *domain == self.trust_domain || self.equivalent_domains.contains(domain)
    }
}

/// Where a workload's connections may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Egress {
    #[default]
    Anywhere,
    /// Only to what the mesh knows: Istio's `REGISTRY_ONLY`.
    Registry,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// In plaintext.
    #[default]
    None,
    /// Through a tunnel to its own address, port 15008.
    Hbone,
}

/// What kind of object owns a workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OwnerKind {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

/// Where a workload runs, from Kubernetes' topology labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locality {
    pub region: Name,
    pub zone: Name,
    pub subzone: Name,
}
