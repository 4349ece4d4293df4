//! What one client wants of one type, and what it has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use sluice_model::Name;
use sluice_proto::discovery::DeltaDiscoveryRequest;

use super::resources::{Entry, Set, Version};

/// The name that stands for every resource.
const WILDCARD: &str = "*";

/// A client's interest in one type, from its first request on.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// It wants every resource.
    wildcard: bool,
    /// Names, or aliases, that it asked for one by one. A service brings its workloads.
    wanted: BTreeSet<Name>,
    has: Has,
    /// What it was told not to exist.
    absent: BTreeSet<Name>,
    /// What it has asked for since the last answer: it is told, whatever it has.
    again: BTreeSet<Name>,
    /// What it gave up since the last answer, and so has no more.
    given_up: Vec<Name>,
    /// It made a first request, or asked for names, and waits for an answer, even an empty one.
    waits: bool,
    started: bool,
}

/// What a client has.
#[derive(Debug)]
enum Has {
    /// These versions; `None` is one that nobody knows.
    Listed(HashMap<Name, Option<Version>>),
    /// Everything, as it was then. So a client costs a pointer, not a list.
    All(Arc<Set>),
}

impl Default for Has {
    fn default() -> Self {
        Self::Listed(HashMap::new())
    }
}

/// What a client lacks.
#[derive(Debug, Default)]
pub(super) struct Delta {
    /// Encoded for a response.
    pub(super) resources: Bytes,
    pub(super) removed: BTreeSet<Name>,
}

impl Subscription {
    /// Takes note of a request; acknowledgements are the caller's business.
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) {
        let subscribes = request.resource_names_subscribe;
        let unsubscribes = request.resource_names_unsubscribe;
        let first = !mem::replace(&mut self.started, true);
        if first {
            self.waits = true;
            // The first request may say nothing at all, and then means everything.
            self.wildcard = subscribes.is_empty();
            let known = request.initial_resource_versions.into_iter();
            let known = known.map(|(name, version)| (name.into(), Version::parse(&version)));
            self.has = Has::Listed(known.collect());
        }
        for name in subscribes {
            if name == WILDCARD {
                self.wildcard = true;
                continue;
            }
            let name = Name::from(name);
            self.absent.remove(&name);
            if !first {
                self.again.insert(name.clone());
            }
            self.wanted.insert(name);
            self.waits = true;
        }
        for name in unsubscribes {
            if name == WILDCARD {
                self.leave_wildcard();
                continue;
            }
            let name = Name::from(name);
            self.wanted.remove(&name);
            self.absent.remove(&name);
            self.again.remove(&name);
            self.given_up.push(name);
        }
        if let (true, false, Has::Listed(known)) = (first, self.wildcard, &self.has) {
            // What it says to have is what it asked for on an earlier connection. Without a version,
            // it still waits for it.
            self.wanted.extend(known.keys().cloned());
            let waits = known.iter().filter(|(_, version)| version.is_none());
            self.again.extend(waits.map(|(name, _)| name.clone()));
        }
    }

    fn leave_wildcard(&mut self) {
        self.wildcard = false;
        if let Has::All(set) = &self.has {
            let wanted = self.wanted.iter().filter_map(|name| set.find(name));
            let kept = wanted.map(|(name, entry)| (name.clone(), Some(entry.version)));
            self.has = Has::Listed(kept.collect());
        }
    }

    /// What the client lacks of `set`, which it has from now on; `None` when there is nothing to
    /// say.
    pub(super) fn delta(&mut self, set: &Arc<Set>) -> Option<Delta> {
        if !self.started {
            return None;
        }
        let mut delta = Delta::default();
        let again = mem::take(&mut self.again);
        let given_up = mem::take(&mut self.given_up);
        if self.wildcard {
            let before = mem::replace(&mut self.has, Has::All(set.clone()));
            everything(before, set, &again, &mut delta);
        } else {
            self.on_demand(set, &again, &given_up, &mut delta);
        }
        for name in &self.wanted {
            if set.find(name).is_some() {
                self.absent.remove(name);
            } else if self.absent.insert(name.clone()) {
                delta.removed.insert(name.clone());
            }
        }
        let silent = delta.resources.is_empty() && delta.removed.is_empty();
        (mem::take(&mut self.waits) || !silent).then_some(delta)
    }

    /// What it asked for, with the workloads of services.
    fn on_demand(
        &mut self,
        set: &Set,
        again: &BTreeSet<Name>,
        given_up: &[Name],
        delta: &mut Delta,
    ) {
        let mut covered: BTreeMap<&Name, &Entry> = BTreeMap::new();
        for (name, entry) in self.wanted.iter().filter_map(|wanted| set.find(wanted)) {
            covered.insert(name, entry);
            covered.extend(set.members(name));
        }
        let mut has = match mem::take(&mut self.has) {
            Has::Listed(has) => has,
            // It had everything until it left the wildcard, which made a list of it.
            Has::All(_) => HashMap::new(),
        };
        for name in given_up {
            let own = set.find(name).map_or(name, |(own, _)| own);
            if !covered.contains_key(own) {
                has.remove(own);
            }
        }
        // A workload that left a service it was sent for would grow stale unseen.
        has.retain(|name, _| {
            let keep = covered.contains_key(name);
            if !keep && !set.is_alias(name) {
                delta.removed.insert(name.clone());
            }
            keep
        });
        let told: BTreeSet<&Name> = own_names(again, set);
        let mut lacks = BytesMut::new();
        for (name, entry) in covered {
            let version = Some(entry.version);
            if told.contains(name) || has.get(name) != Some(&version) {
                has.insert(name.clone(), version);
                entry.encode(true, &mut lacks);
            }
        }
        delta.resources = lacks.freeze();
        self.has = Has::Listed(has);
    }
}

/// What somebody lacks who wants everything.
fn everything(before: Has, set: &Arc<Set>, again: &BTreeSet<Name>, delta: &mut Delta) {
    let told = own_names(again, set);
    match before {
        Has::All(old) if told.is_empty() && Arc::ptr_eq(&old, set) => {}
        // As most clients most of the time: one encoding is for all of them.
        Has::All(old) if told.is_empty() && set.follows(&old) => {
            delta.resources = set.changes.resources.clone();
            delta.removed.extend(set.changes.removed.iter().cloned());
        }
        Has::Listed(known) if known.is_empty() => delta.resources = set.all(),
        Has::All(old) => {
            let version = |name: &Name| old.by_name.get(name).map(|entry| entry.version);
            compare(old.by_name.keys(), version, set, &told, delta);
        }
        Has::Listed(known) => {
            let version = |name: &Name| known.get(name).copied().flatten();
            compare(known.keys(), version, set, &told, delta);
        }
    }
}

fn compare<'a>(
    names: impl Iterator<Item = &'a Name>,
    version: impl Fn(&Name) -> Option<Version>,
    set: &Set,
    told: &BTreeSet<&Name>,
    delta: &mut Delta,
) {
    let mut lacks = BytesMut::new();
    for (name, entry) in &set.by_name {
        if told.contains(name) || version(name) != Some(entry.version) {
            entry.encode(false, &mut lacks);
        }
    }
    delta.resources = lacks.freeze();
    let gone = names.filter(|name| set.find(name).is_none());
    delta.removed.extend(gone.cloned());
}

/// The resources that names and aliases stand for.
fn own_names<'a>(names: &BTreeSet<Name>, set: &'a Set) -> BTreeSet<&'a Name> {
    let found = names.iter().filter_map(|name| set.find(name));
    found.map(|(own, _)| own).collect()
}

#[cfg(test)]
#[path = "subscription_tests.rs"]
mod tests;
