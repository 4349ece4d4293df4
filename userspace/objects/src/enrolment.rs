//! Which pods are part of the mesh.

use std::path::PathBuf;

use sluice_model::Name;

use crate::{
    Code, Diagnostic, Namespace, Objects, Pod, Severity,
    kinds::{DataplaneMode, Phase},
};

/// A pod that its node's ztunnel must enrol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Enrolment {
    pub namespace: Name,
    pub name: Name,
    pub service_account: Name,
    /// The path of the pod's network namespace.
    pub netns: PathBuf,
    /// Whether its DNS queries are captured, if the pod says so.
    pub dns_capture: Option<bool>,
    /// Whether it takes part in connections that go straight from pod to pod, if it, or else its
    /// namespace, says so.
    pub same_node: Option<bool>,
    /// Whether what it dials that the mesh does not know goes straight out of it, likewise.
    pub bypass: Option<bool>,
}

/// Whether a pod is part of the mesh: its own label `istio.io/dataplane-mode` counts, or else its
/// namespace's. A pod of the host's network never is, and neither is one that has terminated.
pub fn is_enrolled(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    wants_enrolment(pod, namespace) && !pod.host_network
}

fn wants_enrolment(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    let mode = pod
        .dataplane_mode
        .or_else(|| namespace.and_then(|namespace| namespace.dataplane_mode));
    mode == Some(DataplaneMode::Ambient) && pod.phase != Phase::Terminated
}

/// The pods of a node that its ztunnel must enrol, in order, and what keeps others from it.
pub fn pods_to_enrol(objects: &Objects, node: &str) -> (Vec<Enrolment>, Vec<Diagnostic>) {
    let mut enrolments = Vec::new();
    let mut diagnostics = Vec::new();
    for pod in objects.pods.values().filter(|pod| *pod.node == *node) {
        let namespace = objects.namespace(&pod.namespace);
        if !wants_enrolment(pod, namespace) {
            continue;
        }
        let refusal = match &pod.netns {
            _ if pod.host_network => {
                let message = "a pod of the host's network cannot be enrolled";
                pod.origin.diagnostic(
                    Severity::Warning,
                    Code::CannotEnrol,
                    "spec.hostNetwork",
                    message,
                )
            }
            None => pod.origin.diagnostic(
                Severity::Error,
                Code::CannotEnrol,
                "metadata.annotations[\"sluice.io/netns\"]",
                "an enrolled pod needs the path of its network namespace, such as /run/netns/NAME",
            ),
            Some(netns) => {
                enrolments.push(Enrolment {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    service_account: pod.service_account.clone(),
                    netns: netns.clone(),
                    dns_capture: pod.dns_capture,
                    same_node: pod
                        .same_node
                        .or_else(|| namespace.and_then(|namespace| namespace.same_node)),
                    bypass: pod
                        .bypass
                        .or_else(|| namespace.and_then(|namespace| namespace.bypass)),
                });
                continue;
            }
        };
        diagnostics.push(refusal);
    }
    (enrolments, diagnostics)
}

#[cfg(test)]
#[path = "enrolment_tests.rs"]
mod tests;
