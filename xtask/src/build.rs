//! `cargo xtask build`: the eBPF programs by their compiler, then the binaries that embed them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo::{self, Profile};
use crate::setup::{self, Group, bpf};

/// Builds the eBPF programs and the binaries that embed them.
///
/// The programs go to target/bpf/sluice.bpf.o, the binaries `ztunnel`, `sluice-control` and
/// `sluicectl` to target/debug or target/release. Missing tools are installed first (see `setup`).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// With optimizations, as `demo` and `bench` do
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let profile = if arguments.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let directory = all(profile)?;
    println!(
        "built {}/{{ztunnel,sluice-control,sluicectl}}",
        directory.display()
    );
    Ok(())
}

/// Builds everything that runs; returns the directory of the binaries.
pub(crate) fn all(profile: Profile) -> Result<PathBuf> {
    programs()?;
    binaries(profile)
}

/// Builds the eBPF programs; returns the object file.
pub(crate) fn programs() -> Result<PathBuf> {
    setup::ensure(&[Group::Bpf])?;
    let toolchain = bpf::detect()
        .found
        .context("the eBPF toolchain is there after setup")?;
    let target = cargo::target_directory()?.join("bpf");
    let mut command = toolchain.cargo()?;
    command.current_dir(cargo::workspace()?.join("bpf/programs"));
    command.args(["build", "--quiet", "--release", "--target", bpf::TARGET]);
    command.arg("--target-dir").arg(&target);
    cargo::succeed(&mut command, "building the eBPF programs")?;
    let built = target.join(bpf::TARGET).join("release/sluice");
    let object = target.join("sluice.bpf.o");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    // Left alone when it is the same: a new time of change would rebuild all that embeds it.
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::write(&object, bytes).with_context(|| format!("writing {}", object.display()))?;
    }
    Ok(object)
}

/// The environment variable by which userspace finds the programs it embeds, if they are built.
/// All calls of cargo set it alike, lest they rebuild each other's work.
pub(crate) fn object_variable() -> Result<Option<(&'static str, PathBuf)>> {
    let object = cargo::target_directory()?.join("bpf/sluice.bpf.o");
    Ok(object.exists().then_some(("SLUICE_BPF_OBJECT", object)))
}

fn binaries(profile: Profile) -> Result<PathBuf> {
    let mut command = cargo::command()?;
    command.args([
        "build",
        "--bin",
        "ztunnel",
        "--bin",
        "sluice-control",
        "--bin",
        "sluicectl",
        "--bin",
        "podtool",
    ]);
    command.args([
        "-p",
        "sluice-ztunnel",
        "-p",
        "sluice-control",
        "-p",
        "sluicectl",
        "-p",
        "sluice-tests",
    ]);
    command.args(profile.arguments()).envs(object_variable()?);
    cargo::succeed(&mut command, "building the binaries")?;
    Ok(cargo::target_directory()?.join(profile.directory()))
}
