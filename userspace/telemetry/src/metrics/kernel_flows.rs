//! What the kernel counts of connections when they end, also of those in which the ztunnel has no part.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// How many buckets round-trip times are counted in; the last one has no upper bound.
pub const RTT_BUCKETS: usize = 18;
/// The upper bound of the first bucket, in seconds; each is twice the one before.
const FIRST_BUCKET: f64 = 16e-6;

/// What has been counted of the connections that went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FlowTotals {
    /// The label `path`.
    pub path: &'static str,
    pub connections: u64,
    /// Bytes that the peer acknowledged.
    pub sent: u64,
    pub received: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
    /// Of the smoothed round-trip times, in seconds.
    pub rtt_sum: f64,
    pub rtt: [u64; RTT_BUCKETS],
}

/// Reads the totals at every scrape.
pub(super) struct KernelFlows(pub(super) Box<dyn Fn() -> Vec<FlowTotals> + Send + Sync>);

type Column = fn(&FlowTotals) -> u64;

const COLUMNS: [(&str, &str, Column); 4] = [
    (
        "sluice_flow_connections",
        "TCP connections that have ended, as the kernel counts them, by the way they went.",
        |flow| flow.connections,
    ),
    (
        "sluice_flow_sent_bytes",
        "Bytes that the other ends of these connections have acknowledged.",
        |flow| flow.sent,
    ),
    (
        "sluice_flow_received_bytes",
        "Bytes that have come on these connections.",
        |flow| flow.received,
    ),
    (
        "sluice_flow_retransmits",
        "Segments that were sent again on these connections.",
        |flow| flow.retransmits,
    ),
];

impl Collector for KernelFlows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let flows = (self.0)();
        for (name, help, column) in COLUMNS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for flow in &flows {
                metric
                    .encode_family(&[("path", flow.path)])?
                    .encode_counter::<NoLabelSet, _, u64>(&column(flow), None)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "sluice_flow_rtt_seconds",
            "Smoothed round-trip times of these connections at their ends.",
            None,
            MetricType::Histogram,
        )?;
        for flow in &flows {
            let mut bound = FIRST_BUCKET;
            let mut buckets = [(f64::MAX, 0); RTT_BUCKETS];
            for (bucket, count) in buckets.iter_mut().zip(flow.rtt) {
                *bucket = (bound, count);
                bound *= 2.0;
            }
            buckets[RTT_BUCKETS - 1].0 = f64::MAX;
            metric
                .encode_family(&[("path", flow.path)])?
                .encode_histogram::<NoLabelSet>(
                    flow.rtt_sum,
                    flow.rtt.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

impl fmt::Debug for KernelFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelFlows").finish_non_exhaustive()
    }
}
