//! L4 authorization: does a policy set let a connection through, and which rule says so?
//!
//! The order is Istio's: a DENY policy that matches decides; else, where no ALLOW policy applies,
//! the connection passes; else an ALLOW policy must match. Within a policy, any rule; within a
//! rule, every clause; within a clause, any match; within a match, every field that is given.

use std::{
    fmt::{self, Write as _},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::{Name, SpiffeId};

/// Names a policy: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    pub namespace: Name,
    pub name: Name,
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
    pub rules: Vec<Rule>,
    /// Never decides; only reports what it would have done.
    pub dry_run: bool,
}

/// Matches when every clause does; without clauses, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does; without matches, always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// Matches when each field does. A field is a list that must contain the connection's value and,
/// with `not_`, a list that must not. Without any field it matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

/// A pattern for a namespace or a principal. An absent value is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    Exact(Name),
    Prefix(Name),
    Suffix(Name),
    /// Any value, but there must be one.
    Presence,
}

impl StringMatch {
    /// Whether a value is what the pattern describes.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == &**text,
            Self::Prefix(text) => value.starts_with(&**text),
            Self::Suffix(text) => value.ends_with(&**text),
            Self::Presence => !value.is_empty(),
        }
    }
}

/// A service account of any trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    pub namespace: Name,
    pub name: Name,
}

/// What is known of a connection when it is judged.
#[derive(Clone, Debug)]
pub struct Connection<'a> {
    /// The identity proven by mutual TLS; `None` for plaintext.
    pub source_identity: Option<&'a SpiffeId>,
    pub source_ip: IpAddr,
    /// The workload's own address and port, never a VIP and never the tunnel's port.
    pub destination: SocketAddr,
}

/// The outcome for a connection, and what decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(AllowReason),
    Deny(DenyReason),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// Why a connection passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowReason {
    /// No ALLOW policy applies to the workload.
    NoAllowPolicy,
    /// The rule of this policy, counted from 0.
    Rule(PolicyKey, usize),
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// ALLOW policies apply, and none of them matched.
    NoAllowMatched,
    /// The rule of this DENY policy, counted from 0.
    Rule(PolicyKey, usize),
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowMatched => {
                f.write_str("allow policies exist, but none allowed this connection")
            }
            Self::Rule(key, rule) => write!(f, "denied by policy {key}, rule {rule}"),
        }
    }
}

/// Judges a connection against the policies that apply to its destination.
///
/// The order of `policies` does not change the verdict; the reason names the first that decided.
pub fn evaluate<'p>(
    policies: impl Iterator<Item = &'p Policy> + Clone,
    connection: &Connection<'_>,
) -> Decision {
    let subject = Subject::of(connection);
    let active = policies.filter(|policy| !policy.dry_run);
    for policy in active
        .clone()
        .filter(|policy| policy.action == Action::Deny)
    {
        if let Some(rule) = policy.matching_rule(&subject) {
            return Decision::Deny(DenyReason::Rule(policy.key.clone(), rule));
        }
    }
    let mut allow = active
        .filter(|policy| policy.action == Action::Allow)
        .peekable();
    if allow.peek().is_none() {
        return Decision::Allow(AllowReason::NoAllowPolicy);
    }
    for policy in allow {
        if let Some(rule) = policy.matching_rule(&subject) {
            return Decision::Allow(AllowReason::Rule(policy.key.clone(), rule));
        }
    }
    Decision::Deny(DenyReason::NoAllowMatched)
}

/// A connection with its principal written out once, on the stack, for all string matches.
struct Subject<'a> {
    connection: &'a Connection<'a>,
    principal: PrincipalText,
    source_ip: IpAddr,
    destination_ip: IpAddr,
}

impl<'a> Subject<'a> {
    fn of(connection: &'a Connection<'a>) -> Self {
        let mut principal = PrincipalText::default();
        if let Some(id) = connection.source_identity {
            // Cannot fail: the text grows onto the heap when the stack part is full.
            let _ = write!(principal, "{}", id.principal());
        }
        Self {
            connection,
            principal,
            source_ip: connection.source_ip.to_canonical(),
            destination_ip: connection.destination.ip().to_canonical(),
        }
    }

    fn namespace(&self) -> &str {
        self.connection
            .source_identity
            .map_or("", |id| id.namespace())
    }
}

impl Policy {
    fn matching_rule(&self, subject: &Subject<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.matches(subject))
    }
}

impl Rule {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.clauses.iter().all(|clause| {
            clause.matches.is_empty() || clause.matches.iter().any(|m| m.matches(subject))
        })
    }
}

impl Match {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let identity = subject.connection.source_identity;
        let port = subject.connection.destination.port();
        let principal = subject.principal.as_str();
        let account = |wanted: &ServiceAccountMatch| {
            identity.is_some_and(|id| {
                *id.namespace() == wanted.namespace && *id.service_account() == wanted.name
            })
        };
        !self.is_empty()
            && field(&self.namespaces, &self.not_namespaces, |m| {
                m.matches(subject.namespace())
            })
            && field(&self.service_accounts, &self.not_service_accounts, account)
            && field(&self.principals, &self.not_principals, |m| {
                m.matches(principal)
            })
            && field(&self.source_ips, &self.not_source_ips, |n| {
                n.contains(&subject.source_ip)
            })
            && field(&self.destination_ips, &self.not_destination_ips, |n| {
                n.contains(&subject.destination_ip)
            })
            && field(&self.destination_ports, &self.not_destination_ports, |p| {
                *p == port
            })
    }

    fn is_empty(&self) -> bool {
        let Self {
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = self;
        [namespaces, not_namespaces, principals, not_principals]
            .iter()
            .all(|l| l.is_empty())
            && [service_accounts, not_service_accounts]
                .iter()
                .all(|l| l.is_empty())
            && [
                source_ips,
                not_source_ips,
                destination_ips,
                not_destination_ips,
            ]
            .iter()
            .all(|l| l.is_empty())
            && [destination_ports, not_destination_ports]
                .iter()
                .all(|l| l.is_empty())
    }
}

fn field<T>(wanted: &[T], unwanted: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&matches)) && !unwanted.iter().any(&matches)
}

/// A principal's text, on the stack unless it is very long.
#[derive(Default)]
struct PrincipalText {
    heap: String,
    stack: StackText,
}

struct StackText {
    bytes: [u8; 192],
    len: usize,
}

impl Default for StackText {
    fn default() -> Self {
        Self {
            bytes: [0; 192],
            len: 0,
        }
    }
}

impl PrincipalText {
    fn as_str(&self) -> &str {
        if self.heap.is_empty() {
            // Only whole strings are ever copied in, so this is always valid UTF-8.
            std::str::from_utf8(&self.stack.bytes[..self.stack.len]).unwrap_or_default()
        } else {
            &self.heap
        }
    }
}

impl fmt::Write for PrincipalText {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let end = self.stack.len + part.len();
        if self.heap.is_empty() && end <= self.stack.bytes.len() {
            self.stack.bytes[self.stack.len..end].copy_from_slice(part.as_bytes());
            self.stack.len = end;
        } else {
            if self.heap.is_empty() {
                self.heap = self.as_str().to_owned();
            }
            self.heap.push_str(part);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "authz_tests.rs"]
mod tests;
