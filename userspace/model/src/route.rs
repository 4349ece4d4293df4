//! Where an outbound connection goes. Pure: everything it needs is in its arguments.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sluice_abi::ports;

use crate::{
    Mesh, Name, OrigDst, Service, SpiffeId, Uid, Workload, balance,
    mesh::{Destination, Endpoint},
    service::{GatewayAddress, GatewayDestination, Mode},
    workload::{Egress, Health, TunnelProtocol},
};

/// A decision about an outbound connection.
#[derive(Clone, Debug)]
pub enum Route {
    /// Through a tunnel.
    Hbone(Hop),
    /// To this address in plaintext; with what the mesh knows of it.
    Plain {
        to: SocketAddr,
        workload: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    },
    /// To a host in plaintext, once its name is resolved.
    Named(Named),
    Refuse(Refusal),
}

/// A host that only has a name.
#[derive(Clone, Debug)]
pub struct Named {
    pub host: Name,
    pub port: u16,
    /// The application dialled an IPv4 address.
    ipv4: bool,
    pub workload: Arc<Workload>,
    pub service: Option<Arc<Service>>,
}

impl Named {
    /// Where to dial, in which order: first the family that the application chose, in each family
    /// beginning anywhere. `roll` is random, below 1.
    pub fn order(&self, addresses: &[IpAddr], roll: f64) -> Vec<SocketAddr> {
        let (mut first, mut rest): (Vec<IpAddr>, Vec<IpAddr>) =
            addresses.iter().partition(|ip| ip.is_ipv4() == self.ipv4);
        for family in [&mut first, &mut rest] {
            let begin = (roll * family.len() as f64) as usize;
            family.rotate_left(begin);
        }
        let all = first.into_iter().chain(rest);
        all.map(|ip| SocketAddr::new(ip, self.port)).collect()
    }
}

/// A tunnel to take.
#[derive(Clone, Debug)]
pub struct Hop {
    /// Where the tunnel ends.
    pub tunnel: SocketAddr,
    /// Whom we ask for at its end.
    pub authority: SocketAddr,
    /// Who may answer.
    pub expected: Vec<SpiffeId>,
    pub workload: Arc<Workload>,
    pub service: Option<Arc<Service>>,
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "service {0} has no healthy endpoint for port {1}; does its selector match pods, and are they ready?"
    )]
    NoEndpoint(Name, u16),
    #[error("unknown waypoint {0}; is its Gateway there, and does it have pods?")]
    UnknownWaypoint(GatewayDestination),
    #[error("workload {0} has no address of the family of {1}")]
    NoAddress(Name, SocketAddr),
    #[error("attempted recursive call to ourselves")]
    Recursive,
    #[error(
        "workload {0} has an identity that cannot be verified: its trust domain, namespace and service \
         account make no SPIFFE ID"
    )]
    Identity(Name),
    #[error(
        "the mesh does not know {0}, and the outbound traffic policy of {1} is REGISTRY_ONLY; \
         declare it with a ServiceEntry, or set ALLOW_ANY for the pod"
    )]
    NotInRegistry(SocketAddr, Uid),
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub network: &'a Name,
    /// What the control plane knows of the pod.
    pub workload: &'a Workload,
}

/// What has to be known beside what `dst` stands for, to decide about a connection to it: the
/// waypoint, if there is one.
pub fn waypoint(mesh: &Mesh, network: &Name, OrigDst(dst): OrigDst) -> Option<GatewayDestination> {
    let waypoint = match mesh.destination(network, dst.ip()) {
        Destination::Service(service) => service.waypoint.clone(),
        Destination::Workload(workload) => workload.waypoint.clone(),
        Destination::Unknown => None,
    };
    waypoint.map(|waypoint| waypoint.destination)
}

/// Decides. `tried` are endpoints that were found not to answer; `roll` is random, below 1.
pub fn outbound(
    mesh: &Mesh,
    client: Client<'_>,
    OrigDst(dst): OrigDst,
    tried: &[Uid],
    roll: f64,
) -> Route {
    match lead(mesh, client, dst) {
        Lead::Route(route) => route,
        Lead::Endpoints(service) => {
            let mut endpoints = mesh.endpoints(&service, dst.port());
            endpoints.retain(|endpoint| !tried.contains(&endpoint.workload.uid));
            let policy = &service.load_balancing;
            let client = Some(client.workload);
            match balance::choose(&endpoints, |e| &e.workload, policy, client, roll).cloned() {
                Some(endpoint) => to_endpoint(endpoint, dst, service),
                None => no_endpoint(dst, &service),
            }
        }
    }
}

/// All that [`outbound`] may decide before anything was tried: each for some roll.
pub fn choices(mesh: &Mesh, client: Client<'_>, OrigDst(dst): OrigDst) -> Vec<Route> {
    let service = match lead(mesh, client, dst) {
        Lead::Route(route) => return vec![route],
        Lead::Endpoints(service) => service,
    };
    let endpoints = mesh.endpoints(&service, dst.port());
    let policy = &service.load_balancing;
    let client = Some(client.workload);
    let candidates = balance::candidates(&endpoints, |e| &e.workload, policy, client);
    let routes = candidates.map(|endpoint| to_endpoint(endpoint.clone(), dst, service.clone()));
    let routes: Vec<Route> = routes.collect();
    if routes.is_empty() {
        return vec![no_endpoint(dst, &service)];
    }
    routes
}

/// Where a destination leads before chance has its say.
enum Lead {
    Route(Route),
    /// To one of the endpoints of a service.
    Endpoints(Arc<Service>),
}

fn lead(mesh: &Mesh, client: Client<'_>, dst: SocketAddr) -> Lead {
    if dst.ip().is_loopback() {
        // Somebody dialled our own listener; there is no way back out.
        return Lead::Route(Route::Refuse(Refusal::Recursive));
    }
    match mesh.destination(client.network, dst.ip()) {
        Destination::Unknown => Lead::Route(outside(client, dst)),
        Destination::Workload(workload) => Lead::Route(match &workload.waypoint {
            // What comes from a workload's own waypoint has been there already.
            Some(waypoint) if !is_waypoint(mesh, client, waypoint) => {
                through_waypoint(mesh, client, waypoint, dst, None)
            }
            _ => to_workload(workload, dst, dst.port(), None),
        }),
        Destination::Service(service) => to_service(mesh, client, service, dst),
    }
}

/// The kernel refuses most of these itself, where it has been told.
fn outside(client: Client<'_>, dst: SocketAddr) -> Route {
    let own = client.workload;
    match own.egress {
        Egress::Registry => Route::Refuse(Refusal::NotInRegistry(dst, own.uid.clone())),
        Egress::Anywhere => Route::Plain {
            to: dst,
            workload: None,
            service: None,
        },
    }
}

fn to_service(mesh: &Mesh, client: Client<'_>, service: Arc<Service>, dst: SocketAddr) -> Lead {
    if let Some(waypoint) = &service.waypoint
        && !is_waypoint(mesh, client, waypoint)
    {
        let route = through_waypoint(mesh, client, waypoint, dst, Some(service.clone()));
        return Lead::Route(route);
    }
    if service.load_balancing.mode == Mode::Passthrough {
        return Lead::Route(Route::Plain {
            to: dst,
            workload: None,
            service: Some(service),
        });
    }
    Lead::Endpoints(service)
}

fn to_endpoint(endpoint: Endpoint, dst: SocketAddr, service: Arc<Service>) -> Route {
    to_workload(endpoint.workload, dst, endpoint.port, Some(service))
}

fn no_endpoint(dst: SocketAddr, service: &Service) -> Route {
    Route::Refuse(Refusal::NoEndpoint(service.hostname.clone(), dst.port()))
}

fn to_workload(
    workload: Arc<Workload>,
    dst: SocketAddr,
    port: u16,
    service: Option<Arc<Service>>,
) -> Route {
    let own = workload.ips.iter().find(|ip| **ip == dst.ip());
    // A VIP of one family may stand before pods of the other alone.
    let same_family = || workload.ips.iter().find(|ip| ip.is_ipv4() == dst.is_ipv4());
    let Some(ip) = own
        .or_else(same_family)
        .or_else(|| workload.ips.first())
        .copied()
    else {
        return match &workload.hostname {
            // Who is promised a tunnel is not reached without one.
            Some(host) if workload.protocol == TunnelProtocol::None => Route::Named(Named {
                host: host.clone(),
                port,
                ipv4: dst.is_ipv4(),
                workload,
                service,
            }),
            _ => Route::Refuse(Refusal::NoAddress(workload.name().into(), dst)),
        };
    };
    let to = SocketAddr::new(ip, port);
    if workload.protocol == TunnelProtocol::None {
        return Route::Plain {
            to,
            workload: Some(workload),
            service,
        };
    }
    let sans = service
        .iter()
        .flat_map(|service| service.subject_alt_names.iter().cloned());
    hop(
        SocketAddr::new(ip, ports::HBONE),
        to,
        workload,
        sans.collect(),
        service,
    )
}

fn through_waypoint(
    mesh: &Mesh,
    client: Client<'_>,
    waypoint: &GatewayAddress,
    dst: SocketAddr,
    service: Option<Arc<Service>>,
) -> Route {
    let unknown = || Route::Refuse(Refusal::UnknownWaypoint(waypoint.destination.clone()));
    let Some(gateway) = waypoint_workload(mesh, client, waypoint) else {
        return unknown();
    };
    let same_family = |ip: &&IpAddr| ip.is_ipv4() == dst.is_ipv4();
    let ips = &gateway.ips;
    let Some(ip) = ips
        .iter()
        .find(same_family)
        .or_else(|| ips.first())
        .copied()
    else {
        return unknown();
    };
    let tunnel = SocketAddr::new(ip, waypoint.hbone_port);
    // The waypoint routes by what the application dialled.
    hop(tunnel, dst, gateway, Vec::new(), service)
}

fn hop(
    tunnel: SocketAddr,
    authority: SocketAddr,
    workload: Arc<Workload>,
    mut expected: Vec<SpiffeId>,
    service: Option<Arc<Service>>,
) -> Route {
    let Ok(identities) = workload.identities() else {
        return Route::Refuse(Refusal::Identity(workload.name().into()));
    };
    expected.extend(identities);
    expected.sort_unstable();
    expected.dedup();
    Route::Hbone(Hop {
        tunnel,
        authority,
        expected,
        workload,
        service,
    })
}

fn waypoint_workload(
    mesh: &Mesh,
    client: Client<'_>,
    waypoint: &GatewayAddress,
) -> Option<Arc<Workload>> {
    let by_service = |service: &Service| {
        mesh.endpoints(service, waypoint.hbone_port)
            .into_iter()
            .find(|endpoint| endpoint.workload.health == Health::Ready)
            .map(|endpoint| endpoint.workload)
    };
    match &waypoint.destination {
        GatewayDestination::Hostname(key) => by_service(mesh.service(key)?),
        GatewayDestination::Address(address) => {
            match mesh.destination(&address.network, address.ip) {
                Destination::Service(service) => by_service(&service),
                Destination::Workload(workload) => Some(workload),
                Destination::Unknown => None,
            }
        }
    }
    .filter(|workload| client.workload.uid != workload.uid)
}

/// Whether the client is that waypoint itself.
fn is_waypoint(mesh: &Mesh, client: Client<'_>, waypoint: &GatewayAddress) -> bool {
    let own = client.workload;
    match &waypoint.destination {
        GatewayDestination::Hostname(key) => own.services.contains_key(key),
        GatewayDestination::Address(address) => {
            match mesh.destination(&address.network, address.ip) {
                Destination::Service(service) => own.services.contains_key(&service.key()),
                Destination::Workload(workload) => workload.uid == own.uid,
                Destination::Unknown => false,
            }
        }
    }
}
