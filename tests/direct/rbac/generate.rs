//! Policy sets, and connections that they are about.
//!
//! There are few different names and addresses, so that much of what is generated meets.
//!
//! Patterns are never empty. No object can hold an empty one, since it is refused where objects are
//! read; and what one for a namespace would mean for a client without an identity is not the same
//! for Envoy, which matches nothing then, and for us, who take an absent namespace for the empty text.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use ipnet::IpNet;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree as _,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use sluice_model::{
    Name, SpiffeId, TrustDomain,
    authz::{
        Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
        Term, Values,
    },
};

/// A policy set, and who tries to get past it.
#[derive(Debug)]
pub(crate) struct Case {
    /// Of the workload, its namespace, the mesh.
    pub(crate) scopes: [Vec<Arc<Policy>>; 3],
    pub(crate) attempts: Vec<Attempt>,
}

/// A connection, as the destination's side sees it.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) source: IpAddr,
    pub(crate) destination: SocketAddr,
    /// Whether the mesh takes [`EQUIVALENT`] trust domains for one.
    has_aliases: bool,
}

impl Attempt {
    /// Trust domains that are one and the same to the mesh.
    pub(crate) fn equivalent(&self) -> &[TrustDomain] {
        if self.has_aliases {
            EQUIVALENT.as_slice()
        } else {
            &[]
        }
    }

    /// Every name that the client goes by.
    pub(crate) fn names(&self) -> Vec<SpiffeId> {
        let Some(identity) = &self.identity else {
            return Vec::new();
        };
        let equivalent = self.equivalent();
        if !equivalent.contains(identity.trust_domain()) {
            return vec![identity.clone()];
        }
        let of = |domain: &TrustDomain| identity.in_domain(domain.clone());
        equivalent.iter().map(of).collect()
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "{identity}")?,
            None => f.write_str("plaintext")?,
        }
        write!(f, " from {} to {}", self.source, self.destination)?;
        if self.has_aliases {
            f.write_str(", with equivalent trust domains")?;
        }
        Ok(())
    }
}

/// The same for the same seed.
pub(crate) fn cases(seed: u64, sets: usize, attempts: usize) -> Vec<Case> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let case = ([scope(), scope(), scope()], vec(attempt(), attempts));
    let case = case.prop_map(|(scopes, attempts)| Case { scopes, attempts });
    let next = || case.new_tree(&mut runner).expect("nothing is filtered");
    std::iter::repeat_with(next)
        .take(sets)
        .map(|tree| tree.current())
        .collect()
}

/// Names that begin and end alike, and some that could be taken for other parts of a SPIFFE ID.
const NAMESPACES: [&str; 5] = ["a", "ab", "b-a", "ns", "sa"];
const ACCOUNTS: [&str; 4] = ["web", "web-2", "b-web", "sa"];
const DOMAINS: [&str; 3] = ["cluster.local", "cluster.local.old", "elsewhere"];

/// What is not a name, for patterns.
const ODD: [&str; 11] = [
    "/",
    "ns/",
    "/ns/",
    "cluster",
    "local/ns",
    "/sa/web",
    "web/",
    "//",
    "spiffe://",
    ".*",
    "é",
];

static EQUIVALENT: LazyLock<[TrustDomain; 2]> =
    LazyLock::new(|| [DOMAINS[0], DOMAINS[1]].map(|domain| domain.parse().expect("a domain")));

/// By family: no connection is between two.
const V4: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.0.1"];
const V6: [&str; 3] = ["fd00::1", "fd00::2", "fd00:0:0:1::1"];
const PORTS: [u16; 3] = [80, 81, 443];

fn name() -> impl Strategy<Value = String> + Clone {
    let parts = (select(&DOMAINS), select(&NAMESPACES), select(&ACCOUNTS));
    parts.prop_map(|(td, ns, sa)| format!("{td}/ns/{ns}/sa/{sa}"))
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let identity = name().prop_map(|name| format!("spiffe://{name}").parse().expect("an ID"));
    let v4 = (select(&V4), select(&V4));
    let v6 = (select(&V6), select(&V6));
    let addresses = prop_oneof![2 => v4, 1 => v6];
    let identity = option::weighted(0.8, identity);
    (identity, addresses, select(&PORTS), any::<bool>()).prop_map(
        |(identity, (source, destination), port, has_aliases)| Attempt {
            identity,
            source: ip(source),
            destination: SocketAddr::new(ip(destination), port),
            has_aliases,
        },
    )
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A pattern that is cut out of a name, or that has little to do with one.
fn pattern(name: impl Strategy<Value = String> + Clone) -> impl Strategy<Value = StringMatch> {
    let exact = name
        .clone()
        .prop_map(|name| StringMatch::Exact(name.into()));
    let part = (name, any::<Index>(), any::<bool>()).prop_map(|(name, which, is_prefix)| {
        let at = *which.get(&cuts(&name));
        if is_prefix {
            StringMatch::Prefix(name[..at.max(1)].into())
        } else {
            StringMatch::Suffix(name[at..].into())
        }
    });
    let kinds: [fn(Name) -> StringMatch; 3] =
        [StringMatch::Exact, StringMatch::Prefix, StringMatch::Suffix];
    let odd = (select(kinds.to_vec()), select(&ODD));
    let odd = odd.prop_map(|(kind, text)| kind(text.into()));
    prop_oneof![3 => exact, 9 => part, 2 => Just(StringMatch::Presence), 1 => odd]
}

/// Where a name may be cut in two: near the ends of its parts, where names differ.
fn cuts(name: &str) -> Vec<usize> {
    let ends = |at: &usize| {
        let near = &name.as_bytes()[at.saturating_sub(2)..name.len().min(at + 2)];
        near.len() < 4 || near.contains(&b'/')
    };
    (0..name.len()).filter(ends).collect()
}

/// A block as it may be written, with bits that are not part of it.
fn net() -> impl Strategy<Value = IpNet> {
    let lengths = select(&[0, 1, 8, 16, 23, 24, 31, 32, 48, 64, 127, 128]);
    let address = prop_oneof![2 => select(&V4), 1 => select(&V6)];
    (address, lengths).prop_map(|(address, length)| {
        let ip = ip(address);
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, longest.min(length)).expect("a length of this family")
    })
}

fn values() -> impl Strategy<Value = Values> {
    let namespaces = pattern(select(&NAMESPACES).prop_map(str::to_owned));
    let accounts = (select(&NAMESPACES), select(&ACCOUNTS)).prop_map(|(namespace, name)| {
        ServiceAccountMatch {
            namespace: namespace.into(),
            name: name.into(),
        }
    });
    prop_oneof![
        3 => few(namespaces).prop_map(|list| Values::Namespaces(list.into())),
        3 => few(accounts).prop_map(|list| Values::ServiceAccounts(list.into())),
        6 => few(pattern(name())).prop_map(|list| Values::Principals(list.into())),
        2 => few(net()).prop_map(|list| Values::SourceIps(list.into())),
        2 => few(net()).prop_map(|list| Values::DestinationIps(list.into())),
        2 => few(select(&PORTS)).prop_map(|list| Values::DestinationPorts(list.into())),
    ]
}

/// Sometimes none, which has a meaning of its own everywhere; mostly a few.
fn few<T: fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    let none = prop::bool::weighted(0.1);
    (vec(of, 1..4), none).prop_map(|(few, none)| if none { Vec::new() } else { few })
}

fn rule() -> impl Strategy<Value = Rule> {
    let negated = prop::bool::weighted(0.3);
    let term = (values(), negated).prop_map(|(values, negated)| Term { values, negated });
    let one = few(term).prop_map(Match::from_iter);
    let clause = few(one).prop_map(Clause::from_iter);
    few(clause).prop_map(Rule::from_iter)
}

fn policy() -> impl Strategy<Value = Policy> {
    let action = prop_oneof![
        4 => Just(Action::Allow), 4 => Just(Action::Deny), 1 => Just(Action::Audit),
    ];
    let rules = few(rule());
    let dry_run = prop::bool::weighted(0.1);
    ("[a-c]", "[a-z]{3}", action, rules, dry_run).prop_map(
        |(namespace, name, action, rules, dry_run)| Policy {
            key: PolicyKey {
                namespace: namespace.into(),
                name: name.into(),
            },
            scope: Scope::Namespace,
            action,
            rules: rules.into(),
            dry_run,
        },
    )
}

/// Policies of different names.
fn scope() -> impl Strategy<Value = Vec<Arc<Policy>>> {
    vec(policy().prop_map(Arc::new), 0..3).prop_map(|mut policies| {
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        policies
    })
}
