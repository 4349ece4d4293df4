//! `/explain?source=…&destination=…`: what would become of a connection.

use std::collections::BTreeSet;

use sluice_explain::{Destination, Explanation, Here, NotUnderstood, Source, World, explain};
use sluice_model::Uid;
use sluice_telemetry::serve::parameter;

use crate::worker::Shared;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("ask as /explain?source=NAMESPACE/POD&destination=NAMESPACE/SERVICE:PORT")]
    Missing,
    #[error("{0}")]
    NotUnderstood(#[from] NotUnderstood),
}

/// Explains by the mesh as it is known now. `enrolled` are the pods of this node.
pub(super) fn answer(
    shared: &Shared,
    enrolled: &BTreeSet<Uid>,
    query: &str,
) -> Result<Explanation, Unanswered> {
    let given = |name| parameter(query, name).ok_or(Unanswered::Missing);
    let source: Source = given("source")?.parse()?;
    let destination: Destination = given("destination")?.parse()?;
    let settings = &shared.settings;
    let world = World {
        mesh: &shared.mesh.load(),
        cluster: &settings.cluster,
        network: &shared.network,
        cluster_domain: &settings.cluster_domain,
        bypass: settings.bypass,
        whole: !settings.on_demand,
        here: Some(Here {
            node: &settings.node,
            enrolled,
        }),
    };
    Ok(explain(world, &source, &destination))
}
