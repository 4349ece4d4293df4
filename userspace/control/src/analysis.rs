//! Everything that is wrong with a configuration: what reading and translating it found, and what
//! shows only when the mesh is seen as a whole.

mod reach;
mod references;

use std::collections::HashMap;

use sluice_model::authz::{Action, Policy, PolicyKey, Rule};
use sluice_objects::{
    AuthorizationPolicy, Code, Diagnostic, Located, Objects, PeerAuthentication, Severity,
    Snapshot, diagnostic, kinds::MtlsMode,
};

use crate::translate::{self, Translation};

/// All findings about a snapshot and its translation, ordered by file and line.
pub fn findings(
    snapshot: &Snapshot,
    translation: &Translation,
    config: &translate::Config,
) -> Vec<Diagnostic> {
    let objects = &snapshot.objects;
    let mut findings = snapshot.diagnostics.to_vec();
    findings.extend(translation.diagnostics.iter().cloned());
    findings.extend(references::missing(objects, config));
    findings.extend(reach::out_of_reach(objects, config));
    findings.extend(without_rules(objects, translation));
    findings.extend(other_than_written(objects));
    findings.extend(waypoints(objects));
    diagnostic::sort(&mut findings);
    findings
}

/// Policies of whose rules none is left.
fn without_rules(objects: &Objects, translation: &Translation) -> Vec<Diagnostic> {
    let translated: HashMap<&PolicyKey, &Policy> = translation
        .policies
        .iter()
        .map(|policy| (&policy.key, policy))
        .collect();
    let policies = objects.authorization_policies.values();
    policies
        .filter_map(|policy| {
            let key = PolicyKey {
                namespace: policy.namespace.clone(),
                name: policy.name.clone(),
            };
            let left = translated.get(&key)?;
            let none = left.rules.iter().all(|rule| *rule == Rule::never());
            let lost = !policy.rules.is_empty() && none && !left.dry_run;
            lost.then(|| without_rule(policy, left.action))
        })
        .collect()
}

fn without_rule(policy: &Located<AuthorizationPolicy>, action: Action) -> Diagnostic {
    let rules = match policy.rules.len() {
        1 => "its only rule is dropped".to_owned(),
        count => format!("all of its {count} rules are dropped"),
    };
    let (code, consequence) = match action {
        Action::Allow => (
            Code::DeniesAll,
            "what no other ALLOW policy allows is refused",
        ),
        Action::Deny => (Code::NoEffect, "this policy denies nothing"),
        Action::Audit => (Code::NoEffect, "this policy reports nothing"),
    };
    let message = format!("{rules}: {consequence}");
    policy
        .origin
        .diagnostic(Severity::Warning, code, "spec.rules", message)
}

/// Policies that do less than a reader might think, and as they should.
fn other_than_written(objects: &Objects) -> impl Iterator<Item = Diagnostic> {
    let policies = objects.authorization_policies.values();
    let dry_runs = policies.filter(|policy| policy.dry_run).map(|policy| {
        let field = "metadata.annotations[\"istio.io/dry-run\"]";
        let message = "a dry run: what it would do is logged and counted, and it decides nothing";
        policy
            .origin
            .diagnostic(Severity::Info, Code::DryRun, field, message)
    });
    let peers = objects.peer_authentications.values();
    dry_runs.chain(peers.filter_map(|peer| disabled(peer)))
}

fn disabled(peer: &Located<PeerAuthentication>) -> Option<Diagnostic> {
    let message = "DISABLE is enforced as PERMISSIVE: connections through the mesh are accepted, \
                   and stay encrypted";
    (peer.mode == MtlsMode::Disable).then(|| {
        let field = "spec.mtls.mode";
        peer.origin
            .diagnostic(Severity::Info, Code::UnsupportedValue, field, message)
    })
}

/// The label that names the waypoint of a pod, a service or a namespace.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// Warnings about waypoints that traffic should pass, and does not.
fn waypoints(objects: &Objects) -> impl Iterator<Item = Diagnostic> {
    let namespaces = objects.namespaces.values().map(|o| (&o.labels, &o.origin));
    let services = objects.services.values().map(|o| (&o.labels, &o.origin));
    let pods = objects.pods.values().map(|o| (&o.labels, &o.origin));
    let all = namespaces.chain(services).chain(pods);
    all.filter_map(|(labels, origin)| {
        let name = labels.get(USE_WAYPOINT).filter(|name| ***name != *"none")?;
        let field = format!("metadata.labels[\"{USE_WAYPOINT}\"]");
        let message = format!(
            "has no effect: traffic does not pass {name:?}, nor is it subject to its policies"
        );
        Some(origin.diagnostic(Severity::Warning, Code::IgnoredLabel, field, message))
    })
}

#[cfg(test)]
#[path = "analysis/analysis_tests.rs"]
mod tests;
