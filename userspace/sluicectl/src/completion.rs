//! `sluicectl completion`: the script by which a shell completes commands.

use std::process::ExitCode;

use clap::Command;
use clap_complete::{Shell, generate};

use crate::show;

/// Prints a script that has a shell complete commands and flags.
///
/// For bash, in this shell alone: source <(sluicectl completion bash)
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The shell that it is for.
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments, mut command: Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    generate(arguments.shell, &mut command, name, &mut script);
    show::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
