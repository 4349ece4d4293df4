//! What one client wants of one type, and what it has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use sluice_model::Name;
use sluice_proto::discovery::{DeltaDiscoveryRequest, Resource};

use super::resources::{Entry, Set};

/// The name that stands for every resource.
const WILDCARD: &str = "*";

/// A client's interest in one type, from its first request on.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// It wants every resource.
    wildcard: bool,
    /// Names, or aliases, that it asked for one by one.
    wanted: BTreeSet<Name>,
    /// The version of each resource that it has.
    has: HashMap<Name, Name>,
    /// What it was told not to exist.
    absent: BTreeSet<Name>,
    /// It made a first request, or asked for names, and waits for an answer, even an empty one.
    waits: bool,
    started: bool,
}

/// What a client lacks.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) resources: Vec<Resource>,
    pub(super) removed: Vec<String>,
}

impl Subscription {
    /// Takes note of a request; acknowledgements are the caller's business.
    pub(super) fn request(&mut self, request: DeltaDiscoveryRequest) {
        let subscribes = request.resource_names_subscribe;
        let unsubscribes = request.resource_names_unsubscribe;
        if !mem::replace(&mut self.started, true) {
            self.waits = true;
            // The first request may say nothing at all, and then means everything.
            self.wildcard = subscribes.is_empty();
            let known = request.initial_resource_versions.into_iter();
            self.has = known
                .map(|(name, version)| (name.into(), version.into()))
                .collect();
        }
        for name in subscribes {
            if name == WILDCARD {
                self.wildcard = true;
                continue;
            }
            let name = Name::from(name);
            // Whoever asks again wants to be told again.
            self.has.remove(&name);
            self.absent.remove(&name);
            self.wanted.insert(name);
            self.waits = true;
        }
        for name in unsubscribes {
            if name == WILDCARD {
                self.wildcard = false;
                continue;
            }
            self.wanted.remove(name.as_str());
            if !self.wildcard {
                self.has.remove(name.as_str());
            }
            self.absent.remove(name.as_str());
        }
    }

    /// What the client lacks of `set`, which it has from now on; `None` when there is nothing to
    /// say.
    pub(super) fn delta(&mut self, set: &Set) -> Option<Delta> {
        if !self.started {
            return None;
        }
        let mut delta = Delta::default();
        self.remove_gone(set, &mut delta);
        if self.wildcard {
            for (name, entry) in &set.by_name {
                offer(&mut self.has, name, entry, None, &mut delta);
            }
        }
        let mut asked: BTreeMap<&Name, &Name> = BTreeMap::new();
        for wanted in &self.wanted {
            match set.find(wanted) {
                Some((name, entry)) => {
                    self.absent.remove(wanted);
                    // Two names for one resource are one resource.
                    if asked.insert(name, wanted).is_none() {
                        let alias = (name != wanted).then_some(wanted);
                        offer(&mut self.has, name, entry, alias, &mut delta);
                    }
                }
                None => {
                    if self.absent.insert(wanted.clone())
                        && !delta.removed.contains(&wanted.to_string())
                    {
                        delta.removed.push(wanted.to_string());
                    }
                }
            }
        }
        let silent = delta.resources.is_empty() && delta.removed.is_empty();
        (mem::take(&mut self.waits) || !silent).then_some(delta)
    }

    fn remove_gone(&mut self, set: &Set, delta: &mut Delta) {
        let Self {
            wildcard,
            wanted,
            has,
            ..
        } = self;
        has.retain(|name, _| {
            if set.by_name.contains_key(name) {
                return true;
            }
            delta.removed.push(name.to_string());
            false
        });
        delta.removed.sort();
        if !*wildcard {
            let kept: BTreeSet<&Name> =
                wanted.iter().filter_map(|w| Some(set.find(w)?.0)).collect();
            has.retain(|name, _| kept.contains(name));
        }
    }
}

/// Adds a resource unless the client has this version of it.
fn offer(
    has: &mut HashMap<Name, Name>,
    name: &Name,
    entry: &Entry,
    alias: Option<&Name>,
    delta: &mut Delta,
) {
    if has.get(name) == Some(&entry.version) {
        return;
    }
    has.insert(name.clone(), entry.version.clone());
    let mut resource = entry.wire.clone();
    resource.aliases.extend(alias.map(ToString::to_string));
    delta.resources.push(resource);
}

#[cfg(test)]
#[path = "subscription_tests.rs"]
mod tests;
