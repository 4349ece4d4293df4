//! What Sluice adds to resources of the contracts.

use prost::Message;
use prost_types::Any;

use super::Problem;
use crate::{extension::*, workload::Extension};

/// A message that can be an extension.
pub(super) trait Named: Message + Default {
    /// Names the extension within its resource.
    const NAME: &'static str;
    const TYPE_URL: &'static str;
}

impl Named for Workload {
    const NAME: &'static str = "sluice.io/workload";
    const TYPE_URL: &'static str = "type.googleapis.com/sluice.extension.Workload";
}

impl Named for Audit {
    const NAME: &'static str = "sluice.io/audit";
    const TYPE_URL: &'static str = "type.googleapis.com/sluice.extension.Audit";
}

/// The extension of this kind, if the resource has it.
pub(super) fn find<T: Named>(extensions: &[Extension]) -> Result<Option<T>, Problem> {
    let found = extensions
        .iter()
        .find(|extension| extension.name == T::NAME);
    let config = found.map(|extension| extension.config.clone().unwrap_or_default());
    config
        .map(|any| match any.type_url == T::TYPE_URL {
            true => T::decode(&*any.value).map_err(|_| Problem::Extension(T::NAME)),
            false => Err(Problem::Extension(T::NAME)),
        })
        .transpose()
}

/// The message as an extension.
pub(super) fn extension<T: Named>(message: &T) -> Extension {
    Extension {
        name: T::NAME.to_owned(),
        config: Some(Any {
            type_url: T::TYPE_URL.to_owned(),
            value: message.encode_to_vec(),
        }),
    }
}
