//! Where a connection ends: at a pod's door, past one, or nowhere.

use std::net::SocketAddr;

use sluice_model::{SpiffeId, Workload, route::Hop};

use super::{From, Walk, step};
use crate::{
    Kind, Outcome,
    door::{self, Said, Visitor},
    who::{MISSING, Membership, workload_name},
};

impl Walk<'_> {
    pub(super) fn arrive_by_tunnel(
        &mut self,
        from: &From<'_>,
        client: &Workload,
        identity: &SpiffeId,
        hop: &Hop,
    ) {
        let expected: Vec<String> = hop.expected.iter().map(ToString::to_string).collect();
        let way = format!(
            "by a tunnel (HBONE, mutual TLS) to {}; the source proves {identity}, the destination {}",
            hop.tunnel,
            expected.join(" or ")
        );
        let mut steps = vec![step(Kind::Way, way)];
        let said = if hop.authority.ip() != hop.tunnel.ip() {
            Said::unasked(
                Outcome::Unknown,
                "it goes through a waypoint, which decides, and where it goes on to",
            )
        } else if self.world.membership(&hop.workload) == Membership::Missing {
            let reason = format!("no tunnel is accepted there: {MISSING}");
            Said::unasked(Outcome::Denied, reason)
        } else {
            let visitor = Visitor {
                identity: Some(identity),
                ip: from.ip(hop.tunnel.is_ipv4()),
            };
            let said = door::knock(self.world, &hop.workload, visitor, hop.authority);
            if said.outcome == Outcome::Allowed
                && hop.workload.node == client.node
                && !client.node.is_empty()
            {
                let note = "both are on one node: later connections may go straight from pod to pod, \
                            in the kernel, by the same verdict";
                steps.push(step(Kind::Note, note));
            }
            said
        };
        let name = workload_name(&hop.workload);
        self.end(name, Some(hop.authority), steps, said);
    }

    /// Without a tunnel, at an address.
    pub(super) fn arrive_plain(&mut self, from: &From<'_>, to: SocketAddr) {
        let way = vec![step(Kind::Way, format!("in plaintext to {to}"))];
        let Some(workload) = self.world.mesh.workload_at(self.world.network, to.ip()) else {
            let reason = "the mesh does not know the destination: nothing of it stands in the way";
            let said = Said::unasked(Outcome::Allowed, reason);
            return self.end("outside the mesh".to_owned(), Some(to), way, said);
        };
        let said = match self.world.membership(workload) {
            Membership::Member => {
                let visitor = Visitor {
                    identity: None,
                    ip: from.ip(to.is_ipv4()),
                };
                door::knock(self.world, workload, visitor, to)
            }
            Membership::Missing => Said::unasked(
                Outcome::Allowed,
                format!("nobody enforces policies there: {MISSING}"),
            ),
            Membership::Stranger => Said::unasked(
                Outcome::Allowed,
                "the destination is not part of the mesh: nobody enforces policies there",
            ),
        };
        self.end(workload_name(workload), Some(to), way, said);
    }

    pub(super) fn end_nowhere(&mut self, to: SocketAddr, reason: String) {
        let said = Said::unasked(Outcome::Denied, reason);
        self.end("nowhere".to_owned(), Some(to), Vec::new(), said);
    }
}
