//! `sluicectl trace`: what a ztunnel does with connections, and whether the kernel does what it is told.
//! A file per verb.

mod admin;
mod flows;
mod ledger;
mod lines;
mod maps;
mod sockets;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Subcommand, ValueEnum};

/// Shows what the ztunnel of this node does with connections, live; and looks into the kernel.
///
/// Runs on the node, in its network namespace. All verbs but `flows` and `kernel` need root.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Flows(flows::Arguments),
    Kernel(flows::KernelArguments),
    Maps(maps::Arguments),
    Sockets(sockets::Arguments),
    Verify(verify::Arguments),
}

/// Where the broker leaves what it has done.
#[derive(Debug, clap::Args)]
struct Node {
    /// The `--run-dir` of the ztunnel.
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
}

/// How things are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.verb {
        Verb::Flows(arguments) => flows::run(arguments),
        Verb::Kernel(arguments) => flows::run_kernel(arguments),
        Verb::Maps(arguments) => maps::run(arguments),
        Verb::Sockets(arguments) => sockets::run(arguments),
        Verb::Verify(arguments) => verify::run(arguments),
    }
}
