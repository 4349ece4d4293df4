//! DNS queries of pods: how many came, and what became of those that others had to answer.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabel as _, EncodeLabelSet, LabelSetEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use sluice_model::Name;

/// What a query is counted under. An empty name means unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsLabels {
    /// The type of record that was asked for; the rare ones are all `other`.
    pub query_type: &'static str,
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    pub canonical_service: Name,
    pub canonical_revision: Name,
}

impl EncodeLabelSet for DnsLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut label = |name: &str, value: &str| {
            let value = if value.is_empty() { "unknown" } else { value };
            (name, value).encode(encoder.encode_label())
        };
        label("request_query_type", self.query_type)?;
        label("request_protocol", self.protocol)?;
        label("source_canonical_service", &self.canonical_service)?;
        label("source_canonical_revision", &self.canonical_revision)
    }
}

/// The metrics of DNS.
#[derive(Clone, Debug)]
pub struct DnsMetrics {
    requests: Family<DnsLabels, Counter>,
    upstream_requests: Family<DnsLabels, Counter>,
    upstream_failures: Family<DnsLabels, Counter>,
    upstream_duration: Family<DnsLabels, Histogram, fn() -> Histogram>,
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_duration: Family::new_with_constructor(durations),
        }
    }
}

/// From half a millisecond to a little more than the patience with a server.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 14))
}

impl DnsMetrics {
    /// A query came from a pod.
    pub fn asked(&self, labels: &DnsLabels) {
        self.requests.get_or_create(labels).inc();
    }

    /// It was forwarded, and answered after so long; `None` when no answer came.
    pub fn forwarded(&self, labels: &DnsLabels, duration: Option<Duration>) {
        self.upstream_requests.get_or_create(labels).inc();
        match duration {
            Some(duration) => {
                let durations = self.upstream_duration.get_or_create(labels);
                durations.observe(duration.as_secs_f64());
            }
            None => {
                self.upstream_failures.get_or_create(labels).inc();
            }
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "istio_dns_requests",
            "DNS queries of pods",
            self.requests.clone(),
        );
        registry.register(
            "istio_dns_upstream_requests",
            "DNS queries that were forwarded to the server that the pod asked",
            self.upstream_requests.clone(),
        );
        registry.register(
            "istio_dns_upstream_failures",
            "Forwarded DNS queries that no answer came to",
            self.upstream_failures.clone(),
        );
        registry.register(
            "istio_dns_upstream_request_duration_seconds",
            "How long servers took to answer forwarded DNS queries",
            self.upstream_duration.clone(),
        );
    }
}
