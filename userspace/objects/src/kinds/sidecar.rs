//! Sidecar: of all that it says to a proxy in every pod, a ztunnel reads where connections may go.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use sluice_model::Name;

use super::{
    Labels, labels,
    outbound::{self, OutboundPolicy},
    resource::Resource,
};
use crate::{Code, report::Report};

/// Where the connections of workloads may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sidecar {
    pub namespace: Name,
    pub name: Name,
    /// The oldest of several for the same workloads counts.
    pub created: Option<Timestamp>,
    /// Whom it is for; empty for every workload of its namespace, or of the mesh when that is the
    /// root namespace.
    pub selector: Labels,
    /// `None` leaves it to a wider scope.
    pub outbound: Option<OutboundPolicy>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSpec {
    #[serde(default)]
    workload_selector: Option<RawSelector>,
    #[serde(default)]
    outbound_traffic_policy: Option<RawPolicy>,
    // Known, so that an object made for sidecars is not refused.
    #[serde(default)]
    ingress: Option<Value>,
    #[serde(default)]
    egress: Option<Value>,
    #[serde(default)]
    inbound_connection_pool: Option<Value>,
}

#[derive(Default, Deserialize)]
struct RawSelector {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPolicy {
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    egress_proxy: Option<Value>,
}

pub(super) fn sidecar(raw: Resource<RawSpec>, report: &mut Report<'_>) -> Sidecar {
    let spec = raw.spec.unwrap_or_default();
    let policy = spec.outbound_traffic_policy;
    let proxy = policy
        .as_ref()
        .and_then(|policy| policy.egress_proxy.as_ref());
    for (field, value) in [
        ("spec.ingress", &spec.ingress),
        ("spec.egress", &spec.egress),
        ("spec.inboundConnectionPool", &spec.inbound_connection_pool),
        ("spec.outboundTrafficPolicy.egressProxy", &proxy.cloned()),
    ] {
        if value.is_some() {
            report.warning(
                Code::SidecarOnly,
                field,
                "has no effect: there is no sidecar; of this kind only workloadSelector and \
                 outboundTrafficPolicy.mode are read",
            );
        }
    }
    let selector = labels(spec.workload_selector.and_then(|selector| selector.labels));
    Sidecar {
        namespace: report.namespace(),
        name: report.name(),
        created: raw.metadata.creation_timestamp.map(|time| time.0),
        selector,
        outbound: policy.and_then(|policy| match policy.mode {
            Some(text) => outbound::mode("spec.outboundTrafficPolicy.mode", &text, report),
            // Istio's default within a policy that is there.
            None => Some(OutboundPolicy::RegistryOnly),
        }),
    }
}
