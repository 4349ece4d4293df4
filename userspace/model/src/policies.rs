//! All policies of a mesh, in sets by what they apply to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    Name,
    authz::{Applicable, Policy, PolicyKey, PolicySet, Scope},
};

/// The policies and their sets. Changes are in force after [`Policies::settle`]: sets that did not
/// change stay the very same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    by_key: HashMap<PolicyKey, Arc<Policy>>,
    /// For every workload of the mesh.
    global: Option<Arc<PolicySet>>,
    namespaces: HashMap<Name, Arc<PolicySet>>,
    /// By [`ListId`]. Workloads that list the same policies, as the pods of a deployment do, share
    /// one.
    lists: Vec<List>,
    list_ids: HashMap<Arc<[PolicyKey]>, ListId>,
    /// Places in `lists` that nobody refers to.
    free: Vec<ListId>,
    changed: HashSet<Reach>,
    /// Policies that have to be listed, and changed.
    changed_keys: HashSet<PolicyKey>,
}

/// Names a list of policies that workloads refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ListId(u32);

#[derive(Clone, Debug)]
struct List {
    /// Sorted, each once.
    keys: Arc<[PolicyKey]>,
    /// How many workloads refer to it.
    workloads: usize,
    set: Option<Arc<PolicySet>>,
}

/// Whom a policy that is not listed applies to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reach {
    Mesh,
    Namespace(Name),
}

impl Reach {
    fn of(policy: &Policy) -> Option<Self> {
        match policy.scope {
            Scope::Global => Some(Self::Mesh),
            Scope::Namespace => Some(Self::Namespace(policy.key.namespace.clone())),
            Scope::Workload => None,
        }
    }
}

impl Policies {
    pub(crate) fn get(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    pub(crate) fn insert(&mut self, policy: Policy) {
        self.changes(&policy);
        if let Some(old) = self.by_key.insert(policy.key.clone(), Arc::new(policy)) {
            self.changes(&old);
        }
    }

    pub(crate) fn remove(&mut self, key: &PolicyKey) {
        if let Some(old) = self.by_key.remove(key) {
            self.changes(&old);
        }
    }

    fn changes(&mut self, policy: &Policy) {
        match Reach::of(policy) {
            Some(reach) => self.changed.insert(reach),
            None => self.changed_keys.insert(policy.key.clone()),
        };
    }

    /// Takes note of a workload that lists these policies.
    pub(crate) fn list(&mut self, keys: &[PolicyKey]) -> Option<ListId> {
        if keys.is_empty() {
            return None;
        }
        let mut keys = keys.to_vec();
        keys.sort();
        keys.dedup();
        let id = match self.list_ids.get(&keys[..]) {
            Some(id) => *id,
            None => self.add_list(keys.into()),
        };
        self.lists[id.0 as usize].workloads += 1;
        Some(id)
    }

    fn add_list(&mut self, keys: Arc<[PolicyKey]>) -> ListId {
        let list = List {
            keys: keys.clone(),
            workloads: 0,
            set: None,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.lists[id.0 as usize] = list;
                id
            }
            None => {
                self.lists.push(list);
                ListId(self.lists.len() as u32 - 1)
            }
        };
        self.list_ids.insert(keys, id);
        id
    }

    /// Takes note that a workload is gone that had listed policies.
    pub(crate) fn unlist(&mut self, id: Option<ListId>) {
        let Some(id) = id else { return };
        let list = &mut self.lists[id.0 as usize];
        list.workloads -= 1;
        if list.workloads == 0 {
            list.set = None;
            self.list_ids.remove(&list.keys);
            self.free.push(id);
        }
    }

    /// Puts every change in force.
    pub(crate) fn settle(&mut self) {
        self.settle_reaches();
        let changed = std::mem::take(&mut self.changed_keys);
        for list in self.lists.iter_mut().filter(|list| list.workloads > 0) {
            if list.set.is_none() || list.keys.iter().any(|key| changed.contains(key)) {
                // One that is not known is skipped, as the contract says (§14).
                let known = list.keys.iter().filter_map(|key| self.by_key.get(key));
                list.set = Some(Arc::new(known.cloned().collect()));
            }
        }
    }

    fn settle_reaches(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return;
        }
        let mut reached: HashMap<Reach, Vec<Arc<Policy>>> = HashMap::new();
        for policy in self.by_key.values() {
            if let Some(reach) = Reach::of(policy).filter(|reach| changed.contains(reach)) {
                reached.entry(reach).or_default().push(policy.clone());
            }
        }
        for reach in changed {
            let policies = reached.remove(&reach);
            let set = policies.map(|policies| Arc::new(PolicySet::from_iter(policies)));
            match (reach, set) {
                (Reach::Mesh, set) => self.global = set,
                (Reach::Namespace(namespace), Some(set)) => {
                    self.namespaces.insert(namespace, set);
                }
                (Reach::Namespace(namespace), None) => {
                    self.namespaces.remove(&namespace);
                }
            }
        }
    }

    /// What applies to a workload of a namespace that has this list.
    pub(crate) fn applicable(&self, namespace: &Name, list: Option<ListId>) -> Applicable {
        let listed = list.and_then(|id| self.lists[id.0 as usize].set.clone());
        let namespace = self.namespaces.get(namespace).cloned();
        Applicable::new([listed, namespace, self.global.clone()])
    }
}
