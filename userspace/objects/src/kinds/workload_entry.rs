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
    let mut external = match raw.spec {
        Some(spec) => external("spec", spec, report),
        None => {
            report.error(Code::MissingField, "spec", "a WorkloadEntry needs a spec");
            External::nowhere()
        }
    };
    // Where both say something of a label, the metadata counts.
    external.labels.extend(labels(raw.metadata.labels));
    WorkloadEntry {
        namespace: report.namespace(),
        name: report.name(),
        external,
    }
}
