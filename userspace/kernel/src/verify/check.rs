//! Looking whether all is as it must be.

use std::{io, path::Path};

use aya::{
    maps::{HashMap, Map, MapData, MapError, MapInfo},
    programs::ProgramInfo,
};
use sluice_abi::{Ip, maps};

use super::{Expected, ExpectedPod, Finding, Pinned, Subject};
use crate::{attach::LOOKUP, registry::Outbound, sys};

/// Makes every check that can be made through the pins; needs their owner's rights.
pub fn check(expected: &Expected) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |subject, what: String, result: Result<(), String>| {
        findings.push(Finding {
            subject,
            what,
            drift: result.err(),
        });
    };
    for (place, map) in expected.maps.iter().enumerate() {
        let id = MapInfo::from_pin(&map.path).map(|info| info.id());
        let result = pinned(map, id.map_err(|e| map_gone(&e)));
        find(Subject::Map(place), name(&map.path).into_owned(), result);
    }
    for (place, program) in expected.programs.iter().enumerate() {
        let id = ProgramInfo::from_pin(&program.path).map(|info| info.id());
        let result = pinned(program, id.map_err(|e| e.to_string()));
        let what = name(&program.path).into_owned();
        find(Subject::Program(place), what, result);
    }
    for (place, hook) in expected.hooks.iter().enumerate() {
        let what = format!("{} on {}", hook.program, hook.cgroup.display());
        let result = attached(&hook.link, hook.program_id, hook.cgroup_id);
        find(Subject::Hook(place), what, result);
    }
    let pods = Entries::<u64, maps::Pod>::open(expected, "PODS");
    let ips = Entries::<Ip, maps::PodIp>::open(expected, "POD_IPS");
    for pod in expected.pods.values() {
        let cookie = pod.cookie;
        let what = format!("{LOOKUP} in its network namespace");
        let result = attached(&pod.link, pod.program, pod.inode);
        find(Subject::Netns(cookie), what, result);
        let result = pods.get(&cookie).and_then(|entry| entry_of(pod, entry));
        let what = format!("entry in PODS (cookie {cookie}, slot {})", pod.slot);
        find(Subject::Pod(cookie), what, result);
        for ip in &pod.ips {
            let result = ips
                .get(&(*ip).into())
                .and_then(|owner| owner_of(pod, owner));
            let what = format!("entry of {ip} in POD_IPS");
            find(Subject::Address(cookie, *ip), what, result);
        }
    }
    for cookie in pods.keys().filter(|key| !expected.pods.contains_key(key)) {
        let what = format!("entry in PODS (cookie {cookie})");
        let why =
            "no pod of this node has this network namespace, and whoever is in it is captured";
        find(Subject::Pod(cookie), what, Err(why.to_owned()));
    }
    findings
}

pub(super) fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn pinned(expected: &Pinned, found: Result<u32, String>) -> Result<(), String> {
    match found {
        Ok(id) if id == expected.id => Ok(()),
        Ok(id) => Err(format!(
            "id {id} is pinned in place of {}: not what this broker uses",
            expected.id
        )),
        Err(error) => Err(format!(
            "not pinned at {}: {error}",
            expected.path.display()
        )),
    }
}

fn map_gone(error: &MapError) -> String {
    match error {
        MapError::SyscallError(error) => error.io_error.to_string(),
        other => other.to_string(),
    }
}

/// Whether a link attaches this program to this target.
fn attached(link: &Path, program: u32, target: u64) -> Result<(), String> {
    match sys::link_info(link) {
        Ok(found) if found.target == 0 => Err("the link is detached: nothing runs here".to_owned()),
        Ok(found) if found.program != program => Err(format!(
            "program {} is attached in place of ours, {program}",
            found.program
        )),
        Ok(found) if found.target != target => Err(format!(
            "attached to another place: {} in place of {target}",
            found.target
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("the link's pin is gone, and the link with it".to_owned())
        }
        Err(error) => Err(format!("the link cannot be looked at: {error}")),
    }
}

fn entry_of(pod: &ExpectedPod, entry: Option<maps::Pod>) -> Result<(), String> {
    let wanted = maps::Pod {
        slot: pod.slot,
        flags: pod.flags,
    };
    match entry {
        None => Err("missing: nothing that the pod dials is captured".to_owned()),
        Some(found) if found == wanted => Ok(()),
        Some(found) => Err(format!(
            "slot {} and flags {} ({:?}) in place of slot {} and flags {} ({:?})",
            found.slot,
            found.flags,
            Outbound::of(found.flags),
            wanted.slot,
            wanted.flags,
            Outbound::of(wanted.flags),
        )),
    }
}

fn owner_of(pod: &ExpectedPod, owner: Option<maps::PodIp>) -> Result<(), String> {
    match owner {
        None => Err("missing: what comes for it is refused".to_owned()),
        Some(owner) if owner.netns == pod.cookie && owner.slot == pod.slot => Ok(()),
        Some(owner) => Err(format!(
            "another pod's: cookie {} and slot {}",
            owner.netns, owner.slot
        )),
    }
}

/// A pinned map to look things up in.
struct Entries<K: aya::Pod, V: aya::Pod>(Result<HashMap<MapData, K, V>, String>);

impl<K: aya::Pod, V: aya::Pod> Entries<K, V> {
    fn open(expected: &Expected, wanted: &str) -> Self {
        // The map that the programs use, whatever is pinned by now.
        let found = expected.maps.iter().find(|map| name(&map.path) == wanted);
        let open = || {
            let map = found.ok_or_else(|| format!("no map {wanted} is known"))?;
            MapData::from_id(map.id)
                .and_then(|data| HashMap::try_from(Map::HashMap(data)))
                .map_err(|error| format!("{wanted} cannot be read: {error}"))
        };
        Self(open())
    }

    fn get(&self, key: &K) -> Result<Option<V>, String> {
        match self.0.as_ref().map_err(Clone::clone)?.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn keys(&self) -> impl Iterator<Item = K> {
        let keys = self.0.iter().flat_map(HashMap::keys);
        keys.filter_map(Result::ok)
    }
}
