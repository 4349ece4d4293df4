//! L4 authorization: does a policy set let a connection through, and which rule says so?
//!
//! The order is Istio's: a DENY policy that matches decides; else, where no ALLOW policy applies,
//! the connection passes; else an ALLOW policy must match. Within a policy, any rule; within a
//! rule, every clause; within a clause, any match; within a match, every term.
//!
//! Policies are kept in [`PolicySet`]s, which find the few rules that could match a connection
//! without looking at the others.

mod guard;
mod matching;
mod set;
mod verdict;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::{Name, SpiffeId, TrustDomain};

pub use set::{Applicable, PolicySet};
pub use verdict::{AllowReason, Decision, DenyReason, Judgement, RuleId};

/// Names a policy: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    pub namespace: Name,
    pub name: Name,
}

impl PolicyKey {
    /// The policy that a STRICT PeerAuthentication without exceptions stands for (wire contract
    /// §15).
    pub const STATIC_STRICT: &'static str = "istio_converted_static_strict";
    /// What the names of policies begin with that stand for a PeerAuthentication with exceptions by
    /// port.
    pub const CONVERTED: &'static str = "converted_peer_authentication_";

    /// Whether the policy stands for a PeerAuthentication: what it denies is the lack of mutual
    /// TLS.
    pub fn is_peer_authentication(&self) -> bool {
        *self.name == *Self::STATIC_STRICT || self.name.starts_with(Self::CONVERTED)
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a matching policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
    /// Reports that it matched, and decides nothing.
    Audit,
}

/// Which workloads a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every workload of the mesh.
    Global,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that list it.
    Workload,
}

/// An authorization policy in the form in which it is evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub key: PolicyKey,
    pub scope: Scope,
    pub action: Action,
    /// Without rules a policy never matches: an ALLOW policy then lets nothing through.
    pub rules: Box<[Rule]>,
    /// Never decides; only reports what it would have done.
    pub dry_run: bool,
}

/// Matches when every clause does; without clauses, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub clauses: Box<[Clause]>,
}

impl Policy {
    /// What is in force in place of a policy that cannot be read: an ALLOW policy that allows
    /// nothing.
    ///
    /// A mistake must not open anything. Whoever holds policies (the control plane for the objects
    /// that it reads, a ztunnel for what it is sent) therefore keeps the last good version of each,
    /// and reports. Of a policy that is new and wrong no version is known: it is not applied, and
    /// the workloads that it is for keep the policies that they have.
    ///
    /// Both need a memory. At a first start, or where the memory is lost, nobody can tell a new
    /// policy from one that was in force before; not to apply it could open what was closed. Then
    /// this stands in for it: nothing is allowed to the workloads that it is for, until somebody
    /// mends or removes it. A policy that can only report needs nothing in its place.
    pub fn stand_in(key: PolicyKey, scope: Scope) -> Self {
        Self {
            key,
            scope,
            action: Action::Allow,
            rules: [].into(),
            dry_run: false,
        }
    }
}

impl Rule {
    /// A rule that never matches. It keeps the place of one that cannot be enforced, so that the
    /// others are counted as their author counts them.
    pub fn never() -> Self {
        Self {
            clauses: [Clause::from(Match::default())].into(),
        }
    }
}

impl FromIterator<Clause> for Rule {
    fn from_iter<T: IntoIterator<Item = Clause>>(clauses: T) -> Self {
        Self {
            clauses: clauses.into_iter().collect(),
        }
    }
}

/// Matches when any of its matches does; without matches, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    pub matches: Box<[Match]>,
}

impl FromIterator<Match> for Clause {
    fn from_iter<T: IntoIterator<Item = Match>>(matches: T) -> Self {
        Self {
            matches: matches.into_iter().collect(),
        }
    }
}

impl From<Match> for Clause {
    fn from(only: Match) -> Self {
        Self {
            matches: [only].into(),
        }
    }
}

/// Matches when every term does; without terms, never.
///
/// Terms are kept in the order of their attributes, so that equal matches compare as equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    terms: Box<[Term]>,
}

impl Match {
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }
}

impl FromIterator<Term> for Match {
    /// A term without values says nothing, and is left out.
    fn from_iter<T: IntoIterator<Item = Term>>(terms: T) -> Self {
        let mut terms: Vec<Term> = terms
            .into_iter()
            .filter(|term| !term.values.is_empty())
            .collect();
        terms.sort_by_key(|term| (term.values.attribute(), term.negated));
        Self {
            terms: terms.into(),
        }
    }
}

impl<const N: usize> From<[Term; N]> for Match {
    fn from(terms: [Term; N]) -> Self {
        terms.into_iter().collect()
    }
}

/// A condition on one attribute of a connection: that it is one of some values, or none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub values: Values,
    pub negated: bool,
}

impl Term {
    pub fn any_of(values: Values) -> Self {
        Self {
            values,
            negated: false,
        }
    }

    pub fn none_of(values: Values) -> Self {
        Self {
            values,
            negated: true,
        }
    }
}

/// An attribute of a connection, and values for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    Namespaces(Box<[StringMatch]>),
    ServiceAccounts(Box<[ServiceAccountMatch]>),
    /// Patterns for the SPIFFE ID without its scheme.
    Principals(Box<[StringMatch]>),
    SourceIps(Box<[IpNet]>),
    /// The workload's own address, never a VIP.
    DestinationIps(Box<[IpNet]>),
    DestinationPorts(Box<[u16]>),
}

impl Values {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Namespaces(list) | Self::Principals(list) => list.is_empty(),
            Self::ServiceAccounts(list) => list.is_empty(),
            Self::SourceIps(list) | Self::DestinationIps(list) => list.is_empty(),
            Self::DestinationPorts(list) => list.is_empty(),
        }
    }

    /// The attribute's place among all.
    fn attribute(&self) -> u8 {
        match self {
            Self::Namespaces(_) => 0,
            Self::ServiceAccounts(_) => 1,
            Self::Principals(_) => 2,
            Self::SourceIps(_) => 3,
            Self::DestinationIps(_) => 4,
            Self::DestinationPorts(_) => 5,
        }
    }
}

/// A pattern for a namespace or a principal. Without an identity the namespace is the empty string,
/// and no pattern matches the principal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    Exact(Name),
    Prefix(Name),
    Suffix(Name),
    /// Any value, but there must be one.
    Presence,
}

/// A service account of any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    pub namespace: Name,
    pub name: Name,
}

/// What is known of a connection when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The identity proven by mutual TLS; `None` for plaintext.
    pub source_identity: Option<&'a SpiffeId>,
    pub source_ip: IpAddr,
    /// The workload's own address and port, never a VIP and never the tunnel's port.
    pub destination: SocketAddr,
    /// Trust domains that are one and the same: a principal of any of them is matched by what a
    /// policy says of any other. Nothing to say where there is but one.
    pub equivalent: &'a [TrustDomain],
}

#[cfg(test)]
#[path = "authz_tests.rs"]
mod tests;
