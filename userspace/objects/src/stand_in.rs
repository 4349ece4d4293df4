//! What stands in for a policy that cannot be read, and of which no good version is known; why is
//! told at [`Policy::stand_in`](sluice_model::authz::Policy::stand_in).

use std::sync::Arc;

use serde_json::Value;
use sluice_model::Name;

use crate::{
    AuthorizationPolicy, Code, Diagnostic, Kind, Labels, Located, Origin, PeerAuthentication,
    Severity,
    kinds::{Action, MtlsMode, Object, Target, parse_dry_run},
};

/// The strictest that the policy could have been: an ALLOW policy that allows nothing, or STRICT.
/// `None` when it could not have refused anything, however it is mended.
///
/// It is for the workloads that the policy selects, if as much of it can be read; else for all that
/// a policy of its namespace can be for.
pub(crate) fn stand_in(kind: Kind, origin: &Origin, text: Option<&Value>) -> Option<Object> {
    let target = text
        .and_then(selector)
        .map_or(Target::Namespace, Target::Selector);
    let (namespace, name) = (origin.object.namespace.clone(), origin.object.name.clone());
    let created = text.and_then(|text| field(text, "/metadata/creationTimestamp")?.parse().ok());
    let origin = origin.clone();
    match kind {
        Kind::AuthorizationPolicy if text.is_some_and(never_refuses) => None,
        Kind::AuthorizationPolicy => {
            let value = AuthorizationPolicy {
                namespace,
                name,
                created,
                target,
                action: Action::Allow,
                rules: Vec::new(),
                dry_run: false,
            };
            Some(Object::AuthorizationPolicy(Arc::new(Located {
                value,
                origin,
            })))
        }
        Kind::PeerAuthentication => {
            let value = PeerAuthentication {
                namespace,
                name,
                created,
                target,
                mode: MtlsMode::Strict,
                port_modes: [].into(),
            };
            Some(Object::PeerAuthentication(Arc::new(Located {
                value,
                origin,
            })))
        }
        _ => None,
    }
}

/// Tells what the stand-in does.
pub(crate) fn report(stand_in: &Object, origin: &Origin) -> Diagnostic {
    let whom = |target: &Target| match target {
        Target::Selector(labels) => {
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("the workloads that it selects ({})", labels.join(", "))
        }
        Target::Namespace | Target::Refs(_) => {
            "the workloads of its namespace, or of the whole mesh if that is the root namespace"
                .to_owned()
        }
    };
    let consequence = match stand_in {
        Object::AuthorizationPolicy(policy) => {
            format!("nothing is allowed to {}", whom(&policy.target))
        }
        Object::PeerAuthentication(peer) => {
            format!("plaintext is refused to {}", whom(&peer.target))
        }
        _ => String::new(),
    };
    let message = format!("no good version of it is known: until it is mended, {consequence}");
    origin.diagnostic(Severity::Warning, Code::StandIn, "", message)
}

/// Whether it is certain that the policy is one that refuses nothing: a report, or for waypoints.
fn never_refuses(text: &Value) -> bool {
    let annotations = text.pointer("/metadata/annotations");
    let dry_run = annotations.and_then(|all| all.get("istio.io/dry-run")?.as_str());
    let spec = |name: &str| text.pointer("/spec")?.get(name);
    let for_waypoints = spec("selector").is_none()
        && (spec("targetRef").is_some_and(Value::is_object)
            || spec("targetRefs")
                .is_some_and(|refs| refs.as_array().is_some_and(|r| !r.is_empty())));
    matches!(field(text, "/spec/action"), Some("AUDIT" | "CUSTOM"))
        || dry_run.and_then(parse_dry_run) == Some(true)
        || for_waypoints
}

/// The labels, if they are all that the selector says.
fn selector(text: &Value) -> Option<Labels> {
    let selector = text.pointer("/spec/selector")?.as_object()?;
    let labels = selector.get("matchLabels")?.as_object()?;
    let mut parsed = Labels::new();
    for (key, value) in labels {
        let value = value.as_str().filter(|value| !value.contains('*'))?;
        parsed.insert(Name::from(key.as_str()), value.into());
    }
    (selector.len() == 1 && !parsed.is_empty()).then_some(parsed)
}

fn field<'a>(text: &'a Value, pointer: &str) -> Option<&'a str> {
    text.pointer(pointer)?.as_str()
}
