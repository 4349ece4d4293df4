//! Policies in numbers, for benchmarks and for measuring memory.

use std::sync::Arc;

use sluice_model::{
    Mesh, SpiffeId, Uid, Update, Workload,
    authz::{
        Action, Applicable, Clause, Connection, Match, Policy, PolicyKey, Rule, Scope, StringMatch,
        Term, Values,
    },
    workload::{Health, Profile},
};

/// How many rules each policy has.
const RULES: usize = 10;

/// Where the policies are that cannot match.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elsewhere {
    /// In the workload's own namespace, for principals that are not the client's.
    Principals,
    /// In namespaces that are not the workload's.
    Namespaces,
    /// For other workloads, by selector.
    Workloads,
}

impl Elsewhere {
    pub(crate) const ALL: [Self; 3] = [Self::Principals, Self::Namespaces, Self::Workloads];
}

/// An ALLOW policy that cannot match a connection of [`CLIENT`] to the workload.
fn policy(number: usize, elsewhere: Elsewhere) -> Policy {
    let (namespace, scope) = match elsewhere {
        Elsewhere::Principals => ("shop".into(), Scope::Namespace),
        Elsewhere::Namespaces => (format!("team-{number}"), Scope::Namespace),
        Elsewhere::Workloads => ("shop".into(), Scope::Workload),
    };
    let rule = |rule: usize| {
        let principal = format!("cluster.local/ns/team-{number}/sa/account-{rule}");
        let from = Values::Principals([StringMatch::Exact(principal.into())].into());
        let to = Values::DestinationPorts([8080].into());
        let clauses = [from, to].map(|values| Clause::from(Match::from([Term::any_of(values)])));
        Rule::from_iter(clauses)
    };
    Policy {
        key: PolicyKey {
            namespace: namespace.into(),
            name: format!("policy-{number}").into(),
        },
        scope,
        action: Action::Allow,
        rules: (0..RULES).map(rule).collect(),
        dry_run: false,
    }
}

/// Who connects.
pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// The one policy that lets the client in.
fn allow() -> Policy {
    let client = StringMatch::Exact(CLIENT.trim_start_matches("spiffe://").into());
    let from = Match::from([Term::any_of(Values::Principals([client].into()))]);
    Policy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: "web".into(),
        },
        scope: Scope::Namespace,
        action: Action::Allow,
        rules: [Rule::from_iter([Clause::from(from)])].into(),
        dry_run: false,
    }
}

fn uid() -> Uid {
    Uid::pod("Kubernetes", "shop", "catalog")
}

fn workload() -> Workload {
    Workload {
        uid: uid(),
        own_name: None,
        ips: [[10, 0, 0, 2].into()].into(),
        node: "a".into(),
        health: Health::Ready,
        profile: Arc::new(Profile::of(
            &"spiffe://cluster.local/ns/shop/sa/catalog".parse().unwrap(),
        )),
    }
}

/// A mesh with a workload, a policy that lets the client in, and so many others.
pub(crate) fn mesh(others: usize, elsewhere: Elsewhere) -> Mesh {
    let others = (0..others).map(|number| policy(number, elsewhere));
    let policies = others.chain([allow()]).map(Update::Policy);
    policies.chain([Update::from(workload())]).collect()
}

/// What applies to the workload of [`mesh`].
pub(crate) fn applicable(mesh: &Mesh) -> Applicable {
    mesh.policies_of(&uid()).unwrap()
}

/// A connection of the client to the workload.
pub(crate) fn connection(client: &SpiffeId) -> Connection<'_> {
    Connection {
        source_identity: Some(client),
        source_ip: [10, 0, 0, 1].into(),
        destination: ([10, 0, 0, 2], 8080).into(),
        equivalent: &[],
    }
}
