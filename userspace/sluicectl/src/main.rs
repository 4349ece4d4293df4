//! `sluicectl`: what an operator asks Sluice from a shell. A file per verb.

mod analyze;
mod ask;
mod clients;
mod completion;
mod dump;
mod explain;
mod rotate_root;
mod show;
mod status;
mod trace;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Looks after a Sluice mesh.
#[derive(Debug, Parser)]
#[command(version, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Status(status::Arguments),
    Explain(Box<explain::Arguments>),
    Analyze(Box<analyze::Arguments>),
    Clients(clients::Arguments),
    Dump(dump::Arguments),
    RotateRoot(rotate_root::Arguments),
    Completion(completion::Arguments),
    Trace(trace::Arguments),
}

/// What clap too returns for a command line that it does not understand.
const COULD_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Analyze(arguments) => analyze::run(&arguments),
        Verb::Clients(arguments) => clients::run(&arguments),
        Verb::Dump(arguments) => dump::run(&arguments),
        Verb::RotateRoot(arguments) => rotate_root::run(&arguments),
        Verb::Completion(arguments) => completion::run(&arguments, Cli::command()),
        Verb::Trace(arguments) => trace::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(COULD_NOT_RUN)
    })
}
