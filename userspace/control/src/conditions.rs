//! The status of each policy, in the form of Kubernetes' conditions.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use serde::Serialize;
use sluice_objects::{Code, Diagnostic, Kind, ObjectRef, Objects, Origin, Severity, diagnostic};

/// A policy as it was found at one place, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    pub object: ObjectRef,
    #[serde(serialize_with = "diagnostic::serialize_path")]
    pub file: Arc<Path>,
    pub line: u32,
    pub conditions: Vec<Condition>,
}

/// A condition, with the names that Istio gives to type and reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub condition: ConditionType,
    pub status: ConditionStatus,
    pub reason: Reason,
    /// The reason in full: the rules without effect and why, or what is in force instead.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ConditionType {
    /// Whether ztunnels enforce the policy as it is written.
    ZtunnelAccepted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ConditionStatus {
    True,
    False,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Reason {
    Accepted,
    /// It is valid, and some of it, or all, is not enforced.
    UnsupportedValue,
    /// Another policy of the same scope counts instead.
    Conflicted,
    /// It is not applied.
    Invalid,
}

impl PolicyStatus {
    /// Part of the policy's file cannot be read, and nobody knows whether it was this policy.
    fn doubt(&mut self, error: &Diagnostic) {
        for condition in &mut self.conditions {
            condition.message.push_str(&format!(
                "; part of the file cannot be read, and what was in force of it stays so: {error}"
            ));
        }
    }
}

/// The status of every policy that is in force or was rejected, ordered by name, then by file.
pub fn of(objects: &Objects, findings: &[Diagnostic]) -> Vec<PolicyStatus> {
    let in_force: HashMap<&ObjectRef, &Origin> = policies(objects)
        .map(|origin| (&origin.object, origin))
        .collect();
    let mut statuses = Vec::new();
    let mut places: BTreeMap<(&ObjectRef, &Arc<Path>), Vec<&Diagnostic>> = in_force
        .values()
        .map(|origin| ((&origin.object, &origin.file), Vec::new()))
        .collect();
    let mut unread: BTreeMap<&Arc<Path>, &Diagnostic> = BTreeMap::new();
    for finding in findings {
        if finding.object.is_none() && finding.severity == Severity::Error {
            unread.entry(&finding.file).or_insert(finding);
        }
        let Some(object) = finding.object.as_ref().filter(|o| is_policy(o)) else {
            continue;
        };
        if finding.code == Code::DuplicateObject {
            // It says itself which one counts.
            statuses.push(rejected(object, finding, finding.message.clone()));
        } else {
            places
                .entry((object, &finding.file))
                .or_default()
                .push(finding);
        }
    }
    for ((object, file), findings) in places {
        let origin = in_force.get(object).copied();
        let mut status = judge(object, origin, &findings);
        if let (Some(status), Some(error)) = (&mut status, unread.get(file)) {
            status.doubt(error);
        }
        statuses.extend(status);
    }
    statuses.sort_by(|a, b| (&a.object, &a.file, a.line).cmp(&(&b.object, &b.file, b.line)));
    statuses
}

fn policies(objects: &Objects) -> impl Iterator<Item = &Origin> {
    let authorization = objects.authorization_policies.values().map(|o| &o.origin);
    let peers = objects.peer_authentications.values().map(|o| &o.origin);
    authorization.chain(peers)
}

fn is_policy(object: &ObjectRef) -> bool {
    let kinds = [Kind::AuthorizationPolicy, Kind::PeerAuthentication];
    kinds.iter().any(|kind| *object.kind == *kind.name())
}

/// The status of a policy at one place. `origin` is where the version in force is from.
fn judge(
    object: &ObjectRef,
    origin: Option<&Origin>,
    findings: &[&Diagnostic],
) -> Option<PolicyStatus> {
    let errors: Vec<_> = of_severity(findings, Severity::Error);
    if let Some(first) = errors.first() {
        let consequence = |f: &&&Diagnostic| matches!(f.code, Code::StandIn | Code::NotApplied);
        let kept = match (findings.iter().find(consequence), origin) {
            (Some(consequence), _) => consequence.message.clone(),
            (None, Some(origin)) => format!(
                "the version read from {}:{} before stays in force",
                origin.file.display(),
                origin.line()
            ),
            (None, None) => "no version of it is in force".to_owned(),
        };
        let message = format!("{}; {kept}", joined(&errors));
        return Some(rejected(object, first, message));
    }
    let origin = origin?;
    let warnings = of_severity(findings, Severity::Warning);
    let has = |wanted: fn(Code) -> bool| warnings.iter().any(|finding| wanted(finding.code));
    let reason = if has(Code::is_unsupported) {
        Reason::UnsupportedValue
    } else if has(|code| code == Code::Conflicted) {
        Reason::Conflicted
    } else {
        Reason::Accepted
    };
    let message = match findings {
        [] => "in force".to_owned(),
        findings if reason == Reason::Accepted => format!("in force; {}", joined(findings)),
        findings => joined(findings),
    };
    Some(PolicyStatus {
        object: object.clone(),
        file: origin.file.clone(),
        line: origin.line(),
        conditions: vec![condition(reason, message)],
    })
}

fn of_severity<'a>(findings: &[&'a Diagnostic], severity: Severity) -> Vec<&'a Diagnostic> {
    let all = findings.iter().copied();
    all.filter(|finding| finding.severity == severity).collect()
}

fn joined(findings: &[&Diagnostic]) -> String {
    let one = |finding: &&Diagnostic| match finding.field.as_str() {
        "" => finding.message.clone(),
        field => format!("{field}: {}", finding.message),
    };
    findings.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// The status of a policy that is not applied, at the place of the error.
fn rejected(object: &ObjectRef, error: &Diagnostic, message: String) -> PolicyStatus {
    PolicyStatus {
        object: object.clone(),
        file: error.file.clone(),
        line: error.line,
        conditions: vec![condition(Reason::Invalid, message)],
    }
}

fn condition(reason: Reason, message: String) -> Condition {
    Condition {
        condition: ConditionType::ZtunnelAccepted,
        status: match reason {
            Reason::Accepted => ConditionStatus::True,
            Reason::UnsupportedValue | Reason::Conflicted | Reason::Invalid => {
                ConditionStatus::False
            }
        },
        reason,
        message,
    }
}
