//! What a worker leaves to the next one: the mesh as the control plane described it last, and the
//! certificates.
//!
//! The broker keeps both without looking into them. The mesh is copied to a file as well, for a start
//! without a control plane; the certificates come with private keys, and never leave memory.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
};

use anyhow::{Context as _, Result};

use super::durable;
use crate::{
    link::{
        Link, Memory, ToWorker,
        memory::{accept, check_size},
    },
    one_line,
};

/// The name of the file.
const SNAPSHOT: &str = "snapshot";
/// After so many workers in a row that died young, one begins without memory: it may be what kills
/// them.
const PATIENCE: u32 = 3;

/// What the next worker is given.
pub(super) struct Memories {
    mesh: Arc<Mutex<Mesh>>,
    certificates: Option<OwnedFd>,
    /// Wakes the thread that writes the file.
    changed: SyncSender<()>,
    /// Workers in a row that died young.
    deaths: u32,
}

#[derive(Default)]
struct Mesh {
    latest: Option<Arc<File>>,
    /// It is in the file.
    saved: bool,
}

impl Memories {
    /// Begins with what the file holds, if there is one.
    pub(super) fn open(state_dir: &Path) -> Result<Self> {
        fs::create_dir_all(state_dir)
            .with_context(|| format!("create {} (--state-dir)", state_dir.display()))?;
        let path = state_dir.join(SNAPSHOT);
        let latest = match open(&path) {
            Ok(file) => Some(Arc::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, %path, "the snapshot cannot be read; there is none");
                None
            }
        };
        let mesh = Arc::new(Mutex::new(Mesh {
            latest,
            saved: true,
        }));
        let (changed, wake) = mpsc::sync_channel(1);
        let saved = mesh.clone();
        // A slow disk must not hold the broker.
        std::thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || save_all(&wake, &saved, &path))?;
        Ok(Self {
            mesh,
            certificates: None,
            changed,
            deaths: 0,
        })
    }

    /// Keeps what a worker leaves, in place of what it or another one left before.
    pub(super) fn keep(&mut self, memory: Memory, fd: OwnedFd) {
        match accept(fd) {
            Ok(file) => match memory {
                Memory::Certificates => self.certificates = Some(file.into()),
                Memory::Mesh => {
                    *lock(&self.mesh) = Mesh {
                        latest: Some(Arc::new(file)),
                        saved: false,
                    };
                    // Full: it has been woken, and has not looked yet.
                    let _ = self.changed.try_send(());
                }
            },
            Err(error) => tracing::error!(%error, ?memory, "the worker left what cannot be kept"),
        }
    }

    /// Notes how a worker ended.
    pub(super) fn worker_died(&mut self, young: bool) {
        self.deaths = if young { self.deaths + 1 } else { 0 };
    }

    /// Tells a new worker what those before it left.
    pub(super) fn tell(&self, link: &Link) -> io::Result<()> {
        let mesh = lock(&self.mesh).latest.clone();
        let kept = [
            (Memory::Mesh, mesh.as_ref().map(|file| file.as_fd())),
            (
                Memory::Certificates,
                self.certificates.as_ref().map(OwnedFd::as_fd),
            ),
        ];
        let mut kept: Vec<(Memory, BorrowedFd<'_>)> = kept
            .into_iter()
            .filter_map(|(memory, fd)| Some((memory, fd?)))
            .collect();
        if !kept.is_empty() && is_in_doubt(self.deaths) {
            tracing::error!(
                deaths = self.deaths,
                "workers die at their start: the next one begins without snapshot and certificates"
            );
            kept.clear();
        }
        let (memories, fds): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
        link.send(&ToWorker::Memories(memories), &fds)
    }
}

/// Whether the memory is held back this time. Every second time only: where it is not to blame, a
/// worker without it is worse off.
fn is_in_doubt(deaths: u32) -> bool {
    deaths >= PATIENCE && (deaths - PATIENCE).is_multiple_of(2)
}

fn lock(mesh: &Mutex<Mesh>) -> MutexGuard<'_, Mesh> {
    // Each use is one assignment, so a panic leaves nothing half done.
    mesh.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    check_size(&file)?;
    Ok(file)
}

/// Writes the latest mesh to the file, whenever there is another, until the broker ends.
fn save_all(wake: &Receiver<()>, mesh: &Mutex<Mesh>, path: &Path) {
    while wake.recv().is_ok() {
        let latest = {
            let mesh = lock(mesh);
            mesh.latest.clone().filter(|_| !mesh.saved)
        };
        let Some(latest) = latest else { continue };
        match save(&latest, path) {
            Ok(file) => {
                let mut mesh = lock(mesh);
                if mesh
                    .latest
                    .as_ref()
                    .is_some_and(|now| Arc::ptr_eq(now, &latest))
                {
                    // The file's pages can be had back by the kernel, those of memory cannot.
                    *mesh = Mesh {
                        latest: Some(Arc::new(file)),
                        saved: true,
                    };
                }
            }
            Err(error) => tracing::warn!(
                error = one_line(&error),
                "the snapshot is not kept: a start without the control plane finds an older one, \
                 or none"
            ),
        }
    }
}

/// Replaces the file by a copy at once, and opens it.
fn save(from: &File, path: &Path) -> Result<File> {
    durable::replace(path, |to| {
        let mut buffer = vec![0; 64 << 10];
        let mut at = 0;
        loop {
            let read = from.read_at(&mut buffer, at)?;
            if read == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..read])?;
            at += read as u64;
        }
    })?;
    open(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
