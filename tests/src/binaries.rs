//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The environment variable that names the directory; `cargo xtask` sets it.
pub const DIRECTORY: &str = "SLUICE_BIN_DIR";

/// A directory of built programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    #[must_use]
    pub fn in_directory(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// What [`DIRECTORY`] names, or where cargo put the program that runs now.
    pub fn locate() -> Result<Self> {
        if let Some(directory) = env::var_os(DIRECTORY) {
            return Ok(Self::in_directory(directory));
        }
        let own = env::current_exe().context("finding the own executable")?;
        let parent = own.parent().context("an executable is in a directory")?;
        // Test executables are in target/PROFILE/deps, the others in target/PROFILE.
        let directory = if parent.ends_with("deps") {
            parent.parent()
        } else {
            Some(parent)
        };
        Ok(Self::in_directory(directory.unwrap_or(Path::new("."))))
    }

    pub fn ztunnel(&self) -> Result<PathBuf> {
        self.find("ztunnel")
    }

    pub fn control(&self) -> Result<PathBuf> {
        self.find("sluice-control")
    }

    pub fn sluicectl(&self) -> Result<PathBuf> {
        self.find("sluicectl")
    }

    pub fn podtool(&self) -> Result<PathBuf> {
        self.find("podtool")
    }

    /// The project's own commands, as whoever runs `cargo xtask` has built them.
    pub fn xtask(&self) -> Result<PathBuf> {
        self.find("xtask")
    }

    /// Envoy, which `cargo xtask setup` puts beside the directories of our own programs.
    pub fn envoy(&self) -> Result<PathBuf> {
        let path = self.directory.join("../envoy/envoy/_bin/envoy");
        ensure!(
            path.is_file(),
            "there is no {}: run `cargo xtask setup`",
            path.display()
        );
        Ok(path)
    }

    fn find(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        ensure!(
            path.is_file(),
            "there is no {}: run `cargo xtask build`",
            path.display()
        );
        Ok(path)
    }
}
