//! Metrics, with Istio's names and labels where it has them.

mod dns;
mod failures;
mod foreign;
mod kernel_flows;
mod labels;
mod policy;
mod process;
mod tcp;
mod tunnels;

use std::{
    collections::HashSet,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

pub use dns::{DnsLabels, DnsMetrics};
pub use failures::{Cause, FailureMetrics};
use foreign::Foreign;
pub use foreign::{Kind, Reading};
use kernel_flows::KernelFlows;
pub use kernel_flows::{FlowTotals, RTT_BUCKETS};
pub use labels::{Peer, Reporter, ResponseFlags, Security, ServiceLabels, TcpLabels};
pub use policy::{Denial, Phase, PolicyMetrics};
/// For metrics of other components, to be given to [`Metrics::register`].
pub use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Unit},
};
pub use tcp::{ConnectionMetrics, Opening, TcpMetrics};
pub use tunnels::{OpenTunnel, TunnelFailure, TunnelMetrics};

/// All metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    /// Locked by registration and by scrapes, never by what counts.
    registry: Mutex<prometheus_client::registry::Registry>,
    tcp: TcpMetrics,
    failures: FailureMetrics,
    policy: PolicyMetrics,
    dns: DnsMetrics,
    tunnels: TunnelMetrics,
}

impl Metrics {
    /// The metrics of a component (`ztunnel`) at a version, which `istio_build` shows.
    pub fn new(component: &'static str, version: &'static str) -> Self {
        let mut registry = prometheus_client::registry::Registry::default();
        let tcp = TcpMetrics::default();
        registry.register_collector(Box::new(tcp.clone()));
        let policy = PolicyMetrics::default();
        policy.register(&mut registry);
        let dns = DnsMetrics::default();
        dns.register(&mut registry);
        let failures = FailureMetrics::default();
        failures.register(&mut registry);
        let tunnels = TunnelMetrics::default();
        tunnels.register(&mut registry);
        let build: Family<[(&str, &str); 2], Gauge> = Family::default();
        build
            .get_or_create(&[("component", component), ("tag", version)])
            .set(1);
        registry.register("istio_build", "Component and version", build);
        Self {
            registry: Mutex::new(registry),
            tcp,
            failures,
            policy,
            dns,
            tunnels,
        }
    }

    /// The metrics of TCP connections.
    pub fn tcp(&self) -> &TcpMetrics {
        &self.tcp
    }

    /// The metrics of connections that failed.
    pub fn failures(&self) -> &FailureMetrics {
        &self.failures
    }

    /// The metrics of tunnels.
    pub fn tunnels(&self) -> &TunnelMetrics {
        &self.tunnels
    }

    /// The metrics of policies.
    pub fn policy(&self) -> &PolicyMetrics {
        &self.policy
    }

    /// The metrics of DNS.
    pub fn dns(&self) -> &DnsMetrics {
        &self.dns
    }

    /// Adds a metric; a clone of it stays with whoever counts. The encoding adds `_total` to the
    /// name of a counter.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.with(|registry| registry.register(name, help, metric));
    }

    /// Adds a counter, with one label, that somebody else counts: `read` tells the value for each
    /// value of the label, at every scrape.
    pub fn register_foreign(
        &self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static,
    ) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let reading = move |(value, count)| Reading::new(count as f64).with(label, value);
        self.register_readings(Kind::Counter, name, help, move || {
            read().into_iter().map(reading).collect()
        });
    }

    /// Adds a gauge that `read` tells at every scrape; it is absent while there is no value.
    pub fn register_gauge(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        self.register_readings(Kind::Gauge, name, help, move || {
            read().map(Reading::new).into_iter().collect()
        });
    }

    /// Adds a metric that `read` tells at every scrape, with any labels; it is absent while there are
    /// no values.
    pub fn register_readings(
        &self,
        kind: Kind,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> Vec<Reading> + Send + Sync + 'static,
    ) {
        let read = Box::new(read);
        let foreign = Foreign {
            kind,
            name,
            help,
            read,
        };
        self.with(|registry| registry.register_collector(Box::new(foreign)));
    }

    /// Adds what the kernel counts of connections, which `read` tells at every scrape.
    pub fn register_kernel_flows(
        &self,
        read: impl Fn() -> Vec<FlowTotals> + Send + Sync + 'static,
    ) {
        let flows = KernelFlows(Box::new(read));
        self.with(|registry| registry.register_collector(Box::new(flows)));
    }

    /// Adds what the system knows of this process.
    pub fn register_process(&self) {
        process::register(self);
    }

    /// All metrics in the text format of Prometheus, which every scraper and `promtool` reads.
    pub fn encode(&self) -> String {
        plain(&self.encode_openmetrics())
    }

    /// All metrics in the text format of OpenMetrics 1.0.
    pub fn encode_openmetrics(&self) -> String {
        let mut text = String::new();
        self.with(|registry| {
            if prometheus_client::encoding::text::encode(&mut text, registry).is_err() {
                // A string takes any text; only a metric's own encoding can have failed.
                tracing::warn!("a metric cannot be encoded");
            }
        });
        text
    }

    fn with<T>(&self, f: impl FnOnce(&mut prometheus_client::registry::Registry) -> T) -> T {
        f(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// OpenMetrics as the plain text format. There, a counter is described under the name of its samples,
/// with `_total`, and there is neither an end nor a unit.
fn plain(openmetrics: &str) -> String {
    let counters: HashSet<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|about| {
            let (name, rest) = line.strip_prefix(about)?.split_once(' ')?;
            counters.contains(name).then_some((about, name, rest))
        });
        let _ = match described {
            Some((about, name, rest)) => writeln!(text, "{about}{name}_total {rest}"),
            None => writeln!(text, "{line}"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_under_the_name_of_their_samples() {
        let metrics = Metrics::new("test", "0");
        let counter: Counter = Counter::default();
        counter.inc();
        metrics.register("things", "Things counted", counter);
        let text = metrics.encode();
        let about: Vec<&str> = text.lines().filter(|l| l.contains("things")).collect();
        let expected = [
            "# HELP things_total Things counted.",
            "# TYPE things_total counter",
            "things_total 1",
        ];
        assert_eq!(about, expected);
        assert!(text.lines().any(|l| l == "# TYPE istio_build gauge"));
        assert!(!text.contains("# EOF"));
    }
}
