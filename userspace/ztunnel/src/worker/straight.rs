//! Accounts for connections in which the ztunnel has no part, from one pod of the node to another or out
//! of the mesh: what the kernel tells of them becomes the same lines and metrics as of those that were
//! carried.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sluice_model::{Mesh, authz::Connection, mesh::Destination, workload::Egress};
use sluice_telemetry::access::Direction;

use super::{
    Shared,
    connections::{self, StraightConnection},
    failure::Failure,
    flows::{Cut, Way},
    neighbours::{Member, Members, Neighbourhood},
    report::Report,
    spans::Place,
};
use crate::link::message::{Ending, Flow, FlowEnd};

/// Those that are under way, by the cookies of their sockets.
#[derive(Debug, Default)]
pub(super) struct Straight(HashMap<u64, Ends>, connections::Straight);

/// What is told of a connection: as the client's node would, and, where it stays on the node, as the
/// server's.
#[derive(Debug)]
struct Ends {
    source: Report,
    destination: Option<Report>,
    /// When it was first heard of, in nanoseconds since boot.
    since: u64,
}

impl Straight {
    /// Also shows operators what is under way.
    pub(super) fn listed(list: connections::Straight) -> Self {
        Self(HashMap::new(), list)
    }

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
                        ends.reports().for_each(Report::opened);
                        self.0.insert(flow.socket, ends);
                        if let Some(connection) = listed(&flow, neighbourhood) {
                            self.1.add(flow.socket, connection);
                        }
                    }
                }
                Some(end) => {
                    // Of a short one nothing was told before, nor of one that was established while
                    // no worker heard of it, or never.
                    let known = self.0.remove(&flow.socket);
                    self.1.remove(flow.socket);
                    let known = known.or_else(|| Ends::of(&flow, shared, neighbourhood));
                    if let Some(ends) = known {
                        ends.finish(&flow, &end, shared, neighbourhood);
                    }
                }
            }
        }
    }
}

/// As operators see it; `None` when the client is no pod of the mesh any more.
fn listed(flow: &Flow, neighbourhood: &Neighbourhood) -> Option<StraightConnection> {
    let members = neighbourhood.members.borrow();
    let server = members.at(flow.server.ip()).filter(|_| !flow.outside);
    Some(StraightConnection {
        client: members.in_netns(flow.netns)?.uid.clone(),
        server: server.map(|server| server.uid.clone()),
        way: Way::new(flow.client, flow.dialled, flow.server),
    })
}

impl Ends {
    /// `None` when they are no pods of the mesh on this node any more.
    fn of(flow: &Flow, shared: &Arc<Shared>, neighbourhood: &Neighbourhood) -> Option<Self> {
        let members = neighbourhood.members.borrow();
        let client = members.in_netns(flow.netns)?;
        let mesh = shared.mesh.load();
        if flow.outside {
            let mut source = Report::outside(shared, client, flow.client, flow.server);
            source.traced(Place::of(shared, None));
            source.is_socket(flow.socket);
            source.source(mesh.workload(&client.uid));
            return Some(Self {
                source,
                destination: None,
                since: flow.since.unwrap_or(flow.time),
            });
        }
        Self::neighbours(flow, shared, &mesh, &members, client)
    }

    fn neighbours(
        flow: &Flow,
        shared: &Arc<Shared>,
        mesh: &Mesh,
        members: &Members,
        client: &Member,
    ) -> Option<Self> {
        let server = members.at(flow.server.ip())?;
        let service = match mesh.destination(&shared.network, flow.dialled.ip()) {
            Destination::Service(service) => Some(service),
            Destination::Workload(_) | Destination::Unknown => None,
        };
        let report = |direction| {
            let mut report = Report::straight(shared, direction, flow.client, flow.server);
            report.is_socket(flow.socket);
            report.proven(client, server, service.as_ref());
            report.source(mesh.workload(&client.uid));
            if let Some(workload) = mesh.workload(&server.uid) {
                report.destination(flow.server, workload);
            }
            report
        };
        let (mut source, mut destination) =
            (report(Direction::Outbound), report(Direction::Inbound));
        let place = Place::of(shared, None);
        source.traced(place);
        destination.traced(Place::below(place.traceparent()));
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
            destination: Some(destination),
            since: flow.since.unwrap_or(flow.time),
        })
    }

    fn reports(&mut self) -> impl Iterator<Item = &mut Report> {
        [&mut self.source].into_iter().chain(&mut self.destination)
    }

    fn finish(
        mut self,
        flow: &Flow,
        end: &FlowEnd,
        shared: &Shared,
        neighbourhood: &Neighbourhood,
    ) {
        let cut = why_cut(flow, end, shared, neighbourhood);
        let failure = |cut| match end.how {
            Ending::Orderly => None,
            how => Some(Failure::straight(flow.server, how, cut)),
        };
        let duration = Duration::from_nanos(flow.time.saturating_sub(self.since));
        for report in self.reports() {
            report.lasted(duration);
            report.carried(end.sent, end.received);
        }
        match self.destination {
            // The server's end is where it is enforced who may come.
            Some(destination) => {
                self.source.finish(failure(None));
                if end.how != Ending::NotConnected {
                    destination.finish(failure(cut.as_ref()));
                }
            }
            None => self.source.finish(failure(cut.as_ref())),
        }
    }
}

/// Why the broker has cut a connection, if it has.
fn why_cut(
    flow: &Flow,
    end: &FlowEnd,
    shared: &Shared,
    neighbourhood: &Neighbourhood,
) -> Option<Cut> {
    let members = neighbourhood.members.borrow();
    let client = members.in_netns(flow.netns)?;
    if !flow.outside {
        return neighbourhood.cut(client.info.id, flow.server);
    }
    let mesh = shared.mesh.load();
    let restricted = mesh.workload(&client.uid)?.egress == Egress::Registry;
    let unknown = matches!(
        mesh.destination(&shared.network, flow.server.ip()),
        Destination::Unknown
    );
    (end.how == Ending::Reset && restricted && unknown).then_some(Cut::NotInRegistry(flow.server))
}
