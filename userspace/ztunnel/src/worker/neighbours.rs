//! Which connections may go straight from one pod of this node to another, in the kernel.
//!
//! A connection that went through a tunnel between two pods of the node asks for it; what comes of
//! it is told to the broker, for the next ones. A permission is for a client, and an address and
//! port of a server: everything that policy can ask about is known by that. It is judged again when
//! anything changes, and what has lost it is cut by the broker.
//!
//! Behind a service, it takes one endpoint that is the only choice: the kernel chooses nothing.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use sluice_kernel::MAX_DIALS;
use sluice_model::{
    Mesh, Name, SpiffeId, Uid, authz::Connection, balance, mesh::Destination, service::Mode,
    workload::TunnelProtocol,
};
use tokio::sync::{mpsc, watch};

use super::{Shared, flows::Cut, pods::Pod, review};
use crate::link::{
    AsyncLink, PodId, PodInfo, ToBroker,
    message::{MAX_ADDRESSES, Neighbours, Permission, Route},
};

/// How many wishes may wait. More are dropped: the next connection has the same one.
const WISHES: usize = 1024;
/// For how long it is remembered why connections were cut, until the kernel has told of their end.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Where a pod dials.
type Dial = (PodId, SocketAddr);

/// Says that a pod dialled something which leads to a pod of this node.
#[derive(Clone, Debug)]
pub(super) struct Wishes(mpsc::Sender<Dial>);

/// Both ends of the wishes' way.
pub(super) fn wishes() -> (Wishes, mpsc::Receiver<Dial>) {
    let (sender, receiver) = mpsc::channel(WISHES);
    (Wishes(sender), receiver)
}

impl Wishes {
    pub(super) fn wish(&self, client: &Pod, dialled: SocketAddr) {
        let _ = self.0.try_send((client.info.id, dialled));
    }
}

/// A pod of this node, as the broker describes it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) info: PodInfo,
    pub(super) uid: Uid,
    pub(super) identity: SpiffeId,
}

impl Member {
    /// Its address of a family, if it can be no other.
    fn source_ip(&self, v4: bool) -> Option<IpAddr> {
        let mut own = self.info.ips.iter().filter(|ip| ip.is_ipv4() == v4);
        own.next().filter(|_| own.next().is_none()).copied()
    }
}

/// The pods of this node that are in the mesh.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    by_id: BTreeMap<PodId, Member>,
    by_ip: HashMap<IpAddr, PodId>,
    by_netns: HashMap<u64, PodId>,
}

impl Members {
    pub(super) fn add(&mut self, member: Member) {
        let id = member.info.id;
        self.by_netns.insert(member.info.netns, id);
        self.by_ip
            .extend(member.info.ips.iter().map(|ip| (*ip, id)));
        self.by_id.insert(id, member);
    }

    pub(super) fn remove(&mut self, id: PodId) {
        self.by_id.remove(&id);
        self.by_ip.retain(|_, owner| *owner != id);
        self.by_netns.retain(|_, owner| *owner != id);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    pub(super) fn at(&self, ip: IpAddr) -> Option<&Member> {
        self.by_id.get(self.by_ip.get(&ip)?)
    }

    pub(super) fn in_netns(&self, cookie: u64) -> Option<&Member> {
        self.by_id.get(self.by_netns.get(&cookie)?)
    }
}

/// What the worker's main thread knows of the pods here and of what goes straight between them.
#[derive(Debug, Default)]
pub(super) struct Neighbourhood {
    pub(super) members: watch::Sender<Members>,
    /// What the worker before has allowed.
    inherited: RefCell<Standing>,
    /// That is all of it.
    complete: watch::Sender<bool>,
    /// Why connections were cut, and when.
    cuts: RefCell<HashMap<Dial, (Cut, Instant)>>,
}

impl Neighbourhood {
    /// Takes over what the worker before has allowed.
    pub(super) fn inherit(&self, news: Neighbours) {
        let mut standing = self.inherited.borrow_mut();
        match news {
            Neighbours::Allow(all) => standing
                .permissions
                .extend(all.iter().map(|one| ((one.client, one.to), one.server))),
            Neighbours::Route(all) => standing
                .routes
                .extend(all.iter().map(|one| ((one.client, one.dialled), one.to))),
            Neighbours::Complete => _ = self.complete.send_replace(true),
            Neighbours::Disallow(_) | Neighbours::Unroute(_) => {}
        }
    }

    /// Why connections from a pod to an address were cut just now, if they were.
    pub(super) fn cut(&self, client: PodId, to: SocketAddr) -> Option<Cut> {
        let cuts = self.cuts.borrow();
        let (cut, when) = cuts.get(&(client, to))?;
        (when.elapsed() < REMEMBERED).then(|| cut.clone())
    }

    fn note(&self, cuts: Vec<(Dial, Cut)>) {
        let now = Instant::now();
        let mut noted = self.cuts.borrow_mut();
        noted.retain(|_, (_, when)| when.elapsed() < REMEMBERED);
        noted.extend(cuts.into_iter().map(|(dial, cut)| (dial, (cut, now))));
    }

    /// Tells the broker what may go straight, until it is gone. To begin with the mesh must be
    /// known.
    pub(super) async fn tell(
        &self,
        shared: &Shared,
        link: &AsyncLink,
        mut wished: mpsc::Receiver<Dial>,
    ) -> io::Result<()> {
        // The sender lives as long as this.
        let _ = self.complete.subscribe().wait_for(|all| *all).await;
        let mut members = self.members.subscribe();
        let mut standing = self.inherited.take();
        let mut wishes = Vec::new();
        let mut first = true;
        loop {
            let seen = shared.mesh.status().version;
            let mut news = {
                let members = members.borrow_and_update();
                let view = View {
                    mesh: &shared.mesh.load(),
                    network: &shared.network,
                    members: &members,
                };
                let (mut news, cuts) = standing.review(view);
                self.note(cuts);
                let granted: (Vec<_>, Vec<_>) = wishes
                    .drain(..)
                    .map(|(client, dialled)| standing.wish(view, client, dialled))
                    .unzip();
                let permissions: Vec<Permission> = granted.0.into_iter().flatten().collect();
                let routes: Vec<Route> = granted.1.into_iter().flatten().collect();
                let permissions = permissions.chunks(MAX_ADDRESSES).map(<[_]>::to_vec);
                news.extend(permissions.map(Neighbours::Allow));
                let routes = routes.chunks(MAX_ADDRESSES).map(<[_]>::to_vec);
                news.extend(routes.map(Neighbours::Route));
                news
            };
            if std::mem::take(&mut first) {
                news.push(Neighbours::Complete);
            }
            for message in news {
                link.send_when_room(&ToBroker::Neighbours(message), &[])
                    .await?;
            }
            tokio::select! {
                _ = shared.mesh.changed(seen) => {}
                // The senders live as long as this.
                _ = members.changed() => {}
                _ = wished.recv_many(&mut wishes, WISHES) => {}
            }
        }
    }
}

/// What there is to judge by.
#[derive(Clone, Copy)]
struct View<'a> {
    mesh: &'a Mesh,
    network: &'a Name,
    members: &'a Members,
}

impl View<'_> {
    /// The pod's address and port that a connection to `dialled` leads to, if it can be no other.
    fn route(&self, client: PodId, dialled: SocketAddr) -> Option<SocketAddr> {
        let service = match self.mesh.destination(self.network, dialled.ip()) {
            Destination::Workload(_) => return Some(dialled),
            Destination::Service(service) => service,
            Destination::Unknown => return None,
        };
        let balancing = &service.load_balancing;
        if service.waypoint.is_some() || balancing.mode == Mode::Passthrough {
            return None;
        }
        let client = self.mesh.workload(&self.members.by_id.get(&client)?.uid)?;
        let endpoints = self.mesh.endpoints(&service, dialled.port());
        let mut candidates =
            balance::candidates(&endpoints, |e| &e.workload, balancing, Some(client));
        let (Some(only), None) = (candidates.next(), candidates.next()) else {
            return None;
        };
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == dialled.is_ipv4();
        let ip = only.workload.ips.iter().find(same_family)?;
        Some(SocketAddr::new(*ip, only.port))
    }

    /// The pod that a client may reach straight at an address, or why it may not.
    fn judge(&self, client: PodId, to: SocketAddr) -> Result<PodId, Cut> {
        let closed = || Cut::NotStraight(to);
        let client = self.members.by_id.get(&client).ok_or_else(closed)?;
        self.mesh.workload(&client.uid).ok_or_else(closed)?;
        let Destination::Workload(workload) = self.mesh.destination(self.network, to.ip()) else {
            return Err(closed());
        };
        let here = |server: &&Member| server.uid == workload.uid && server.uid != client.uid;
        let server = self.members.at(to.ip()).filter(here).ok_or_else(closed)?;
        // Through a waypoint nothing goes straight, and without the promise of a tunnel nothing is
        // said of who is there.
        if workload.waypoint.is_some() || workload.protocol == TunnelProtocol::None {
            return Err(closed());
        }
        // As a tunnel would have proven it.
        if !workload.is(&server.identity) {
            return Err(Cut::PeerIdentity(server.identity.clone()));
        }
        let connection = Connection {
            source_identity: Some(&client.identity),
            source_ip: client.source_ip(to.is_ipv4()).ok_or_else(closed)?,
            destination: to,
            equivalent: &workload.equivalent_domains,
        };
        let policies = self.mesh.policies_of(&workload.uid).ok_or_else(closed)?;
        match review::visitor(&workload, &policies, &connection) {
            Some(cut) => Err(cut),
            None => Ok(server.info.id),
        }
    }
}

/// What has been allowed.
#[derive(Debug, Default)]
struct Standing {
    permissions: HashMap<Dial, PodId>,
    /// By what is dialled that is not the pod itself.
    routes: HashMap<Dial, SocketAddr>,
}

impl Standing {
    /// What a wish brings that was not there before.
    fn wish(
        &mut self,
        view: View<'_>,
        client: PodId,
        dialled: SocketAddr,
    ) -> (Option<Permission>, Option<Route>) {
        let Some(to) = view.route(client, dialled) else {
            return (None, None);
        };
        let Ok(server) = view.judge(client, to) else {
            return (None, None);
        };
        let room = |taken: usize| taken < MAX_DIALS as usize;
        let mut permission = None;
        if !self.permissions.contains_key(&(client, to)) {
            if !room(self.permissions.len()) {
                return (None, None);
            }
            self.permissions.insert((client, to), server);
            permission = Some(Permission { client, to, server });
        }
        let new = dialled != to
            && room(self.routes.len())
            && self.routes.insert((client, dialled), to) != Some(to);
        let route = new.then_some(Route {
            client,
            dialled,
            to,
        });
        (permission, route)
    }

    /// What must be taken back, and why connections end by it.
    fn review(&mut self, view: View<'_>) -> (Vec<Neighbours>, Vec<(Dial, Cut)>) {
        let mut cuts = Vec::new();
        self.permissions.retain(|&(client, to), server| {
            let cut = match view.judge(client, to) {
                Ok(now) if now == *server => return true,
                Ok(_) => Cut::NotStraight(to),
                Err(cut) => cut,
            };
            cuts.push(((client, to), cut));
            false
        });
        let mut gone = Vec::new();
        self.routes.retain(|&(client, dialled), to| {
            let stands = self.permissions.contains_key(&(client, *to))
                && view.route(client, dialled) == Some(*to);
            if !stands {
                gone.push((client, dialled));
            }
            stands
        });
        let dials: Vec<Dial> = cuts.iter().map(|(dial, _)| *dial).collect();
        let unroute = gone.chunks(MAX_ADDRESSES).map(<[Dial]>::to_vec);
        let disallow = dials.chunks(MAX_ADDRESSES).map(<[Dial]>::to_vec);
        let news = unroute
            .map(Neighbours::Unroute)
            .chain(disallow.map(Neighbours::Disallow))
            .collect();
        (news, cuts)
    }
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;
