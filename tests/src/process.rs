//! Processes of a run: those that go on until they are stopped, and those that end by themselves.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::eventually::{Hopeless, eventually};
use crate::run::Run;

/// How often a process is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);

/// A process in the background; both its outputs go to one file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    group: Group,
}

impl Process {
    /// `command` comes from [`crate::place::Place::command`], which puts it into a cgroup of the
    /// run and into a process group of its own. A second process of the same name appends to
    /// the log of the first.
    pub fn start(run: &Arc<Run>, name: &str, mut command: Command) -> Result<Self> {
        let log = run.log_path(name);
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .with_context(|| format!("opening {}", log.display()))
        };
        command.stdout(open()?).stderr(open()?);
        let group = Group::start(run, &mut command)?;
        Ok(Self {
            name: name.to_owned(),
            log,
            group,
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.child.id()
    }

    /// All it has written so far.
    pub fn log(&self) -> Result<String> {
        let bytes =
            fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits for a line that has all these words, and returns the first: our programs gather
    /// lines for some milliseconds before they write them.
    pub fn wait_for_line(&self, words: &[&str]) -> Result<String> {
        eventually(|| {
            let log = self.log()?;
            let line = log
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)));
            let line =
                line.with_context(|| format!("{} logs no line with {words:?}", self.name))?;
            Ok(line.to_owned())
        })
    }

    /// Fails, with the end of its log, if the process has ended by itself. Who waits for something of it
    /// waits no longer.
    pub fn check(&mut self) -> Result<()> {
        if self.group.has_ended()? {
            let status = self.group.end()?;
            let (name, log) = (&self.name, tail(&self.log, 20));
            return Err(Hopeless(format!("{name} ended by itself: {status}\n{log}")).into());
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.group.pid()?;
        kill(pid, signal).with_context(|| format!("sending {signal} to {} ({pid})", self.name))
    }

    /// Waits until it has ended by itself or by a signal; what is left of its process group is
    /// killed then.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        ensure!(
            self.group.wait_within(limit)?,
            "{} did not end within {limit:?}\n{}",
            self.name,
            tail(&self.log, 20)
        );
        self.group.end()
    }

    /// Asks it to end (SIGTERM) and waits; kills it when it takes longer than `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.group.has_ended()? {
            return self.group.end();
        }
        self.signal(Signal::SIGTERM)?;
        let in_time = self.group.wait_within(limit)?;
        let status = self.group.end()?;
        ensure!(
            in_time,
            "{} did not end within {limit:?} of SIGTERM and was killed\n{}",
            self.name,
            tail(&self.log, 20)
        );
        Ok(status)
    }
}

/// What a process that ended by itself left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Its standard output, or an error that shows how it failed.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{}: {} {}",
            self.status,
            self.stderr.trim(),
            self.stdout.trim()
        );
        Ok(self.stdout)
    }
}

/// Runs a command to its end. After `limit` it is killed with its whole process group.
pub fn finish_within(run: &Arc<Run>, mut command: Command, limit: Duration) -> Result<Finished> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut group = Group::start(run, &mut command)?;
    let stdout = group
        .child
        .stdout
        .take()
        .map(collect)
        .context("no standard output")?;
    let stderr = group
        .child
        .stderr
        .take()
        .map(collect)
        .context("no standard error")?;
    let in_time = group.wait_within(limit)?;
    // Also ends what it started in the background, which would hold the pipes open.
    let status = group.end()?;
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    ensure!(
        in_time,
        "not finished within {limit:?}: {command:?}\n{} {}",
        stdout.trim(),
        stderr.trim()
    );
    Ok(Finished {
        status,
        stdout,
        stderr,
    })
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A child that leads a process group. Dropping it kills the group.
#[derive(Debug)]
pub(crate) struct Group {
    child: Child,
    status: Option<ExitStatus>,
}

impl Group {
    /// The command must make its own process group (`Place::command` does).
    pub(crate) fn start(run: &Arc<Run>, command: &mut Command) -> Result<Self> {
        let child = run.while_open(|| {
            command
                .spawn()
                .with_context(|| format!("starting {command:?}"))
        })?;
        Ok(Self {
            child,
            status: None,
        })
    }

    pub(crate) fn pipes(&mut self) -> Result<(ChildStdin, ChildStdout)> {
        let stdin = self.child.stdin.take().context("no pipe to the child")?;
        let stdout = self.child.stdout.take().context("no pipe from the child")?;
        Ok((stdin, stdout))
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(
            i32::try_from(self.child.id()).context("a pid fits in an i32")?,
        ))
    }

    /// Does not reap the child: as a zombie it keeps its id from being given to a stranger,
    /// so that the group can still be killed by it.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        if self.status.is_some() {
            return Ok(true);
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let state = waitid(Id::Pid(self.pid()?), flags).context("asking for a child's state")?;
        Ok(!matches!(state, WaitStatus::StillAlive))
    }

    pub(crate) fn wait_within(&self, limit: Duration) -> Result<bool> {
        let begin = Instant::now();
        while !self.has_ended()? {
            if begin.elapsed() >= limit {
                return Ok(false);
            }
            thread::sleep(POLL);
        }
        Ok(true)
    }

    /// Kills what is left of the group and reaps the child.
    pub(crate) fn end(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        // ESRCH cannot be: the child is at least a zombie.
        killpg(self.pid()?, Signal::SIGKILL).context("killing a process group")?;
        let status = self.child.wait().context("waiting for a child process")?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks has said all it could.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
