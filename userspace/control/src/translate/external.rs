//! What is no pod, as a workload.

use std::{net::IpAddr, sync::Arc};

use sluice_model::{
    Name, Uid, Workload,
    workload::{Egress, Health, Locality, OwnerKind, Profile, TunnelProtocol},
};
use sluice_objects::{
    Code, Diagnostic, Labels, Origin, Severity,
    kinds::{External, ExternalAddress},
};

use super::{
    Config,
    endpoints::Ports,
    workloads::{CANONICAL_NAME, CANONICAL_REVISION, first_label},
};

/// What the contract takes a workload for that proves no account.
const DEFAULT_ACCOUNT: &str = "default";

/// What is known of an endpoint that is no pod. It is reached in plaintext.
pub(super) struct Foreign<'a> {
    pub(super) namespace: &'a Name,
    /// The name of the object that describes it.
    pub(super) name: &'a Name,
    pub(super) labels: &'a Labels,
    pub(super) ips: Box<[IpAddr]>,
    pub(super) hostname: Option<Name>,
    pub(super) service_account: Option<Name>,
    pub(super) node: Name,
    pub(super) locality: Locality,
    pub(super) capacity: u32,
    pub(super) health: Health,
}

impl<'a> Foreign<'a> {
    /// What an object says of an external endpoint; `None` when nothing could connect to it.
    pub(super) fn of(external: &'a External, namespace: &'a Name, name: &'a Name) -> Option<Self> {
        let (ips, hostname): (Box<[IpAddr]>, _) = match &external.address {
            ExternalAddress::Ip(ip) => ([*ip].into(), None),
            ExternalAddress::Hostname(host) => (Box::default(), Some(host.clone())),
            ExternalAddress::None => return None,
        };
        Some(Self {
            namespace,
            name,
            labels: &external.labels,
            ips,
            hostname,
            service_account: external.service_account.clone(),
            node: Name::default(),
            locality: external.locality.clone(),
            capacity: external.weight,
            health: Health::Ready,
        })
    }

    pub(super) fn workload(self, uid: Uid, services: Ports, config: &Config) -> Workload {
        let profile = Profile {
            namespace: self.namespace.clone(),
            trust_domain: config.trust_domain.clone(),
            equivalent_domains: Arc::default(),
            service_account: self
                .service_account
                .unwrap_or_else(|| DEFAULT_ACCOUNT.into()),
            network: config.network.clone(),
            cluster: config.cluster.clone(),
            protocol: TunnelProtocol::None,
            host_network: false,
            hostname: self.hostname,
            canonical_name: first_label(self.labels, CANONICAL_NAME)
                .unwrap_or_else(|| self.name.clone()),
            canonical_revision: first_label(self.labels, CANONICAL_REVISION)
                .unwrap_or_else(|| "latest".into()),
            owner_kind: OwnerKind::Pod,
            owner_name: self.name.clone(),
            services: services.into(),
            waypoint: None,
            policies: Vec::new(),
            egress: Egress::default(),
            capacity: self.capacity,
            locality: self.locality,
        };
        Workload {
            uid,
            own_name: None,
            ips: self.ips.into(),
            node: (&*self.node).into(),
            health: self.health,
            profile: Arc::new(profile),
        }
    }
}

/// A warning about an endpoint of another network, which nothing leads to.
pub(super) fn elsewhere(
    external: &External,
    field: &str,
    origin: &Origin,
    config: &Config,
) -> Option<Diagnostic> {
    let network = &external.network;
    if network.is_empty() || *network == config.network {
        return None;
    }
    let message = format!(
        "it is in the network {network:?}, to which no gateway leads: it is left out; the mesh's own \
         network is {:?} (--network)",
        config.network
    );
    let field = format!("{field}.network");
    Some(origin.diagnostic(Severity::Warning, Code::UnsupportedValue, field, message))
}
