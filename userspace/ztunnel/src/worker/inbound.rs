//! Tunnels from peers, and the streams in them (wire contract §3).

use std::{io, net::SocketAddr, rc::Rc};

use http::{StatusCode, uri::Authority};
use sluice_hbone::{Baggage, CarryError, Incoming, ServeError, Server};
use sluice_kernel::ports;
use sluice_model::{
    Mesh, Name,
    authz::{Connection, Decision, DenyReason},
};
use tokio::{net::TcpStream, sync::watch};

use super::{
    PATIENCE,
    pods::Pod,
    report::{Failure, Report},
    shard::Shard,
};

/// SOCKS5, which other ztunnels serve (wire contract §1).
const SOCKS5: u16 = 15080;

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
    #[error("port {0} is the proxy's own")]
    IllegalPort(u16),
    #[error("the mesh is not known yet: no snapshot from the control plane within {PATIENCE:?}")]
    NotSynced,
    #[error("the workload is not known to the control plane")]
    UnknownWorkload,
    #[error("{0}")]
    Denied(DenyReason),
    #[error("connect to the application at {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("the tunnel: {0}")]
    Tunnel(#[source] sluice_hbone::TunnelError),
    #[error("{0}")]
    Carry(#[from] CarryError),
}

impl Error {
    /// What the peer is told; `None` once it was told that all is well.
    fn status(&self) -> Option<StatusCode> {
        match self {
            Self::NotConnect | Self::BadAuthority(_) | Self::NotHere(..) => {
                Some(StatusCode::BAD_REQUEST)
            }
            Self::Denied(_) => Some(StatusCode::UNAUTHORIZED),
            Self::UnknownHost(_)
            | Self::IllegalPort(_)
            | Self::NotSynced
            | Self::UnknownWorkload
            | Self::Connect(..) => Some(StatusCode::SERVICE_UNAVAILABLE),
            Self::Tunnel(_) | Self::Carry(_) => None,
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
            tracing::error!(%error, %peer, "tunnel closed");
            return;
        }
    };
    let (_keep, drain) = watch::channel(false);
    let server = Server {
        tls: svid.server_config(),
        drain,
    };
    let result = sluice_hbone::serve(tcp, server, |incoming| {
        stream(shard.clone(), pod.clone(), incoming, peer, local)
    })
    .await;
    if let Err(error) = result {
        log_broken_tunnel(&error, peer, local);
    }
}

/// A tunnel that never began is somebody's problem, though no connection was lost.
fn log_broken_tunnel(error: &ServeError, peer: SocketAddr, local: SocketAddr) {
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
    let mut report = Report::inbound(&shard.shared, &pod, &incoming, peer, local);
    let result = run(&shard, &pod, incoming, peer, local, &mut report).await;
    report.finish(result.err().map(Failure::from));
}

async fn run(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    incoming: Incoming,
    peer: SocketAddr,
    local: SocketAddr,
    report: &mut Report,
) -> Result<(), Error> {
    let (tcp, baggage) = match reach(shard, pod, &incoming, peer, local, report).await {
        Ok(reached) => reached,
        Err(error) => {
            if let Some(status) = error.status() {
                incoming.refuse(status);
            }
            return Err(error);
        }
    };
    let stream = incoming.accept(&baggage).map_err(Error::Tunnel)?;
    report.opened();
    Ok(stream.carry(tcp, &report.meter).await?)
}

/// Checks the request and connects to the application.
async fn reach(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    incoming: &Incoming,
    peer: SocketAddr,
    local: SocketAddr,
    report: &mut Report,
) -> Result<(TcpStream, Baggage), Error> {
    let shared = &shard.shared;
    let authority = incoming.authority().ok_or(Error::NotConnect)?;
    // Workloads may arrive before the policies that protect them.
    if !shared.synced().await {
        return Err(Error::NotSynced);
    }
    let workload = shared.workload(pod).await.ok_or(Error::UnknownWorkload)?;
    let mesh = shared.mesh.snapshot();
    let port = destination_port(&mesh, &workload, authority, local)?;
    let destination = SocketAddr::new(local.ip(), port);
    report.destination(destination, &workload);
    if illegal(port) {
        return Err(Error::IllegalPort(port));
    }
    report.source(
        mesh.workload_at(&shared.network, peer.ip())
            .map(|source| &**source),
    );
    let connection = Connection {
        source_identity: Some(&incoming.peer),
        source_ip: peer.ip(),
        destination,
    };
    if let Decision::Deny(reason) = mesh.authorize(&workload, &connection) {
        return Err(Error::Denied(reason));
    }
    let client = client_address(incoming, peer);
    let tcp = dial_application(shard, pod, destination, client)
        .await
        .map_err(|error| Error::Connect(destination, error))?;
    Ok((tcp, Baggage::of(&workload)))
}

/// Whom the application shall see. The `forwarded` header is a claim, so it may add the port, which
/// nothing is decided by, but not another address than the tunnel's own.
fn client_address(incoming: &Incoming, peer: SocketAddr) -> SocketAddr {
    match incoming.forwarded() {
        Some(forwarded) if forwarded.client.ip().to_canonical() == peer.ip() => forwarded.client,
        _ => peer,
    }
}

/// Connects to the pod's own application, which will see `client` as its peer.
pub(super) async fn dial_application(
    shard: &Shard,
    pod: &Pod,
    destination: SocketAddr,
    client: SocketAddr,
) -> io::Result<TcpStream> {
    pod.dial(&shard.link, destination, |socket| {
        shard
            .maps
            .borrow_mut()
            .set_client(socket, client)
            .map_err(io::Error::other)
    })
    .await
}

/// Ports that would lead back to a proxy (wire contract §1).
pub(super) fn illegal(port: u16) -> bool {
    [
        ports::OUTBOUND,
        ports::INBOUND_PLAINTEXT,
        ports::HBONE,
        SOCKS5,
    ]
    .contains(&port)
}

/// The application's port that an authority asks for.
fn destination_port(
    mesh: &Mesh,
    workload: &sluice_model::Workload,
    authority: &Authority,
    local: SocketAddr,
) -> Result<u16, Error> {
    let bad = || Error::BadAuthority(authority.clone());
    let port = authority
        .port_u16()
        .filter(|port| *port != 0)
        .ok_or_else(bad)?;
    let host = authority.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    match bare.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.to_canonical() == local.ip() => Ok(port),
        Ok(_) => Err(Error::NotHere(authority.clone(), local)),
        Err(_) => {
            let hostname: Name = bare.into();
            let key = workload
                .services
                .keys()
                .find(|key| key.hostname == hostname);
            let endpoint = key.and_then(|key| mesh.service(key)).and_then(|service| {
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
