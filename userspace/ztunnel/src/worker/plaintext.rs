//! Inbound connections that came without a tunnel.

use std::{net::SocketAddr, rc::Rc};

use sluice_hbone::CarryError;
use sluice_model::authz::{Connection, Decision, DenyReason};
use tokio::net::TcpStream;

use super::{
    PATIENCE,
    inbound::{dial_application, illegal},
    pods::Pod,
    report::{Failure, Report},
    shard::Shard,
};

/// Why a plaintext connection was refused or broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("port {0} is the proxy's own")]
    IllegalPort(u16),
    #[error("the mesh is not known yet: no snapshot from the control plane within {PATIENCE:?}")]
    NotSynced,
    #[error("the workload is not known to the control plane")]
    UnknownWorkload,
    #[error("{0}")]
    Denied(DenyReason),
    #[error("connect to the application at {0}: {1}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("{0}")]
    Carry(#[from] CarryError),
}

/// Serves one connection from its accept to its end.
pub(super) async fn serve(shard: Rc<Shard>, pod: Rc<Pod>, tcp: TcpStream, peer: SocketAddr) {
    // sk_lookup steers without rewriting, so the local address is what the client dialled.
    let Ok(local) = tcp.local_addr() else { return };
    let destination = SocketAddr::new(local.ip().to_canonical(), local.port());
    let mut report = Report::plaintext(&shard.shared, &pod, peer, destination);
    let result = run(&shard, &pod, tcp, peer, destination, &mut report).await;
    report.finish(result.err().map(Failure::from));
}

async fn run(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    destination: SocketAddr,
    report: &mut Report,
) -> Result<(), Error> {
    let reached = reach(shard, pod, peer, destination, report).await;
    let application = match reached {
        Ok(application) => application,
        Err(error) => {
            sluice_hbone::reset(tcp);
            return Err(error);
        }
    };
    report.opened();
    Ok(sluice_hbone::join(tcp, application, &report.meter).await?)
}

async fn reach(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    peer: SocketAddr,
    destination: SocketAddr,
    report: &mut Report,
) -> Result<TcpStream, Error> {
    let shared = &shard.shared;
    if illegal(destination.port()) {
        return Err(Error::IllegalPort(destination.port()));
    }
    // Workloads may arrive before the policies that protect them.
    if !shared.synced().await {
        return Err(Error::NotSynced);
    }
    let workload = shared.workload(pod).await.ok_or(Error::UnknownWorkload)?;
    let mesh = shared.mesh.snapshot();
    report.destination(destination, &workload);
    report.source(
        mesh.workload_at(&shared.network, peer.ip())
            .map(|source| &**source),
    );
    let connection = Connection {
        source_identity: None,
        source_ip: peer.ip(),
        destination,
    };
    if let Decision::Deny(reason) = mesh.authorize(&workload, &connection) {
        return Err(Error::Denied(reason));
    }
    dial_application(shard, pod, destination, peer)
        .await
        .map_err(|error| Error::Connect(destination, error))
}
