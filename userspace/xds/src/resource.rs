//! One resource of a response, understood on its own.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use sluice_model::{
    Interner, Name, Update, Workload,
    authz::{Policy, Scope},
};
use sluice_proto::{convert::names, discovery, security, workload};

use crate::{store::Kind, version::Version};

/// A resource that has arrived, before its response is whole: small, since there is one for each
/// workload of the mesh.
#[derive(Debug)]
pub(crate) enum Resource {
    Workload(Arc<Workload>, Version),
    Other(Box<Result<(Update, Version), Refused>>),
}

const _: () = assert!(size_of::<Resource>() <= 24);

/// A resource that was not understood.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) name: String,
    /// The type that it says it is of, where that is known here.
    of: Option<Kind>,
    pub(crate) reason: String,
    /// What is in force in its place if it is a policy, and nothing else is.
    pub(crate) stand_in: Option<Policy>,
}

impl Resource {
    /// Understands the bytes of a `Resource`, which is number `place` of its response; with the
    /// other names that it answers to.
    pub(crate) fn parse(
        place: usize,
        bytes: Bytes,
        interner: &mut Interner,
    ) -> (Self, Vec<String>) {
        match discovery::Resource::decode(bytes) {
            Ok(mut resource) => {
                let aliases = std::mem::take(&mut resource.aliases);
                (Self::of(resource, interner), aliases)
            }
            Err(error) => (Self::nameless(place, error.to_string()), Vec::new()),
        }
    }

    fn of(resource: discovery::Resource, interner: &mut Interner) -> Self {
        match understand(&resource) {
            Ok(Update::Workload(workload)) => {
                Self::Workload(interner.share(workload), resource.version.into())
            }
            Ok(Update::Service(service)) => {
                let update = Update::Service(interner.share_service(service));
                Self::Other(Box::new(Ok((update, resource.version.into()))))
            }
            Ok(update) => Self::Other(Box::new(Ok((update, resource.version.into())))),
            Err(reason) => {
                let stand_in = stand_in(&resource);
                let content = resource.resource.as_ref();
                Self::Other(Box::new(Err(Refused {
                    of: content.and_then(|any| Kind::of(&any.type_url)),
                    name: resource.name,
                    reason,
                    stand_in,
                })))
            }
        }
    }

    /// One of so many bytes that they were not kept.
    pub(crate) fn too_large(place: usize, length: usize) -> Self {
        Self::nameless(place, format!("{length} bytes are too many"))
    }

    fn nameless(place: usize, reason: String) -> Self {
        Self::Other(Box::new(Err(Refused {
            name: format!("resource {place}"),
            of: None,
            reason,
            stand_in: None,
        })))
    }

    /// Its name in a response, if that can be said.
    pub(crate) fn name(&self) -> Name {
        match self {
            Self::Workload(workload, _) => workload.uid.0.clone(),
            Self::Other(other) => match &**other {
                Ok((update, _)) => name_of(update),
                Err(refused) => refused.name.as_str().into(),
            },
        }
    }

    /// The update that it stands for in a response of this type, with its name and version.
    pub(crate) fn into_update(self, kind: Kind) -> Result<(Update, Name, Version), Refused> {
        let name = self.name();
        let (update, version) = match self {
            Self::Workload(workload, version) => (Update::Workload(workload), version),
            Self::Other(other) => match *other {
                Ok(other) => other,
                Err(mut refused) => {
                    if let Some(other) = refused.of.filter(|of| *of != kind) {
                        refused.reason = not_asked_for(other.type_url());
                    }
                    return Err(refused);
                }
            },
        };
        let of = match update {
            Update::Workload(_) | Update::Service(_) => Kind::Address,
            _ => Kind::Authorization,
        };
        if of == kind {
            return Ok((update, name, version));
        }
        let stand_in = |key| Policy::stand_in(key, Scope::Namespace);
        Err(Refused {
            of: Some(of),
            reason: not_asked_for(of.type_url()),
            stand_in: names::parse_policy(&name).map(stand_in),
            name: name.to_string(),
        })
    }
}

fn not_asked_for(type_url: &str) -> String {
    format!("{type_url} is not the type asked for")
}

/// The update that a resource stands for, or the reason why there is none.
fn understand(resource: &discovery::Resource) -> Result<Update, String> {
    let Some(content) = &resource.resource else {
        return Err("it has no content".to_owned());
    };
    let update = match Kind::of(&content.type_url) {
        Some(Kind::Address) => workload::Address::decode(&*content.value)
            .map_err(|e| e.to_string())?
            .try_into(),
        Some(Kind::Authorization) => security::Authorization::decode(&*content.value)
            .map_err(|e| e.to_string())
            .map(Policy::try_from)?
            .map(Update::Policy),
        None => return Err(not_asked_for(&content.type_url)),
    };
    let update = update.map_err(|e| e.to_string())?;
    // A resource is removed by its name, so that must lead to what it holds.
    let holds = name_of(&update);
    if *holds != *resource.name {
        return Err(format!("it holds {holds}, which is another name"));
    }
    Ok(update)
}

/// What is in force in place of a policy that was not understood, as [`Policy::stand_in`] explains.
/// `None` when it is one that never decides, or no policy at all.
fn stand_in(resource: &discovery::Resource) -> Option<Policy> {
    let key = names::parse_policy(&resource.name)?;
    let content = resource.resource.as_ref();
    let message = content.and_then(|any| security::Authorization::decode(&*any.value).ok());
    if message.as_ref().is_some_and(|message| message.dry_run) {
        return None;
    }
    let scope = message.map(|message| security::Scope::try_from(message.scope));
    let scope = match scope {
        Some(Ok(security::Scope::Global)) => Scope::Global,
        Some(Ok(security::Scope::WorkloadSelector)) => Scope::Workload,
        Some(Ok(security::Scope::Namespace) | Err(_)) | None => Scope::Namespace,
    };
    Some(Policy::stand_in(key, scope))
}

/// The name under which what an update holds travels.
fn name_of(update: &Update) -> Name {
    match update {
        Update::Workload(workload) => workload.uid.0.clone(),
        Update::Service(service) => service.key().to_string().into(),
        Update::Policy(policy) => policy.key.to_string().into(),
        Update::RemoveWorkload(uid) => uid.0.clone(),
        Update::RemoveService(key) => key.to_string().into(),
        Update::RemovePolicy(key) => key.to_string().into(),
    }
}
