//! What the control plane counts, named as operators of Istio know it.

use std::time::Instant;

use prometheus_client::metrics::histogram::exponential_buckets;
use sluice_telemetry::metrics::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Histogram, Metrics,
};

use crate::xds::Type;

/// The metrics of the discovery and certificate services.
#[derive(Clone, Debug)]
pub struct ControlMetrics {
    /// Connected ztunnels.
    pub clients: Gauge,
    pub pushes: Family<TypeLabels, Counter>,
    pub rejects: Family<TypeLabels, Counter>,
    /// Answers to responses that nobody remembers.
    pub expired_nonces: Family<TypeLabels, Counter>,
    /// Seconds from a change to its acknowledgement by a ztunnel; of one change, the largest is
    /// when it was in force everywhere.
    pub convergence: Histogram,
    push_time: Family<TypeLabels, Histogram, fn() -> Histogram>,
    config_size: Family<TypeLabels, Histogram, fn() -> Histogram>,
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

impl Default for ControlMetrics {
    fn default() -> Self {
        Self {
            clients: Gauge::default(),
            pushes: Family::default(),
            rejects: Family::default(),
            expired_nonces: Family::default(),
            convergence: delays(),
            push_time: Family::new_with_constructor(delays),
            config_size: Family::new_with_constructor(sizes),
            certificates: Family::default(),
        }
    }
}

/// From a millisecond to half a minute.
fn delays() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// From 64 bytes to 256 MiB.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(64.0, 4.0, 12))
}

impl ControlMetrics {
    /// A response of so many bytes is on its way, because of a change that was published then, or
    /// of a request.
    pub fn pushed(&self, kind: Type, bytes: usize, changed: Option<Instant>) {
        let labels = kind.into();
        self.pushes.get_or_create(&labels).inc();
        #[expect(clippy::cast_precision_loss, reason = "no response has 2^53 bytes")]
        self.config_size
            .get_or_create(&labels)
            .observe(bytes as f64);
        if let Some(changed) = changed {
            let delay = changed.elapsed().as_secs_f64();
            self.push_time.get_or_create(&labels).observe(delay);
        }
    }

    /// Creates the metrics and registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register("pilot_xds", "Connected ztunnels", own.clients.clone());
        metrics.register(
            "pilot_xds_pushes",
            "Responses sent, by resource type",
            own.pushes.clone(),
        );
        metrics.register(
            "pilot_xds_push_time",
            "Seconds from a change to the response that tells a ztunnel, by resource type",
            own.push_time.clone(),
        );
        metrics.register(
            "pilot_proxy_convergence_time",
            "Seconds from a change to its acknowledgement by a ztunnel",
            own.convergence.clone(),
        );
        metrics.register(
            "pilot_xds_config_size_bytes",
            "Size of responses, by resource type",
            own.config_size.clone(),
        );
        metrics.register(
            "pilot_total_xds_rejects",
            "Responses rejected by ztunnels",
            own.rejects.clone(),
        );
        metrics.register(
            "pilot_xds_expired_nonce",
            "Answers of ztunnels to responses that are not known any more",
            own.expired_nonces.clone(),
        );
        metrics.register(
            "citadel_server_csr",
            "Requests for a certificate, by outcome",
            own.certificates.clone(),
        );
        own
    }
}
