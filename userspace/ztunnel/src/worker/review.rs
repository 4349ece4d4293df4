//! Judging established connections again when policies, workloads or trust have changed.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use sluice_identity::Peer;
use sluice_model::{
    Mesh, Name, TrustDomain, Workload, admission,
    authz::{Applicable, Connection, Decision},
    mesh::Destination,
    workload::Egress,
};

use super::{
    flows::{Claim, Cut},
    pods::Pod,
    shard::Shard,
};

/// What the visitors of a pod were judged by the last time.
#[derive(Debug, Default)]
pub(super) struct Reviewed(RefCell<Option<(Applicable, Arc<[TrustDomain]>)>>);

impl Reviewed {
    /// Notes what is in force now; false when it was before.
    fn differs(&self, policies: &Applicable, workload: &Workload) -> bool {
        let domains = &workload.equivalent_domains;
        let mut last = self.0.borrow_mut();
        let same = |(old, old_domains): &(Applicable, Arc<[TrustDomain]>)| {
            old.is_same(policies) && old_domains == domains
        };
        if last.as_ref().is_some_and(same) {
            return false;
        }
        *last = Some((policies.clone(), domains.clone()));
        true
    }
}

/// Reviews after every change, for as long as the thread runs.
pub(super) async fn follow(shard: Rc<Shard>) {
    let view = &shard.shared.mesh;
    let trust = shard.shared.identities.trust();
    let (mut seen, mut believed) = (view.status().version, trust.version());
    loop {
        tokio::select! {
            version = view.changed(seen) => {
                seen = version;
                let mesh = view.snapshot();
                for pod in shard.serving() {
                    review(&pod, &mesh, &shard.shared.network);
                }
            }
            version = trust.changed(believed) => {
                believed = version;
                review_peers(&shard);
            }
        }
    }
}

/// Cuts the connections of peers that are not believed any more, then ends their tunnels.
fn review_peers(shard: &Shard) {
    for pod in shard.serving() {
        pod.flows.review(Claim::distrust);
    }
    shard.pool.review();
}

/// Cuts what would not be let through now. Of a pod that the control plane does not know, at the
/// moment or any more, nothing is.
fn review(pod: &Pod, mesh: &Mesh, network: &Name) {
    if pod.flows.is_empty() {
        return;
    }
    let (Some(workload), Some(policies)) = (mesh.workload(&pod.uid), mesh.policies_of(&pod.uid))
    else {
        return;
    };
    let visitors = pod.reviewed.differs(&policies, workload);
    pod.flows.review(|claim| match claim {
        Claim::Inbound {
            peer,
            source,
            destination,
        } if visitors => {
            let connection = Connection {
                source_identity: peer.as_deref().map(Peer::identity),
                source_ip: source.ip(),
                destination: (*destination).into(),
                equivalent: &workload.equivalent_domains,
            };
            visitor(workload, &policies, &connection)
        }
        Claim::Inbound { .. } | Claim::Served(_) => None,
        Claim::Tunnel {
            destination, peer, ..
        } => {
            let destination = mesh.workload(destination.as_ref()?)?;
            let identity = peer.identity();
            (!destination.is(identity)).then(|| Cut::PeerIdentity(identity.clone()))
        }
        Claim::Plain(way) => {
            let dialled = way.dialled();
            let unknown = workload.egress == Egress::Registry
                && matches!(
                    mesh.destination(network, dialled.ip()),
                    Destination::Unknown
                );
            unknown.then_some(Cut::NotInRegistry(dialled))
        }
    });
}

/// Why a visitor is not let through, if that is so.
pub(super) fn visitor(
    workload: &Workload,
    policies: &Applicable,
    connection: &Connection<'_>,
) -> Option<Cut> {
    match admission::judge(workload, policies, connection) {
        Ok(judgement) => match judgement.decision {
            Decision::Deny(reason) => Some(Cut::Denied(reason)),
            Decision::Allow(_) => None,
        },
        Err(admission::Refusal::Untrusted(foreign)) => Some(Cut::Untrusted(foreign)),
        // Nobody was let in there.
        Err(admission::Refusal::IllegalPort(_)) => Some(Cut::NotStraight(connection.destination)),
    }
}
