//! What responses answer to those who wait for a name.

use std::collections::HashSet;

use sluice_model::{Mesh, Name, Uid};

use crate::{
    demand::Demand,
    store::{Kind, Response},
};

/// What responses say of names that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Resources, and the names that they answer to.
    present: Vec<(Name, Name)>,
    absent: Vec<String>,
}

impl Answers {
    pub(crate) fn of(responses: &[(Kind, Response)]) -> Self {
        let mut answers = Self::default();
        for (_, response) in responses.iter().filter(|(kind, _)| *kind == Kind::Address) {
            let own = response.resources.iter().map(|resource| {
                let name = resource.name();
                (name.clone(), name)
            });
            let aliases = response.aliases.iter();
            let aliases = aliases
                .map(|(place, alias)| (response.resources[*place].name(), alias.as_str().into()));
            answers.present.extend(own.chain(aliases));
            answers
                .absent
                .extend(response.envelope.removed.iter().cloned());
        }
        answers
    }

    /// Tells those who wait. What was refused answers nothing.
    pub(crate) fn tell(&self, demand: &Demand, rejected: HashSet<&str>, mesh: &Mesh) {
        let present = self.present.iter();
        let present = present.filter(|(own, _)| !rejected.contains(&**own));
        let (shared, present): (Vec<_>, Vec<_>) =
            present.partition(|(own, name)| own != name && shares_its_address(mesh, own));
        let removed = self.absent.iter().map(String::as_str);
        demand.answered(
            present.into_iter().map(|(_, name)| &**name),
            removed.chain(shared.into_iter().map(|(_, name)| &**name)),
            mesh,
        );
    }
}

/// Whether a resource's address does not name it: that of a node, say, which istiod gives as another
/// name of every pod of the host's network all the same. There is nothing more to know of such an
/// address, as where the mesh is known whole.
fn shares_its_address(mesh: &Mesh, own: &Name) -> bool {
    mesh.workload(&Uid(own.clone()))
        .is_some_and(|workload| workload.host_network)
}
