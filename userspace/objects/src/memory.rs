//! What a reader of objects remembers across its own restarts.
//!
//! The last good version of a policy has to survive whoever holds it; why is told at
//! [`Policy::stand_in`](sluice_model::authz::Policy::stand_in).

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Kind, ObjectRef, origin::Origin, read::reference};

/// What is known, at a start, of the policies that were in force before.
#[derive(Clone, Debug, Default)]
pub enum Memory {
    /// Nothing is to be remembered: for those who only look on, and enforce no policy.
    #[default]
    Off,
    /// Nothing is known: it is the first start, or what was kept is lost.
    Blank,
    Kept(LastGood),
}

/// The policies in force, as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LastGood {
    pub(crate) policies: Vec<Remembered>,
    pub(crate) stand_ins: Vec<StandIn>,
}

/// A policy's last good version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remembered {
    pub(crate) file: Arc<Path>,
    pub(crate) object: Arc<Value>,
}

/// A policy of which no good version was ever seen, and for which another stands in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StandIn {
    file: Arc<Path>,
    kind: String,
    namespace: String,
    name: String,
}

impl LastGood {
    /// How many policies are remembered.
    pub fn len(&self) -> usize {
        self.policies.len() + self.stand_ins.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Remembered {
    pub(crate) fn origin(&self) -> Option<(Kind, Origin)> {
        let kind = self.object.get("kind")?.as_str()?;
        located(reference(kind, &self.object), &self.file)
    }
}

impl StandIn {
    pub(crate) fn new(origin: &Origin) -> Self {
        let ObjectRef {
            kind,
            namespace,
            name,
        } = &origin.object;
        Self {
            file: origin.file.clone(),
            kind: kind.to_string(),
            namespace: namespace.to_string(),
            name: name.to_string(),
        }
    }

    pub(crate) fn origin(&self) -> Option<(Kind, Origin)> {
        let object = ObjectRef {
            kind: self.kind.as_str().into(),
            namespace: self.namespace.as_str().into(),
            name: self.name.as_str().into(),
        };
        located(object, &self.file)
    }
}

/// The lines are those of a file that has changed since.
fn located(object: ObjectRef, file: &Arc<Path>) -> Option<(Kind, Origin)> {
    let kind = remembered(&object.kind)?;
    let origin = Origin::new(object, file.clone(), crate::origin::Lines::default());
    Some((kind, origin))
}

/// The kind, if objects of it are remembered: those whose loss would let somebody in.
pub(crate) fn remembered(kind: &str) -> Option<Kind> {
    [Kind::AuthorizationPolicy, Kind::PeerAuthentication]
        .into_iter()
        .find(|known| known.name() == kind)
}
