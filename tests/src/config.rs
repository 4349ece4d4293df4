//! The directory of YAML that the control plane watches.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A directory of configuration. Files appear, change and vanish in one step each, as an editor
/// or a git checkout would do it: written beside the directory and renamed into it.
#[derive(Debug, Clone)]
pub struct ConfigDirectory {
    path: PathBuf,
    draft: PathBuf,
}

impl ConfigDirectory {
    pub(crate) fn create(inside: &Path) -> Result<Self> {
        let path = inside.join("config");
        let draft = inside.join("draft.yaml");
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { path, draft })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes or replaces `<name>.yaml`.
    pub fn apply(&self, name: &str, text: &str) -> Result<()> {
        let file = self.file(name);
        fs::write(&self.draft, text)
            .and_then(|()| fs::rename(&self.draft, &file))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// Removes `<name>.yaml`; that it is not there is fine.
    pub fn delete(&self, name: &str) -> Result<()> {
        let file = self.file(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", file.display()))
            }
            _ => Ok(()),
        }
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.yaml"))
    }
}
