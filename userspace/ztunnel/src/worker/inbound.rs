//! Tunnels from peers, and the streams in them (wire contract §3).

use std::{
    net::{SocketAddr, TcpStream as StdStream},
    pin::pin,
    rc::Rc,
    sync::Arc,
};

use http::{StatusCode, uri::Authority};
use sluice_hbone::{Baggage, Incoming, ServeError, Session};
use sluice_model::{Name, ServiceKey, TrustDomain, Workload, admission::Refusal as Unasked};
use sluice_telemetry::{
    access::Direction,
    metrics::{Denial, Phase, Reporter, TunnelFailure},
    trace::{Kind, Step},
};
use sluice_xds::{Key, Unanswered};
use tokio::net::TcpStream;

use super::{
    PATIENCE,
    admission::{self, Known, Refusal, Visitor},
    carry,
    flows::{Claim, Cut, Flow},
    pods::Pod,
    report::Report,
    shard::Shard,
};

/// Why a stream was refused or broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("not a CONNECT request with an authority")]
    NotConnect,
    #[error("the authority {0} has no usable port")]
    BadAuthority(Authority),
    #[error("the request is for {0}, which is not this workload ({1})")]
    NotHere(Authority, SocketAddr),
    #[error("{0} is no service of this workload")]
    UnknownHost(Authority),
    #[error("{0}")]
    UnknownService(#[source] Unanswered),
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("the tunnel: {0}")]
    Tunnel(#[source] sluice_hbone::TunnelError),
}

/// Why a whole tunnel ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Serve(#[from] ServeError),
    #[error("tunnel {0}")]
    Cut(#[from] Box<Cut>),
}

impl Broken {
    /// What it is counted as.
    fn kind(&self) -> TunnelFailure {
        match self {
            Self::Serve(error) if error.is_revoked() => TunnelFailure::Revoked,
            Self::Serve(ServeError::Tls(_)) => TunnelFailure::Tls,
            Self::Serve(ServeError::Timeout(_)) => TunnelFailure::Timeout,
            Self::Serve(ServeError::Identity(_)) => TunnelFailure::PeerIdentity,
            Self::Serve(ServeError::Http(_)) => TunnelFailure::Http2,
            Self::Serve(ServeError::Silent) => TunnelFailure::Silent,
            Self::Cut(_) => TunnelFailure::Cut,
        }
    }
}

impl Error {
    /// What the peer is told; `None` once it was told that all is well.
    fn status(&self) -> Option<StatusCode> {
        match self {
            Self::NotConnect | Self::BadAuthority(_) | Self::NotHere(..) => {
                Some(StatusCode::BAD_REQUEST)
            }
            Self::Refused(
                Refusal::Denied(_) | Refusal::Unasked(Unasked::Untrusted(_)) | Refusal::Cut(_),
            ) => Some(StatusCode::UNAUTHORIZED),
            Self::UnknownHost(_) | Self::UnknownService(_) | Self::Refused(_) => {
                Some(StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::Tunnel(_) => None,
        }
    }
}

/// Serves one tunnel from its accept to its end.
pub(super) async fn serve(shard: Rc<Shard>, pod: Rc<Pod>, tcp: TcpStream, peer: SocketAddr) {
    let local = match tcp.local_addr() {
        Ok(local) => SocketAddr::new(local.ip().to_canonical(), local.port()),
        Err(error) => {
            tracing::debug!(%error, %peer, "tunnel gone before it began");
            return;
        }
    };
    let identities = &shard.shared.identities;
    let svid = match identities.certificate(&pod.identity, PATIENCE).await {
        Ok(svid) => svid,
        Err(error) => {
            let tunnels = shard.shared.metrics.tunnels();
            tunnels.failed(Direction::Inbound, TunnelFailure::NoCertificate);
            tracing::error!(%error, %peer, "tunnel closed");
            return;
        }
    };
    let domains = equivalent_domains(&shard, &pod);
    let result = match Session::accept(&shard.engine, tcp, &svid, domains).await {
        Ok(session) => tunnel(&shard, &pod, session, peer, local).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = result {
        log_broken_tunnel(&shard, &error, peer, local);
    }
}

/// Serves a tunnel whose peer has proven itself.
async fn tunnel(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    session: Session,
    peer: SocketAddr,
    local: SocketAddr,
) -> Result<(), Broken> {
    let _open = shard.shared.metrics.tunnels().open(Direction::Inbound);
    let flow = pod.flows.note(Claim::Served(session.peer().clone()));
    // A pod that leaves the mesh takes no new streams; those it has are finished.
    let served = pin!(session.serve(pod.left(), |incoming| {
        stream(shard.clone(), pod.clone(), incoming, peer, local)
    }));
    Ok(flow.unless_cut(served).await??)
}

/// The trust domains that are one with the pod's own.
fn equivalent_domains(shard: &Shard, pod: &Pod) -> Arc<[TrustDomain]> {
    let mesh = shard.shared.mesh.load();
    let workload = mesh.workload(&pod.uid);
    workload.map_or_else(Arc::default, |workload| workload.equivalent_domains.clone())
}

/// A tunnel that never began is somebody's problem, though no connection was lost.
fn log_broken_tunnel(shard: &Shard, error: &Broken, peer: SocketAddr, local: SocketAddr) {
    let metrics = &shard.shared.metrics;
    metrics.tunnels().failed(Direction::Inbound, error.kind());
    if error.kind() == TunnelFailure::Revoked {
        let revoked = Denial::Revoked;
        metrics
            .policy()
            .denied(Reporter::Destination, &revoked, Phase::New);
    }
    if shard.shared.trace.is_heard() {
        let step = Step {
            step: Kind::End,
            direction: Some("inbound".to_owned()),
            verdict: Some("failed".to_owned()),
            client: Some(peer),
            destination: Some(local),
            reason: Some(error.to_string()),
            ..Step::default()
        };
        let trace = &shard.shared.trace;
        trace.tell(trace.number(), None, step);
    }
    tracing::event!(
        target: sluice_telemetry::access::TARGET,
        tracing::Level::WARN,
        src.addr = %peer, dst.addr = %local, direction = "inbound", error = %error,
        "connection failed"
    );
}

async fn stream(
    shard: Rc<Shard>,
    pod: Rc<Pod>,
    incoming: Incoming,
    peer: SocketAddr,
    local: SocketAddr,
) {
    let mut report = Box::new(Report::inbound(&shard.shared, &pod, &incoming, peer, local));
    let reached = reach(&shard, &pod, &incoming, peer, local, &mut report).await;
    let error = match reached {
        Ok((tcp, flow, baggage)) => match incoming.accept(&baggage) {
            Ok(stream) => {
                report.dialled(&pod, &tcp);
                report.opened();
                return carry::through(stream, tcp, flow, report);
            }
            Err(error) => Error::Tunnel(error),
        },
        Err(error) => {
            if let Some(status) = error.status() {
                incoming.refuse(status);
            }
            error
        }
    };
    report.finish(Some(error.into()));
}

/// Checks the request and connects to the application.
async fn reach(
    shard: &Rc<Shard>,
    pod: &Pod,
    incoming: &Incoming,
    peer: SocketAddr,
    local: SocketAddr,
    report: &mut Report,
) -> Result<(StdStream, Flow, Baggage), Error> {
    let authority = incoming.authority().ok_or(Error::NotConnect)?;
    let mut known = admission::known(shard, pod, peer.ip()).await?;
    if let Some(service) = named_service(&known.workload, authority) {
        let key = Key::Service(service);
        let learnt = shard.shared.mesh.learn(&key, PATIENCE).await;
        let _needed = learnt.map_err(Error::UnknownService)?;
        known = admission::known(shard, pod, peer.ip()).await?;
    }
    let port = destination_port(&known, authority, local)?;
    let visitor = Visitor {
        peer: Some(&incoming.peer),
        address: peer,
        shown: client_address(incoming, peer),
    };
    let destination = SocketAddr::new(local.ip(), port);
    let (tcp, flow) = known
        .admit(shard, pod, visitor, destination, report)
        .await?;
    Ok((tcp, flow, Baggage::of(&known.workload)))
}

/// Whom the application shall see. The `forwarded` header is a claim, so it may add the port, which
/// nothing is decided by, but not another address than the tunnel's own.
fn client_address(incoming: &Incoming, peer: SocketAddr) -> SocketAddr {
    match incoming.forwarded() {
        Some(forwarded) if forwarded.client.ip().to_canonical() == peer.ip() => forwarded.client,
        _ => peer,
    }
}

/// The host of an authority; an IPv6 address without its brackets.
fn bare_host(authority: &Authority) -> &str {
    let host = authority.host();
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// The service of a workload that an authority names, if it names one.
fn named_service(workload: &Workload, authority: &Authority) -> Option<ServiceKey> {
    let hostname: Name = bare_host(authority).into();
    let mut keys = workload.services.keys();
    keys.find(|key| key.hostname == hostname).cloned()
}

/// The application's port that an authority asks for.
fn destination_port(
    Known { mesh, workload, .. }: &Known,
    authority: &Authority,
    local: SocketAddr,
) -> Result<u16, Error> {
    let bad = || Error::BadAuthority(authority.clone());
    let port = authority
        .port_u16()
        .filter(|port| *port != 0)
        .ok_or_else(bad)?;
    let bare = bare_host(authority);
    match bare.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_canonical() == local.ip() => Ok(port),
        Ok(_) => Err(Error::NotHere(authority.clone(), local)),
        Err(_) => {
            let key = named_service(workload, authority);
            let service = key.and_then(|key| mesh.service(&key));
            let endpoint = service.and_then(|service| {
                mesh.endpoints(service, port)
                    .into_iter()
                    .find(|endpoint| endpoint.workload.uid == workload.uid)
            });
            endpoint
                .map(|endpoint| endpoint.port)
                .ok_or_else(|| Error::UnknownHost(authority.clone()))
        }
    }
}
