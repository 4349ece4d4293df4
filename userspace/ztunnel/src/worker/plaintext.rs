//! Inbound connections that came without a tunnel.

use std::{
    net::{SocketAddr, TcpStream as StdStream},
    rc::Rc,
};

use sluice_hbone::CarryError;
use tokio::net::TcpStream;

use super::{
    admission::{self, Refusal, Visitor},
    failure::Failure,
    flows::{Cut, Flow},
    pods::Pod,
    report::Report,
    shard::Shard,
};

/// Why a plaintext connection was refused or broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Carry(#[from] CarryError),
    #[error("{0}")]
    Cut(#[from] Cut),
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
    pod: &Pod,
    tcp: TcpStream,
    peer: SocketAddr,
    destination: SocketAddr,
    report: &mut Report,
) -> Result<(), Error> {
    let (application, mut flow) = match reach(shard, pod, peer, destination, report).await {
        Ok(reached) => reached,
        Err(refusal) => {
            sluice_hbone::reset(tcp);
            return Err(refusal.into());
        }
    };
    report.opened();
    let carried = async {
        let application = TcpStream::from_std(application).map_err(CarryError::Application)?;
        sluice_hbone::join(application, tcp, &report.meter).await
    };
    Ok(flow.unless_cut(carried).await??)
}

async fn reach(
    shard: &Rc<Shard>,
    pod: &Pod,
    peer: SocketAddr,
    destination: SocketAddr,
    report: &mut Report,
) -> Result<(StdStream, Flow), Refusal> {
    let visitor = Visitor {
        peer: None,
        address: peer,
        shown: peer,
    };
    admission::known(shard, pod, peer.ip())
        .await?
        .admit(shard, pod, visitor, destination, report)
        .await
}
