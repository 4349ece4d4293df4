//! WorkloadEntries: machines that are endpoints beside pods.

use sluice_model::Name;

use super::{
    External,
    external::{RawExternal, external},
    labels,
    resource::Resource,
};
use crate::{Code, report::Report};

/// A machine, or anything else that is no pod, with the labels by which services select it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    pub namespace: Name,
    pub name: Name,
    pub external: External,
}

pub(super) fn workload_entry(raw: Resource<RawExternal>, report: &mut Report<'_>) -> WorkloadEntry {
    if raw.spec.is_none() {
        report.error(Code::MissingField, "spec", "a WorkloadEntry needs a spec");
    }
    let mut external = external("spec", raw.spec.unwrap_or_default(), report);
    // Where both say something of a label, the metadata counts.
    external.labels.extend(labels(raw.metadata.labels));
    WorkloadEntry {
        namespace: report.namespace(),
        name: report.name(),
        external,
    }
}
