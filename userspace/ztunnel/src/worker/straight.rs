//! Accounts for connections that went straight from one pod of the node to another: what the kernel
//! tells of them becomes the same lines and metrics as of those that were carried.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sluice_model::{authz::Connection, mesh::Destination};
use sluice_telemetry::access::Direction;

use super::{Shared, failure::Failure, neighbours::Neighbourhood, report::Report};
use crate::link::message::{Ending, Flow, FlowEnd};

/// Those that are under way, by the cookies of their sockets.
#[derive(Debug, Default)]
pub(super) struct Straight(HashMap<u64, Ends>);

/// What is told of a connection: as the client's node would, and as the server's.
#[derive(Debug)]
struct Ends {
    source: Report,
    destination: Report,
    /// When it was first heard of, in nanoseconds since boot.
    since: u64,
}

impl Straight {
    /// Takes note of what became of connections.
    pub(super) fn hear(
        &mut self,
        flows: Vec<Flow>,
        shared: &Arc<Shared>,
        neighbourhood: &Neighbourhood,
    ) {
        for flow in flows {
            match flow.end {
                None => {
                    if let Some(mut ends) = Ends::of(&flow, shared, neighbourhood) {
                        ends.source.opened();
                        ends.destination.opened();
                        self.0.insert(flow.socket, ends);
                    }
                }
                Some(end) => {
                    // One that was established while no worker heard of it, or never.
                    let known = self.0.remove(&flow.socket);
                    let known = known.or_else(|| Ends::of(&flow, shared, neighbourhood));
                    if let Some(ends) = known {
                        ends.finish(&flow, &end, neighbourhood);
                    }
                }
            }
        }
    }
}

impl Ends {
    /// `None` when they are no pods of the mesh on this node any more.
    fn of(flow: &Flow, shared: &Arc<Shared>, neighbourhood: &Neighbourhood) -> Option<Self> {
        let members = neighbourhood.members.borrow();
        let client = members.in_netns(flow.netns)?;
        let server = members.at(flow.server.ip())?;
        let mesh = shared.mesh.load();
        let service = match mesh.destination(&shared.network, flow.dialled.ip()) {
            Destination::Service(service) => Some(service),
            Destination::Workload(_) | Destination::Unknown => None,
        };
        let report = |direction| {
            let mut report = Report::straight(shared, direction, flow.client, flow.server);
            report.proven(client, server, service.as_deref());
            report.source(mesh.workload(&client.uid));
            if let Some(workload) = mesh.workload(&server.uid) {
                report.destination(flow.server, workload);
            }
            report
        };
        let (source, mut destination) = (report(Direction::Outbound), report(Direction::Inbound));
        // Those in dry run, and those that only take note, have a say as well.
        if let (Some(workload), Some(policies)) =
            (mesh.workload(&server.uid), mesh.policies_of(&server.uid))
        {
            let connection = Connection {
                source_identity: Some(&client.identity),
                source_ip: flow.client.ip(),
                destination: flow.server,
                equivalent: &workload.equivalent_domains,
            };
            destination.judged(&policies, &connection, &policies.judge(&connection));
        }
        Some(Self {
            source,
            destination,
            since: flow.time,
        })
    }

    fn finish(mut self, flow: &Flow, end: &FlowEnd, neighbourhood: &Neighbourhood) {
        let client = neighbourhood
            .members
            .borrow()
            .in_netns(flow.netns)
            .map(|client| client.info.id);
        let cut = client.and_then(|client| neighbourhood.cut(client, flow.server));
        let failure = |cut| match end.how {
            Ending::Orderly => None,
            how => Some(Failure::straight(flow.server, how, cut)),
        };
        let duration = Duration::from_nanos(flow.time.saturating_sub(self.since));
        self.source.lasted(duration);
        self.destination.lasted(duration);
        self.source.carried(end.sent, end.received);
        self.source.finish(failure(None));
        if end.how != Ending::NotConnected {
            self.destination.carried(end.sent, end.received);
            self.destination.finish(failure(cut.as_ref()));
        }
    }
}
