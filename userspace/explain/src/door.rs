//! The door of a pod: what its policies say of a connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sluice_model::{
    SpiffeId, Workload, admission,
    authz::{Action, Applicable, Connection, Decision, Policy, PolicyKey, Scope, Values},
};

use crate::{Mode, Mtls, Outcome, PolicyView, RuleView, World, words};

/// Who knocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visitor<'a> {
    /// Proven by a tunnel; `None` in plaintext.
    pub(crate) identity: Option<&'a SpiffeId>,
    /// `None` when nobody said which.
    pub(crate) ip: Option<IpAddr>,
}

/// What is said at the door.
pub(crate) struct Said {
    pub(crate) outcome: Outcome,
    pub(crate) reason: String,
    pub(crate) mtls: Option<Mtls>,
    pub(crate) policies: Vec<PolicyView>,
}

impl Said {
    /// Where no policy is asked.
    pub(crate) fn unasked(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: reason.into(),
            mtls: None,
            policies: Vec::new(),
        }
    }
}

/// Judges a visitor of an enrolled workload as its door does.
pub(crate) fn knock(
    world: World<'_>,
    workload: &Workload,
    visitor: Visitor<'_>,
    destination: SocketAddr,
) -> Said {
    let Some(policies) = world.mesh.policies_of(&workload.uid) else {
        return Said::unasked(
            Outcome::Unknown,
            "the workload is not known to the control plane",
        );
    };
    let connection = Connection {
        source_identity: visitor.identity,
        source_ip: visitor.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        destination,
        equivalent: &workload.equivalent_domains,
    };
    let mtls = Some(mtls(&policies, &connection));
    let judgement = match admission::judge(workload, &policies, &connection) {
        Ok(judgement) => judgement,
        Err(refusal) => {
            return Said {
                mtls,
                ..Said::unasked(Outcome::Denied, refusal.to_string())
            };
        }
    };
    let decision = &judgement.decision;
    let mut views = views(&policies, &connection, decision);
    if visitor.ip.is_none()
        && let Some(policy) = asks_for_address(&policies)
    {
        // What is said of the rest is said of no address in particular.
        views.iter_mut().for_each(|view| view.decides = false);
        return Said {
            outcome: Outcome::Unknown,
            reason: format!(
                "policy {policy} asks for the address of the source: give it in place of `outside`"
            ),
            mtls,
            policies: views,
        };
    }
    let mut reason = decision.to_string();
    if let Some(dry_run) = judgement.dry_run
        && dry_run.is_allowed() != decision.is_allowed()
    {
        reason += &format!("; with the policies in dry run in force, it would be: {dry_run}");
    }
    Said {
        outcome: match decision {
            Decision::Allow(_) => Outcome::Allowed,
            Decision::Deny(_) => Outcome::Denied,
        },
        reason,
        mtls,
        policies: views,
    }
}

/// A policy that decides by the source's address.
fn asks_for_address(policies: &Applicable) -> Option<&PolicyKey> {
    let asks = |policy: &Policy| {
        let matches = policy.rules.iter().flat_map(|rule| &rule.clauses);
        let terms = matches
            .flat_map(|clause| &clause.matches)
            .flat_map(|one| one.terms());
        let mut terms = terms;
        terms.any(|term| matches!(term.values, Values::SourceIps(_)))
    };
    let mut policies = policies.policies();
    let found = policies
        .find(|policy| !policy.dry_run && policy.action != Action::Audit && asks(policy))?;
    Some(&found.key)
}

/// Whether the port takes plaintext: what those policies say of it that stand for a
/// PeerAuthentication.
fn mtls(policies: &Applicable, connection: &Connection<'_>) -> Mtls {
    let plaintext = Connection {
        source_identity: None,
        ..*connection
    };
    let port = connection.destination.port();
    let all = policies.policies();
    let converted: Vec<_> = all
        .filter(|policy| policy.key.is_peer_authentication())
        .collect();
    let demands = |policy: &Policy| policy.rules.iter().any(|rule| rule.is_met_by(&plaintext));
    if let Some(policy) = converted.iter().find(|policy| demands(policy)) {
        let from = written(&policy.key);
        return Mtls {
            mode: Mode::Strict,
            port,
            from,
        };
    }
    let from = match converted.first() {
        Some(policy) => format!("{}, which exempts this port", written(&policy.key)),
        None => "the default, since no PeerAuthentication demands mutual TLS".to_owned(),
    };
    Mtls {
        mode: Mode::Permissive,
        port,
        from,
    }
}

/// The PeerAuthentication that a policy stands for, as far as its name tells.
fn written(key: &PolicyKey) -> String {
    match key.name.strip_prefix(PolicyKey::CONVERTED) {
        Some(name) => format!("PeerAuthentication {}/{name}", key.namespace),
        None => {
            "a STRICT PeerAuthentication of the workload, its namespace, or the mesh".to_owned()
        }
    }
}

fn views(
    policies: &Applicable,
    connection: &Connection<'_>,
    decision: &Decision,
) -> Vec<PolicyView> {
    let decider = decision.rule().map(|rule| &rule.policy);
    policies
        .policies()
        .map(|policy| PolicyView {
            policy: policy.key.to_string(),
            action: match policy.action {
                Action::Allow => "ALLOW",
                Action::Deny => "DENY",
                Action::Audit => "AUDIT",
            }
            .to_owned(),
            scope: match policy.scope {
                Scope::Workload => "workload",
                Scope::Namespace => "namespace",
                Scope::Global => "mesh",
            }
            .to_owned(),
            dry_run: policy.dry_run,
            decides: decider == Some(&policy.key),
            rules: rules(policy, connection),
        })
        .collect()
}

fn rules(policy: &Policy, connection: &Connection<'_>) -> Vec<RuleView> {
    let numbered = policy.rules.iter().enumerate();
    numbered
        .map(|(index, rule)| RuleView {
            rule: index,
            matches: rule.is_met_by(connection),
            misses: words::misses(rule, connection),
        })
        .collect()
}
