//! Calling cargo: this checkout's, and the one that compiles for eBPF.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The profile that programs are built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// Below the target directory.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }

    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &[],
            Self::Release => &["--release"],
        }
    }
}

/// The top of the checkout.
pub(crate) fn workspace() -> Result<PathBuf> {
    // `cargo run` tells where this package is now; the compiler knew where it was then.
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent()
        .map(Path::to_path_buf)
        .context("xtask is a directory of the workspace")
}

/// Where cargo puts what it builds: `target`, unless the user's configuration moved it.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let output = command()?
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("running cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let directory = metadata["target_directory"]
        .as_str()
        .context("no target_directory")?;
    Ok(directory.into())
}

/// The cargo that runs us, in the workspace.
pub(crate) fn command() -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()?);
    // `cargo run` set it for xtask alone.
    command.env_remove("LD_LIBRARY_PATH");
    Ok(command)
}

/// Another cargo, of another toolchain: it must not see what the outer cargo and rustup set for
/// their own (RUSTUP_TOOLCHAIN, CARGO, RUSTC, RUSTFLAGS, CARGO_PKG_NAME, …), only where the
/// user's cargo home and registries are.
pub(crate) fn foreign(program: impl Into<OsString>) -> Command {
    const KEPT: [&str; 5] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    const RUSTUP_OWN: [&str; 3] = ["RUSTUP_HOME", "RUSTUP_AUTO_INSTALL", "RUSTUP_DIST_SERVER"];
    let mut command = Command::new(program.into());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let cargo = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        let rust = text.starts_with("RUST") && !RUSTUP_OWN.contains(&&*text);
        if cargo || rust || text == "LD_LIBRARY_PATH" {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command with its output going to the terminal.
pub(crate) fn succeed(command: &mut Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{what}: starting {command:?}"))?;
    ensure!(status.success(), "{what} failed: {status}");
    Ok(())
}

/// Where `cargo install` puts programs.
pub(crate) fn install_directory() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home).join("bin"));
    }
    let home = env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cargo/bin"))
}

/// PATH with these directories before it.
pub(crate) fn path_with(first: &[&Path]) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let all = first
        .iter()
        .map(|path| path.to_path_buf())
        .chain(env::split_paths(&path));
    env::join_paths(all).context("a directory of PATH has a colon in its name")
}
