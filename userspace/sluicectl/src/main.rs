//! `sluicectl`: what an operator asks Sluice from a shell. A file per verb.

mod analyze;
mod clients;
mod rotate_root;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Looks after a Sluice mesh.
#[derive(Debug, Parser)]
#[command(version, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Analyze(Box<analyze::Arguments>),
    Clients(clients::Arguments),
    RotateRoot(rotate_root::Arguments),
    Trace(trace::Arguments),
}

/// What clap too returns for a command line that it does not understand.
const COULD_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Analyze(arguments) => analyze::run(&arguments),
        Verb::Clients(arguments) => clients::run(&arguments),
        Verb::RotateRoot(arguments) => rotate_root::run(&arguments),
        Verb::Trace(arguments) => trace::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(COULD_NOT_RUN)
    })
}
