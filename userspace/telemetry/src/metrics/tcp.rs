//! Counters of TCP connections, found by their labels once per connection.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::labels::{ResponseFlags, TcpLabels};

/// The counters of all TCP connections. Clones count into the same.
#[derive(Clone, Debug, Default)]
pub struct TcpMetrics {
    /// Written when labels are seen for the first time; read once per connection.
    series: Arc<RwLock<HashMap<Arc<TcpLabels>, Arc<Counters>>>>,
}

#[derive(Debug, Default)]
struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl TcpMetrics {
    /// Counts a connection as opened, and as closed when the guard is dropped.
    ///
    /// As Istio counts, a connection that policy will deny is opened first, with the flag `-`.
    pub fn open(&self, labels: TcpLabels) -> ConnectionMetrics {
        let labels = TcpLabels {
            flags: ResponseFlags::None,
            ..labels
        };
        let (labels, counters) = self.series(labels);
        counters.opened.fetch_add(1, Relaxed);
        ConnectionMetrics {
            metrics: self.clone(),
            labels,
            flags: ResponseFlags::None,
            counters,
        }
    }

    /// Labels, kept once for all connections that have them, and what is counted under them.
    fn series(&self, labels: TcpLabels) -> (Arc<TcpLabels>, Arc<Counters>) {
        let read = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((labels, counters)) = read.get_key_value(&labels) {
            return (labels.clone(), counters.clone());
        }
        drop(read);
        let labels = Arc::new(labels);
        let mut write = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let counters = write.entry(labels.clone()).or_default().clone();
        (labels, counters)
    }
}

/// A connection that is being counted.
#[must_use = "the connection counts as closed when this is dropped"]
#[derive(Debug)]
pub struct ConnectionMetrics {
    metrics: TcpMetrics,
    labels: Arc<TcpLabels>,
    flags: ResponseFlags,
    counters: Arc<Counters>,
}

impl ConnectionMetrics {
    /// Adds bytes that went to the client, in the response direction.
    pub fn sent(&self, bytes: u64) {
        self.counters.sent.fetch_add(bytes, Relaxed);
    }

    /// Adds bytes that came from the client, in the request direction.
    pub fn received(&self, bytes: u64) {
        self.counters.received.fetch_add(bytes, Relaxed);
    }

    /// Says why the connection failed. The first reason stays.
    pub fn failed(&mut self, flags: ResponseFlags) {
        if self.flags == ResponseFlags::None {
            self.flags = flags;
        }
    }
}

impl Drop for ConnectionMetrics {
    fn drop(&mut self) {
        if self.flags == ResponseFlags::None {
            self.counters.closed.fetch_add(1, Relaxed);
            return;
        }
        let (_, failed) = self.metrics.series(TcpLabels {
            flags: self.flags,
            ..TcpLabels::clone(&self.labels)
        });
        failed.closed.fetch_add(1, Relaxed);
        failed.failed.fetch_add(1, Relaxed);
    }
}

type Column = fn(&Counters) -> &AtomicU64;

/// Names without the `_total` that the encoding adds.
const COLUMNS: [(&str, &str, Column); 5] = [
    (
        "istio_tcp_connections_opened",
        "TCP connections that were opened.",
        |c| &c.opened,
    ),
    (
        "istio_tcp_connections_closed",
        "TCP connections that ended.",
        |c| &c.closed,
    ),
    (
        "istio_tcp_connections_failed",
        "TCP connections that failed, by reason.",
        |c| &c.failed,
    ),
    (
        "istio_tcp_sent_bytes",
        "Bytes sent in the response direction.",
        |c| &c.sent,
    ),
    (
        "istio_tcp_received_bytes",
        "Bytes received in the request direction.",
        |c| &c.received,
    ),
];

impl Collector for TcpMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A copy, so that new connections do not wait for the text to be written.
        let series: Vec<(Arc<TcpLabels>, Arc<Counters>)> = self
            .series
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(labels, counters)| (labels.clone(), counters.clone()))
            .collect();
        for (name, help, column) in COLUMNS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, counters) in &series {
                let value = column(counters).load(Relaxed);
                if value != 0 {
                    metric
                        .encode_family(&**labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
            }
        }
        Ok(())
    }
}
