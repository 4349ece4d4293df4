//! Policies with an index, so that the cost of a decision does not grow with the number of
//! policies that cannot match.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, Hasher},
    sync::Arc,
};

use foldhash::fast::RandomState;

use super::{
    Action, AllowReason, Connection, Decision, DenyReason, Judgement, Policy, RuleId,
    guard::{Guard, Kinds},
    matching::Subject,
};

/// Policies of one scope, indexed. Immutable: a change makes a new one.
#[derive(Debug, Default)]
pub struct PolicySet {
    /// In the order of their keys.
    policies: Box<[Arc<Policy>]>,
    /// Each index is absent where no rule is in it, as most are.
    deny: Option<Box<Index>>,
    allow: Option<Box<Index>>,
    dry_deny: Option<Box<Index>>,
    dry_allow: Option<Box<Index>>,
    audit: Option<Box<Index>>,
    /// Whether there is an ALLOW policy, with rules or without.
    allows: bool,
    /// Whether there is an ALLOW policy in dry run.
    dry_allows: bool,
    /// Whether any policy is in dry run.
    dry_runs: bool,
}

impl FromIterator<Arc<Policy>> for PolicySet {
    fn from_iter<T: IntoIterator<Item = Arc<Policy>>>(policies: T) -> Self {
        let mut policies: Vec<Arc<Policy>> = policies.into_iter().collect();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        let index = |action, dry_run| Index::of(&policies, action, dry_run);
        let has = |action, dry_run| {
            let mut all = policies.iter();
            all.any(|policy| policy.action == action && policy.dry_run == dry_run)
        };
        Self {
            deny: index(Action::Deny, false),
            allow: index(Action::Allow, false),
            dry_deny: index(Action::Deny, true),
            dry_allow: index(Action::Allow, true),
            // To audit is to report already; in dry run there is nothing less to do.
            audit: index(Action::Audit, false),
            allows: has(Action::Allow, false),
            dry_allows: has(Action::Allow, true),
            dry_runs: policies
                .iter()
                .any(|policy| policy.dry_run && policy.action != Action::Audit),
            policies: policies.into(),
        }
    }
}

impl PolicySet {
    /// In the order of their keys.
    pub fn policies(&self) -> &[Arc<Policy>] {
        &self.policies
    }

    fn first(&self, index: Option<&Index>, subject: &Subject<'_>) -> Option<RuleId> {
        let place = index?.first(&self.policies, subject, Place::default())?;
        Some(self.id(place))
    }

    fn id(&self, place: Place) -> RuleId {
        RuleId {
            policy: self.policies[place.policy as usize].key.clone(),
            rule: place.rule,
        }
    }

    /// Calls `report` with the first matching rule of each AUDIT policy.
    fn audit(&self, subject: &Subject<'_>, report: &mut impl FnMut(RuleId)) {
        let Some(index) = &self.audit else { return };
        let mut from = Place::default();
        while let Some(place) = index.first(&self.policies, subject, from) {
            report(self.id(place));
            from = Place {
                policy: place.policy + 1,
                rule: 0,
            };
        }
    }
}

/// The policies that apply to a workload. A handle: cloning it copies no policy.
#[derive(Clone, Debug, Default)]
pub struct Applicable {
    /// By scope: of the workload, of its namespace, of the mesh.
    sets: [Option<Arc<PolicySet>>; 3],
}

impl Applicable {
    /// Puts the policies of the three scopes together: of the workload, its namespace, the mesh.
    pub fn new(sets: [Option<Arc<PolicySet>>; 3]) -> Self {
        Self { sets }
    }

    /// Whether both are of the very same sets, so that they decide alike.
    pub fn is_same(&self, other: &Self) -> bool {
        let pairs = self.sets.iter().zip(&other.sets);
        pairs.into_iter().all(|pair| match pair {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        })
    }

    /// Every policy, narrowest scope first.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.sets().flat_map(|set| set.policies())
    }

    /// Decides about a connection. Allocates nothing.
    pub fn judge(&self, connection: &Connection<'_>) -> Judgement {
        let subject = Subject::of(connection);
        let decision = self.decide(&subject);
        let dry_run = self
            .sets()
            .any(|set| set.dry_runs)
            .then(|| self.decide_with_dry_run(&subject, &decision));
        Judgement { decision, dry_run }
    }

    /// Calls `report` with the first matching rule of each AUDIT policy.
    pub fn audit(&self, connection: &Connection<'_>, mut report: impl FnMut(RuleId)) {
        let subject = Subject::of(connection);
        for set in self.sets() {
            set.audit(&subject, &mut report);
        }
    }

    fn decide(&self, subject: &Subject<'_>) -> Decision {
        if let Some(rule) = self.first(|set| set.first(set.deny.as_deref(), subject)) {
            return Decision::Deny(DenyReason::Rule(rule));
        }
        if !self.sets().any(|set| set.allows) {
            return Decision::Allow(AllowReason::NoAllowPolicy);
        }
        match self.first(|set| set.first(set.allow.as_deref(), subject)) {
            Some(rule) => Decision::Allow(AllowReason::Rule(rule)),
            None => Decision::Deny(DenyReason::NoAllowMatched),
        }
    }

    /// What the decision would be if the policies in dry run were in force.
    fn decide_with_dry_run(&self, subject: &Subject<'_>, decided: &Decision) -> Decision {
        if let Decision::Deny(DenyReason::Rule(_)) = decided {
            return decided.clone();
        }
        if let Some(rule) = self.first(|set| set.first(set.dry_deny.as_deref(), subject)) {
            return Decision::Deny(DenyReason::Rule(rule));
        }
        // Another ALLOW policy lets more through where there is one, and less where there was none.
        if let Decision::Allow(AllowReason::Rule(_)) = decided {
            return decided.clone();
        }
        if !self.sets().any(|set| set.dry_allows) {
            return decided.clone();
        }
        match self.first(|set| set.first(set.dry_allow.as_deref(), subject)) {
            Some(rule) => Decision::Allow(AllowReason::Rule(rule)),
            None => Decision::Deny(DenyReason::NoAllowMatched),
        }
    }

    fn sets(&self) -> impl Iterator<Item = &PolicySet> {
        self.sets.iter().flatten().map(|set| &**set)
    }

    fn first(&self, look: impl Fn(&PolicySet) -> Option<RuleId>) -> Option<RuleId> {
        self.sets().find_map(look)
    }
}

/// A rule by its place in a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    policy: u32,
    rule: u32,
}

/// Finds the rules of one kind of policy that may match a connection.
///
/// Facts are kept as their hashes alone. Two that share one lead to the same rules, which costs a
/// look at rules that then do not match.
#[derive(Debug, Default)]
struct Index {
    hasher: RandomState,
    kinds: Kinds,
    /// The hash of a fact → where its rules are in `places`: start and length.
    by_fact: HashMap<u64, (u32, u32), BuildHasherDefault<AsIs>>,
    /// Under each fact in ascending order.
    places: Box<[Place]>,
    /// Rules without a guard, in ascending order.
    unguarded: Box<[Place]>,
}

impl Index {
    /// The index of the rules of one kind of policy; `None` when there are none.
    fn of(policies: &[Arc<Policy>], action: Action, dry_run: bool) -> Option<Box<Self>> {
        let mut index = Self::default();
        let mut filed: Vec<(u64, Place)> = Vec::new();
        let mut unguarded = Vec::new();
        for (i, policy) in policies.iter().enumerate() {
            if policy.action != action || policy.dry_run != dry_run {
                continue;
            }
            for (j, rule) in policy.rules.iter().enumerate() {
                let place = Place {
                    policy: i as u32,
                    rule: j as u32,
                };
                match Guard::of(rule) {
                    Some(guard) => filed.extend(guard.facts.iter().map(|fact| {
                        index.kinds.add(fact);
                        (index.hasher.hash_one(fact), place)
                    })),
                    None => unguarded.push(place),
                }
            }
        }
        if filed.is_empty() && unguarded.is_empty() {
            return None;
        }
        filed.sort_unstable();
        filed.dedup();
        let mut start = 0;
        for chunk in filed.chunk_by(|(a, _), (b, _)| a == b) {
            let length = chunk.len() as u32;
            index.by_fact.insert(chunk[0].0, (start, length));
            start += length;
        }
        index.by_fact.shrink_to_fit();
        index.places = filed.into_iter().map(|(_, place)| place).collect();
        index.unguarded = unguarded.into();
        Some(Box::new(index))
    }

    /// The first rule at or after a place that matches.
    fn first(&self, policies: &[Arc<Policy>], subject: &Subject<'_>, from: Place) -> Option<Place> {
        let mut first = None;
        let mut look = |places: &[Place]| {
            let start = places.partition_point(|place| *place < from);
            for place in &places[start..] {
                if first.is_some_and(|first| first <= *place) {
                    break;
                }
                if policies[place.policy as usize].rules[place.rule as usize].matches(subject) {
                    first = Some(*place);
                    break;
                }
            }
        };
        look(&self.unguarded);
        if !self.by_fact.is_empty() {
            self.kinds.for_each(subject, |fact| {
                if let Some((start, length)) = self.by_fact.get(&self.hasher.hash_one(&fact)) {
                    let start = *start as usize;
                    look(&self.places[start..start + *length as usize]);
                }
            });
        }
        first
    }
}

/// Passes on what is a hash already.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
