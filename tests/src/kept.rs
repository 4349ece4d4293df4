//! The nodes of a mesh that is kept running, as `cargo xtask trace` finds them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::mesh::Mesh;

/// The file that lists them, in the directory of the run.
pub const FILE: &str = "nodes.json";

/// What one needs to know of a node to trace it.
#[derive(Debug, Serialize, Deserialize)]
pub struct KeptNode {
    pub name: String,
    pub netns: PathBuf,
    pub run_dir: PathBuf,
    pub sluicectl: PathBuf,
}

/// Lists a mesh's nodes in this directory.
pub fn list(mesh: &Mesh, directory: &Path) -> Result<()> {
    let nodes = mesh.ztunnels().iter().map(|ztunnel| {
        let node = ztunnel.node();
        Ok(KeptNode {
            name: node.name().to_owned(),
            netns: node.netns.path(),
            run_dir: ztunnel.run_dir().to_owned(),
            sluicectl: node.run.binaries().sluicectl()?,
        })
    });
    write(&nodes.collect::<Result<Vec<_>>>()?, directory)
}

pub fn write(nodes: &[KeptNode], directory: &Path) -> Result<()> {
    let path = directory.join(FILE);
    fs::write(&path, serde_json::to_vec(nodes)?)
        .with_context(|| format!("writing {}", path.display()))
}

pub fn read(directory: &Path) -> Result<Vec<KeptNode>> {
    let path = directory.join(FILE);
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parsing {}", path.display()))
}
