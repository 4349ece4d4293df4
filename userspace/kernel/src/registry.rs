//! The addresses that the mesh knows, for pods that may go nowhere else, and for those of which
//! nothing else is captured.

use std::{net::IpAddr, time::Duration};

use aya::maps::{HashMap, LpmTrie, MapData, lpm_trie::Key};
use ipnet::IpNet;
use sluice_abi::{
    Ip,
    maps::{self, Block},
};

use crate::{
    EnrolledPod, Error, Kernel,
    error::{found, removed},
};

pub(crate) const REGISTRY: &str = "REGISTRY";
pub(crate) const RANGES: &str = "RANGES";

/// Where a pod may connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    /// Anywhere, by the ztunnel.
    #[default]
    Anywhere,
    /// Anywhere, and straight to addresses that the kernel was not told of by [`Kernel::know`], as
    /// long as [`Kernel::vouch_for_list`] holds.
    Bypass,
    /// To addresses that the kernel was told of by [`Kernel::know`], and to the pod itself.
    Registry,
}

impl Outbound {
    pub(crate) fn flags(self) -> u32 {
        match self {
            Self::Anywhere => 0,
            Self::Bypass => maps::BYPASS,
            Self::Registry => maps::REGISTRY_ONLY,
        }
    }

    pub(crate) fn of(flags: u32) -> Self {
        if flags & maps::REGISTRY_ONLY != 0 {
            Self::Registry
        } else if flags & maps::BYPASS != 0 {
            Self::Bypass
        } else {
            Self::Anywhere
        }
    }
}

/// Each address and range carries the number of the list that it was last in, so that what an
/// earlier list left can be told apart, also by the next broker.
pub(crate) struct Registry {
    single: HashMap<MapData, Ip, u32>,
    ranges: LpmTrie<MapData, Block, u32>,
    list: u32,
}

impl Registry {
    pub(crate) fn new(
        single: HashMap<MapData, Ip, u32>,
        ranges: LpmTrie<MapData, Block, u32>,
    ) -> Self {
        let of_single = single.iter().filter_map(Result::ok).map(|(_, list)| list);
        let of_ranges = ranges.iter().filter_map(Result::ok).map(|(_, list)| list);
        let list = of_single.chain(of_ranges).max().unwrap_or(0);
        Self {
            single,
            ranges,
            list,
        }
    }

    fn insert(&mut self, net: &IpNet) -> Result<(), Error> {
        match single(net) {
            Some(ip) => self
                .single
                .insert(ip, self.list, 0)
                .map_err(Error::map(REGISTRY)),
            None => self
                .ranges
                .insert(&block(net), self.list, 0)
                .map_err(Error::map(RANGES)),
        }
    }

    fn remove(&mut self, net: &IpNet) -> Result<(), Error> {
        match single(net) {
            Some(ip) => removed(REGISTRY, self.single.remove(&ip)),
            None => removed(RANGES, self.ranges.remove(&block(net))),
        }
    }

    fn remove_stale(&mut self) -> Result<(), Error> {
        let entries = self.single.iter().filter_map(Result::ok);
        let stale: Vec<Ip> = entries
            .filter(|(_, list)| *list != self.list)
            .map(|(ip, _)| ip)
            .collect();
        let entries = self.ranges.iter().filter_map(Result::ok);
        let stale_ranges: Vec<Key<Block>> = entries
            .filter(|(_, list)| *list != self.list)
            .map(|(block, _)| block)
            .collect();
        for ip in &stale {
            removed(REGISTRY, self.single.remove(ip))?;
        }
        for block in &stale_ranges {
            removed(RANGES, self.ranges.remove(block))?;
        }
        Ok(())
    }
}

/// The address that a range of one holds.
fn single(net: &IpNet) -> Option<Ip> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr().into())
}

fn block(net: &IpNet) -> Key<Block> {
    let block = Block::new(net.network().into());
    Key::new(block.bits(u32::from(net.prefix_len())), block)
}

impl Kernel {
    /// Begins a new list. What earlier ones named is known until [`Self::end_list`].
    pub fn begin_list(&mut self) {
        self.registry.list = self.registry.list.wrapping_add(1);
    }

    /// Adds addresses, single ones and ranges, that the mesh knows to the list.
    ///
    /// # Errors
    /// The kernel's, as when there are too many; those before are known then.
    pub fn know(&mut self, nets: &[IpNet]) -> Result<(), Error> {
        nets.iter().try_for_each(|net| self.registry.insert(net))
    }

    /// Takes addresses that the mesh knows no more from the list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget(&mut self, nets: &[IpNet]) -> Result<(), Error> {
        nets.iter().try_for_each(|net| self.registry.remove(net))
    }

    /// Forgets what is not in the newest list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_list(&mut self) -> Result<(), Error> {
        self.registry.remove_stale()
    }

    /// Says where a pod may connect to, from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_outbound(&mut self, pod: &EnrolledPod, outbound: Outbound) -> Result<(), Error> {
        self.set_flags(pod, maps::REGISTRY_ONLY | maps::BYPASS, outbound.flags())
    }

    /// Whether the kernel was told of an address, by itself or in a range.
    ///
    /// # Errors
    /// The kernel's.
    pub fn knows(&self, ip: IpAddr) -> Result<bool, Error> {
        let Registry { single, ranges, .. } = &self.registry;
        let ip = Ip::from(ip);
        let range = Key::new(Block::WHOLE, Block::new(ip));
        Ok(found(REGISTRY, single.get(&ip, 0))? || found(RANGES, ranges.get(&range, 0))?)
    }

    /// Says that the list is all that the mesh knows, for as long as this from now; no time ends it
    /// at once, and everything is captured.
    ///
    /// # Errors
    /// The kernel's.
    pub fn vouch_for_list(&mut self, length: Duration) -> Result<(), Error> {
        self.put_off(maps::CONFIG_KNOWN_UNTIL, length)
    }
}
