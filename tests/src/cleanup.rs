//! Removing what a run made: at its end, and for the runs whose owner died.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::cgroup;
use crate::run::{ProcessId, REGISTRY, Resource};

/// A run without an owner file is just being made, unless it is older than this.
const NEWBORN: Duration = Duration::from_secs(30);

/// Removes everything that runs left whose owner is dead; returns their ids.
pub fn sweep() -> Result<Vec<String>> {
    let entries = match fs::read_dir(REGISTRY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {REGISTRY}")),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading {REGISTRY}"))?.path();
        if owner_is_alive(&path) {
            continue;
        }
        remove_run(&path)?;
        removed.extend(
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    Ok(removed)
}

pub(crate) fn write_owner(dir: &Path, owner: ProcessId) -> Result<()> {
    let path = dir.join("owner");
    // In one step: a sweep that reads an empty file would take the owner for dead.
    let draft = dir.join("owner.new");
    fs::write(&draft, format!("{} {}\n", owner.pid, owner.start_time))
        .and_then(|()| fs::rename(&draft, &path))
        .with_context(|| format!("writing {}", path.display()))
}

fn owner_is_alive(dir: &Path) -> bool {
    let Ok(text) = fs::read_to_string(dir.join("owner")) else {
        let age = fs::metadata(dir)
            .and_then(|data| data.modified())
            .ok()
            .and_then(|made| SystemTime::now().duration_since(made).ok());
        return age.is_some_and(|age| age < NEWBORN);
    };
    let mut numbers = text.split_whitespace();
    let pid = numbers.next().and_then(|word| word.parse().ok());
    let start_time = numbers.next().and_then(|word| word.parse().ok());
    match (pid, start_time) {
        (Some(pid), Some(start_time)) => ProcessId { pid, start_time }.is_alive(),
        _ => false,
    }
}

/// Removes what the run in `dir` wrote down, then `dir`. Whatever is already gone is fine, and
/// one thing that cannot be removed does not keep the others.
pub(crate) fn remove_run(dir: &Path) -> Result<()> {
    let Ok(list) = fs::read_to_string(dir.join("resources")) else {
        return remove_dir(dir);
    };
    let resources: Vec<_> = list.lines().filter_map(Resource::from_line).collect();
    let mut failures = Vec::new();
    let mut attempt = |outcome: Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{error:#}"));
        }
    };
    // Processes first: they hold namespaces and recreate pins. Every process of a run lives in
    // one of its cgroups, so that no pid is ever killed that could meanwhile be another's.
    for resource in resources.iter().rev() {
        if let Resource::Cgroup(path) = resource {
            attempt(cgroup::remove_tree(path));
        }
    }
    for resource in resources.iter().rev() {
        match resource {
            Resource::Cgroup(_) => {}
            Resource::Pins(path) => attempt(remove_dir(path)),
            Resource::Netns(name) => attempt(remove_netns(name)),
        }
    }
    if failures.is_empty() {
        return remove_dir(dir);
    }
    bail!("{} (listed in {})", failures.join("; "), dir.display())
}

pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

pub(crate) fn remove_netns(name: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(name);
    if !path.exists() {
        return Ok(());
    }
    let output = Command::new("ip")
        .args(["netns", "delete", name])
        .output()
        .context("running ip (package iproute2)")?;
    // Another sweep may have been faster.
    if output.status.success() || !path.exists() {
        return Ok(());
    }
    bail!(
        "ip netns delete {name}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )
}
