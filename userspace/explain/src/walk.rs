//! The way of a connection, from `connect` to the door of whom it is for.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sluice_abi::{
    Addr,
    maps::PodIp,
    verdict::{self, Connect, ConnectVerdict, Reason},
};
use sluice_model::{
    OrigDst, Service, SpiffeId, Workload,
    hosts::Asker,
    mesh,
    route::{self, Client, Hop, Refusal, Route},
    workload::{Egress, Health, TunnelProtocol},
};

use crate::{
    Destination, End, Explanation, Kind, Outcome, Source, Step, World,
    door::{self, Said, Visitor},
    question::Target,
};

/// How many choices among the endpoints of a service are looked at.
const MOST_CHOICES: u64 = 1024;

/// Why the walk does not go on.
struct Stop {
    outcome: Outcome,
    reason: String,
}

fn unknown(reason: impl Into<String>) -> Stop {
    Stop {
        outcome: Outcome::Unknown,
        reason: reason.into(),
    }
}

pub(crate) fn explain(world: World<'_>, source: &Source, destination: &Destination) -> Explanation {
    let mut walk = Walk {
        world,
        steps: Vec::new(),
        ends: Vec::new(),
    };
    let Stop { outcome, reason } = match walk.go(source, destination) {
        Ok(()) => sum(&walk.ends),
        Err(stop) => stop,
    };
    Explanation {
        source: source.to_string(),
        destination: destination.to_string(),
        outcome,
        reason,
        steps: walk.steps,
        ends: walk.ends,
    }
}

/// Who connects.
struct From<'a> {
    workload: Option<&'a Arc<Workload>>,
    /// Where nobody is known.
    address: Option<IpAddr>,
    /// Of whom is captured.
    captured: Option<(&'a Arc<Workload>, SpiffeId)>,
}

impl From<'_> {
    /// Its address for a connection to one of this family.
    fn ip(&self, v4: bool) -> Option<IpAddr> {
        let Some(workload) = self.workload else {
            return self.address;
        };
        let mut own = workload.ips.iter();
        let same = own.find(|ip| ip.is_ipv4() == v4);
        same.or_else(|| workload.ips.first()).copied()
    }
}

struct Walk<'a> {
    world: World<'a>,
    steps: Vec<Step>,
    ends: Vec<End>,
}

impl<'a> Walk<'a> {
    fn go(&mut self, source: &Source, destination: &Destination) -> Result<(), Stop> {
        let from = self.source(source)?;
        let dials = self.destination(&from, destination)?;
        for dial in dials {
            self.dial(&from, dial)?;
        }
        Ok(())
    }

    fn say(&mut self, step: Kind, says: impl Into<String>) {
        self.steps.push(Step {
            step,
            says: says.into(),
        });
    }

    fn source(&mut self, source: &Source) -> Result<From<'a>, Stop> {
        let (workload, address) = match source {
            Source::Pod { namespace, name } => {
                let pod = self.pod(namespace, name);
                (Some(pod.ok_or_else(|| self.no_pod(namespace, name))?), None)
            }
            Source::Address(ip) => (
                self.world.mesh.workload_at(self.world.network, *ip),
                Some(*ip),
            ),
            Source::Outside => (None, None),
        };
        let Some(workload) = workload else {
            let who = match address {
                Some(ip) => format!("{ip}, which is nobody the mesh knows"),
                None => "somebody outside the mesh".to_owned(),
            };
            self.say(Kind::Source, format!("{who}: it has no identity"));
            return Ok(From {
                workload: None,
                address,
                captured: None,
            });
        };
        self.say(Kind::Source, self.describe(workload));
        let captured = match self.membership(workload) {
            Membership::Member => {
                let identity = workload.identity().map_err(|error| {
                    unknown(format!("the source has no identity that can be: {error}"))
                })?;
                Some((workload, identity))
            }
            Membership::Missing => {
                self.say(Kind::Note, MISSING);
                None
            }
            Membership::Stranger => None,
        };
        Ok(From {
            workload: Some(workload),
            address,
            captured,
        })
    }

    /// What would be dialled.
    fn destination(
        &mut self,
        from: &From<'_>,
        destination: &Destination,
    ) -> Result<Vec<SocketAddr>, Stop> {
        let v4 = from.ip(true).is_none_or(|ip| ip.is_ipv4());
        let addresses = match &destination.target {
            Target::Address(ip) => {
                self.say(Kind::Destination, self.stands_for(*ip));
                vec![*ip]
            }
            Target::Host(host) => self.host(host, from, v4)?,
            Target::Pod { namespace, name } => self.addresses_of_pod(namespace, name, v4)?,
            Target::Service { namespace, name } => match self.service(namespace, name) {
                Some(service) => self.addresses_of_service(&service, v4)?,
                None => return Err(self.missing(format!("service {namespace}/{name}"))),
            },
            Target::Object { namespace, name } => match self.service(namespace, name) {
                Some(service) => {
                    if self.pod(namespace, name).is_some() {
                        let note =
                            format!("a pod has that name too: ask for pod/{namespace}/{name}");
                        self.say(Kind::Note, note);
                    }
                    self.addresses_of_service(&service, v4)?
                }
                None if self.pod(namespace, name).is_some() => {
                    self.addresses_of_pod(namespace, name, v4)?
                }
                None => {
                    return Err(self.missing(format!("service or pod {namespace}/{name}")));
                }
            },
        };
        let port = destination.port;
        Ok(addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect())
    }

    fn host(&mut self, host: &str, from: &From<'_>, v4: bool) -> Result<Vec<IpAddr>, Stop> {
        let asker = Asker {
            namespace: from.workload.map_or("", |workload| &workload.namespace),
            network: self.world.network,
            cluster_domain: self.world.cluster_domain,
        };
        let Some(found) = self.world.mesh.host(host, &asker) else {
            return Err(unknown(format!(
                "the mesh knows no address of {host}: what it stands for is for other name servers \
                 to say; ask again with an address"
            )));
        };
        self.addresses_of_service(&found.service, v4)
    }

    /// A virtual address, or, of a headless service, those of all its endpoints.
    fn addresses_of_service(&mut self, service: &Service, v4: bool) -> Result<Vec<IpAddr>, Stop> {
        let name = format!("service {}", service.key());
        let addresses = self.world.mesh.addresses_of(service, self.world.network);
        if addresses.is_empty() {
            return Err(unknown(format!(
                "{name} has neither an address of its own nor an endpoint: its name leads nowhere"
            )));
        }
        let has_vip = service
            .vips
            .iter()
            .any(|vip| vip.network == *self.world.network);
        if !has_vip {
            let says = format!(
                "{name}, which is headless: its name stands for its {} endpoints",
                addresses.len()
            );
            self.say(Kind::Destination, says);
            return Ok(addresses);
        }
        let chosen = of_family(&addresses, v4).unwrap_or(addresses[0]);
        self.say(Kind::Destination, format!("{name}, at {chosen}"));
        Ok(vec![chosen])
    }

    fn addresses_of_pod(
        &mut self,
        namespace: &str,
        name: &str,
        v4: bool,
    ) -> Result<Vec<IpAddr>, Stop> {
        let pod = self.pod(namespace, name);
        let pod = pod.ok_or_else(|| self.no_pod(namespace, name))?;
        self.say(Kind::Destination, self.describe(pod));
        let chosen = of_family(&pod.ips, v4).or_else(|| pod.ips.first().copied());
        match chosen {
            Some(ip) => Ok(vec![ip]),
            None => Err(unknown(format!("{namespace}/{name} has no address yet"))),
        }
    }

    /// Puts a dial to the kernel's verdict, and goes on from there.
    fn dial(&mut self, from: &From<'a>, to: SocketAddr) -> Result<(), Stop> {
        let mesh = self.world.mesh;
        let found = mesh.destination(self.world.network, to.ip());
        let known = !matches!(found, mesh::Destination::Unknown);
        if !known && !self.world.whole {
            return Err(unknown(format!(
                "the ztunnel that was asked learns on demand, and nobody has dialled {to} there yet"
            )));
        }
        let own = from.workload.is_some_and(|one| one.ips.contains(&to.ip()));
        let egress = from.captured.as_ref().map(|(own, _)| own.egress);
        let verdict = verdict::connect(&Connect {
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
        });
        match (verdict, &from.captured) {
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
            let ips = &endpoint.workload.ips;
            let ip = of_family(ips, to.is_ipv4()).or_else(|| ips.first().copied());
            if let Some(ip) = ip.filter(|_| fit(endpoint.workload.health)) {
                self.arrive_plain(from, SocketAddr::new(ip, endpoint.port));
            }
        }
    }

    /// Looks at every choice that the ztunnel may make.
    fn route(&mut self, from: &From<'_>, workload: &Workload, identity: &SpiffeId, to: SocketAddr) {
        let routes = self.routes(workload, to);
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

    /// Each of the ztunnel's possible decisions once.
    fn routes(&self, workload: &Workload, to: SocketAddr) -> Vec<Route> {
        let World { mesh, network, .. } = self.world;
        // Which endpoint it is depends on chance: every one of them is met, since none has less than
        // a whole share of all capacity.
        let shares = match mesh.destination(network, to.ip()) {
            mesh::Destination::Service(service) => {
                let endpoints = mesh.endpoints(&service, to.port());
                let all = endpoints.iter().map(|one| u64::from(one.workload.capacity));
                all.sum::<u64>().clamp(1, MOST_CHOICES)
            }
            _ => 1,
        };
        let client = Client { network, workload };
        let mut routes: Vec<Route> = Vec::new();
        for share in 0..shares {
            let roll = (share as f64 + 0.5) / shares as f64;
            let route = route::outbound(mesh, client, OrigDst(to), &[], roll);
            if !routes.iter().any(|known| same_end(known, &route)) {
                routes.push(route);
            }
        }
        routes
    }

    fn arrive_by_tunnel(
        &mut self,
        from: &From<'_>,
        client: &Workload,
        identity: &SpiffeId,
        hop: &Hop,
    ) {
        let name = workload_name(&hop.workload);
        let expected: Vec<String> = hop.expected.iter().map(ToString::to_string).collect();
        let way = format!(
            "by a tunnel (HBONE, mutual TLS) to {}; the source proves {identity}, the destination {}",
            hop.tunnel,
            expected.join(" or ")
        );
        let mut steps = vec![step(Kind::Way, way)];
        let decided = |outcome, reason: &str| (name.clone(), Said::unasked(outcome, reason));
        let (name, said) = if hop.authority.ip() != hop.tunnel.ip() {
            decided(
                Outcome::Unknown,
                "it goes through a waypoint, which decides, and where it goes on to",
            )
        } else if self.membership(&hop.workload) == Membership::Missing {
            decided(
                Outcome::Denied,
                &format!("no tunnel is accepted there: {MISSING}"),
            )
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
            (name, said)
        };
        self.end(name, Some(hop.authority), steps, said);
    }

    /// Without a tunnel, at an address.
    fn arrive_plain(&mut self, from: &From<'_>, to: SocketAddr) {
        let way = vec![step(Kind::Way, format!("in plaintext to {to}"))];
        let Some(workload) = self.world.mesh.workload_at(self.world.network, to.ip()) else {
            let reason = "the mesh does not know the destination: nothing of it stands in the way";
            let said = Said::unasked(Outcome::Allowed, reason);
            return self.end("outside the mesh".to_owned(), Some(to), way, said);
        };
        let said = match self.membership(workload) {
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

    fn end_nowhere(&mut self, to: SocketAddr, reason: String) {
        let said = Said::unasked(Outcome::Denied, reason);
        self.end("nowhere".to_owned(), Some(to), Vec::new(), said);
    }

    fn end(&mut self, workload: String, address: Option<SocketAddr>, steps: Vec<Step>, said: Said) {
        let Said {
            outcome,
            reason,
            mtls,
            policies,
        } = said;
        self.ends.push(End {
            workload,
            address,
            outcome,
            reason,
            steps,
            mtls,
            policies,
        });
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&'a Arc<Workload>> {
        let mut all = self.world.mesh.workloads();
        all.find(|one| *one.namespace == *namespace && one.name() == name)
    }

    /// By its name, or by its host name.
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let mut all = self.world.mesh.services();
        let is_meant = |one: &&Arc<Service>| {
            *one.namespace == *namespace && (*one.name == *name || *one.hostname == *name)
        };
        all.find(is_meant).cloned()
    }

    fn no_pod(&self, namespace: &str, name: &str) -> Stop {
        let all = self.world.mesh.workloads();
        let mut others: Vec<&str> = all
            .filter(|one| *one.namespace == *namespace)
            .map(|one| one.name())
            .collect();
        others.sort_unstable();
        let Stop { outcome, reason } = self.missing(format!("pod {namespace}/{name}"));
        let more = if others.len() > 5 { ", …" } else { "" };
        others.truncate(5);
        let others = match &*others {
            [] => format!("nothing of namespace {namespace} is"),
            some => format!("of namespace {namespace}, {}{more} are", some.join(", ")),
        };
        Stop {
            outcome,
            reason: format!("{reason}; {others}"),
        }
    }

    fn missing(&self, what: String) -> Stop {
        unknown(if self.world.whole {
            format!("no {what} is known")
        } else {
            format!("no {what} is known to the ztunnel that was asked, which learns on demand")
        })
    }

    fn stands_for(&self, ip: IpAddr) -> String {
        match self.world.mesh.destination(self.world.network, ip) {
            mesh::Destination::Service(service) => format!("{ip} is service {}", service.key()),
            mesh::Destination::Workload(workload) => {
                format!("{ip} is {}", self.describe(&workload))
            }
            mesh::Destination::Unknown => format!("{ip} is nothing that the mesh knows"),
        }
    }

    fn describe(&self, workload: &Workload) -> String {
        let mut parts = vec![workload_name(workload)];
        parts.extend(workload.ips.iter().map(ToString::to_string));
        if !workload.node.is_empty() {
            parts.push(format!("node {}", workload.node));
        }
        parts.push(match self.membership(workload) {
            Membership::Member => match workload.identity() {
                Ok(identity) => format!("in the mesh as {identity}"),
                Err(_) => "in the mesh, without an identity".to_owned(),
            },
            Membership::Missing => "announced as part of the mesh".to_owned(),
            Membership::Stranger if workload.host_network => {
                "outside the mesh, on its node's network".to_owned()
            }
            Membership::Stranger => "outside the mesh".to_owned(),
        });
        parts.join(", ")
    }

    fn membership(&self, workload: &Workload) -> Membership {
        if workload.protocol == TunnelProtocol::None || workload.host_network {
            return Membership::Stranger;
        }
        match self.world.here {
            Some(here) if *workload.node == *here.node => {
                match here.enrolled.contains(&workload.uid) {
                    true => Membership::Member,
                    false => Membership::Missing,
                }
            }
            _ => Membership::Member,
        }
    }
}

/// Whether a workload is part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    Member,
    /// It should be, and its node does not have it.
    Missing,
    Stranger,
}

const MISSING: &str = "the pod should be part of the mesh, and has not been enrolled on its node; the \
                       log and the `pods` file of the ztunnel there say why";

fn step(step: Kind, says: impl Into<String>) -> Step {
    Step {
        step,
        says: says.into(),
    }
}

fn workload_name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name())
}

fn of_family(ips: &[IpAddr], v4: bool) -> Option<IpAddr> {
    ips.iter().find(|ip| ip.is_ipv4() == v4).copied()
}

/// Whether two routes lead to the same place.
fn same_end(one: &Route, other: &Route) -> bool {
    match (one, other) {
        (Route::Hbone(one), Route::Hbone(other)) => {
            (one.tunnel, one.authority) == (other.tunnel, other.authority)
        }
        (Route::Plain { to: one, .. }, Route::Plain { to: other, .. }) => one == other,
        (Route::Named(one), Route::Named(other)) => one.host == other.host,
        (Route::Refuse(one), Route::Refuse(other)) => one == other,
        _ => false,
    }
}

/// What the ends say together: a connection may meet any of them.
fn sum(ends: &[End]) -> Stop {
    let with = |outcome| ends.iter().filter(move |end| end.outcome == outcome);
    let worst = [Outcome::Denied, Outcome::Unknown, Outcome::Allowed]
        .into_iter()
        .find_map(|outcome| with(outcome).next());
    let Some(worst) = worst else {
        return unknown("no endpoint is known");
    };
    let count = with(worst.outcome).count();
    let reason = if ends.len() == 1 {
        worst.reason.clone()
    } else if count == ends.len() && with(worst.outcome).all(|end| end.reason == worst.reason) {
        format!("{}, at each of {count} endpoints", worst.reason)
    } else {
        let total = ends.len();
        let End {
            workload, reason, ..
        } = worst;
        format!("at {count} of {total} endpoints, {workload} among them: {reason}")
    };
    Stop {
        outcome: worst.outcome,
        reason,
    }
}
