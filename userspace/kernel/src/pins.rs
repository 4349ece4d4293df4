//! Where things are pinned: `BPFFS/INSTANCE/vVERSION/{maps,programs,links/GENERATION}`.
//!
//! Links stay pinned when the broker dies, so capture goes on failing closed instead of letting
//! plaintext out. The next broker attaches its own programs first, enrols its pods, and only then
//! removes the links of the generation before.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs,
};

use crate::Error;

/// The directories of one instance, which nobody else uses as long as this value lives.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    _lock: Arc<Flock<File>>,
    instance: PathBuf,
    version: PathBuf,
    generation: PathBuf,
}

impl Pins {
    /// Makes the directories.
    pub(crate) fn create(bpffs: &Path, instance: &str) -> Result<Self, Error> {
        let instance = instance_dir(bpffs, instance)?;
        let existing = bpffs
            .ancestors()
            .find(|path| path.exists())
            .unwrap_or(bpffs);
        let is_bpffs = statfs::statfs(existing)
            .is_ok_and(|fs| fs.filesystem_type() == statfs::FsType(libc::BPF_FS_MAGIC));
        if !is_bpffs {
            return Err(Error::NoBpffs(bpffs.to_owned()));
        }
        fs::create_dir_all(&instance)
            .map_err(Error::system(format!("create {}", instance.display())))?;
        let lock = Arc::new(lock(&instance)?);
        let version = instance.join(format!("v{}", sluice_abi::VERSION));
        let generation = version.join("links").join(process::id().to_string());
        let pins = Self {
            _lock: lock,
            instance,
            version,
            generation,
        };
        // A pid that comes round again must not find its predecessor's links.
        remove_tree(&pins.generation).map_err(Error::system("stale pins"))?;
        for dir in [pins.maps(), pins.programs(), pins.generation.clone()] {
            fs::create_dir_all(&dir).map_err(Error::system(format!("create {}", dir.display())))?;
        }
        Ok(pins)
    }

    pub(crate) fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    pub(crate) fn programs(&self) -> PathBuf {
        self.version.join("programs")
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.generation.join(name)
    }

    /// Detaches what earlier brokers of this instance left attached.
    pub(crate) fn remove_other_generations(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.version.join("links"))? {
            let path = entry?.path();
            if path != self.generation {
                remove_tree(&path)?;
            }
        }
        for entry in fs::read_dir(&self.instance)? {
            let path = entry?.path();
            if path != self.version {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Takes back a start that failed. What an earlier broker left attached stays: its pods must
    /// not be set free by a mistake of its successor.
    pub(crate) fn abandon(&self) {
        let removed = remove_tree(&self.generation).and_then(|()| {
            let mut others = fs::read_dir(self.version.join("links"))?;
            match others.next() {
                Some(_) => Ok(()),
                None => self.remove_all(),
            }
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove the pins; `ztunnel cleanup` does");
        }
    }

    /// Removes every pin of the instance.
    pub(crate) fn remove_all(&self) -> io::Result<()> {
        remove_tree(&self.instance)
    }
}

/// Removes all pins of an instance whose broker is gone: its pods leave the mesh.
///
/// # Errors
/// For an impossible name, while the broker runs, and when the kernel refuses to remove a pin.
pub fn cleanup(bpffs: &Path, instance: &str) -> Result<(), Error> {
    let dir = instance_dir(bpffs, instance)?;
    if !dir.exists() {
        return Ok(());
    }
    let _alone = lock(&dir)?;
    remove_tree(&dir).map_err(Error::system(format!("remove {}", dir.display())))
}

/// The lock goes with the process that holds it, however it ends.
fn lock(instance: &Path) -> Result<Flock<File>, Error> {
    let failed = || format!("lock {}", instance.display());
    let dir = File::open(instance).map_err(Error::system(failed()))?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::InstanceInUse(instance.to_owned()),
        other => Error::system(failed())(other.into()),
    })
}

fn instance_dir(bpffs: &Path, instance: &str) -> Result<PathBuf, Error> {
    // bpffs refuses dots, and a slash would leave the directory.
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if instance.is_empty() || !instance.chars().all(fine) {
        return Err(Error::InstanceName(instance.to_owned()));
    }
    Ok(bpffs.join(instance))
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
