//! How a response is acknowledged.

use sluice_proto::discovery::{DeltaDiscoveryRequest, Status};

use crate::store::Response;

/// How many refused resources a refusal names.
const REJECTIONS_NAMED: usize = 100;

/// What remains of a response that has been applied.
#[derive(Debug)]
pub(crate) struct Received {
    type_url: String,
    nonce: String,
    resources: usize,
    removed: usize,
}

impl Received {
    pub(crate) fn of(response: &Response) -> Self {
        Self {
            type_url: response.envelope.type_url.clone(),
            nonce: response.envelope.nonce.clone(),
            resources: response.resources.len(),
            removed: response.envelope.removed.len(),
        }
    }

    /// The request that accepts the response, or refuses some of its resources, each for a reason.
    pub(crate) fn acknowledge(self, rejected: &[(String, String)]) -> DeltaDiscoveryRequest {
        let Self {
            type_url,
            nonce,
            resources,
            removed,
        } = self;
        tracing::debug!(
            type_url,
            resources,
            removed,
            rejected = rejected.len(),
            "response"
        );
        DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            error_detail: refusal(rejected),
            ..Default::default()
        }
    }
}

/// The detail of a request that refuses some resources; `None` when all were right.
fn refusal(rejected: &[(String, String)]) -> Option<Status> {
    if rejected.is_empty() {
        return None;
    }
    let mut reasons: Vec<String> = rejected
        .iter()
        .take(REJECTIONS_NAMED)
        .map(|(name, reason)| format!("{name}: {reason}"))
        .collect();
    if let Some(more) = rejected.len().checked_sub(REJECTIONS_NAMED + 1) {
        reasons.push(format!("and {} more", more + 1));
    }
    let message = reasons.join("; ");
    tracing::warn!(
        refused = message,
        "resources refused; what was in force in their place stays"
    );
    Some(Status {
        message,
        ..Default::default()
    })
}
