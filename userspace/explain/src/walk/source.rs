//! Who connects.

use std::{net::IpAddr, sync::Arc};

use sluice_model::{SpiffeId, Workload};

use super::{Stop, Walk, of_family, unknown};
use crate::{
    Kind, Source,
    who::{MISSING, Membership},
};

/// Who connects.
pub(super) struct From<'a> {
    pub(super) workload: Option<&'a Arc<Workload>>,
    /// Where nobody is known.
    address: Option<IpAddr>,
    /// Of whom is captured.
    pub(super) captured: Option<(&'a Arc<Workload>, SpiffeId)>,
}

impl From<'_> {
    /// Its address for a connection to one of this family.
    pub(super) fn ip(&self, v4: bool) -> Option<IpAddr> {
        match self.workload {
            Some(workload) => of_family(&workload.ips, v4),
            None => self.address,
        }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn source(&mut self, source: &Source) -> Result<From<'a>, Stop> {
        let world = self.world;
        let (workload, address) = match source {
            Source::Pod { namespace, name } => (Some(self.pod(namespace, name)?), None),
            Source::Address(ip) => (world.mesh.workload_at(world.network, *ip), Some(*ip)),
            Source::Outside => (None, None),
        };
        let Some(workload) = workload else {
            let who = match address {
                Some(ip) => format!("{ip}, which is nobody the mesh knows"),
                None => "somebody outside the mesh".to_owned(),
            };
            self.say(Kind::Source, format!("{who}: it has no identity"));
            return Ok(From {
                workload: None,
                address,
                captured: None,
            });
        };
        self.say(Kind::Source, world.describe(workload));
        let captured = match world.membership(workload) {
            Membership::Member => {
                let identity = workload.identity().map_err(|error| {
                    unknown(format!("the source has no identity that can be: {error}"))
                })?;
                Some((workload, identity))
            }
            Membership::Missing => {
                self.say(Kind::Note, MISSING);
                None
            }
            Membership::Stranger => None,
        };
        Ok(From {
            workload: Some(workload),
            address,
            captured,
        })
    }
}
