//! Where a process runs: a network namespace and a cgroup.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::process::{self, Finished, Process};
use crate::run::Run;

/// Joins the cgroup and becomes the rest of its arguments.
const JOIN: &str = r#"echo 0 > "$1" && shift && exec "$@""#;

/// A network namespace with a cgroup for the processes in it.
#[derive(Debug)]
pub struct Place {
    pub run: Arc<Run>,
    pub netns: Netns,
    pub cgroup: Cgroup,
}

impl Place {
    /// A command that will run here. It joins the cgroup first and enters the namespace then,
    /// by nsenter: `ip netns exec` would mount another /sys and hide the cgroups. It has a
    /// process group of its own, so that Ctrl-C at the terminal reaches only us, who clean up.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_in(&self.cgroup, program)
    }

    /// The same in another cgroup.
    pub fn command_in(&self, cgroup: &Cgroup, program: impl AsRef<OsStr>) -> Command {
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.netns.path());
        let mut command = Command::new("sh");
        command
            .args(["-c", JOIN, "sh"])
            .arg(cgroup.procs())
            .arg("nsenter")
            .arg(net)
            .arg("--")
            .arg(program)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }

    /// Runs to the end, or is killed after `limit`.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        limit: Duration,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Finished> {
        let mut command = self.command(program);
        command.args(arguments);
        process::finish_within(&self.run, command, limit)
    }

    /// Starts a process that runs until it is stopped or dropped and logs to a file of the run.
    pub fn start<S: AsRef<OsStr>>(
        &self,
        name: &str,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Process> {
        let mut command = self.command(program);
        command.args(arguments);
        Process::start(&self.run, name, command)
    }
}
