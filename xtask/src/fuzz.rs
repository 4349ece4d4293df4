//! `cargo xtask fuzz`: lets a fuzzer loose on what reads the words of strangers.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Runs a target of `tests/fuzz` under libFuzzer, guided by the coverage that inputs reach.
///
/// What it finds is in `tests/fuzz/artifacts`, and what it has learned in `tests/fuzz/corpus`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `frames`, `headers`, `messages`, `tunnel` or `resources`
    target: String,
    /// For how long
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// What libFuzzer asks of the compiler. The code has no `unsafe`, so no sanitizer is needed beside.
const FLAGS: [&str; 7] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { target, seconds } = arguments;
    let directory = cargo::workspace()?.join("tests/fuzz");
    for inputs in ["corpus", "artifacts"] {
        let inputs = directory.join(inputs).join(target);
        std::fs::create_dir_all(&inputs).with_context(|| inputs.display().to_string())?;
    }
    // A target of its own keeps the flags away from build scripts and macros.
    let host = host()?;
    let status = cargo::command()?
        .current_dir(&directory)
        .env("RUSTFLAGS", FLAGS.join(" "))
        .args(["run", "--quiet", "--release", "--target", &host])
        .args(["--bin", target, "--", &format!("corpus/{target}")])
        .arg(format!("-artifact_prefix=artifacts/{target}/"))
        .arg(format!("-max_total_time={seconds}"))
        // Short inputs would hardly get beyond the beginning of a tunnel.
        .args(["-len_control=0", "-max_len=4096"])
        .args(["-rss_limit_mb=4096", "-timeout=30", "-print_final_stats=1"])
        .status()
        .context("starting cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The triple of this machine.
fn host() -> Result<String> {
    let output = std::process::Command::new("rustc")
        .arg("-vV")
        .output()
        .context("running rustc")?;
    ensure!(output.status.success(), "rustc -vV failed");
    let text = String::from_utf8(output.stdout).context("rustc -vV")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}
