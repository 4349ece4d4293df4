//! Nodes: where in the world pods are.

use k8s_openapi::api::core::v1 as raw;
use sluice_model::{Name, workload::Locality};

use crate::report::Report;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Name,
    pub locality: Locality,
}

pub(super) fn node(raw: raw::Node, report: &mut Report<'_>) -> Node {
    let labels = raw.metadata.labels.unwrap_or_default();
    let label = |key: &str| {
        labels
            .get(key)
            .map(String::as_str)
            .unwrap_or_default()
            .into()
    };
    Node {
        name: report.name(),
        locality: Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            subzone: label("topology.istio.io/subzone"),
        },
    }
}
