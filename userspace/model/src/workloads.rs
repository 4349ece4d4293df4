//! All workloads of a mesh: found by uid and by address, and small.
//!
//! Each has a slot; the indices hold slots alone, and compare with what is in them. Slots come in
//! chunks that snapshots share, so that the next snapshot copies the chunks that change.

use std::{hash::BuildHasher as _, net::IpAddr, sync::Arc};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::{Name, Uid, Workload, policies::ListId};

/// Where a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u32);

impl Slot {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A workload, and what the mesh knows beside it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) workload: Arc<Workload>,
    /// The policies that it lists.
    pub(crate) listed: Option<ListId>,
}

/// One of the addresses of a workload.
#[derive(Clone, Copy, Debug)]
struct Address {
    slot: Slot,
    /// Its place among them.
    index: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Workloads {
    chunks: Vec<Arc<[Option<Entry>; CHUNK]>>,
    free: Vec<Slot>,
    by_uid: HashTable<Slot>,
    by_address: HashTable<Address>,
    hasher: RandomState,
}

/// How many slots a chunk has: a power of two that keeps both the copy of a chunk and the number of
/// chunks small.
const CHUNK: usize = 128;

impl Workloads {
    pub(crate) fn len(&self) -> usize {
        self.by_uid.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        let slots = self.chunks.iter().flat_map(|chunk| chunk.iter());
        slots.flatten().map(|entry| &entry.workload)
    }

    pub(crate) fn get(&self, uid: &Uid) -> Option<&Entry> {
        self.at(self.slot(uid)?)
    }

    pub(crate) fn slot(&self, uid: &Uid) -> Option<Slot> {
        let is_it = |slot: &Slot| {
            self.at(*slot)
                .is_some_and(|entry| entry.workload.uid == *uid)
        };
        self.by_uid.find(self.hasher.hash_one(uid), is_it).copied()
    }

    pub(crate) fn at(&self, slot: Slot) -> Option<&Entry> {
        let slot = slot.index();
        self.chunks.get(slot / CHUNK)?[slot % CHUNK].as_ref()
    }

    /// The workload that has an address.
    pub(crate) fn by_address(&self, network: &Name, ip: IpAddr) -> Option<&Arc<Workload>> {
        let hash = self.hasher.hash_one(ip);
        let found = self.by_address.find(hash, |address| {
            let workload = self.at(address.slot).map(|entry| &entry.workload);
            workload.is_some_and(|w| w.ips[address.index as usize] == ip && w.network == *network)
        });
        found
            .and_then(|address| self.at(address.slot))
            .map(|entry| &entry.workload)
    }

    /// The addresses of a network that name a workload which the other has not, or not as it is
    /// here. What names a workload is in the same chunk, so that one which both share is passed over.
    pub(crate) fn addresses_beyond<'a>(
        &'a self,
        other: &'a Self,
        network: &'a Name,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        let chunks = self.chunks.iter().enumerate();
        let chunks = chunks.filter(|(place, chunk)| {
            let theirs = other.chunks.get(*place);
            !theirs.is_some_and(|theirs| Arc::ptr_eq(chunk, theirs))
        });
        let workloads = chunks.flat_map(|(_, chunk)| chunk.iter().flatten());
        let ips = workloads.flat_map(|entry| entry.workload.ips.iter().copied());
        ips.filter(|ip| self.by_address(network, *ip).is_some())
    }

    /// How many addresses name a workload.
    pub(crate) fn address_count(&self) -> usize {
        self.by_address.len()
    }

    /// Adds a workload, whose uid must not be there. An address that another one has is its own from
    /// now on.
    pub(crate) fn insert(&mut self, entry: Entry) -> Slot {
        let workload = entry.workload.clone();
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = Slot((self.chunks.len() * CHUNK) as u32);
            self.chunks.push(Arc::new([const { None }; CHUNK]));
            // Taken from the end, so in ascending order.
            self.free
                .extend((1..CHUNK as u32).rev().map(|i| Slot(slot.0 + i)));
            slot
        });
        *self.place(slot) = Some(entry);
        let hash = self.hasher.hash_one(&workload.uid);
        let (chunks, hasher) = (&self.chunks, &self.hasher);
        self.by_uid.insert_unique(hash, slot, |slot| {
            hasher.hash_one(&occupied(chunks, *slot).workload.uid)
        });
        // A pod of the host's network shares its address with the node and with other such pods:
        // the address does not name it.
        if !workload.host_network {
            for index in 0..workload.ips.len() {
                self.insert_address(
                    &workload,
                    Address {
                        slot,
                        index: index as u32,
                    },
                );
            }
        }
        slot
    }

    fn insert_address(&mut self, workload: &Workload, address: Address) {
        let (chunks, hasher) = (&self.chunks, &self.hasher);
        let ip_of = |a: &Address| occupied(chunks, a.slot).workload.ips[a.index as usize];
        let ip = workload.ips[address.index as usize];
        let same = |other: &Address| {
            ip_of(other) == ip && occupied(chunks, other.slot).workload.network == workload.network
        };
        let rehash = |address: &Address| hasher.hash_one(ip_of(address));
        let hash = hasher.hash_one(ip);
        *self
            .by_address
            .entry(hash, same, rehash)
            .or_insert(address)
            .get_mut() = address;
    }

    pub(crate) fn remove(&mut self, uid: &Uid) -> Option<(Slot, Entry)> {
        let slot = self.slot(uid)?;
        let hash = self.hasher.hash_one(uid);
        if let Ok(found) = self.by_uid.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        let entry = self.place(slot).take()?;
        for (index, ip) in entry.workload.ips.iter().enumerate() {
            let hash = self.hasher.hash_one(ip);
            // Another workload may have taken the address over.
            let own = |other: &Address| other.slot == slot && other.index as usize == index;
            if let Ok(found) = self.by_address.find_entry(hash, own) {
                found.remove();
            }
        }
        self.free.push(slot);
        Some((slot, entry))
    }

    fn place(&mut self, slot: Slot) -> &mut Option<Entry> {
        let slot = slot.index();
        &mut Arc::make_mut(&mut self.chunks[slot / CHUNK])[slot % CHUNK]
    }
}

/// What is in a slot that an index refers to.
fn occupied(chunks: &[Arc<[Option<Entry>; CHUNK]>], slot: Slot) -> &Entry {
    let slot = slot.index();
    let entry = &chunks[slot / CHUNK][slot % CHUNK];
    entry.as_ref().expect("an index refers to no empty slot")
}
