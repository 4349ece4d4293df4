//! `sluicectl rotate-root`: replaces the root of the control plane's own CA.

use std::{path::PathBuf, process::ExitCode};

/// Replaces the root of sluice-control's own CA, without an outage.
///
/// Leaves the key of the next root in the state directory. The control plane that runs with it
/// announces the new root, signs with it later, and forgets the old one when nothing that it has
/// signed is valid any more; it logs each step.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The state directory of sluice-control.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    sluice_control::ca::request_rotation(&arguments.state_dir)?;
    Ok(ExitCode::SUCCESS)
}
