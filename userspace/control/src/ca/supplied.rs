//! An authority that the operator supplies, in a directory of Istio's layout.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    material::{CHAIN, KEY, Material, ROOTS, SIGNER, Texts},
    own::{Signers, read},
};
use crate::Error;

/// The directory, and what it held when it could be used last.
pub(super) struct Supplied {
    directory: PathBuf,
    texts: Texts,
    material: Arc<Material>,
}

impl Supplied {
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let texts = texts(directory)?;
        let material = Arc::new(material(directory, &texts)?);
        warn_of_permissions(&directory.join(KEY));
        Ok(Self {
            directory: directory.to_owned(),
            texts,
            material,
        })
    }

    /// Reads the files again, and says what signs from now on.
    pub(super) fn advance(&mut self) -> Result<Signers, Error> {
        let texts = texts(&self.directory)?;
        if texts != self.texts {
            self.material = Arc::new(material(&self.directory, &texts)?);
            self.texts = texts;
            warn_of_permissions(&self.directory.join(KEY));
        }
        Ok(Signers {
            workloads: self.material.clone(),
            server: self.material.clone(),
        })
    }
}

fn texts(directory: &Path) -> Result<Texts, Error> {
    let optional = |name| read(&directory.join(name));
    let needed = |name| {
        optional(name)?.ok_or_else(|| Error::SuppliedCa {
            path: directory.join(name),
            why: "it is missing".to_owned(),
        })
    };
    Ok(Texts {
        key: needed(KEY)?,
        roots: needed(ROOTS)?,
        signer: optional(SIGNER)?,
        chain: optional(CHAIN)?,
    })
}

fn material(directory: &Path, texts: &Texts) -> Result<Material, Error> {
    Material::new(texts).map_err(|problem| Error::SuppliedCa {
        path: directory.join(problem.file),
        why: problem.why,
    })
}

fn warn_of_permissions(key: &Path) {
    let mode = fs::metadata(key).map(|data| data.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o004 != 0) {
        let path = key.display();
        tracing::warn!(%path, "everybody on this host can read the CA's key; set its mode to 0600");
    }
}

#[cfg(test)]
#[path = "supplied_tests.rs"]
mod tests;
