//! Which object people think of when they see a pod.

use sluice_model::{Name, workload::OwnerKind};
use sluice_objects::Pod;

/// The label that carries the hash at the end of a ReplicaSet's name.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// The Deployment, CronJob or other owner of a pod, or the pod itself.
pub(super) fn of(pod: &Pod) -> (OwnerKind, Name) {
    let Some(owner) = &pod.owner else {
        return (OwnerKind::Pod, pod.name.clone());
    };
    match owner.kind.as_ref() {
        "ReplicaSet" => {
            let hash = pod.labels.get(TEMPLATE_HASH);
            let deployment = hash
                .and_then(|hash| owner.name.strip_suffix(hash.as_ref())?.strip_suffix('-'))
                .filter(|deployment| !deployment.is_empty());
            // Without a template hash, nobody but the ReplicaSet's author made it.
            match deployment {
                Some(deployment) => (OwnerKind::Deployment, deployment.into()),
                None => (OwnerKind::Pod, owner.name.clone()),
            }
        }
        "Deployment" => (OwnerKind::Deployment, owner.name.clone()),
        "Job" => match scheduled_by(&owner.name) {
            Some(cron_job) => (OwnerKind::CronJob, cron_job.into()),
            None => (OwnerKind::Job, owner.name.clone()),
        },
        "CronJob" => (OwnerKind::CronJob, owner.name.clone()),
        _ => (OwnerKind::Pod, owner.name.clone()),
    }
}

/// A CronJob names its Jobs `NAME-MINUTES`, with the minutes since 1970 in eight to ten digits.
fn scheduled_by(job: &str) -> Option<&str> {
    let (cron_job, time) = job.rsplit_once('-')?;
    let is_time = (8..=10).contains(&time.len()) && time.bytes().all(|c| c.is_ascii_digit());
    (is_time && !cron_job.is_empty()).then_some(cron_job)
}
