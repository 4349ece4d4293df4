//! What the control plane has sent, by resource.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use sluice_model::{Interner, Mesh, Name, Uid, Update, mesh::Edit};
use sluice_proto::{convert::names, security, workload};

use crate::{
    decode::Envelope,
    demand::Review,
    resource::Resource,
    snapshot::Snapshot,
    version::{Version, Versions},
};

/// A type of resource that we subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Address => workload::TYPE_URL,
            Self::Authorization => security::TYPE_URL,
        }
    }

    pub(crate) fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }
}

/// A response whose resources have been understood, as far as they can be, one by one.
#[derive(Debug, Default)]
pub(crate) struct Response {
    pub(crate) envelope: Envelope,
    pub(crate) resources: Vec<Resource>,
    /// Other names that resources answer to, with the places of these.
    pub(crate) aliases: Vec<(usize, String)>,
}

impl Response {
    /// Takes the bytes of a `Resource` in.
    pub(crate) fn push(&mut self, bytes: Bytes, interner: &mut Interner) {
        let place = self.resources.len();
        let (resource, aliases) = Resource::parse(place, bytes, interner);
        self.resources.push(resource);
        self.aliases
            .extend(aliases.into_iter().map(|alias| (place, alias)));
    }

    /// Takes in that there was a resource of so many bytes that they were not kept.
    pub(crate) fn push_too_large(&mut self, length: usize) {
        let place = self.resources.len();
        self.resources.push(Resource::too_large(place, length));
    }
}

/// Keeps the mesh, and which version of which resource it is made of.
#[derive(Debug, Default)]
pub(crate) struct Store {
    mesh: Arc<ArcSwap<Mesh>>,
    addresses: Received,
    policies: Received,
    interner: Interner,
}

#[derive(Debug, Default)]
struct Received {
    /// The control plane has answered for this type.
    answered: bool,
    /// Of each workload in force, by its place in the mesh.
    workloads: Versions,
    /// The version of each other resource in force.
    others: HashMap<Name, Version>,
}

/// What came of a response.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// The mesh is another one now.
    pub(crate) changed: bool,
    /// Resources that were not understood: name and reason. Their last good state stays; in place
    /// of a policy that has none, because this process has just begun, another stands in.
    pub(crate) rejected: Vec<(String, String)>,
}

impl Store {
    pub(crate) fn mesh(&self) -> &Arc<ArcSwap<Mesh>> {
        &self.mesh
    }

    /// The control plane has said of this type what it knew at first.
    pub(crate) fn is_answered(&self, kind: Kind) -> bool {
        match kind {
            Kind::Address => self.addresses.answered,
            Kind::Authorization => self.policies.answered,
        }
    }

    /// Drops workloads and services that are not needed, and returns their names.
    pub(crate) fn forget(&mut self, review: &Review) -> Vec<Name> {
        let mesh = self.mesh.load_full();
        let workloads = mesh.workloads().map(|workload| &workload.uid);
        let workloads: Vec<_> = workloads
            .filter(|uid| !review.workloads.contains(*uid))
            .collect();
        let services = mesh.services().map(|service| service.key());
        let services: Vec<_> = services
            .filter(|key| !review.services.contains(key))
            .collect();
        if workloads.is_empty() && services.is_empty() {
            return Vec::new();
        }
        let mut edit = mesh.edit();
        let mut names = Vec::new();
        for uid in workloads {
            names.push(uid.0.clone());
            edit.apply(Update::RemoveWorkload(uid.clone()));
        }
        for key in services {
            let name = Name::from(key.to_string());
            self.addresses.others.remove(&name);
            names.push(name);
            edit.apply(Update::RemoveService(key));
        }
        self.mesh.store(Arc::new(edit.finish()));
        names
    }

    /// What a new stream need not send again.
    pub(crate) fn versions<'a>(
        &'a self,
        kind: Kind,
        mesh: &'a Mesh,
    ) -> impl Iterator<Item = (&'a str, Version)> {
        let received = match kind {
            Kind::Address => &self.addresses,
            Kind::Authorization => &self.policies,
        };
        let workloads = mesh.workloads().filter_map(|workload| {
            let place = mesh.place(&workload.uid)?;
            Some((&*workload.uid.0, received.workloads.get(place)?))
        });
        let others = received.others.iter();
        workloads.chain(others.map(|(name, version)| (&**name, version.clone())))
    }

    /// Keeps what resources have in common once.
    pub(crate) fn interner(&mut self) -> &mut Interner {
        &mut self.interner
    }

    /// Begins with a snapshot, of which every resource is to be sent once more. Returns what of it
    /// was not understood.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) -> Vec<(String, String)> {
        let contents = [
            (Kind::Authorization, snapshot.policies),
            (Kind::Address, snapshot.addresses),
        ];
        let responses = contents.map(|(kind, resources)| (kind, self.response(resources)));
        let applied = self.apply(responses.into());
        let rejected = applied.into_iter().flat_map(|applied| applied.rejected);
        let rejected = rejected.collect();
        // That was not the control plane.
        self.addresses.answered = false;
        self.policies.answered = false;
        rejected
    }

    /// A response of these resources.
    pub(crate) fn response(&mut self, resources: Vec<Bytes>) -> Response {
        let mut response = Response::default();
        for bytes in resources {
            response.push(bytes, &mut self.interner);
        }
        response
    }

    /// Applies all of these responses that is right, at once: nobody sees half of it.
    pub(crate) fn apply(&mut self, responses: Vec<(Kind, Response)>) -> Vec<Applied> {
        let is_empty = |response: &Response| {
            response.resources.is_empty() && response.envelope.removed.is_empty()
        };
        // The next mesh begins as a copy of this one's indices, which is much for nothing.
        if responses.iter().all(|(_, response)| is_empty(response)) {
            let kinds = responses.into_iter().map(|(kind, _)| kind);
            return kinds.map(|kind| self.answered(kind)).collect();
        }
        let mut edit = self.mesh.load().edit();
        let applied: Vec<_> = responses
            .into_iter()
            .map(|(kind, response)| self.apply_to(&mut edit, kind, response))
            .collect();
        if applied.iter().any(|applied| applied.changed) {
            self.mesh.store(Arc::new(edit.finish()));
        }
        applied
    }

    /// What came of a response without content.
    fn answered(&mut self, kind: Kind) -> Applied {
        self.received(kind).answered = true;
        Applied::default()
    }

    fn received(&mut self, kind: Kind) -> &mut Received {
        match kind {
            Kind::Address => &mut self.addresses,
            Kind::Authorization => &mut self.policies,
        }
    }

    fn apply_to(&mut self, edit: &mut Edit, kind: Kind, response: Response) -> Applied {
        let received = self.received(kind);
        let first = !std::mem::replace(&mut received.answered, true);
        let mut applied = Applied::default();
        let Response {
            envelope,
            resources,
            aliases: _,
        } = response;
        // Removals first, since what is added may have taken over an address of what is removed. A
        // resource that is named as both has been removed and made anew.
        let present: HashSet<Name> = match envelope.removed[..] {
            [] => HashSet::new(),
            _ => resources.iter().map(Resource::name).collect(),
        };
        for name in &envelope.removed {
            if present.contains(&**name) {
                continue;
            }
            received.others.remove(&**name);
            if let Some(update) = removal(kind, name, edit.mesh()) {
                edit.apply(update);
                applied.changed = true;
            }
        }
        for resource in resources {
            match resource.into_update(kind) {
                Ok((update, name, version)) => {
                    let workload = match &update {
                        Update::Workload(workload) => Some(workload.uid.clone()),
                        _ => None,
                    };
                    if !is_known(edit.mesh(), &update) {
                        edit.apply(update);
                        applied.changed = true;
                    }
                    match workload.and_then(|uid| edit.mesh().place(&uid)) {
                        Some(place) => received.workloads.note(place, version),
                        None => drop(received.others.insert(name, version)),
                    }
                }
                Err(mut refused) => {
                    if let Some(policy) = refused
                        .stand_in
                        .filter(|_| first && kind == Kind::Authorization)
                        .filter(|policy| edit.mesh().policy(&policy.key).is_none())
                    {
                        let reason = &mut refused.reason;
                        reason.push_str(", and until it is mended nothing is allowed");
                        // It is no version, but a name of which the removal must be told.
                        let name = refused.name.as_str().into();
                        received.others.insert(name, Version::none());
                        edit.apply(Update::Policy(policy));
                        applied.changed = true;
                    }
                    applied.rejected.push((refused.name, refused.reason));
                }
            }
        }
        applied
    }
}

/// What a removed name stood for; `None` when it stood for nothing.
fn removal(kind: Kind, name: &str, mesh: &Mesh) -> Option<Update> {
    if kind == Kind::Authorization {
        let key = names::parse_policy(name).filter(|key| mesh.policy(key).is_some())?;
        return Some(Update::RemovePolicy(key));
    }
    let uid = Uid(name.into());
    if mesh.workload(&uid).is_some() {
        return Some(Update::RemoveWorkload(uid));
    }
    let key = names::parse_service(name).filter(|key| mesh.service(key).is_some())?;
    Some(Update::RemoveService(key))
}

/// The mesh holds exactly this already, as after a reconnect to a server that sends everything.
fn is_known(mesh: &Mesh, update: &Update) -> bool {
    match update {
        Update::Workload(new) => mesh.workload(&new.uid).is_some_and(|old| old == new),
        Update::Service(new) => mesh.service(&new.key()).is_some_and(|old| **old == *new),
        Update::Policy(new) => mesh.policy(&new.key).is_some_and(|old| **old == *new),
        Update::RemoveWorkload(_) | Update::RemoveService(_) | Update::RemovePolicy(_) => false,
    }
}
