//! The labels of a TCP connection.

use std::fmt;

use prometheus_client::encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder};
use sluice_model::{Name, Service, SpiffeId, Workload};

/// Which end of a connection counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// How a connection was protected on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Security {
    MutualTls,
    #[default]
    Unknown,
}

/// Why a connection failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// It did not.
    #[default]
    None,
    /// Policy denied it.
    Denied,
    /// The destination could not be reached, or refused.
    Connect,
    TlsFailure,
    H2HandshakeFailure,
    /// The tunnel port did not answer, most likely because a NetworkPolicy is in the way.
    NetworkPolicy,
    /// No certificate could be had.
    Identity,
    /// The peer's certificate was revoked.
    CertificateRevoked,
}

/// What labels say of one end. Empty means unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    pub workload: Name,
    pub namespace: Name,
    pub canonical_service: Name,
    pub canonical_revision: Name,
    pub cluster: Name,
    pub principal: Option<SpiffeId>,
    pub region: Name,
    pub zone: Name,
}

impl Peer {
    /// A workload, with its identity if that is proven.
    pub fn new(workload: &Workload, principal: Option<&SpiffeId>) -> Self {
        Self {
            workload: workload.owner_name.clone(),
            namespace: workload.namespace.clone(),
            canonical_service: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            cluster: workload.cluster.clone(),
            principal: principal.cloned(),
            region: workload.locality.region.clone(),
            zone: workload.locality.zone.clone(),
        }
    }
}

/// The service that was addressed. Empty means unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    pub hostname: Name,
    pub namespace: Name,
    pub name: Name,
}

impl From<&Service> for ServiceLabels {
    fn from(service: &Service) -> Self {
        Self {
            hostname: service.hostname.clone(),
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        }
    }
}

/// What a connection is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    pub reporter: Reporter,
    pub source: Peer,
    pub destination: Peer,
    pub service: ServiceLabels,
    pub security: Security,
    pub flags: ResponseFlags,
}

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut label = |name: &str, value: &str| (name, value).encode(encoder.encode_label());
        label("reporter", self.reporter.as_str())?;
        encode_peer(&mut label, &SOURCE, &self.source)?;
        label("destination_service", known(&self.service.hostname))?;
        label(
            "destination_service_namespace",
            known(&self.service.namespace),
        )?;
        label("destination_service_name", known(&self.service.name))?;
        encode_peer(&mut label, &DESTINATION, &self.destination)?;
        label("request_protocol", "tcp")?;
        label("response_flags", flags(self.flags))?;
        let security = match self.security {
            Security::MutualTls => "mutual_tls",
            Security::Unknown => "unknown",
        };
        label("connection_security_policy", security)
    }
}

/// The label names of one end.
struct PeerNames {
    workload: &'static str,
    canonical_service: &'static str,
    canonical_revision: &'static str,
    namespace: &'static str,
    principal: &'static str,
    app: &'static str,
    version: &'static str,
    cluster: &'static str,
    region: &'static str,
    zone: &'static str,
}

const SOURCE: PeerNames = PeerNames {
    workload: "source_workload",
    canonical_service: "source_canonical_service",
    canonical_revision: "source_canonical_revision",
    namespace: "source_workload_namespace",
    principal: "source_principal",
    app: "source_app",
    version: "source_version",
    cluster: "source_cluster",
    region: "source_region",
    zone: "source_zone",
};

const DESTINATION: PeerNames = PeerNames {
    workload: "destination_workload",
    canonical_service: "destination_canonical_service",
    canonical_revision: "destination_canonical_revision",
    namespace: "destination_workload_namespace",
    principal: "destination_principal",
    app: "destination_app",
    version: "destination_version",
    cluster: "destination_cluster",
    region: "destination_region",
    zone: "destination_zone",
};

fn encode_peer(
    label: &mut impl FnMut(&str, &str) -> fmt::Result,
    names: &PeerNames,
    peer: &Peer,
) -> fmt::Result {
    let principal = peer.principal.as_ref().map(ToString::to_string);
    label(names.workload, known(&peer.workload))?;
    label(names.canonical_service, known(&peer.canonical_service))?;
    label(names.canonical_revision, known(&peer.canonical_revision))?;
    label(names.namespace, known(&peer.namespace))?;
    label(names.principal, known(principal.as_deref().unwrap_or("")))?;
    label(names.app, known(&peer.canonical_service))?;
    label(names.version, known(&peer.canonical_revision))?;
    label(names.cluster, known(&peer.cluster))?;
    if !peer.region.is_empty() {
        label(names.region, &peer.region)?;
    }
    if !peer.zone.is_empty() {
        label(names.zone, &peer.zone)?;
    }
    Ok(())
}

fn known(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

fn flags(flags: ResponseFlags) -> &'static str {
    match flags {
        ResponseFlags::None => "-",
        ResponseFlags::Denied => "DENY",
        ResponseFlags::Connect => "CONNECT",
        ResponseFlags::TlsFailure => "TLS_FAILURE",
        ResponseFlags::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
        ResponseFlags::NetworkPolicy => "NETWORK_POLICY",
        ResponseFlags::Identity => "IDENTITY_ERROR",
        ResponseFlags::CertificateRevoked => "CERT_REVOKED",
    }
}
