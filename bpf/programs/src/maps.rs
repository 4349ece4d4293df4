//! All maps. Keys, values and sizes are explained in `sluice_abi::maps`.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap, lpm_trie::Key},
};
use sluice_abi::{
    Addr, Ip,
    flows::{FLOW_PATHS, FlowStats},
    maps::{
        Authorized, Block, CONFIG_LEN, Dial, EVENTS_BYTES, MAX_ASKING, MAX_DIALS, MAX_PENDING,
        MAX_POD_ADDRESSES, MAX_PODS, MAX_RANGES, MAX_REGISTRY, OrigDst, Pair, Pod, PodIp, Query,
        Servers, Tuple,
    },
    verdict::{REASONS, Reason},
};

/// Network namespace cookie → enrolled pod. Membership is enrolment.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(MAX_PODS, 0);

/// Address → the enrolled pod that owns it.
#[map]
pub static POD_IPS: HashMap<Ip, PodIp> = HashMap::with_max_entries(MAX_POD_ADDRESSES, 0);

/// Addresses that the mesh knows → the list by which it was told of them. Empty where nobody asks, so
/// entries take memory only when they are there.
#[map]
pub static REGISTRY: HashMap<Ip, u32> = HashMap::with_max_entries(MAX_REGISTRY, BPF_F_NO_PREALLOC);

/// The same for whole ranges of addresses.
#[map]
pub static RANGES: LpmTrie<Block, u32> = LpmTrie::with_max_entries(MAX_RANGES, BPF_F_NO_PREALLOC);

/// Whether the mesh knows an address.
#[inline(always)]
pub fn is_known(ip: &Ip) -> bool {
    // SAFETY: only whether there is an entry is asked.
    if unsafe { REGISTRY.get(ip) }.is_some() {
        return true;
    }
    let key = Key::new(Block::WHOLE, Block::new(*ip));
    RANGES.get(&key).is_some()
}

/// Slot → the ztunnel's listener for inbound plaintext in that pod's namespace.
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(MAX_PODS, 0);

/// Connecting end → what it dialled, until the ztunnel's side is established. LRU, because failed
/// connects leave their entry behind.
#[map]
pub static ORIG_PENDING: LruHashMap<Tuple, Addr> = LruHashMap::with_max_entries(MAX_PENDING, 0);

/// Connecting end → the client that the ztunnel dials for, until the application's side is
/// established.
#[map]
pub static CLIENT_PENDING: LruHashMap<Tuple, Addr> = LruHashMap::with_max_entries(MAX_PENDING, 0);

/// The socket behind a DNS query, as the ztunnel sees it → the server that was asked. LRU: an entry
/// is written again with every query.
#[map]
pub static ASKED: LruHashMap<Query, Addr> = LruHashMap::with_max_entries(MAX_ASKING, 0);

/// What a pod may dial without the ztunnel → the cookie of the pod that must be there. Only the
/// broker writes it.
#[map]
pub static ALLOW: HashMap<Dial, u64> = HashMap::with_max_entries(MAX_DIALS, BPF_F_NO_PREALLOC);

/// A service that a pod dials → the one pod behind it.
#[map]
pub static ROUTES: HashMap<Dial, Addr> = HashMap::with_max_entries(MAX_DIALS, BPF_F_NO_PREALLOC);

/// Both ends of a connection straight from pod to pod → who they are, from SYN to accept. Only
/// programs write it. LRU, should an end never come.
#[map]
pub static AUTH: LruHashMap<Pair, Authorized> = LruHashMap::with_max_entries(MAX_PENDING, 0);

/// Per socket: the original destination. Only programs write it.
#[btf_map]
pub static ORIG_DST: SkStorage<OrigDst> = SkStorage::new();

/// Per socket: the DNS servers that it asks. Only programs write it.
#[btf_map]
pub static SERVERS: SkStorage<Servers> = SkStorage::new();

/// Per socket: the client that the ztunnel stands in for. The worker writes it on its dialling
/// sockets; it is shown to applications and nothing is decided by it.
#[btf_map]
pub static CLIENT: SkStorage<Addr> = SkStorage::new();

/// Per socket: present on sockets that the broker created. Only programs write it.
#[btf_map]
pub static PROXY: SkStorage<u32> = SkStorage::new();

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS, 0);

/// What was counted of connections that have ended, by the way they went.
#[map]
pub static FLOW_STATS: PerCpuArray<FlowStats> = PerCpuArray::with_max_entries(FLOW_PATHS, 0);

#[map]
pub static CONFIG: Array<u32> = Array::with_max_entries(CONFIG_LEN, 0);

/// Nanoseconds since boot, as exact as a timer tick.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, no effects.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Whether somebody stands behind what is in force until the time in this word of `CONFIG`.
#[inline(always)]
pub fn in_force(word: u32) -> bool {
    let until = CONFIG.get(word).copied().unwrap_or(0);
    now() / 1_000_000_000 < u64::from(until)
}

#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the map's value; per CPU, so nobody else writes it now.
        unsafe { *counter += 1 }
    }
}

#[inline(always)]
fn pointer<T>(map: &'static SkStorage<T>) -> *mut core::ffi::c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}

/// Reads a socket's value. `aya_ebpf`'s own accessor serves one kind of context only.
#[inline(always)]
pub fn storage_get<T: Copy>(map: &'static SkStorage<T>, sk: *mut bpf_sock) -> Option<T> {
    if sk.is_null() {
        return None;
    }
    // SAFETY: a map and a socket the verifier has seen; the result is null or a `T`.
    unsafe {
        let value = bpf_sk_storage_get(pointer(map), sk.cast(), core::ptr::null_mut(), 0);
        value.cast::<T>().as_ref().copied()
    }
}

/// Writes a socket's value; false when the kernel has no memory for it.
#[inline(always)]
pub fn storage_set<T: Copy>(map: &'static SkStorage<T>, sk: *mut bpf_sock, value: &T) -> bool {
    if sk.is_null() {
        return false;
    }
    let initial = core::ptr::from_ref(value).cast_mut().cast();
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as above; the value is written again because it may have existed.
    unsafe {
        let stored = bpf_sk_storage_get(pointer(map), sk.cast(), initial, create);
        match stored.cast::<T>().as_mut() {
            Some(stored) => {
                *stored = *value;
                true
            }
            None => false,
        }
    }
}

/// Takes a socket's value from it, if it has one.
#[inline(always)]
pub fn storage_clear<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock) {
    if !sk.is_null() {
        // SAFETY: a map and a socket the verifier has seen.
        let _ = unsafe { bpf_sk_storage_delete(pointer(map), sk.cast()) };
    }
}
