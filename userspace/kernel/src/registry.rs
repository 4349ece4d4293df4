//! The addresses that the mesh knows, for pods that may go nowhere else.

use std::{io::ErrorKind, net::IpAddr};

use aya::maps::{HashMap, MapData, MapError};
use sluice_abi::{Ip, maps};

use crate::{EnrolledPod, Error, Kernel};

pub(crate) const REGISTRY: &str = "REGISTRY";

/// Where a pod may connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    #[default]
    Anywhere,
    /// To addresses that the kernel was told of by [`Kernel::know`], and to the pod itself.
    Registry,
}

impl Outbound {
    pub(crate) fn flags(self) -> u32 {
        match self {
            Self::Anywhere => 0,
            Self::Registry => maps::REGISTRY_ONLY,
        }
    }

    pub(crate) fn of(flags: u32) -> Self {
        if flags & maps::REGISTRY_ONLY == 0 {
            Self::Anywhere
        } else {
            Self::Registry
        }
    }
}

/// Each address carries the number of the list that it was last in, so that what an earlier list
/// left can be told apart, also by the next broker.
pub(crate) struct Registry {
    map: HashMap<MapData, Ip, u32>,
    list: u32,
}

impl Registry {
    pub(crate) fn new(map: HashMap<MapData, Ip, u32>) -> Self {
        let entries = map.iter().filter_map(Result::ok);
        let list = entries.map(|(_, list)| list).max().unwrap_or(0);
        Self { map, list }
    }

    fn remove(&mut self, ip: &Ip) -> Result<(), Error> {
        match self.map.remove(ip) {
            Err(MapError::SyscallError(e)) if e.io_error.kind() == ErrorKind::NotFound => Ok(()),
            result => result.map_err(Error::map(REGISTRY)),
        }
    }
}

impl Kernel {
    /// Begins a new list. What earlier ones named is known until [`Self::end_list`].
    pub fn begin_list(&mut self) {
        self.registry.list = self.registry.list.wrapping_add(1);
    }

    /// Adds addresses that the mesh knows to the list.
    ///
    /// # Errors
    /// The kernel's, as when there are too many; those before are known then.
    pub fn know(&mut self, ips: &[IpAddr]) -> Result<(), Error> {
        let list = self.registry.list;
        ips.iter()
            .try_for_each(|ip| self.registry.map.insert(Ip::from(*ip), list, 0))
            .map_err(Error::map(REGISTRY))
    }

    /// Takes addresses that the mesh knows no more from the list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget(&mut self, ips: &[IpAddr]) -> Result<(), Error> {
        ips.iter()
            .try_for_each(|ip| self.registry.remove(&Ip::from(*ip)))
    }

    /// Forgets what is not in the newest list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_list(&mut self) -> Result<(), Error> {
        let registry = &mut self.registry;
        let entries = registry.map.iter().filter_map(Result::ok);
        let stale: Vec<Ip> = entries
            .filter(|(_, list)| *list != registry.list)
            .map(|(ip, _)| ip)
            .collect();
        stale.iter().try_for_each(|ip| registry.remove(ip))
    }

    /// Says where a pod may connect to, from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_outbound(&mut self, pod: &EnrolledPod, outbound: Outbound) -> Result<(), Error> {
        let value = maps::Pod {
            slot: pod.slot,
            flags: outbound.flags(),
        };
        if self.pods.get(&pod.cookie, 0).is_ok_and(|now| now == value) {
            return Ok(());
        }
        self.pods
            .insert(pod.cookie, value, 0)
            .map_err(Error::map("PODS"))
    }
}
