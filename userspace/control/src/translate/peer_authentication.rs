//! PeerAuthentication as policies that deny connections without an identity.

mod by_port;
mod conflicts;

use std::collections::{BTreeMap, btree_map::Entry};

use sluice_model::{
    Name,
    authz::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch, Term, Values},
};
use sluice_objects::{
    Code, Located, Objects, PeerAuthentication, Pod, Severity,
    kinds::{MtlsMode, Target},
};

use super::{Config, Pods, Translation, oldest_first};

pub use by_port::{PortMtls, Reach, mtls};

/// Adds the policies that the PeerAuthentications stand for, to the mesh and to workloads.
pub(super) fn apply(
    objects: &Objects,
    config: &Config,
    pods: &mut Pods<'_>,
    translation: &mut Translation,
) {
    let scopes = Scopes::of(objects, config);
    translation
        .diagnostics
        .extend(scopes.conflicts(pods.iter().map(|(pod, _)| *pod)));
    for lost in &scopes.without_effect {
        translation.diagnostics.push(lost.origin.diagnostic(
            Severity::Warning,
            Code::UnsupportedTarget,
            "spec.selector",
            "has no effect: in the root namespace a PeerAuthentication is for the whole mesh, \
             and has no selector",
        ));
    }
    let mut converted = BTreeMap::new();
    for (pod, workload) in pods {
        match scopes.effective(pod) {
            Effective::Permissive => {}
            Effective::Strict => workload.profile_mut().policies.push(static_strict(config)),
            Effective::ByPort(policy) => {
                workload.profile_mut().policies.push(policy.key.clone());
                converted.insert(policy.key.clone(), policy);
            }
        }
    }
    // Sent always, so that it is there before the first workload that refers to it.
    translation.policies.push(Policy {
        key: static_strict(config),
        scope: Scope::Workload,
        action: Action::Deny,
        rules: [rule([no_identity()])].into(),
        dry_run: false,
    });
    translation.policies.extend(converted.into_values());
}

fn static_strict(config: &Config) -> PolicyKey {
    PolicyKey {
        namespace: config.root_namespace.clone(),
        name: PolicyKey::STATIC_STRICT.into(),
    }
}

pub(super) type Peer = Located<PeerAuthentication>;

/// The PeerAuthentications by how wide they reach; for each scope the oldest counts.
#[derive(Default)]
struct Scopes<'a> {
    mesh: Option<&'a Peer>,
    namespaces: BTreeMap<&'a Name, &'a Peer>,
    /// Oldest first.
    selectors: Vec<&'a Peer>,
    without_effect: Vec<&'a Peer>,
    /// Those for the mesh or a namespace that do not count, each with the one that does.
    superseded: Vec<(&'a Peer, &'a Peer)>,
}

impl<'a> Scopes<'a> {
    fn of(objects: &'a Objects, config: &Config) -> Self {
        let mut scopes = Self::default();
        for peer in oldest_first(&objects.peer_authentications, |peer| peer.created) {
            let root = peer.namespace == config.root_namespace;
            match (&peer.target, root) {
                (Target::Selector(_), false) => scopes.selectors.push(peer),
                (Target::Selector(_), true) => scopes.without_effect.push(peer),
                (_, true) => match scopes.mesh {
                    Some(older) => scopes.superseded.push((peer, older)),
                    None => scopes.mesh = Some(peer),
                },
                (_, false) => match scopes.namespaces.entry(&peer.namespace) {
                    Entry::Occupied(older) => scopes.superseded.push((peer, older.get())),
                    Entry::Vacant(entry) => {
                        entry.insert(peer);
                    }
                },
            }
        }
        scopes
    }

    fn effective(&self, pod: &Pod) -> Effective {
        let namespace = self.namespaces.get(&pod.namespace);
        let inherited = [self.mesh, namespace.copied()]
            .into_iter()
            .flatten()
            .fold(false, |strict, peer| is_strict(peer.mode, strict));
        let mut selectors = self.selectors.iter();
        let own = selectors.find(|peer| conflicts::is_for(peer, pod));
        match own {
            Some(peer) => by_port(peer, inherited),
            None if inherited => Effective::Strict,
            None => Effective::Permissive,
        }
    }
}

/// What a workload accepts in the end.
enum Effective {
    Permissive,
    Strict,
    ByPort(Policy),
}

fn is_strict(mode: MtlsMode, inherited: bool) -> bool {
    match mode {
        MtlsMode::Unset => inherited,
        MtlsMode::Strict => true,
        MtlsMode::Permissive | MtlsMode::Disable => false,
    }
}

fn by_port(peer: &PeerAuthentication, inherited: bool) -> Effective {
    let ports_where = |wanted: &[MtlsMode]| -> Vec<u16> {
        let modes = peer.port_modes.iter();
        modes
            .filter(|(_, mode)| wanted.contains(mode))
            .map(|(port, _)| *port)
            .collect()
    };
    let strict = is_strict(peer.mode, inherited);
    let lifting: &[MtlsMode] = match peer.mode {
        // STRICT that is only inherited yields to PERMISSIVE, and not to DISABLE.
        MtlsMode::Unset => &[MtlsMode::Permissive],
        _ => &[MtlsMode::Permissive, MtlsMode::Disable],
    };
    let exempt = ports_where(lifting);
    let denied = ports_where(&[MtlsMode::Strict]);
    let rules = match (strict, exempt.is_empty(), denied.is_empty()) {
        (true, true, _) => return Effective::Strict,
        (false, _, true) => return Effective::Permissive,
        (true, false, _) => {
            let elsewhere = Match::from([Term::none_of(Values::DestinationPorts(exempt.into()))]);
            [rule([no_identity(), elsewhere])].into()
        }
        (false, _, false) => denied.into_iter().map(on_port).collect(),
    };
    Effective::ByPort(Policy {
        key: PolicyKey {
            namespace: peer.namespace.clone(),
            name: format!("{}{}", PolicyKey::CONVERTED, peer.name).into(),
        },
        scope: Scope::Workload,
        action: Action::Deny,
        rules,
        dry_run: false,
    })
}

fn nobody() -> Term {
    Term::none_of(Values::Principals([StringMatch::Presence].into()))
}

fn no_identity() -> Match {
    Match::from([nobody()])
}

fn on_port(port: u16) -> Rule {
    let port = Term::any_of(Values::DestinationPorts([port].into()));
    rule([Match::from([nobody(), port])])
}

/// A rule that needs every one of these matches.
fn rule(matches: impl IntoIterator<Item = Match>) -> Rule {
    matches.into_iter().map(Clause::from).collect()
}
