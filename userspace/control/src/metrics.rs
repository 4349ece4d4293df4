//! What the control plane counts, named as operators of Istio know it.

use sluice_telemetry::metrics::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Metrics,
};

use crate::xds::Type;

/// The metrics of the discovery and certificate services.
#[derive(Clone, Debug, Default)]
pub struct ControlMetrics {
    /// Connected ztunnels.
    pub clients: Gauge,
    pub pushes: Family<TypeLabels, Counter>,
    pub rejects: Family<TypeLabels, Counter>,
    pub certificates: Family<OutcomeLabels, Counter>,
}

/// The label `type`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabels {
    pub r#type: TypeLabel,
}

/// A resource type, by its short name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum TypeLabel {
    Address,
    Authorization,
}

impl From<Type> for TypeLabels {
    fn from(kind: Type) -> Self {
        Self {
            r#type: match kind {
                Type::Address => TypeLabel::Address,
                Type::Authorization => TypeLabel::Authorization,
            },
        }
    }
}

/// The label `outcome`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    pub outcome: Outcome,
}

/// How a request for a certificate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    Issued,
    /// The caller may not have it.
    Refused,
    /// The request makes no sense, or signing failed.
    Failed,
}

impl ControlMetrics {
    /// Creates the metrics and registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        let clients = own.clients.clone();
        metrics.register("pilot_xds", "Connected ztunnels", clients);
        let pushes = own.pushes.clone();
        metrics.register(
            "pilot_xds_pushes",
            "Responses sent, by resource type",
            pushes,
        );
        let rejects = own.rejects.clone();
        metrics.register(
            "pilot_total_xds_rejects",
            "Responses rejected by ztunnels",
            rejects,
        );
        let certificates = own.certificates.clone();
        metrics.register(
            "citadel_server_csr",
            "Requests for a certificate, by outcome",
            certificates,
        );
        own
    }
}
