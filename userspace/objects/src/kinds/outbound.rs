//! Where the connections of workloads may go.

use std::collections::BTreeMap;

use crate::{Code, report::Report};

/// The annotation of a namespace or pod that says where its connections may go.
const ANNOTATION: &str = "sluice.io/outbound-traffic-policy";

/// Where connections may go: Istio's `outboundTrafficPolicy.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutboundPolicy {
    AllowAny,
    /// Only to what the mesh knows.
    RegistryOnly,
}

/// Reads a mode; any other text is an error.
pub(super) fn mode(field: &str, text: &str, report: &mut Report<'_>) -> Option<OutboundPolicy> {
    match text {
        "ALLOW_ANY" => Some(OutboundPolicy::AllowAny),
        "REGISTRY_ONLY" => Some(OutboundPolicy::RegistryOnly),
        other => {
            let message = format!("{other:?} is not a mode; modes are ALLOW_ANY and REGISTRY_ONLY");
            report.error(Code::InvalidValue, field, message);
            None
        }
    }
}

/// What the annotation of an object says, if it has it.
pub(super) fn annotated(
    annotations: Option<&BTreeMap<String, String>>,
    report: &mut Report<'_>,
) -> Option<OutboundPolicy> {
    let text = annotations?.get(ANNOTATION)?;
    let field = format!("metadata.annotations[\"{ANNOTATION}\"]");
    mode(&field, text, report)
}
