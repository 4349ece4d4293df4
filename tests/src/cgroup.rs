//! Cgroups of the v2 hierarchy: eBPF programs are attached to them, and processes are found and
//! killed by them.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::eventually::eventually;
use crate::run::{Resource, Run};

/// A cgroup that exists as long as this value; its processes die with it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The run's own cgroup, `<mount>/sluice-<id>`: all of its processes live below it.
    pub fn root(run: &Arc<Run>) -> Result<Self> {
        let path = mount_point()?.join(format!("sluice-{}", run.id()));
        run.make(&Resource::Cgroup(path.clone()), || Self::create(path))
    }

    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name))
    }

    fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("creating the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that a process writes `0` to in order to move itself here.
    #[must_use]
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// The processes that live in this cgroup now, not those in cgroups below it.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let path = self.procs();
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

/// Where the cgroup v2 hierarchy is: `/sys/fs/cgroup` on most machines, below it on a hybrid one.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(point))
        })
        .next()
        .context("no cgroup v2 hierarchy: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Kills every process below `path` and removes it with its children.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    // Linux 5.14: kills the whole subtree, also what is being forked at this moment.
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("killing all in {}", path.display()));
        }
        _ => {}
    }
    // A killed process leaves its cgroup only when it has exited, a moment later.
    eventually(|| {
        remove_empty_tree(path).with_context(|| format!("removing the cgroup {}", path.display()))
    })
}

fn remove_empty_tree(path: &Path) -> std::io::Result<()> {
    let children = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        children => children?,
    };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty_tree(&child.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
