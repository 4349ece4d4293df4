//! A directory of YAML as a live source of objects.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

use sluice_model::Name;

use crate::{Error, Memory, Snapshot, Store, scan::scan};

/// Which directory is watched, and how eagerly.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// A burst of changes has ended when nothing changes for so long.
    pub quiet: Duration,
    /// A burst that does not end is read after so long all the same.
    pub longest_burst: Duration,
    /// Everything is looked at again at least so often, should the kernel lose an event.
    pub rescan: Duration,
    /// Every file is read again at least so often, should its times not tell of a change.
    pub reread: Duration,
    /// The policies that were in force before.
    pub memory: Memory,
    /// Whose pods are wanted, and nothing else but namespaces; absent when everything is.
    pub node: Option<Name>,
}

impl Config {
    /// Watches `path` with times that suit people and tests alike.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            quiet: Duration::from_millis(20),
            longest_burst: Duration::from_millis(200),
            rescan: Duration::from_secs(10),
            reread: Duration::from_secs(300),
            memory: Memory::Off,
            node: None,
        }
    }
}

/// After a look at a large directory comes a rest, so many times as long: changes that do not end
/// must not take a whole processor.
const REST: u32 = 4;

/// Watches a directory from a thread of its own until it is dropped.
pub struct Directory {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Directory {
    /// Reads a directory once.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn read(path: &Path) -> Result<Snapshot, Error> {
        let mut store = Store::default();
        load(&mut store, path)?;
        Ok(store.snapshot())
    }

    /// Watches a directory. `deliver` gets the first snapshot before this returns, and each later
    /// one from the watching thread; it should return soon.
    ///
    /// # Errors
    /// When the directory cannot be listed, or the thread not be started.
    pub fn watch(
        mut config: Config,
        mut deliver: impl FnMut(Snapshot) + Send + 'static,
    ) -> Result<Self, Error> {
        let (wake, woken) = mpsc::channel();
        let mut ear = Ear::new(config.path.clone(), wake.clone());
        // Listening begins before the first look, so that no change falls between them.
        ear.listen();
        let mut store = Store::new(std::mem::take(&mut config.memory));
        if let Some(node) = config.node.clone() {
            store = store.for_node(node);
        }
        load(&mut store, &config.path)?;
        deliver(store.snapshot());
        let path = config.path.clone();
        let thread = thread::Builder::new()
            .name("objects".to_owned())
            .spawn(move || {
                let mut read = Instant::now();
                let mut rested = read;
                while config.wait(&woken, rested).is_continue() {
                    ear.listen();
                    let begin = Instant::now();
                    if begin - read >= config.reread {
                        store.distrust_stamps();
                        read = begin;
                    }
                    let snapshot = reload(&mut store, &config.path);
                    let end = Instant::now();
                    rested = end + (end - begin) * REST;
                    if let Some(snapshot) = snapshot {
                        deliver(snapshot);
                    }
                }
            })
            .map_err(|source| Error::Thread { path, source })?;
        Ok(Self {
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").finish_non_exhaustive()
    }
}

/// Why the watching thread wakes.
enum Wake {
    Changed,
    Stop,
}

type Flow = std::ops::ControlFlow<()>;

impl Config {
    /// Waits for the end of the next burst of changes, until one may look again; or for the time of
    /// the next rescan.
    fn wait(&self, woken: &mpsc::Receiver<Wake>, rested: Instant) -> Flow {
        match woken.recv_timeout(self.rescan) {
            Ok(Wake::Changed) => {}
            Err(RecvTimeoutError::Timeout) => return Flow::Continue(()),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return Flow::Break(()),
        }
        let deadline = rested.max(Instant::now() + self.longest_burst);
        loop {
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            let quiet = self.quiet.max(rested.saturating_duration_since(now));
            match woken.recv_timeout(quiet.min(left)) {
                Ok(Wake::Changed) if !left.is_zero() => {}
                Ok(Wake::Changed) | Err(RecvTimeoutError::Timeout) => return Flow::Continue(()),
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return Flow::Break(()),
            }
        }
    }
}

fn load(store: &mut Store, path: &Path) -> Result<(), Error> {
    let files = scan(path).map_err(|source| Error::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    store.reload(files);
    Ok(())
}

fn reload(store: &mut Store, path: &Path) -> Option<Snapshot> {
    match scan(path) {
        Ok(files) => store.reload(files),
        // While the directory is being replaced, nothing in it counts as removed.
        Err(error) => store.keep(path, format!("cannot be listed: {error}")),
    }
}

/// Hears of changes to a directory, also after another one took its place.
struct Ear {
    path: PathBuf,
    wake: Sender<Wake>,
    /// Who is watched, by device and inode.
    target: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
}

impl Ear {
    fn new(path: PathBuf, wake: Sender<Wake>) -> Self {
        Self {
            path,
            wake,
            target: None,
            watcher: None,
        }
    }

    /// Watches what is at the path now, unless that is what is watched already.
    fn listen(&mut self) {
        let target = fs::metadata(&self.path).map(|m| (m.dev(), m.ino())).ok();
        if self.watcher.is_some() && self.target == target {
            return;
        }
        self.target = target;
        self.watcher = match self.watch() {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%error, "cannot watch {path}; it is only read periodically");
                None
            }
        };
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let wake = self.wake.clone();
        let root = self.path.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let relevant = event.map_or(true, |event| {
                    is_change(event.kind)
                        && (event.paths.is_empty()
                            || event.paths.iter().any(|p| p.starts_with(&root)))
                });
                if relevant {
                    let _ = wake.send(Wake::Changed);
                }
            })?;
        // The parent tells when the directory itself is replaced.
        if let Some(parent) = self.path.parent().filter(|parent| parent.is_dir()) {
            watcher.watch(parent, RecursiveMode::NonRecursive)?;
        }
        if self.target.is_some() {
            watcher.watch(&self.path, RecursiveMode::Recursive)?;
        }
        Ok(watcher)
    }
}

/// Reading a file is an event too; only what changes one counts.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
