//! Namespaces and the service accounts in them.

use k8s_openapi::api::core::v1 as raw;
use sluice_model::Name;

use super::{
    DataplaneMode, Labels, OutboundPolicy, TrafficDistribution, labels, outbound,
    pod::{BYPASS, SAME_NODE, annotated_bool, dataplane_mode},
    service::annotated_distribution,
};
use crate::report::Report;

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: Name,
    pub labels: Labels,
    /// From the label `istio.io/dataplane-mode`.
    pub dataplane_mode: Option<DataplaneMode>,
    /// From the annotation `sluice.io/outbound-traffic-policy`.
    pub outbound: Option<OutboundPolicy>,
    /// From the annotation `sluice.io/same-node`.
    pub same_node: Option<bool>,
    /// From the annotation `sluice.io/bypass`.
    pub bypass: Option<bool>,
    /// For services that say nothing of it themselves.
    pub traffic_distribution: Option<TrafficDistribution>,
}

pub(super) fn namespace(raw: raw::Namespace, report: &mut Report<'_>) -> Namespace {
    let annotations = raw.metadata.annotations.as_ref();
    let outbound = outbound::annotated(annotations, report);
    let traffic_distribution = annotated_distribution(annotations, report);
    let same_node = annotated_bool(annotations, SAME_NODE, report);
    let bypass = annotated_bool(annotations, BYPASS, report);
    let labels = labels(raw.metadata.labels);
    Namespace {
        name: report.name(),
        dataplane_mode: dataplane_mode(&labels, report),
        traffic_distribution,
        same_node,
        bypass,
        outbound,
        labels,
    }
}

/// A service account: what an identity is issued for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    pub namespace: Name,
    pub name: Name,
}

pub(super) fn service_account(_: raw::ServiceAccount, report: &mut Report<'_>) -> ServiceAccount {
    ServiceAccount {
        namespace: report.namespace(),
        name: report.name(),
    }
}
