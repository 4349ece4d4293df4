//! `sluicectl`, as an operator runs it on a node.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::Result;

use crate::process::{self, Finished};
use crate::topology::Node;

/// It waits for each answer for ten seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs it on a node, to its end.
pub fn run<A: AsRef<OsStr>>(
    node: &Node,
    arguments: impl IntoIterator<Item = A>,
) -> Result<Finished> {
    let mut command = node.command(node.run.binaries().sluicectl()?);
    command.args(arguments);
    process::finish_within(&node.run, command, LIMIT)
}
