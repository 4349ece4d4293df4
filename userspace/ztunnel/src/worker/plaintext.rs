//! Inbound connections that came without a tunnel.

use std::{
    net::{SocketAddr, TcpStream as StdStream},
    rc::Rc,
};

use tokio::task::spawn_local;

use super::{
    admission::{self, Refusal, Visitor},
    carry,
    flows::Flow,
    pods::Pod,
    report::Report,
    shard::Shard,
};

/// Serves one connection from its accept to its end.
pub(super) async fn serve(shard: Rc<Shard>, pod: Rc<Pod>, tcp: StdStream, peer: SocketAddr) {
    // sk_lookup steers without rewriting, so the local address is what the client dialled.
    let Ok(local) = tcp.local_addr() else { return };
    let destination = SocketAddr::new(local.ip().to_canonical(), local.port());
    let mut report = Box::new(Report::plaintext(&shard.shared, &pod, peer, destination));
    match reach(&shard, &pod, peer, destination, &mut report).await {
        Ok((application, flow)) => {
            report.dialled(&pod, &application);
            report.opened();
            spawn_local(carry::join(application, tcp, flow, report));
        }
        Err(refusal) => {
            sluice_hbone::reset(tcp);
            report.finish(Some(refusal.into()));
        }
    }
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
