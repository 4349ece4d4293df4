//! What a rule demands that can be looked up: the facts of which a connection must show one, or
//! the rule cannot match.
//!
//! A clause guards its rule when each of its matches demands something definite, such as a service
//! account or a port. The rule is filed under all of these, and for a connection only the rules
//! are read that are filed under something that is true of it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Clause, Match, Rule, StringMatch, Values, matching::Subject};

/// Something that may be true of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fact<'a> {
    /// Namespace and service account, of any trust domain.
    Account(&'a str, &'a str),
    AccountName(&'a str),
    Namespace(&'a str),
    /// The namespace begins so.
    NamespacePrefix(&'a [u8]),
    /// The namespace ends so.
    NamespaceSuffix(&'a [u8]),
    Source(IpNet),
    Destination(IpNet),
    Port(u16),
}

/// Namespaces are filed by their beginnings and ends up to so many bytes: the names of Kubernetes'
/// namespaces are no longer (RFC 1123).
const MAX_PART: usize = 63;

impl Fact<'_> {
    /// The lower, the fewer connections it is likely to be true of.
    fn rank(&self) -> u8 {
        match self {
            Self::Account(..) => 0,
            Self::AccountName(_) => 1,
            Self::Source(net) if net.prefix_len() >= narrow(net) => 1,
            Self::Namespace(_) => 2,
            Self::NamespacePrefix(_) | Self::NamespaceSuffix(_) => 3,
            Self::Source(_) | Self::Destination(_) => 4,
            Self::Port(_) => 5,
        }
    }
}

/// From which length on a range of sources holds no more than the pods of a node.
fn narrow(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(_) => 24,
        IpNet::V6(_) => 64,
    }
}

/// One of these facts is true of every connection that a rule matches.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    /// Empty when the rule never matches.
    pub(super) facts: Vec<Fact<'a>>,
    /// The highest among the facts.
    rank: u8,
}

impl<'a> Guard<'a> {
    /// The guard of a rule that lets the fewest connections by; `None` when it has none.
    pub(super) fn of(rule: &'a Rule) -> Option<Self> {
        let guards = rule.clauses.iter().filter_map(Self::of_clause);
        guards.min_by_key(Self::cost)
    }

    fn of_clause(clause: &'a Clause) -> Option<Self> {
        if clause.matches.is_empty() {
            return None;
        }
        let mut facts = Vec::new();
        // One without terms never matches, and so adds nothing.
        for one in clause.matches.iter().filter(|m| !m.terms().is_empty()) {
            facts.extend(Self::of_match(one)?.facts);
        }
        Some(Self::new(facts))
    }

    fn of_match(one: &'a Match) -> Option<Self> {
        let demands = one.terms().iter().filter(|term| !term.negated);
        demands
            .filter_map(|term| Self::of_values(&term.values))
            .min_by_key(Self::cost)
    }

    /// `None` when one of the values demands nothing definite: it alone lets everybody by.
    fn of_values(values: &'a Values) -> Option<Self> {
        let mut facts = Vec::new();
        match values {
            Values::Namespaces(patterns) => {
                for pattern in patterns {
                    facts.push(namespace(pattern)?);
                }
            }
            Values::Principals(patterns) => {
                for pattern in patterns {
                    facts.extend(principal(pattern)?);
                }
            }
            Values::ServiceAccounts(accounts) => {
                facts.extend(
                    accounts
                        .iter()
                        .map(|a| Fact::Account(&a.namespace, &a.name)),
                );
            }
            Values::SourceIps(nets) => {
                for net in nets {
                    facts.push(Fact::Source(range(net)?));
                }
            }
            Values::DestinationIps(nets) => {
                for net in nets {
                    facts.push(Fact::Destination(range(net)?));
                }
            }
            Values::DestinationPorts(ports) => facts.extend(ports.iter().copied().map(Fact::Port)),
        }
        Some(Self::new(facts))
    }

    fn new(facts: Vec<Fact<'a>>) -> Self {
        let rank = facts.iter().map(Fact::rank).max().unwrap_or_default();
        Self { facts, rank }
    }

    fn cost(&self) -> (u8, usize) {
        (self.rank, self.facts.len())
    }
}

/// The block, unless it holds every address of its family.
fn range(net: &IpNet) -> Option<IpNet> {
    (net.prefix_len() > 0).then(|| net.trunc())
}

fn namespace(pattern: &StringMatch) -> Option<Fact<'_>> {
    match pattern {
        // The empty text is what a connection without an identity has.
        StringMatch::Exact(text) => (!text.is_empty()).then_some(Fact::Namespace(text)),
        StringMatch::Prefix(text) => beginning(text),
        StringMatch::Suffix(text) => end(text),
        StringMatch::Presence => None,
    }
}

fn beginning(text: &str) -> Option<Fact<'_>> {
    let bytes = text.as_bytes();
    let part = &bytes[..bytes.len().min(MAX_PART)];
    (!part.is_empty()).then_some(Fact::NamespacePrefix(part))
}

fn end(text: &str) -> Option<Fact<'_>> {
    let bytes = text.as_bytes();
    let part = &bytes[bytes.len().saturating_sub(MAX_PART)..];
    (!part.is_empty()).then_some(Fact::NamespaceSuffix(part))
}

/// What a pattern for `DOMAIN/ns/NAMESPACE/sa/ACCOUNT` demands: `None` for nothing definite, and no
/// fact for what no principal can be.
fn principal(pattern: &StringMatch) -> Option<Option<Fact<'_>>> {
    match pattern {
        StringMatch::Exact(text) => Some(whole_principal(text)),
        StringMatch::Prefix(text) => {
            let (_, path) = text.split_once('/')?;
            let path = path.strip_prefix("ns/")?;
            match path.split_once('/') {
                Some((namespace, _)) => Some(Some(Fact::Namespace(namespace))),
                None => Some(Some(beginning(path)?)),
            }
        }
        StringMatch::Suffix(text) => {
            let mut parts = text.rsplit('/');
            let (account, _) = (parts.next()?, parts.next()?);
            // The last of the parts may be the rest of a longer one.
            match (parts.next(), parts.next()) {
                (Some(namespace), Some(_)) => Some(Some(Fact::Account(namespace, account))),
                _ => Some(Some(Fact::AccountName(account))),
            }
        }
        StringMatch::Presence => None,
    }
}

fn whole_principal(text: &str) -> Option<Fact<'_>> {
    let mut parts = text.split('/');
    let (_, ns, namespace) = (parts.next()?, parts.next()?, parts.next()?);
    let (sa, account) = (parts.next()?, parts.next()?);
    let whole = ns == "ns" && sa == "sa" && parts.next().is_none();
    whole.then_some(Fact::Account(namespace, account))
}

/// Which facts are looked for at all: looking for one of a kind that no rule demands is a waste.
#[derive(Clone, Debug, Default)]
pub(super) struct Kinds {
    account: bool,
    account_name: bool,
    namespace: bool,
    port: bool,
    /// By length, from 1, as bits.
    namespace_prefixes: u64,
    namespace_suffixes: u64,
    sources: Lengths,
    destinations: Lengths,
}

/// Lengths of address blocks, from 1, as bits.
#[derive(Clone, Debug, Default)]
struct Lengths {
    v4: u32,
    v6: u128,
}

impl Lengths {
    fn add(&mut self, net: &IpNet) {
        let bit = net.prefix_len() - 1;
        match net {
            IpNet::V4(_) => self.v4 |= 1 << bit,
            IpNet::V6(_) => self.v6 |= 1 << bit,
        }
    }

    /// The blocks of these lengths that an address is in.
    fn blocks(&self, ip: IpAddr) -> impl Iterator<Item = IpNet> {
        let lengths = match ip {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6,
        };
        bits(lengths).filter_map(move |length| Some(IpNet::new(ip, length as u8).ok()?.trunc()))
    }
}

/// The places of the bits that are set, from 1.
fn bits(mut set: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        Some(lowest as usize + 1)
    })
}

impl Kinds {
    pub(super) fn add(&mut self, fact: &Fact<'_>) {
        match fact {
            Fact::Account(..) => self.account = true,
            Fact::AccountName(_) => self.account_name = true,
            Fact::Namespace(_) => self.namespace = true,
            Fact::NamespacePrefix(part) => self.namespace_prefixes |= 1 << (part.len() - 1),
            Fact::NamespaceSuffix(part) => self.namespace_suffixes |= 1 << (part.len() - 1),
            Fact::Source(net) => self.sources.add(net),
            Fact::Destination(net) => self.destinations.add(net),
            Fact::Port(_) => self.port = true,
        }
    }

    /// Calls `look` for each fact of these kinds that is true of a connection.
    pub(super) fn for_each<'s>(&self, subject: &Subject<'s>, mut look: impl FnMut(Fact<'s>)) {
        if let Some(id) = subject.connection.source_identity {
            let (namespace, account): (&str, &str) = (id.namespace(), id.service_account());
            if self.account {
                look(Fact::Account(namespace, account));
            }
            if self.account_name {
                look(Fact::AccountName(account));
            }
            if self.namespace {
                look(Fact::Namespace(namespace));
            }
            let bytes = namespace.as_bytes();
            for length in bits(self.namespace_prefixes.into()).take_while(|l| *l <= bytes.len()) {
                look(Fact::NamespacePrefix(&bytes[..length]));
            }
            for length in bits(self.namespace_suffixes.into()).take_while(|l| *l <= bytes.len()) {
                look(Fact::NamespaceSuffix(&bytes[bytes.len() - length..]));
            }
        }
        for net in self.sources.blocks(subject.source_ip) {
            look(Fact::Source(net));
        }
        for net in self.destinations.blocks(subject.destination_ip) {
            look(Fact::Destination(net));
        }
        if self.port {
            look(Fact::Port(subject.connection.destination.port()));
        }
    }
}
