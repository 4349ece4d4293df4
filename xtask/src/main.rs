//! The project's commands: `cargo xtask setup | build | test | demo | bench | profile | fuzz`.

mod bench;
mod build;
mod cargo;
mod demo;
mod fuzz;
mod profile;
mod setup;
mod supervise;
mod table;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests and shows Sluice.
///
/// A fresh clone needs nothing beforehand: each command installs what it misses, or says what to
/// install. `demo`, `bench` and the netns tests need root; all they make (network namespaces,
/// cgroups, eBPF programs, processes) is removed at the end.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    subcommand_required = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Setup(setup::Arguments),
    Build(build::Arguments),
    Test(test::Arguments),
    Demo(demo::Arguments),
    Bench(bench::Arguments),
    Profile(profile::Arguments),
    Fuzz(fuzz::Arguments),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Verb::Setup(arguments) => setup::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Build(arguments) => build::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Profile(arguments) => profile::run(&arguments),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
    }
}
