//! The maps of a broker's programs, for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use aya::{
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray},
    programs::ProgramInfo,
};
use serde::Serialize;
use sluice_abi::{
    Addr, Ip,
    maps::{
        Authorized, Block, CONFIG_ALLOW_UNTIL, CONFIG_EVENTS, CONFIG_KNOWN_UNTIL, DNS, Dial, Pair,
        Pod, PodIp, Query, Tuple,
    },
};

use crate::{Error, Reason, registry::Outbound, verify::Expected};

/// A map and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dump {
    pub map: String,
    pub id: u32,
    pub max_entries: u32,
    pub entries: Vec<Entry>,
}

/// An entry of a map, in words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Entry {
    pub key: String,
    pub value: String,
}

/// All maps of the programs that can be listed. `name` names the pod with a cookie.
///
/// # Errors
/// The kernel's, and for who may not read them.
pub fn dump(expected: &Expected, name: &dyn Fn(u64) -> Option<String>) -> Result<Vec<Dump>, Error> {
    let mut ids: BTreeSet<u32> = expected.maps.iter().map(|map| map.id).collect();
    // Some maps end with the broker, and are not pinned; the programs know them.
    for program in &expected.programs {
        let used = ProgramInfo::from_pin(&program.path).and_then(|info| info.map_ids());
        let used = used.map_err(|error| Error::Pin {
            path: program.path.clone(),
            source: Box::new(error),
        })?;
        ids.extend(used.unwrap_or_default());
    }
    let mut dumps = BTreeMap::new();
    for id in ids {
        let failed = |error| Error::map("of the programs")(error);
        let info = MapInfo::from_id(id).map_err(failed)?;
        let map = info.name_as_str().unwrap_or_default().to_owned();
        let Some(mut entries) = entries(&map, id, name).map_err(failed)? else {
            continue;
        };
        entries.sort_unstable();
        let dump = Dump {
            id,
            max_entries: info.max_entries(),
            entries,
            map: map.clone(),
        };
        dumps.insert(map, dump);
    }
    Ok(dumps.into_values().collect())
}

/// `None` for maps that say nothing to people, or that nobody can list, as `LISTENERS` and those of
/// sockets.
fn entries(
    map: &str,
    id: u32,
    name: &dyn Fn(u64) -> Option<String>,
) -> Result<Option<Vec<Entry>>, MapError> {
    let pod = |cookie: u64| match name(cookie) {
        Some(name) => name,
        None => format!("cookie {cookie}"),
    };
    let tuple = |tuple: Tuple| format!("{} {}", pod(tuple.netns), addr(tuple.ip, tuple.port));
    let dial = |dial: Dial| format!("{} to {}", pod(dial.netns), SocketAddr::from(dial.to));
    let data = || MapData::from_id(id);
    Ok(Some(match map {
        "PODS" => hash(Map::HashMap(data()?), pod, |pod: Pod| {
            let dns = if pod.flags & DNS == 0 {
                "own"
            } else {
                "captured"
            };
            format!(
                "slot {}, outbound {:?}, dns {dns}",
                pod.slot,
                Outbound::of(pod.flags)
            )
        })?,
        "POD_IPS" => hash(
            Map::HashMap(data()?),
            |ip: Ip| IpAddr::from(ip).to_string(),
            |owner: PodIp| format!("{}, slot {}", pod(owner.netns), owner.slot),
        )?,
        "REGISTRY" => hash(
            Map::HashMap(data()?),
            |ip: Ip| IpAddr::from(ip).to_string(),
            |list: u32| format!("list {list}"),
        )?,
        "RANGES" => {
            let map: LpmTrie<_, Block, u32> = LpmTrie::try_from(Map::LpmTrie(data()?))?;
            let entry = |(key, list): (aya::maps::lpm_trie::Key<Block>, u32)| {
                let block: Block = key.data();
                let before = Block::new(block.ip).bits(0);
                Entry {
                    key: format!("{}/{}", IpAddr::from(block.ip), key.prefix_len() - before),
                    value: format!("list {list}"),
                }
            };
            map.iter()
                .map(|item| item.map(entry))
                .collect::<Result<_, _>>()?
        }
        "ORIG_PENDING" => hash(Map::LruHashMap(data()?), tuple, |dst: Addr| {
            format!("dialled {}", SocketAddr::from(dst))
        })?,
        "CLIENT_PENDING" => hash(Map::LruHashMap(data()?), tuple, |client: Addr| {
            format!("for {}", SocketAddr::from(client))
        })?,
        "ASKED" => hash(
            Map::LruHashMap(data()?),
            |query: Query| {
                format!(
                    "{} {} by port {}",
                    pod(query.netns),
                    addr(query.ip, query.port),
                    query.to
                )
            },
            |server: Addr| format!("asked {}", SocketAddr::from(server)),
        )?,
        "ALLOW" => hash(Map::HashMap(data()?), dial, |server: u64| {
            format!("straight to {}", pod(server))
        })?,
        "ROUTES" => hash(Map::HashMap(data()?), dial, |to: Addr| {
            format!("led to {}", SocketAddr::from(to))
        })?,
        "AUTH" => hash(
            Map::LruHashMap(data()?),
            |pair: Pair| {
                format!(
                    "{} to {}",
                    SocketAddr::from(pair.client),
                    SocketAddr::from(pair.server)
                )
            },
            |who: Authorized| format!("{} to {}", pod(who.client), pod(who.server)),
        )?,
        "COUNTERS" => {
            let map: PerCpuArray<_, u64> = PerCpuArray::try_from(Map::PerCpuArray(data()?))?;
            let count = |reason: &Reason| {
                let count: u64 = map.get(&(*reason as u32), 0)?.iter().sum();
                Ok(Entry {
                    key: reason.name().to_owned(),
                    value: count.to_string(),
                })
            };
            Reason::ALL
                .iter()
                .map(count)
                .collect::<Result<_, MapError>>()?
        }
        "CONFIG" => {
            let map: Array<_, u32> = Array::try_from(Map::Array(data()?))?;
            let words = [
                (CONFIG_EVENTS, "events"),
                (
                    CONFIG_ALLOW_UNTIL,
                    "straight from pod to pod until (seconds since boot)",
                ),
                (
                    CONFIG_KNOWN_UNTIL,
                    "straight out of the mesh until (seconds since boot)",
                ),
            ];
            let word = |(index, key): (u32, &str)| {
                Ok(Entry {
                    key: key.to_owned(),
                    value: map.get(&index, 0)?.to_string(),
                })
            };
            words
                .into_iter()
                .map(word)
                .collect::<Result<_, MapError>>()?
        }
        _ => return Ok(None),
    }))
}

fn addr(ip: Ip, port: u32) -> SocketAddr {
    SocketAddr::from(Addr { ip, port })
}

fn hash<K: aya::Pod, V: aya::Pod>(
    map: Map,
    key: impl Fn(K) -> String,
    value: impl Fn(V) -> String,
) -> Result<Vec<Entry>, MapError> {
    let map: HashMap<MapData, K, V> = HashMap::try_from(map)?;
    let mut entries = Vec::new();
    for item in map.iter() {
        match item {
            Ok((k, v)) => entries.push(Entry {
                key: key(k),
                value: value(v),
            }),
            // It went while it was read.
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}
