//! One run of the harness: its id, its directory, and the list of what it made.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use anyhow::{Context, Result, bail, ensure};

use crate::binaries::Binaries;
use crate::cleanup;

/// Where runs are listed, so that the next one can remove what a crashed one left.
pub const REGISTRY: &str = "/run/sluice-harness";

/// Something that outlives its maker's process and must therefore be written down first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// A named network namespace in `/run/netns`.
    Netns(String),
    /// A cgroup with everything below it; its processes are killed.
    Cgroup(PathBuf),
    /// A directory of pinned maps and links in bpffs.
    Pins(PathBuf),
}

impl Resource {
    pub(crate) fn to_line(&self) -> String {
        match self {
            Self::Netns(name) => format!("netns {name}\n"),
            Self::Cgroup(path) => format!("cgroup {}\n", path.display()),
            Self::Pins(path) => format!("pins {}\n", path.display()),
        }
    }

    /// Lines that do not parse are skipped: the maker may have died while writing the last one.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let (kind, value) = line.split_once(' ')?;
        match kind {
            "netns" => Some(Self::Netns(value.to_owned())),
            "cgroup" => Some(Self::Cgroup(value.into())),
            "pins" => Some(Self::Pins(value.into())),
            _ => None,
        }
    }
}

/// A process, named so that a reused pid is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessId {
    pub pid: u32,
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this pid now, if there is one (a zombie counts as gone).
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name may hold spaces and parentheses; the fields after it do not.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        // starttime is field 22 of proc(5), the state just read is field 3.
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, start_time })
    }

    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// A run of the harness. Everything made for it is removed when it is dropped, or by
/// [`Run::tear_down`], or, should the process die, by the next run.
#[derive(Debug)]
pub struct Run {
    id: String,
    dir: PathBuf,
    binaries: Binaries,
    /// `true` once torn down. Makers hold it for reading while they make something, so that
    /// tearing down (from the thread that saw Ctrl-C) never misses a half-made thing.
    closed: RwLock<bool>,
}

impl Run {
    /// Removes what crashed runs left, then begins a new one.
    pub fn start(binaries: Binaries) -> Result<Arc<Self>> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces, cgroups and eBPF need root: run this as root (sudo -E)"
        );
        cleanup::sweep().context("removing what an earlier run left")?;
        fs::create_dir_all(REGISTRY).with_context(|| format!("creating {REGISTRY}"))?;
        let me = ProcessId::of(std::process::id()).context("reading /proc/self/stat")?;
        for _ in 0..100 {
            let id = random_id()?;
            let dir = Path::new(REGISTRY).join(&id);
            match fs::create_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("creating {}", dir.display()));
                }
            }
            cleanup::write_owner(&dir, me)?;
            fs::create_dir(dir.join("logs")).context("creating the directory of logs")?;
            let closed = RwLock::new(false);
            return Ok(Arc::new(Self {
                id,
                dir,
                binaries,
                closed,
            }));
        }
        bail!("no free run id in {REGISTRY}: remove what is not needed there")
    }

    /// Short and unique on this machine; part of every name the run gives.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The run's own directory, removed with it: logs, configuration, captures.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The programs under test.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The file that a process of this name logs to.
    #[must_use]
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Writes the resource down, then makes it. Fails once the run is being torn down.
    pub fn make<T>(&self, resource: &Resource, make: impl FnOnce() -> Result<T>) -> Result<T> {
        self.while_open(|| {
            let path = self.dir.join("resources");
            let mut list = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))?;
            list.write_all(resource.to_line().as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
            make()
        })
    }

    /// Does something that tearing down must wait for, such as starting a process.
    pub fn while_open<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let closed = self
            .closed
            .read()
            .expect("nothing panics while holding this lock");
        ensure!(!*closed, "interrupted: this run is being torn down");
        make()
    }

    /// Removes everything the run made, at once and from any thread. What is made afterwards
    /// fails; doing it twice is harmless.
    pub fn tear_down(&self) -> Result<()> {
        match self.closed.write() {
            Ok(mut closed) => *closed = true,
            Err(poisoned) => *poisoned.into_inner() = true,
        }
        cleanup::remove_run(&self.dir)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            eprintln!("cleaning up run {}: {error:#}", self.id);
        }
    }
}

/// Four letters or digits: enough for the runs of one machine, short enough for names.
fn random_id() -> Result<String> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(byte % 32)]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_survive_being_written_down() {
        for resource in [
            Resource::Netns("sluice-ab12-wire".into()),
            Resource::Cgroup("/sys/fs/cgroup/sluice-ab12".into()),
            Resource::Pins("/sys/fs/bpf/sluice/ab12-a".into()),
        ] {
            let line = resource.to_line();
            assert_eq!(Resource::from_line(line.trim_end()), Some(resource));
        }
        assert_eq!(Resource::from_line("netn"), None);
    }

    #[test]
    fn a_process_is_named_by_pid_and_start_time() {
        let me = ProcessId::of(std::process::id()).expect("this process is alive");
        assert!(me.is_alive());
        let predecessor = ProcessId {
            start_time: me.start_time - 1,
            ..me
        };
        assert!(!predecessor.is_alive());
    }
}
