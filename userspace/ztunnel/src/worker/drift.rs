//! What the broker finds in the kernel that is not as it must be, as metrics.

use sluice_telemetry::metrics::{Counter, Family, Gauge, Metrics};

use crate::link::message::Deviation;

type Label = [(&'static str, &'static str); 1];

/// Counted by the broker, which exports nothing itself.
pub(super) struct DriftMetrics {
    found: Family<Label, Gauge>,
    healed: Family<Label, Counter>,
}

impl DriftMetrics {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let new = Self {
            found: Family::default(),
            healed: Family::default(),
        };
        metrics.register(
            "sluice_drift",
            "What the last check of programs, links and maps in the kernel found changed or missing",
            new.found.clone(),
        );
        metrics.register(
            "sluice_drift_healed",
            "Programs, links and entries of maps that had been changed or removed, and were put right",
            new.healed.clone(),
        );
        new
    }

    pub(super) fn hear(&self, deviations: &[Deviation]) {
        for deviation in deviations {
            let label = [("check", deviation.check.name())];
            let found = self.found.get_or_create(&label);
            found.set(deviation.found.into());
            let healed = self.healed.get_or_create(&label);
            healed.inc_by(deviation.healed.saturating_sub(healed.get()));
        }
    }
}
