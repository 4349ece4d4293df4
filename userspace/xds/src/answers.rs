//! What responses answer to those who wait for a name.

use std::collections::HashSet;

use sluice_model::{Mesh, Name};

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
        demand.answered(
            present.map(|(_, name)| &**name),
            self.absent.iter().map(String::as_str),
            mesh,
        );
    }
}
