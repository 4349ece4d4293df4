//! Services: names and virtual addresses in front of workloads.

use std::fmt;

use crate::{Name, NetworkAddress, NetworkRange, SpiffeId};

/// Names a service: `NAMESPACE/HOSTNAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub namespace: Name,
    pub hostname: Name,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A service, as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: Name,
    pub namespace: Name,
    /// The fully qualified host name, for example `catalog.shop.svc.cluster.local`.
    pub hostname: Name,
    /// Virtual addresses; empty for a headless service.
    pub vips: Vec<NetworkAddress>,
    /// Ranges of which every address is one of its own, unless something else has just that one.
    pub ranges: Vec<NetworkRange>,
    pub ports: Vec<Port>,
    /// Identities accepted from this service's endpoints besides the endpoint's own.
    pub subject_alt_names: Vec<SpiffeId>,
    pub waypoint: Option<GatewayAddress>,
    pub load_balancing: LoadBalancing,
    /// Preferred among the services of a host name when the client's namespace has none.
    pub canonical: bool,
    pub visibility: Visibility,
}

/// Whose names a service's host name is among. Whoever knows its address reaches it in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    #[default]
    Public,
    /// Those of clients in its own namespace.
    Namespace,
}

impl Service {
    pub fn key(&self) -> ServiceKey {
        ServiceKey {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }
}

/// A service port and the workload port behind it. Neither is 0 on a service; on a workload's
/// endpoint list a target port is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    pub service_port: u16,
    /// 0 when every workload resolves a named port for itself.
    pub target_port: u16,
}

/// How an endpoint of a service is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    pub mode: Mode,
    /// From the most general to the most specific scope.
    pub preference: Vec<Scope>,
    /// Also send to endpoints that are not ready (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
}

/// What [`LoadBalancing::preference`] means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// No preference.
    #[default]
    Standard,
    /// Only endpoints that match every scope.
    Strict,
    /// The endpoints that match most scopes, from the first one on.
    Failover,
    /// The dialled address itself, without encryption.
    Passthrough,
}

/// Where two workloads can be together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// Where a waypoint or a network's gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    pub destination: GatewayDestination,
    /// The port on which it serves HBONE.
    pub hbone_port: u16,
}

/// A gateway by address or by service name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    Address(NetworkAddress),
    Hostname(ServiceKey),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(key) => key.fmt(f),
        }
    }
}
