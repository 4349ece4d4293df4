//! Ctrl-C, handled by a process of its own.
//!
//! What makes namespaces and processes runs in a child that does not get the terminal's signals,
//! with a pipe as its standard input. This process only waits: for the child to end, or for a
//! signal, upon which it closes the pipe. The child sees the end of the pipe, also when this
//! process is killed, and cleans up. Should the child crash, this process sweeps behind it.

use std::env;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, alarm, geteuid};
use sluice_tests::{Run, cleanup, eventually};

/// Set for the child.
const SUPERVISED: &str = "SLUICE_XTASK_SUPERVISED";
/// How long the child may take to clean up after a signal.
const GRACE_SECONDS: u32 = 60;
/// What a shell reports for a command that Ctrl-C ended.
const INTERRUPTED_CODE: u8 = 130;

/// Calls `work` in a child of this process; returns its exit code.
pub(crate) fn run(work: impl FnOnce() -> Result<ExitCode>) -> Result<ExitCode> {
    if env::var_os(SUPERVISED).is_some() {
        return work().inspect_err(|_| yield_to_interrupt());
    }
    let mut child = Command::new(env::current_exe().context("finding the own executable")?)
        .args(env::args_os().skip(1))
        .env(SUPERVISED, "1")
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("starting the process that does the work")?;
    let outcome = wait(&mut child);
    if geteuid().is_root() {
        for id in cleanup::sweep().context("sweeping")? {
            eprintln!("removed what run {id} left");
        }
    }
    outcome
}

/// In the child: what happens when the supervisor wants it to end, or has ended itself.
#[derive(Debug, Default)]
pub(crate) struct Interrupt {
    run: Arc<Mutex<Weak<Run>>>,
}

/// Set once the child has been told to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

impl Interrupt {
    /// Until told otherwise, an interrupt ends all processes of the child's group.
    pub(crate) fn watch() -> Self {
        let interrupt = Self::default();
        let slot = Arc::clone(&interrupt.run);
        thread::spawn(move || {
            // Nothing is ever written: this returns at the end of the pipe.
            let _ = io::stdin().lock().read(&mut [0]);
            INTERRUPTED.store(true, Ordering::Relaxed);
            let run = slot.lock().ok().and_then(|run| run.upgrade());
            match run {
                None => {
                    let _ = killpg(Pid::from_raw(0), Signal::SIGTERM);
                }
                Some(run) => {
                    if let Err(error) = run.tear_down() {
                        eprintln!("cleaning up run {}: {error:#}", run.id());
                    }
                    std::process::exit(INTERRUPTED_CODE.into());
                }
            }
        });
        interrupt
    }

    /// From now on an interrupt removes all that the run made.
    pub(crate) fn tear_down(self, run: &Arc<Run>) {
        if let Ok(mut slot) = self.run.lock() {
            *slot = Arc::downgrade(run);
        }
    }
}

/// In the child, before reporting a failure: one that came from cleaning up is not reported; the
/// thread that cleans up ends the process.
pub(crate) fn yield_to_interrupt() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        thread::park();
    }
}

fn wait(child: &mut Child) -> Result<ExitCode> {
    let ending = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let mut signals = SigSet::from_iter(ending);
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGALRM);
    // Only now, with the child started: it would inherit the mask. A signal in between ends this
    // process, and the end of the pipe tells the child. There is no other thread to mask.
    signals.thread_block().context("blocking signals")?;
    let group = Pid::from_raw(i32::try_from(child.id()).context("a pid fits in an i32")?);
    let mut interrupted = false;
    loop {
        if has_ended(group)? {
            // While it is a zombie, its group's id cannot be a stranger's.
            killpg(group, Signal::SIGTERM).context("ending what the child left running")?;
            let status = child.wait().context("waiting for the child")?;
            wait_until_empty(group)?;
            if interrupted {
                return Ok(ExitCode::from(INTERRUPTED_CODE));
            }
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
        match signals.wait().context("waiting for a signal")? {
            Signal::SIGCHLD => {}
            Signal::SIGALRM => {
                eprintln!("not cleaned up within {GRACE_SECONDS} s: killing and sweeping");
                killpg(group, Signal::SIGKILL).context("killing the child")?;
            }
            signal => {
                if !interrupted {
                    eprintln!("\n{signal}: cleaning up");
                    alarm::set(GRACE_SECONDS);
                }
                interrupted = true;
                drop(child.stdin.take());
            }
        }
    }
}

/// Looks without reaping.
fn has_ended(child: Pid) -> Result<bool> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let state = waitid(Id::Pid(child), flags).context("asking for the child's state")?;
    Ok(!matches!(state, WaitStatus::StillAlive))
}

/// Sweeping spares what belongs to a living process, also to one that is just dying.
fn wait_until_empty(group: Pid) -> Result<()> {
    eventually(|| {
        let gone = killpg(group, None) == Err(Errno::ESRCH);
        ensure!(gone, "processes of the group {group} do not end");
        Ok(())
    })
}
