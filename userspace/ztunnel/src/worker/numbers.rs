//! Metrics of what others keep: read at every scrape, and never in the way of a connection.

use std::{sync::Arc, time::SystemTime};

use sluice_identity::{CertificateState, CertificateStatus};
use sluice_kernel::{FlowPath, FlowStats};
use sluice_telemetry::{
    metrics::{Counter, FlowTotals, Kind, Metrics, RTT_BUCKETS, Reading},
    serve::Readiness,
};
use sluice_xds::{Termination, Traffic};
use tokio::sync::watch;

use super::{Shared, control::KernelCounters, neighbours::Members};

/// How many certificates are shown one by one.
const MAX_CERTIFICATES: usize = 1000;

/// Shows what the kernel decided and carried by itself.
pub(super) fn show_kernel(metrics: &Metrics, counters: KernelCounters) {
    let KernelCounters { verdicts, flows } = counters;
    let read = move || match verdicts.read() {
        Ok(counts) => counts
            .into_iter()
            .map(|(reason, count)| (reason.name(), count))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "the kernel's counters cannot be read");
            Vec::new()
        }
    };
    metrics.register_foreign(
        "sluice_kernel_verdicts",
        "Connections judged in the kernel, and what went wrong there, by reason",
        "reason",
        read,
    );
    metrics.register_kernel_flows(move || match flows.read() {
        Ok(all) => all.into_iter().map(totals).collect(),
        Err(error) => {
            tracing::warn!(%error, "the kernel's counters of connections cannot be read");
            Vec::new()
        }
    });
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn totals((path, stats): (FlowPath, FlowStats)) -> FlowTotals {
    const _: () = assert!(RTT_BUCKETS == sluice_abi::flows::RTT_BUCKETS as usize);
    FlowTotals {
        path: path.name(),
        connections: stats.connections,
        sent: stats.sent,
        received: stats.received,
        retransmits: stats.retransmits,
        rtt_sum: stats.rtt_sum as f64 / 1e6,
        rtt: stats.rtt,
    }
}

/// Shows how many lines the log has lost.
pub(super) fn show_log(metrics: &Metrics, lost: impl Fn() -> u64 + Send + Sync + 'static) {
    metrics.register_readings(
        Kind::Counter,
        "sluice_log_lines_lost",
        "Lines of the log that could not be written, since the reader was too slow or gone",
        move || vec![number(lost())],
    );
}

/// Shows the process, its readiness, its certificates and its control plane.
pub(super) fn show(shared: &Arc<Shared>, readiness: &Readiness, traffic: Traffic) {
    let metrics = &shared.metrics;
    metrics.register_process();
    let readiness = readiness.clone();
    metrics.register_gauge(
        "sluice_ready",
        "Whether the ztunnel is ready (1) or waits for something (0)",
        move || Some(f64::from(u8::from(readiness.is_ready()))),
    );
    show_certificates(shared);
    show_control_plane(shared, traffic);
}

fn show_certificates(shared: &Shared) {
    let identities = shared.identities.clone();
    shared.metrics.register_readings(
        Kind::Gauge,
        "sluice_certificate_expiry_timestamp_seconds",
        "When certificates expire, in seconds since 1970, by identity",
        move || {
            let all = identities.status();
            let valid = all.iter().filter_map(|one| Some((one, one.not_after?)));
            let shown = valid.take(MAX_CERTIFICATES).map(|(one, expiry)| {
                let reading = number(seconds(expiry));
                reading.with("identity", one.identity.to_string())
            });
            shown.collect()
        },
    );
    let identities = shared.identities.clone();
    shared.metrics.register_readings(
        Kind::Gauge,
        "sluice_certificates",
        "Certificates of this node, by state; failing are those whose last renewal failed",
        move || {
            let all = identities.status();
            let count = |state, is: &dyn Fn(&CertificateStatus) -> bool| {
                let many = all.iter().filter(|one| is(one)).count();
                number(many as u64).with("state", state)
            };
            vec![
                count("requested", &|one| one.state == CertificateState::Requested),
                count("valid", &|one| one.state == CertificateState::Valid),
                count("expired", &|one| one.state == CertificateState::Expired),
                count("failing", &|one| one.last_error.is_some()),
            ]
        },
    );
}

fn show_control_plane(shared: &Shared, traffic: Traffic) {
    let metrics = &shared.metrics;
    let mesh = shared.mesh.clone();
    metrics.register_gauge(
        "sluice_xds_connected",
        "Whether there is a stream from the control plane (1) or not (0)",
        move || Some(f64::from(u8::from(mesh.status().connected))),
    );
    let last = traffic.clone();
    metrics.register_readings(
        Kind::Gauge,
        "sluice_xds_last_response_timestamp_seconds",
        "When the control plane has last said something, in seconds since 1970",
        move || last.last_response().map(number).into_iter().collect(),
    );
    let mesh = shared.mesh.clone();
    metrics.register_readings(
        Kind::Gauge,
        "sluice_mesh_resources",
        "Resources of the mesh that are known, by kind",
        move || {
            let mesh = mesh.load();
            let count = |kind, many: usize| number(many as u64).with("kind", kind);
            vec![
                count("workload", mesh.workloads().count()),
                count("service", mesh.services().count()),
                count("policy", mesh.policies().count()),
            ]
        },
    );
    let terminations = traffic.clone();
    metrics.register_foreign(
        "istio_xds_connection_terminations",
        "Streams from the control plane that ended, by reason",
        "reason",
        move || {
            let all = Termination::ALL.into_iter();
            all.map(|why| (why.name(), terminations.terminations(why)))
                .collect()
        },
    );
    type Column = fn(&sluice_xds::Responses) -> u64;
    let columns: [(&'static str, &'static str, Column); 3] = [
        (
            "istio_xds_message",
            "Responses from the control plane, by the type of their resources",
            |responses| responses.messages,
        ),
        (
            "istio_xds_message_bytes",
            "Bytes of the resources in responses from the control plane, by their type",
            |responses| responses.bytes,
        ),
        (
            "sluice_xds_rejected_resources",
            "Resources from the control plane that were refused, by their type",
            |responses| responses.rejected_resources,
        ),
    ];
    for (name, help, column) in columns {
        let traffic = traffic.clone();
        metrics.register_foreign(name, help, "url", move || {
            let all = traffic.responses();
            all.iter().map(|one| (one.type_url, column(one))).collect()
        });
    }
}

/// Counts the pods of this node that came and went.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pub(super) started: Counter,
    pub(super) stopped: Counter,
}

impl Pods {
    /// Shows them, and how many there are now.
    pub(super) fn show(shared: &Arc<Shared>, members: watch::Receiver<Members>) -> Self {
        let (own, metrics) = (Self::default(), &shared.metrics);
        metrics.register(
            "istio_proxies_started",
            "Pods of this node that joined the mesh",
            own.started.clone(),
        );
        metrics.register(
            "istio_proxies_stopped",
            "Pods of this node that left the mesh",
            own.stopped.clone(),
        );
        let (mesh, identities) = (shared.mesh.clone(), shared.identities.clone());
        let counted = move || {
            let (members, mesh) = (members.borrow(), mesh.load());
            let all = members.all().count();
            let waiting = members.all().filter(|pod| {
                mesh.workload(&pod.uid).is_none() || identities.cached(&pod.identity).is_none()
            });
            let waiting = waiting.count();
            [all - waiting, waiting]
        };
        for (place, name, help) in [
            (
                0,
                "istio_active_proxy_count",
                "Pods of this node that are in the mesh and can be served",
            ),
            (
                1,
                "istio_pending_proxy_count",
                "Pods of this node whose certificate is missing, or that the control plane does not know",
            ),
        ] {
            let counted = counted.clone();
            metrics.register_readings(Kind::Gauge, name, help, move || {
                vec![number(counted()[place] as u64)]
            });
        }
        own
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn number(value: u64) -> Reading {
    Reading::new(value as f64)
}

/// Since 1970.
fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
