//! Where things are pinned: `BPFFS/INSTANCE/vVERSION/{maps,programs,links/GENERATION}`.
//!
//! Links stay pinned when the broker dies, so capture goes on failing closed instead of letting
//! plaintext out. The next broker attaches its own programs first, and then removes the links of
//! the generation before.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use nix::sys::statfs;

use crate::Error;

/// The directories of one instance.
#[derive(Debug)]
pub(crate) struct Pins {
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
        let version = instance.join(format!("v{}", sluice_abi::VERSION));
        let generation = version.join("links").join(process::id().to_string());
        let pins = Self {
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

    /// Removes every pin of the instance.
    pub(crate) fn remove_all(&self) -> io::Result<()> {
        remove_tree(&self.instance)
    }
}

/// Removes all pins of an instance whose broker is gone: its pods leave the mesh.
///
/// # Errors
/// For an impossible name, and when the kernel refuses to remove a pin.
pub fn cleanup(bpffs: &Path, instance: &str) -> Result<(), Error> {
    let dir = instance_dir(bpffs, instance)?;
    remove_tree(&dir).map_err(Error::system(format!("remove {}", dir.display())))
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
