//! What pods of this node may dial without the ztunnel: the worker judges it, the kernel lets it go,
//! and the broker stands between.
//!
//! What a worker says is taken for pods that are enrolled here and do not opt out, and for their own
//! addresses; the cookies of their namespaces are the broker's. A connection goes straight only as
//! long as it is allowed: what is taken back ends with it, in this order, so that none escapes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use sluice_kernel::{EnrolledPod, Error, Kernel, MAX_DIALS, StraightConnections, Way, ports};

use super::{ORPHANED, VOUCHED, netns::Netns, pods::PodRecord};
use crate::link::{
    PodId, ToWorker,
    message::{self, MAX_ADDRESSES, Permission, Route},
};

/// Where a pod dials, by the cookie of its network namespace.
type Dial = (u64, SocketAddr);

pub(super) struct Neighbours {
    connections: StraightConnections,
    /// What the worker allows.
    permissions: BTreeMap<(PodId, SocketAddr), PodId>,
    routes: BTreeMap<(PodId, SocketAddr), SocketAddr>,
    /// What the kernel has of it.
    allowed: HashMap<Dial, Allowed>,
    routed: HashMap<Dial, SocketAddr>,
    /// Since when no worker has judged it.
    orphaned: Option<Instant>,
    /// What an earlier broker let go has been looked for.
    swept: bool,
    /// Where something has just been taken back, to be looked through once more: the kernel lists
    /// sockets in pieces, while others come and go.
    to_sweep: Vec<Arc<Netns>>,
}

#[derive(Clone)]
struct Allowed {
    server: u64,
    /// The client's; kept here for when the pod is gone.
    netns: Arc<Netns>,
}

impl Neighbours {
    pub(super) fn new(kernel: &Kernel) -> Result<Self, Error> {
        Ok(Self {
            connections: kernel.straight_connections()?,
            permissions: BTreeMap::new(),
            routes: BTreeMap::new(),
            allowed: HashMap::new(),
            routed: HashMap::new(),
            orphaned: None,
            swept: false,
            to_sweep: Vec::new(),
        })
    }

    /// Carries out what the worker says.
    pub(super) fn hear<'a>(
        &mut self,
        news: message::Neighbours,
        kernel: &mut Kernel,
        pods: impl Iterator<Item = &'a PodRecord>,
    ) {
        match news {
            message::Neighbours::Allow(new) => {
                for one in new {
                    if self.permissions.len() < MAX_DIALS as usize {
                        self.permissions.insert((one.client, one.to), one.server);
                    }
                }
            }
            message::Neighbours::Route(new) => {
                for one in new {
                    if self.routes.len() < MAX_DIALS as usize {
                        self.routes.insert((one.client, one.dialled), one.to);
                    }
                }
            }
            message::Neighbours::Disallow(old) => {
                for (client, to) in old {
                    self.permissions.remove(&(client, to));
                }
            }
            message::Neighbours::Unroute(old) => {
                for (client, dialled) in old {
                    self.routes.remove(&(client, dialled));
                }
            }
            message::Neighbours::Complete => self.orphaned = None,
        }
        self.settle(kernel, pods);
    }

    /// The worker is gone: what it allowed stands until the next one has judged it, but not for
    /// long.
    pub(super) fn orphan(&mut self) {
        self.orphaned.get_or_insert_with(Instant::now);
    }

    /// For a worker that starts: what it has to judge.
    pub(super) fn inheritance(&self) -> Vec<ToWorker> {
        let permissions: Vec<Permission> = self
            .permissions
            .iter()
            .map(|(&(client, to), &server)| Permission { client, to, server })
            .collect();
        let routes: Vec<Route> = self
            .routes
            .iter()
            .map(|(&(client, dialled), &to)| Route {
                client,
                dialled,
                to,
            })
            .collect();
        let permissions = permissions
            .chunks(MAX_ADDRESSES)
            .map(|some| message::Neighbours::Allow(some.to_vec()));
        let routes = routes
            .chunks(MAX_ADDRESSES)
            .map(|some| message::Neighbours::Route(some.to_vec()));
        permissions
            .chain(routes)
            .chain([message::Neighbours::Complete])
            .map(ToWorker::Neighbours)
            .collect()
    }

    /// Vouches for what is allowed, unless nobody has judged it for too long.
    pub(super) fn tick(&mut self, kernel: &mut Kernel) {
        if self
            .orphaned
            .is_some_and(|since| since.elapsed() > ORPHANED)
            && !self.permissions.is_empty()
        {
            tracing::warn!(
                "no worker judges what goes straight from pod to pod; such connections are cut"
            );
            self.permissions.clear();
            self.routes.clear();
        }
        report(kernel.vouch(VOUCHED));
        let again = std::mem::take(&mut self.to_sweep);
        self.cut(again.into_iter());
    }

    /// Brings the kernel in step with what the worker allows and with the pods that are here.
    pub(super) fn settle<'a>(
        &mut self,
        kernel: &mut Kernel,
        pods: impl Iterator<Item = &'a PodRecord>,
    ) {
        let pods: HashMap<PodId, &PodRecord> = pods.map(|pod| (pod.info.id, pod)).collect();
        let (wanted, routes) = (self.wanted(&pods), self.wanted_routes(&pods));
        for (dial, to) in &self.routed {
            if routes.get(dial).is_none_or(|(_, wanted)| wanted != to) {
                report(kernel.unroute(dial.0, dial.1));
            }
        }
        let revoked: Vec<(Dial, Arc<Netns>)> = self
            .allowed
            .iter()
            .filter(|(dial, old)| {
                let wanted = wanted.get(dial);
                wanted.is_none_or(|wanted| wanted.allowed.server != old.server)
            })
            .map(|(dial, old)| (*dial, old.netns.clone()))
            .collect();
        for (dial, _) in &revoked {
            report(kernel.disallow(dial.0, dial.1));
            self.allowed.remove(dial);
        }
        self.cut(revoked.iter().map(|(_, netns)| netns.clone()));
        self.to_sweep
            .extend(revoked.into_iter().map(|(_, netns)| netns));
        if !self.swept {
            self.swept = true;
            self.cut(pods.values().map(|pod| pod.netns.clone()));
        }
        for (dial, new) in wanted {
            if self.allowed.contains_key(&dial) {
                continue;
            }
            match kernel.allow(new.client, dial.1, new.server) {
                Ok(()) => _ = self.allowed.insert(dial, new.allowed),
                Err(error) => report(Err(error)),
            }
        }
        let before = std::mem::take(&mut self.routed);
        for (dial, (client, to)) in routes {
            if before.get(&dial) != Some(&to) {
                report(kernel.route(client, dial.1, to));
            }
            self.routed.insert(dial, to);
        }
    }

    /// What may be allowed of what the worker allows.
    fn wanted<'a>(&self, pods: &HashMap<PodId, &'a PodRecord>) -> HashMap<Dial, Wanted<'a>> {
        let wanted = |(&(client, to), server): (&(PodId, SocketAddr), &PodId)| {
            let (client, server) = (pods.get(&client)?, pods.get(server)?);
            let (from, at) = (client.neighbour()?, server.neighbour()?);
            let own = ports::is_own(to.port());
            if own || client.netns.cookie == server.netns.cookie || !at.has(to.ip()) {
                return None;
            }
            let allowed = Allowed {
                server: server.netns.cookie,
                netns: client.netns.clone(),
            };
            Some((
                (client.netns.cookie, to),
                Wanted {
                    client: from,
                    server: at,
                    allowed,
                },
            ))
        };
        self.permissions.iter().filter_map(wanted).collect()
    }

    fn wanted_routes<'a>(
        &self,
        pods: &HashMap<PodId, &'a PodRecord>,
    ) -> HashMap<Dial, (&'a EnrolledPod, SocketAddr)> {
        let wanted = |(&(client, dialled), &to): (&(PodId, SocketAddr), &SocketAddr)| {
            let client = pods.get(&client)?;
            Some(((client.netns.cookie, dialled), (client.neighbour()?, to)))
        };
        self.routes.iter().filter_map(wanted).collect()
    }

    /// Ends the connections of these namespaces that go straight and are not allowed.
    fn cut(&self, namespaces: impl Iterator<Item = Arc<Netns>>) {
        let mut seen = HashSet::new();
        for netns in namespaces {
            if !seen.insert(netns.cookie) {
                continue;
            }
            let keep = |to| self.allowed.contains_key(&(netns.cookie, to));
            match netns.inside(|| Ok(self.connections.cut(Way::Neighbour, keep)?)) {
                Ok(cut) if cut.is_empty() => {}
                Ok(cut) => tracing::info!(
                    connections = cut.len(),
                    "cut, since they may not go straight from pod to pod any more"
                ),
                Err(error) => tracing::error!(
                    error = crate::one_line(&error),
                    "connections that go straight from pod to pod are not cut"
                ),
            }
        }
    }
}

struct Wanted<'a> {
    client: &'a EnrolledPod,
    server: &'a EnrolledPod,
    allowed: Allowed,
}

fn report(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::error!(%error, "what may go straight from pod to pod is not as it should be");
    }
}
