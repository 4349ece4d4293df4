//! What both doors of a pod check before a connection reaches its application: the tunnel's, and the
//! one for plaintext.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdStream},
    pin::pin,
    rc::Rc,
    sync::Arc,
};

use sluice_identity::Peer;
use sluice_model::{
    Mesh, Workload, admission,
    authz::{Applicable, Connection, Decision, DenyReason},
};

use super::{
    application,
    flows::{Claim, Cut, Flow},
    pods::Pod,
    report::Report,
    shard::Shard,
    words,
};

/// Why a connection does not reach the application.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{}", words::not_synced())]
    NotSynced,
    #[error("{}", words::UNKNOWN_WORKLOAD)]
    UnknownWorkload,
    #[error("{0}")]
    Unasked(#[from] admission::Refusal),
    #[error("{0}")]
    Denied(DenyReason),
    #[error("{0}")]
    Cut(#[from] Box<Cut>),
    #[error("connect to the application at {0}: {why}", why = words::connect(.1))]
    Connect(SocketAddr, #[source] io::Error),
}

/// Who wants to reach a pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitor<'a> {
    /// Who has proven an identity for the tunnel; `None` at the door for plaintext.
    pub(super) peer: Option<&'a Rc<Peer>>,
    /// The other end of the TCP connection.
    pub(super) address: SocketAddr,
    /// Whom the application shall see.
    pub(super) shown: SocketAddr,
}

/// A pod as the control plane knows it, in one snapshot.
pub(super) struct Known {
    pub(super) mesh: Arc<Mesh>,
    pub(super) workload: Arc<Workload>,
    policies: Applicable,
}

/// Waits until the pod and the policies that protect it are known, and not long for its visitor.
pub(super) async fn known(shard: &Shard, pod: &Pod, visitor: IpAddr) -> Result<Known, Refusal> {
    // Workloads may arrive before the policies.
    if !shard.shared.synced().await {
        return Err(Refusal::NotSynced);
    }
    shard.shared.visitor(visitor).await;
    let known = |mesh: &Arc<Mesh>| {
        Some(Known {
            mesh: mesh.clone(),
            workload: mesh.workload(&pod.uid)?.clone(),
            policies: mesh.policies_of(&pod.uid)?,
        })
    };
    let known = shard.shared.eventually(known).await;
    known.ok_or(Refusal::UnknownWorkload)
}

impl Known {
    /// Judges a visitor, and connects to the application at `destination` in the pod's namespace.
    /// The connection is to be carried under the [`Flow`], which ends it when policy changes.
    pub(super) async fn admit(
        &self,
        shard: &Rc<Shard>,
        pod: &Pod,
        visitor: Visitor<'_>,
        destination: SocketAddr,
        report: &mut Report,
    ) -> Result<(StdStream, Flow), Refusal> {
        let Self {
            mesh,
            workload,
            policies,
        } = self;
        report.destination(destination, workload);
        let network = &shard.shared.network;
        report.source(mesh.workload_at(network, visitor.address.ip()));
        let connection = Connection {
            source_identity: visitor.peer.map(|peer| peer.identity()),
            source_ip: visitor.address.ip(),
            destination,
            equivalent: &workload.equivalent_domains,
        };
        let judgement = admission::judge(workload, policies, &connection)?;
        report.judged(policies, &connection, &judgement);
        if let Decision::Deny(reason) = judgement.decision {
            return Err(Refusal::Denied(reason));
        }
        let flow = pod.flows.note(Claim::Inbound {
            peer: visitor.peer.cloned(),
            // What it is judged by is the address of the connection; the port is a claim.
            source: SocketAddr::new(visitor.address.ip(), visitor.shown.port()).into(),
            destination: destination.into(),
        });
        let show = |socket: &_| {
            let mut maps = shard.maps.borrow_mut();
            maps.set_client(socket, visitor.shown)
                .map_err(io::Error::other)
        };
        let dialled = pin!(application::dial(pod, &shard.link, destination, show));
        let tcp = flow
            .unless_cut(dialled)
            .await?
            .map_err(|error| Refusal::Connect(destination, error))?;
        Ok((tcp, flow))
    }
}
