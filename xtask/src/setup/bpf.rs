//! The compiler and linker for eBPF: Debian's second Rust, or rustup's nightly.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cargo;

/// What the programs are compiled for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Stays with the compiler's LLVM: a newer linker would want a newer one.
const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// A complete toolchain.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compiler {
    /// /usr/bin/cargo and /usr/bin/rustc with a core library that is ready for the target.
    System,
    /// `cargo +nightly` with rust-src: it builds the core library itself.
    Nightly,
}

/// What there is of a toolchain.
#[derive(Debug, Clone)]
pub(crate) struct Detected {
    pub(crate) found: Option<Toolchain>,
    compiler: Option<Compiler>,
    linker: Option<PathBuf>,
}

pub(crate) fn detect() -> Detected {
    let compiler = if system_compiler() {
        Some(Compiler::System)
    } else if nightly_compiler() {
        Some(Compiler::Nightly)
    } else {
        None
    };
    let linker = linker();
    let found = compiler.zip(linker.clone());
    let found = found.map(|(compiler, linker)| Toolchain { compiler, linker });
    Detected {
        found,
        compiler,
        linker,
    }
}

impl Toolchain {
    /// Its cargo, with the environment that it needs. `build` and its arguments follow.
    pub(crate) fn cargo(&self) -> Result<Command> {
        let linker = self.linker.parent().context("a linker is in a directory")?;
        let mut command = match self.compiler {
            Compiler::System => {
                let mut command = cargo::foreign("/usr/bin/cargo");
                // /usr/bin first: rustup's rustc, which has no core for the target, is in PATH too.
                command.env("PATH", cargo::path_with(&[Path::new("/usr/bin"), linker])?);
                // aya-ebpf uses `asm_experimental_arch`.
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Compiler::Nightly => {
                let mut command = cargo::foreign("cargo");
                command.env("PATH", cargo::path_with(&[linker])?);
                command.args(["+nightly", "-Z", "build-std=core"]);
                command
            }
        };
        command.env("RUSTFLAGS", "-C linker=bpf-linker -C link-arg=--btf");
        Ok(command)
    }
}

/// Prints what there is, for `setup`.
pub(crate) fn report() {
    let Detected {
        compiler, linker, ..
    } = detect();
    match compiler {
        Some(Compiler::System) => println!("  ✓ {:<24} /usr/bin/rustc", "compiler in use"),
        Some(Compiler::Nightly) => println!("  ✓ {:<24} rustup's nightly", "compiler in use"),
        None => println!(
            "  ✗ {:<24} neither Debian's nor rustup's nightly",
            "compiler"
        ),
    }
    match linker {
        Some(path) => println!("  ✓ {:<24} {}", "bpf-linker", path.display()),
        None => println!("  ✗ {:<24} links eBPF programs", "bpf-linker"),
    }
}

/// The commands that bring what is missing here.
pub(crate) fn instructions() -> Vec<String> {
    let Detected {
        compiler, linker, ..
    } = detect();
    let mut lines = Vec::new();
    if linker.is_none() {
        lines.push("  and then, as yourself, with Debian's LLVM:".to_owned());
        lines.push(format!(
            "    LLVM_PREFIX={LLVM} RUSTFLAGS=\"-L native={LLVM}/lib\" PATH={LLVM}/bin:$PATH \\\n    \
             cargo install bpf-linker@{LINKER_VERSION} --no-default-features --features llvm-22"
        ));
    }
    lines.push("or, on another distribution, the ordinary eBPF toolchain of Rust:".to_owned());
    if compiler != Some(Compiler::Nightly) {
        lines.push("    rustup toolchain install nightly --component rust-src".to_owned());
    }
    if linker.is_none() {
        lines.push("    cargo install bpf-linker".to_owned());
    }
    lines
}

/// Builds bpf-linker against Debian's LLVM, for the user who runs us.
pub(crate) fn install_linker() -> Result<()> {
    let begin = Instant::now();
    println!("… building bpf-linker {LINKER_VERSION} (a minute or two)");
    let mut command = cargo::command()?;
    command.args([
        "install",
        "--quiet",
        &format!("bpf-linker@{LINKER_VERSION}"),
    ]);
    if Path::new(LLVM).exists() {
        command.args(["--no-default-features", "--features", "llvm-22"]);
        command.env("LLVM_PREFIX", LLVM);
        command.env("RUSTFLAGS", format!("-L native={LLVM}/lib"));
        command.env("PATH", cargo::path_with(&[&Path::new(LLVM).join("bin")])?);
    }
    cargo::succeed(&mut command, "building bpf-linker")?;
    println!("✓ bpf-linker ({} s)", begin.elapsed().as_secs());
    Ok(())
}

fn system_compiler() -> bool {
    let Some(sysroot) = sysroot(cargo::foreign("/usr/bin/rustc")) else {
        return false;
    };
    Path::new("/usr/bin/cargo").exists() && sysroot.join("lib/rustlib").join(TARGET).exists()
}

fn nightly_compiler() -> bool {
    let mut rustc = cargo::foreign("rustup");
    rustc.args(["run", "nightly", "rustc"]);
    sysroot(rustc).is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library").exists())
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    let output = rustc
        .args(["--print", "sysroot"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| PathBuf::from(text.trim()))
}

/// Where bpf-linker is, if it starts: one that misses its LLVM does not count.
fn linker() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(cargo::install_directory())
        .map(|directory| directory.join("bpf-linker"))
        .find(|program| {
            Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
}
