//! Which service an address belongs to.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{NetworkAddress, NetworkRange, Service};

/// The virtual addresses of all services, single ones and ranges.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vips {
    by_address: Claims<NetworkAddress>,
    by_range: Claims<NetworkRange>,
    /// How many ranges there are of each length of prefix.
    lengths: BTreeMap<u8, usize>,
}

/// The services of each address, in the order of their keys: where several claim one, the first has
/// it on every node, whatever came first.
type Claims<K> = HashMap<K, Arc<[Arc<Service>]>>;

impl Vips {
    pub(crate) fn insert(&mut self, service: &Arc<Service>) {
        for vip in &service.vips {
            claim(&mut self.by_address, vip, service);
        }
        for range in &service.ranges {
            if claim(&mut self.by_range, range, service) {
                *self.lengths.entry(range.range.prefix_len()).or_default() += 1;
            }
        }
    }

    pub(crate) fn remove(&mut self, service: &Service) {
        for vip in &service.vips {
            release(&mut self.by_address, vip, service);
        }
        for range in &service.ranges {
            let length = range.range.prefix_len();
            if release(&mut self.by_range, range, service)
                && let Some(count) = self.lengths.get_mut(&length)
            {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
    }

    /// Every single address.
    pub(crate) fn addresses(&self) -> impl ExactSizeIterator<Item = &NetworkAddress> {
        self.by_address.keys()
    }

    /// Every range.
    pub(crate) fn ranges(&self) -> impl ExactSizeIterator<Item = &NetworkRange> {
        self.by_range.keys()
    }

    pub(crate) fn has_range(&self, range: &NetworkRange) -> bool {
        self.by_range.contains_key(range)
    }

    /// The service of just this address.
    pub(crate) fn exact(&self, address: &NetworkAddress) -> Option<&Arc<Service>> {
        self.by_address.get(address)?.first()
    }

    /// The service with the longest prefix of this address.
    pub(crate) fn within(&self, address: &NetworkAddress) -> Option<&Arc<Service>> {
        self.lengths.keys().rev().find_map(|length| {
            // Longer prefixes than an IPv4 address has are IPv6's.
            let range = IpNet::new(address.ip, *length).ok()?;
            let range = NetworkRange::new(address.network.clone(), range);
            self.by_range.get(&range)?.first()
        })
    }
}

/// Whether nobody had claimed it before.
fn claim<K: Clone + Eq + Hash>(claims: &mut Claims<K>, key: &K, service: &Arc<Service>) -> bool {
    let known = claims.get(key);
    let new = known.is_none();
    let others = known.iter().flat_map(|services| services.iter());
    // A service may name an address twice.
    let others = others.filter(|other| other.key() != service.key());
    let mut all: Vec<Arc<Service>> = others.chain([service]).cloned().collect();
    all.sort_by_key(|service| service.key());
    claims.insert(key.clone(), all.into());
    new
}

/// Whether nobody claims it any more.
fn release<K: Clone + Eq + Hash>(claims: &mut Claims<K>, key: &K, service: &Service) -> bool {
    let Some(known) = claims.get_mut(key) else {
        return false;
    };
    let own = service.key();
    let left: Arc<[Arc<Service>]> = known
        .iter()
        .filter(|other| other.key() != own)
        .cloned()
        .collect();
    if left.is_empty() {
        claims.remove(key);
        return true;
    }
    *known = left;
    false
}
