//! What processes use: processor time and memory, as `/proc` tells.

use std::{
    fs,
    iter::Sum,
    ops::{Add, Sub},
    time::Duration,
};

use anyhow::{Context, Result};
use sluice_tests::Mesh;

/// The kernel counts processor time in these (`USER_HZ`, a constant of its interface on Linux).
const TICK: Duration = Duration::from_millis(10);

/// What a process has used so far, and holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// In user and kernel mode together.
    pub(crate) cpu: Duration,
    /// Its share of physical memory, in bytes: what it shares with others counts in part.
    pub(crate) memory: f64,
    /// What of that it has written itself, and is no part of a file such as its program.
    pub(crate) written: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let rollup = read("smaps_rollup")?;
        let share = |name: &str| {
            share(&rollup, name).with_context(|| format!("no {name} in smaps_rollup of {pid}"))
        };
        Ok(Self {
            cpu: cpu(&read("stat")?).context("no processor time in stat")?,
            memory: share("Pss:")?,
            written: share("Pss_Anon:")?,
        })
    }
}

impl Usage {
    /// What the ztunnels of all nodes have used, their brokers and workers together.
    pub(crate) fn of_ztunnels(mesh: &Mesh) -> Result<Self> {
        let mut pids = Vec::new();
        for ztunnel in mesh.ztunnels() {
            pids.push(ztunnel.broker_pid());
            pids.push(ztunnel.worker()?.pid);
        }
        Self::of_all(pids)
    }

    /// What several processes have used together.
    pub(crate) fn of_all(pids: impl IntoIterator<Item = u32>) -> Result<Self> {
        pids.into_iter().map(Self::of).sum()
    }
}

/// Fields 14 and 15 of `proc_pid_stat(5)`, counted behind the name, which may hold anything.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let kernel: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + kernel))
}

/// In bytes.
fn share(rollup: &str, name: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            memory: self.memory + other.memory,
            written: self.written + other.written,
        }
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            memory: self.memory - earlier.memory,
            written: self.written - earlier.written,
        }
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 99 1 2";
        assert_eq!(cpu(stat), Some(Duration::from_secs(3)));
        let rollup = "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss:    1024 kB\n\
                      Pss_Dirty: 5 kB\nPss_Anon:      3 kB\n";
        assert_eq!(share(rollup, "Pss:"), Some(1_048_576.0));
        assert_eq!(share(rollup, "Pss_Anon:"), Some(3072.0));
        assert_eq!(share(rollup, "Pss_Shmem:"), None);
    }

    #[test]
    fn whoever_works_uses_more() {
        let before = Usage::of(std::process::id()).unwrap();
        let held = vec![1_u8; 64 << 20];
        let begin = std::time::Instant::now();
        let used = || Usage::of(std::process::id()).unwrap() - before;
        // On a busy machine others have the processor meanwhile.
        while used().cpu < Duration::from_millis(50) {
            std::hint::black_box(&held);
            assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", used());
        }
        let used = used();
        assert!(used.memory >= f64::from(60 << 20), "{used:?}");
    }
}
