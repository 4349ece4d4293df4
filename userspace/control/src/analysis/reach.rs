//! Policies that protect nothing: no pod is in their reach, or none that is part of the mesh.

use sluice_model::Name;
use sluice_objects::{
    Code, Diagnostic, Located, Objects, Origin, Pod, Severity,
    enrolment::is_enrolled,
    kinds::{Action, Phase, Target, selects},
};

use crate::translate::Config;

/// Warnings about policies that nothing enforces anywhere.
pub(super) fn out_of_reach(objects: &Objects, config: &Config) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for policy in objects.authorization_policies.values() {
        // The others are reported already: no ztunnel enforces them.
        if matches!(policy.action, Action::Allow | Action::Deny) {
            let everywhere = policy.namespace == config.root_namespace;
            let namespace = (!everywhere).then_some(&policy.namespace);
            findings.extend(judge(&policy.origin, &policy.target, namespace, objects));
        }
    }
    for peer in objects.peer_authentications.values() {
        let everywhere = peer.namespace == config.root_namespace;
        if !everywhere {
            let namespace = Some(&peer.namespace);
            findings.extend(judge(&peer.origin, &peer.target, namespace, objects));
        }
    }
    findings
}

/// What is wrong with the reach of a policy of this namespace, or of the whole mesh.
fn judge(
    origin: &Origin,
    target: &Target,
    namespace: Option<&Name>,
    objects: &Objects,
) -> Option<Diagnostic> {
    let (field, labels) = match target {
        Target::Selector(labels) => ("spec.selector", Some(labels)),
        // Policies for the whole mesh or for a namespace are there before their pods.
        Target::Namespace => ("", None),
        Target::Refs(_) => return None,
    };
    let is_for = |pod: &&Located<Pod>| {
        pod.phase != Phase::Terminated && labels.is_none_or(|labels| selects(labels, &pod.labels))
    };
    let pods: Vec<&Located<Pod>> = match namespace {
        Some(namespace) => objects.pods_of(namespace).filter(is_for).collect(),
        None => {
            let all = objects.pods.values().map(|pod| &**pod);
            all.filter(is_for).collect()
        }
    };
    let warning = |code, message: String| {
        let severity = Severity::Warning;
        Some(origin.diagnostic(severity, code, field, message))
    };
    if pods.is_empty() {
        labels?;
        let place = namespace.map_or("the mesh".to_owned(), |name| format!("namespace {name}"));
        return warning(
            Code::SelectsNothing,
            format!("selects nothing: no pod of {place} has these labels"),
        );
    }
    let enrolled = |pod: &&Located<Pod>| is_enrolled(pod, objects.namespace(&pod.namespace));
    if pods.iter().any(enrolled) {
        return None;
    }
    let which = match pods.as_slice() {
        [pod] => format!("the pod {}/{} that it is for is", pod.namespace, pod.name),
        pods => format!("all {} pods that it is for are", pods.len()),
    };
    warning(
        Code::NotEnrolled,
        format!("nothing enforces it: {which} outside the mesh"),
    )
}
