//! Counters of TCP connections, found by their labels once per connection.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use foldhash::quality::RandomState;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::labels::{Peer, Reporter, ResponseFlags, Security, ServiceLabels, TcpLabels};

/// How many label sets are counted apart; connections with others are counted together.
const MAX_SERIES: usize = 10_000;
/// A label set under which nothing has been counted for so long is given up.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// The counters of all TCP connections. Clones count into the same.
#[derive(Clone, Debug)]
pub struct TcpMetrics(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Written when labels are seen for the first time; read once per connection.
    series: RwLock<HashMap<Arc<TcpLabels>, Arc<Series>, RandomState>>,
    begun: Instant,
    gauges: [Gauges; 2],
}

/// Connections of a reporter that are under way.
#[derive(Debug, Default)]
struct Gauges {
    /// Nothing has been carried yet.
    opening: AtomicI64,
    /// Outside of tunnels.
    plain: AtomicI64,
    /// In tunnels.
    streams: AtomicI64,
}

impl Gauges {
    fn open(&self, security: Security) -> &AtomicI64 {
        match security {
            Security::MutualTls => &self.streams,
            Security::Unknown => &self.plain,
        }
    }
}

/// What is counted under a label set. Each connection holds one.
#[derive(Debug)]
struct Series {
    labels: Arc<TcpLabels>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    /// When something was counted, in seconds since the first.
    last: AtomicU64,
}

impl Default for TcpMetrics {
    fn default() -> Self {
        Self(Arc::new(Shared {
            series: RwLock::default(),
            begun: Instant::now(),
            gauges: Default::default(),
        }))
    }
}

impl TcpMetrics {
    /// Counts a connection as one that is being opened, until the guard is dropped.
    pub fn begin(&self, reporter: Reporter) -> Opening {
        self.0.gauges(reporter).opening.fetch_add(1, Relaxed);
        Opening {
            metrics: self.clone(),
            reporter,
        }
    }

    /// Counts a connection as opened, and as closed when the guard is dropped.
    ///
    /// As Istio counts, a connection that policy will deny is opened first, with the flag `-`.
    pub fn open(&self, labels: TcpLabels) -> ConnectionMetrics {
        let labels = TcpLabels {
            flags: ResponseFlags::None,
            ..labels
        };
        let series = self.0.series(labels);
        series.counters.opened.fetch_add(1, Relaxed);
        self.0.touch(&series.counters);
        let gauges = self.0.gauges(series.labels.reporter);
        gauges.open(series.labels.security).fetch_add(1, Relaxed);
        ConnectionMetrics {
            metrics: self.clone(),
            flags: ResponseFlags::None,
            series,
            received: 0,
            sent: 0,
        }
    }
}

impl Shared {
    fn gauges(&self, reporter: Reporter) -> &Gauges {
        &self.gauges[reporter as usize]
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    fn touch(&self, counters: &Counters) {
        counters.last.store(self.now(), Relaxed);
    }

    /// Labels, kept once for all connections that have them, and what is counted under them.
    fn series(&self, labels: TcpLabels) -> Arc<Series> {
        let read = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = read.get(&labels) {
            return series.clone();
        }
        drop(read);
        let mut write = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let labels = if write.len() < MAX_SERIES {
            labels
        } else {
            together(&labels)
        };
        if let Some(series) = write.get(&labels) {
            return series.clone();
        }
        let labels = Arc::new(labels);
        let series = Arc::new(Series {
            labels: labels.clone(),
            counters: Counters::default(),
        });
        write.insert(labels, series.clone());
        series
    }

    /// Gives up what nobody has counted under for long, such as that of pods that are gone, and
    /// returns the rest.
    fn review(&self) -> Vec<Arc<Series>> {
        let oldest = self.now().saturating_sub(FORGOTTEN.as_secs());
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        // Whoever counts holds a reference.
        series.retain(|_, series| {
            Arc::strong_count(series) > 1 || series.counters.last.load(Relaxed) >= oldest
        });
        // Copied, so that new connections do not wait for the text to be written.
        series.values().cloned().collect()
    }
}

/// What connections are counted under when there are too many kinds of them.
fn together(labels: &TcpLabels) -> TcpLabels {
    let other = || "other".into();
    let peer = || Peer {
        workload: other(),
        namespace: other(),
        canonical_service: other(),
        ..Peer::default()
    };
    TcpLabels {
        source: peer(),
        destination: peer(),
        service: ServiceLabels {
            hostname: other(),
            namespace: other(),
            name: other(),
        },
        ..labels.clone()
    }
}

/// A connection that is being opened.
#[must_use = "the connection is being opened until this is dropped"]
#[derive(Debug)]
pub struct Opening {
    metrics: TcpMetrics,
    reporter: Reporter,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let gauges = self.metrics.0.gauges(self.reporter);
        gauges.opening.fetch_sub(1, Relaxed);
    }
}

/// A connection that is being counted.
#[must_use = "the connection counts as closed when this is dropped"]
#[derive(Debug)]
pub struct ConnectionMetrics {
    metrics: TcpMetrics,
    series: Arc<Series>,
    flags: ResponseFlags,
    /// What has been counted of it.
    received: u64,
    sent: u64,
}

impl ConnectionMetrics {
    /// Until now so many bytes came from the client, in the request direction, and so many went to it,
    /// in the response direction. What was not counted yet is, however often this is called.
    pub fn carried(&mut self, received: u64, sent: u64) {
        let Counters {
            received: all_received,
            sent: all_sent,
            ..
        } = &self.series.counters;
        for (all, counted, now) in [
            (all_received, &mut self.received, received),
            (all_sent, &mut self.sent, sent),
        ] {
            if now > *counted {
                all.fetch_add(now - *counted, Relaxed);
                *counted = now;
            }
        }
    }

    /// What has been counted: from the client, and to it.
    pub fn counted(&self) -> (u64, u64) {
        (self.received, self.sent)
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
        let shared = &*self.metrics.0;
        let Series { labels, counters } = &*self.series;
        let gauges = shared.gauges(labels.reporter);
        gauges.open(labels.security).fetch_sub(1, Relaxed);
        shared.touch(counters);
        if self.flags == ResponseFlags::None {
            counters.closed.fetch_add(1, Relaxed);
            return;
        }
        let failed = shared.series(TcpLabels {
            flags: self.flags,
            ..TcpLabels::clone(labels)
        });
        failed.counters.closed.fetch_add(1, Relaxed);
        failed.counters.failed.fetch_add(1, Relaxed);
        shared.touch(&failed.counters);
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
        let series = self.0.review();
        for (name, help, column) in COLUMNS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for one in &series {
                let value = column(&one.counters).load(Relaxed);
                if value != 0 {
                    metric
                        .encode_family(&*one.labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
            }
        }
        let mut gauge =
            |name, help, f: &dyn Fn(Reporter, &Gauges, &mut Samples<'_>) -> fmt::Result| {
                let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                let mut samples = Samples(encoder);
                for reporter in [Reporter::Source, Reporter::Destination] {
                    f(reporter, self.0.gauges(reporter), &mut samples)?;
                }
                Ok(())
            };
        gauge(
            "istio_tcp_sockets_open",
            "TCP connections that are open.",
            &|reporter, gauges, samples| {
                let open = gauges.plain.load(Relaxed) + gauges.streams.load(Relaxed);
                samples.add(&[("reporter", reporter.as_str())], open)
            },
        )?;
        gauge(
            "sluice_connections",
            "TCP connections under way, by what has become of them so far and how they are protected.",
            &|reporter, gauges, samples| {
                for (state, value) in [
                    ("opening", &gauges.opening),
                    ("plain", &gauges.plain),
                    ("tunnelled", &gauges.streams),
                ] {
                    let labels = [("reporter", reporter.as_str()), ("state", state)];
                    samples.add(&labels, value.load(Relaxed))?;
                }
                Ok(())
            },
        )
    }
}

/// The samples of a gauge.
struct Samples<'a>(MetricEncoder<'a>);

impl Samples<'_> {
    fn add(&mut self, labels: &[(&'static str, &'static str)], value: i64) -> fmt::Result {
        self.0.encode_family(&labels)?.encode_gauge(&value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(workload: &str) -> TcpLabels {
        TcpLabels {
            reporter: Reporter::Source,
            source: Peer {
                workload: workload.into(),
                ..Peer::default()
            },
            destination: Peer::default(),
            service: ServiceLabels::default(),
            security: Security::Unknown,
            flags: ResponseFlags::None,
        }
    }

    #[test]
    fn the_number_of_series_is_bounded_and_nothing_is_lost_to_it() {
        let metrics = TcpMetrics::default();
        for i in 0..MAX_SERIES + 100 {
            drop(metrics.open(labels(&format!("w{i}"))));
        }
        let all = metrics.0.review();
        assert_eq!(all.len(), MAX_SERIES + 1);
        let other = all
            .iter()
            .find(|series| &*series.labels.source.workload == "other");
        assert_eq!(other.unwrap().counters.closed.load(Relaxed), 100);
        // Those that have series of their own keep them.
        drop(metrics.open(labels("w0")));
        let first = metrics.0.series(labels("w0"));
        assert_eq!(first.counters.opened.load(Relaxed), 2);
    }

    #[test]
    fn series_that_nothing_is_counted_under_are_given_up() {
        let metrics = TcpMetrics(Arc::new(Shared {
            series: RwLock::default(),
            begun: Instant::now().checked_sub(FORGOTTEN * 2).unwrap(),
            gauges: Default::default(),
        }));
        let held = metrics.open(labels("held"));
        drop(metrics.open(labels("fresh")));
        drop(metrics.open(labels("old")));
        for workload in ["held", "old"] {
            let series = metrics.0.series(labels(workload));
            series.counters.last.store(0, Relaxed);
        }
        let left = metrics.0.review();
        let workloads = left.iter().map(|series| &*series.labels.source.workload);
        let mut left: Vec<&str> = workloads.collect();
        left.sort_unstable();
        assert_eq!(left, ["fresh", "held"]);
        drop(held);
    }
}
