//! AuthorizationPolicies, as far as a proxy of L4 can enforce them.

mod rules;
mod trust_domains;

use sluice_model::authz::{Action, Policy, PolicyKey, Scope};
use sluice_objects::{
    AuthorizationPolicy, Code, Located, Objects, Severity,
    kinds::{self, Target, selects},
};

use super::{Config, Pods, Translation};

/// Adds the policies, and lists those with a selector in the workloads that they select.
pub(super) fn apply(
    objects: &Objects,
    config: &Config,
    pods: &mut Pods<'_>,
    translation: &mut Translation,
) {
    for policy in objects.authorization_policies.values() {
        let (translated, findings) = translate(policy, config);
        translation.diagnostics.extend(findings);
        let Some(translated) = translated else {
            continue;
        };
        if let Target::Selector(labels) = &policy.target {
            let everywhere = policy.namespace == config.root_namespace;
            for (pod, workload) in pods.iter_mut() {
                let in_reach = everywhere || pod.namespace == policy.namespace;
                if in_reach && selects(labels, &pod.labels) {
                    workload.profile_mut().policies.push(translated.key.clone());
                }
            }
        }
        translation.policies.push(translated);
    }
}

/// The policy as ztunnels evaluate it, if they do at all, and what of it has no effect.
fn translate(
    policy: &Located<AuthorizationPolicy>,
    config: &Config,
) -> (Option<Policy>, Vec<sluice_objects::Diagnostic>) {
    let warning = |code, field: &str, message: &str| {
        vec![
            policy
                .origin
                .diagnostic(Severity::Warning, code, field, message),
        ]
    };
    let action = match policy.action {
        kinds::Action::Allow => Action::Allow,
        kinds::Action::Deny => Action::Deny,
        kinds::Action::Audit => Action::Audit,
        kinds::Action::Custom => {
            let message = "has no effect: ztunnels enforce ALLOW and DENY, and report AUDIT";
            return (
                None,
                warning(Code::UnsupportedAction, "spec.action", message),
            );
        }
    };
    let scope = match &policy.target {
        Target::Refs(_) => {
            let message = "this policy protects nothing: targetRefs are for waypoints, which this \
                           mesh does not have; give spec.selector to have ztunnels enforce it";
            return (
                None,
                warning(Code::UnsupportedTarget, "spec.targetRefs", message),
            );
        }
        Target::Selector(_) => Scope::Workload,
        Target::Namespace if policy.namespace == config.root_namespace => Scope::Global,
        Target::Namespace => Scope::Namespace,
    };
    let mut translator = rules::Translator::new(policy, action, config);
    let rules = policy.rules.iter().enumerate();
    let translated = Policy {
        key: PolicyKey {
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
        },
        scope,
        action,
        rules: rules.map(|(i, rule)| translator.rule(i, rule)).collect(),
        // To audit is to report already.
        dry_run: policy.dry_run && action != Action::Audit,
    };
    let mut findings = translator.into_findings();
    if policy.rules.is_empty() {
        // An ALLOW policy without rules is meant: it lets nothing through.
        let message = match action {
            Action::Allow => None,
            Action::Deny => Some("has no effect: a DENY policy without rules denies nothing"),
            Action::Audit => Some("has no effect: an AUDIT policy without rules reports nothing"),
        };
        let warnings = message.map(|message| warning(Code::NoEffect, "spec", message));
        findings.extend(warnings.into_iter().flatten());
    }
    (Some(translated), findings)
}
