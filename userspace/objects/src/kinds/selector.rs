//! What a policy applies to.

use std::collections::BTreeMap;

use serde::Deserialize;
use sluice_model::Name;

use super::{Labels, labels};
use crate::{Code, report::Report};

/// What a policy applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every workload of the policy's namespace, or of the mesh when that is the root namespace.
    Namespace,
    /// Workloads with these labels; there is at least one label.
    Selector(Labels),
    /// Waypoints, by what they serve. A ztunnel never sees such a policy.
    Refs(Vec<TargetRef>),
}

/// An object that a waypoint serves, or the waypoint itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRef {
    pub group: Name,
    pub kind: Name,
    pub name: Name,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSelector {
    #[serde(default)]
    match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawTargetRef {
    #[serde(default)]
    group: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: Option<String>,
}

/// The labels of a selector; without labels it selects everything, as if it were not there.
pub(super) fn selector(raw: Option<RawSelector>, report: &mut Report<'_>) -> Target {
    let labels = labels(raw.and_then(|selector| selector.match_labels));
    for (key, value) in &labels {
        let field = format!("spec.selector.matchLabels[\"{key}\"]");
        if key.is_empty() || key.contains('*') || value.contains('*') {
            report.error(
                Code::InvalidValue,
                field,
                "a selector compares labels exactly; '*' means nothing here",
            );
        }
    }
    if labels.is_empty() {
        Target::Namespace
    } else {
        Target::Selector(labels)
    }
}

/// The target of a policy that may have either a selector or references.
pub(super) fn target(
    raw_selector: Option<RawSelector>,
    target_ref: Option<RawTargetRef>,
    target_refs: Option<Vec<RawTargetRef>>,
    report: &mut Report<'_>,
) -> Target {
    let has_selector = raw_selector.is_some();
    let from_selector = selector(raw_selector, report);
    let single = target_ref.map(|raw| ("spec.targetRef".to_owned(), raw));
    let many = target_refs.unwrap_or_default().into_iter().enumerate();
    let many = many.map(|(i, raw)| (format!("spec.targetRefs[{i}]"), raw));
    let refs: Vec<TargetRef> = single
        .into_iter()
        .chain(many)
        .map(|(field, raw)| reference(&field, raw, report))
        .collect();
    if refs.is_empty() {
        return from_selector;
    }
    if has_selector {
        report.error(
            Code::ConflictingFields,
            "spec.selector",
            "a policy has a selector or targetRefs, not both",
        );
    }
    Target::Refs(refs)
}

fn reference(field: &str, raw: RawTargetRef, report: &mut Report<'_>) -> TargetRef {
    match (raw.group.as_str(), raw.kind.as_str()) {
        ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        | ("" | "core", "Service")
        | ("networking.istio.io", "ServiceEntry") => {}
        (group, kind) => report.error(
            Code::InvalidValue,
            format!("{field}.kind"),
            format!(
                "a policy cannot target the unknown kind {kind:?} of group {group:?}; known are \
                 Gateway and GatewayClass (gateway.networking.k8s.io), Service (\"\") and \
                 ServiceEntry (networking.istio.io)"
            ),
        ),
    }
    if raw.name.is_empty() {
        report.error(
            Code::MissingField,
            format!("{field}.name"),
            "a target needs a name",
        );
    }
    if raw
        .namespace
        .is_some_and(|namespace| *namespace != *report.namespace())
    {
        let message = "a policy targets only objects of its own namespace";
        report.error(Code::InvalidValue, format!("{field}.namespace"), message);
    }
    TargetRef {
        group: raw.group.into(),
        kind: raw.kind.into(),
        name: raw.name.into(),
    }
}
