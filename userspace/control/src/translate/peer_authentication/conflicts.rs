//! PeerAuthentications for the same workloads: the oldest counts, and the others are reported.

use sluice_objects::{
    Code, Diagnostic, Pod, Severity,
    kinds::{Target, selects},
};

use super::{Peer, Scopes};

impl Scopes<'_> {
    /// A warning for each one that does not count, or not for every pod that it selects.
    pub(super) fn conflicts<'p>(
        &self,
        pods: impl Iterator<Item = &'p Pod> + Clone,
    ) -> Vec<Diagnostic> {
        let superseded = self.superseded.iter().map(|(loser, winner)| {
            let message = format!("has no effect: {}", counts_instead(winner, loser));
            warning(loser, "", message)
        });
        let overlapping = self.selectors.iter().enumerate().filter_map(|(i, loser)| {
            let of_loser = pods.clone().filter(|pod| is_for(loser, pod));
            overlap(loser, &self.selectors[..i], of_loser)
        });
        superseded.chain(overlapping).collect()
    }
}

/// What an earlier one with a selector takes from a later one.
fn overlap<'p>(
    loser: &Peer,
    earlier: &[&Peer],
    pods: impl Iterator<Item = &'p Pod>,
) -> Option<Diagnostic> {
    let mut lost = Vec::new();
    let mut count = 0;
    for pod in pods {
        count += 1;
        let winner = earlier.iter().find(|peer| is_for(peer, pod));
        lost.extend(winner.map(|winner| (pod, *winner)));
    }
    let (pod, winner) = lost.first()?;
    let scope = if lost.len() == count {
        "has no effect".to_owned()
    } else {
        format!(
            "has no effect on {} of {count} pods, {}/{} among them",
            lost.len(),
            pod.namespace,
            pod.name
        )
    };
    let message = format!("{scope}: {}", counts_instead(winner, loser));
    Some(warning(loser, "spec.selector", message))
}

pub(super) fn is_for(peer: &Peer, pod: &Pod) -> bool {
    let Target::Selector(labels) = &peer.target else {
        return false;
    };
    peer.namespace == pod.namespace && selects(labels, &pod.labels)
}

fn counts_instead(winner: &Peer, loser: &Peer) -> String {
    let origin = &winner.origin;
    let why = match (winner.created, loser.created) {
        (Some(winner), Some(loser)) if winner < loser => "it is older",
        (Some(_), None) => "it has a creationTimestamp and this one has none",
        _ => "it comes first by name",
    };
    format!(
        "{} ({}:{}) is for the same workloads and counts, because {why}",
        origin.object,
        origin.file.display(),
        origin.line()
    )
}

fn warning(loser: &Peer, field: &str, message: String) -> Diagnostic {
    let severity = Severity::Warning;
    loser
        .origin
        .diagnostic(severity, Code::Conflicted, field, message)
}
