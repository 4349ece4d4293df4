//! What the kernel does with `connect`, and where the connection is sent from there.

use std::net::SocketAddr;

use sluice_abi::{
    Addr,
    maps::PodIp,
    verdict::{self, Connect, ConnectVerdict, Reason},
};
use sluice_model::{
    OrigDst, SpiffeId, Workload, mesh,
    route::{self, Client, Refusal, Route},
    workload::{Egress, Health},
};

use super::{From, Stop, Walk, of_family, step, unknown};
use crate::{Kind, Outcome, door::Said, who::workload_name};

impl<'a> Walk<'a> {
    /// Puts a dial to the kernel's verdict, and goes on from there.
    pub(super) fn connect(&mut self, from: &From<'a>, to: SocketAddr) -> Result<(), Stop> {
        let mesh = self.world.mesh;
        let found = mesh.destination(self.world.network, to.ip());
        let known = !matches!(found, mesh::Destination::Unknown);
        if !known && !self.world.whole {
            return Err(unknown(format!(
                "the ztunnel that was asked learns on demand, and nobody has dialled {to} there yet"
            )));
        }
        match (self.verdict(from, to, known), &from.captured) {
            (ConnectVerdict::Redirect(_), Some((client, identity))) => {
                let node = &client.node;
                self.say(
                    Kind::Capture,
                    format!("captured: {to} is led to the ztunnel of node {node}"),
                );
                self.route(from, client, identity, to);
            }
            (ConnectVerdict::Refuse(Reason::NotInRegistry), Some((client, _))) => {
                let refusal = Refusal::NotInRegistry(to, client.uid.clone());
                self.say(Kind::Capture, "refused: connect fails with EPERM");
                self.end_nowhere(to, refusal.to_string());
            }
            (ConnectVerdict::Outside, _) => {
                self.say(Kind::Capture, "not captured: straight out of the mesh");
                self.arrive_plain(from, to);
            }
            (ConnectVerdict::NotOurs(Reason::Local), _) => {
                self.say(Kind::Capture, "not captured: it stays in the pod");
                let said = Said::unasked(Outcome::Allowed, "the pod itself is no visitor");
                self.end("the pod itself".to_owned(), Some(to), Vec::new(), said);
            }
            (ConnectVerdict::NotOurs(Reason::LinkLocal), _) => {
                self.say(Kind::Capture, "not captured: a neighbour on the link");
                self.arrive_plain(from, to);
            }
            _ => {
                self.say(Kind::Capture, "not captured: the source is not enrolled");
                self.unrouted(from, found, to);
            }
        }
        Ok(())
    }

    fn verdict(&self, from: &From<'_>, to: SocketAddr, known: bool) -> ConnectVerdict {
        let own = from.workload.is_some_and(|one| one.ips.contains(&to.ip()));
        let egress = from.captured.as_ref().map(|(own, _)| own.egress);
        verdict::connect(&Connect {
            netns: 1,
            protocol: verdict::TCP,
            enrolled: from.captured.is_some(),
            proxy: false,
            destination: Addr::from(to),
            owner: PodIp {
                netns: u64::from(own),
                ..PodIp::default()
            },
            registry_only: egress == Some(Egress::Registry),
            bypass: self.world.bypass,
            known,
            dns: false,
            allowed: false,
        })
    }

    /// A dial that the mesh has no part in on the source's side.
    fn unrouted(&mut self, from: &From<'_>, found: mesh::Destination, to: SocketAddr) {
        let mesh::Destination::Service(service) = found else {
            return self.arrive_plain(from, to);
        };
        self.say(
            Kind::Route,
            format!(
                "the mesh chooses no endpoint of {}: kube-proxy does, or whatever else serves {}",
                service.hostname,
                to.ip()
            ),
        );
        let endpoints = self.world.mesh.endpoints(&service, to.port());
        let fit = |health| service.load_balancing.allow_unhealthy || health == Health::Ready;
        for endpoint in endpoints {
            let ip = of_family(&endpoint.workload.ips, to.is_ipv4());
            if let Some(ip) = ip.filter(|_| fit(endpoint.workload.health)) {
                self.arrive_plain(from, SocketAddr::new(ip, endpoint.port));
            }
        }
    }

    /// Looks at every choice that the ztunnel may make.
    fn route(&mut self, from: &From<'_>, workload: &Workload, identity: &SpiffeId, to: SocketAddr) {
        let network = self.world.network;
        let routes = route::choices(self.world.mesh, Client { network, workload }, OrigDst(to));
        if let [_, _, ..] = &*routes {
            self.say(
                Kind::Route,
                format!("one of {} endpoints is chosen", routes.len()),
            );
        }
        for route in routes {
            match route {
                Route::Hbone(hop) => self.arrive_by_tunnel(from, workload, identity, &hop),
                Route::Plain { to, .. } => self.arrive_plain(from, to),
                Route::Named(host) => {
                    let way = format!("in plaintext, to what {} resolves to", host.host);
                    let said = Said::unasked(
                        Outcome::Allowed,
                        "it is outside the mesh: nobody enforces policies there",
                    );
                    let name = workload_name(&host.workload);
                    self.end(name, None, vec![step(Kind::Way, way)], said);
                }
                Route::Refuse(refusal) => self.end_nowhere(to, refusal.to_string()),
            }
        }
    }
}
