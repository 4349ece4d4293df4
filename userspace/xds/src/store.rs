//! What the control plane has sent, by resource.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use compact_str::CompactString;
use prost::Message as _;
use sluice_model::{
    Interner, Mesh, Name, Uid, Update,
    authz::{Policy, Scope},
    mesh::Edit,
};
use sluice_proto::{convert::names, discovery::Resource, security, workload};

use crate::{snapshot::Snapshot, wire::Response};

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
    /// The version of each resource in force.
    versions: HashMap<Name, CompactString>,
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

    /// Every type has been answered.
    pub(crate) fn is_synced(&self) -> bool {
        self.addresses.answered && self.policies.answered
    }

    /// What a new stream need not send again.
    pub(crate) fn versions(&self, kind: Kind) -> BTreeMap<String, String> {
        let received = match kind {
            Kind::Address => &self.addresses,
            Kind::Authorization => &self.policies,
        };
        let versions = received.versions.iter();
        versions
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect()
    }

    /// Begins with a snapshot, of which every resource is to be sent once more. Returns what of it
    /// was not understood.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) -> Vec<(String, String)> {
        let contents = [
            (Kind::Authorization, snapshot.policies),
            (Kind::Address, snapshot.addresses),
        ];
        let responses = contents.map(|(kind, resources)| {
            let response = Response {
                resources,
                ..Default::default()
            };
            (kind, response)
        });
        let applied = self.apply(responses.into());
        let rejected = applied.into_iter().flat_map(|applied| applied.rejected);
        let rejected = rejected.collect();
        // That was not the control plane.
        self.addresses.answered = false;
        self.policies.answered = false;
        rejected
    }

    /// Applies all of these responses that is right, at once: nobody sees half of it.
    pub(crate) fn apply(&mut self, responses: Vec<(Kind, Response)>) -> Vec<Applied> {
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

    fn apply_to(&mut self, edit: &mut Edit, kind: Kind, response: Response) -> Applied {
        let received = match kind {
            Kind::Address => &mut self.addresses,
            Kind::Authorization => &mut self.policies,
        };
        let first = !std::mem::replace(&mut received.answered, true);
        let mut applied = Applied::default();
        if response.resources.is_empty() && response.removed_resources.is_empty() {
            return applied;
        }
        // Removals first, since what is added may have taken over an address of what is removed. A
        // resource that is named as both has been removed and made anew.
        let present: HashSet<String> = match response.removed_resources[..] {
            [] => HashSet::new(),
            _ => response.resources.iter().filter_map(name_in).collect(),
        };
        for name in &response.removed_resources {
            if present.contains(name) {
                continue;
            }
            received.versions.remove(&**name);
            if let Some(update) = removal(kind, name, edit.mesh()) {
                edit.apply(update);
                applied.changed = true;
            }
        }
        for (i, bytes) in response.resources.into_iter().enumerate() {
            let resource = match Resource::decode(bytes) {
                Ok(resource) => resource,
                Err(error) => {
                    let place = format!("resource {i}");
                    applied.rejected.push((place, error.to_string()));
                    continue;
                }
            };
            match parse(kind, &resource) {
                Ok(update) => {
                    let update = shared(update, &mut self.interner);
                    let version = resource.version.into();
                    received
                        .versions
                        .insert(name(&update, resource.name), version);
                    if !is_known(edit.mesh(), &update) {
                        edit.apply(update);
                        applied.changed = true;
                    }
                }
                Err(mut reason) => {
                    if let Some(policy) = stand_in(kind, &resource)
                        .filter(|policy| first && edit.mesh().policy(&policy.key).is_none())
                    {
                        reason.push_str(", and until it is mended nothing is allowed");
                        // It is no version, but a name of which the removal must be told.
                        let name = resource.name.as_str().into();
                        received.versions.insert(name, CompactString::default());
                        edit.apply(Update::Policy(policy));
                        applied.changed = true;
                    }
                    applied.rejected.push((resource.name, reason));
                }
            }
        }
        applied
    }
}

/// The name of a resource that is not taken apart yet.
fn name_in(resource: &Bytes) -> Option<String> {
    Some(Resource::decode(resource.clone()).ok()?.name)
}

/// The update that a resource stands for, or the reason why there is none.
fn parse(kind: Kind, resource: &Resource) -> Result<Update, String> {
    let Some(content) = &resource.resource else {
        return Err("it has no content".to_owned());
    };
    if content.type_url != kind.type_url() {
        return Err(format!("{} is not the type asked for", content.type_url));
    }
    let update = match kind {
        Kind::Address => workload::Address::decode(&*content.value)
            .map_err(|e| e.to_string())?
            .try_into(),
        Kind::Authorization => security::Authorization::decode(&*content.value)
            .map_err(|e| e.to_string())
            .map(Policy::try_from)?
            .map(Update::Policy),
    };
    let update = update.map_err(|e| e.to_string())?;
    // A resource is removed by its name, so that must lead to what it holds.
    let holds = name_of(&update);
    if holds != resource.name {
        return Err(format!("it holds {holds}, which is another name"));
    }
    Ok(update)
}

/// The update, with what many have in common kept once.
fn shared(update: Update, interner: &mut Interner) -> Update {
    match update {
        Update::Workload(workload) => Update::Workload(interner.share(workload)),
        other => other,
    }
}

/// A resource's name; a workload's is its uid, and kept once.
fn name(update: &Update, name: String) -> Name {
    match update {
        Update::Workload(workload) => workload.uid.0.clone(),
        _ => name.into(),
    }
}

/// What is in force in place of a policy that was not understood, as [`Policy::stand_in`] explains.
/// `None` when it is one that never decides.
fn stand_in(kind: Kind, resource: &Resource) -> Option<Policy> {
    if kind != Kind::Authorization {
        return None;
    }
    let key = names::parse_policy(&resource.name)?;
    let content = resource.resource.as_ref();
    let message = content.and_then(|any| security::Authorization::decode(&*any.value).ok());
    if message.as_ref().is_some_and(|message| message.dry_run) {
        return None;
    }
    let scope = message.map(|message| security::Scope::try_from(message.scope));
    let scope = match scope {
        Some(Ok(security::Scope::Global)) => Scope::Global,
        Some(Ok(security::Scope::WorkloadSelector)) => Scope::Workload,
        Some(Ok(security::Scope::Namespace) | Err(_)) | None => Scope::Namespace,
    };
    Some(Policy::stand_in(key, scope))
}

fn name_of(update: &Update) -> String {
    match update {
        Update::Workload(workload) => workload.uid.to_string(),
        Update::Service(service) => service.key().to_string(),
        Update::Policy(policy) => policy.key.to_string(),
        Update::RemoveWorkload(uid) => uid.to_string(),
        Update::RemoveService(key) => key.to_string(),
        Update::RemovePolicy(key) => key.to_string(),
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
        Update::Workload(new) => mesh.workload(&new.uid).is_some_and(|old| **old == *new),
        Update::Service(new) => mesh.service(&new.key()).is_some_and(|old| **old == *new),
        Update::Policy(new) => mesh.policy(&new.key).is_some_and(|old| **old == *new),
        Update::RemoveWorkload(_) | Update::RemoveService(_) | Update::RemovePolicy(_) => false,
    }
}
