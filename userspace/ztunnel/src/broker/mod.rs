//! The privileged half of the node proxy.
//!
//! It parses nothing that came over a network: its inputs are local files, the kernel, and the
//! fixed messages of its own worker. One thread owns all state and takes [`Event`]s; the others
//! only wait for something and report it.

mod audit;
mod census;
mod crl;
mod durable;
mod egress;
mod flows;
mod memory;
mod neighbours;
mod netns;
mod pods;
mod receiver;
mod signals;
mod supply;
mod worker;

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use sluice_kernel::{Events, Kernel};
use sluice_objects::{Directory, directory};

use crate::{
    link::{self, Settings},
    rest::Rest,
};
use pods::Pods;
use worker::Worker;

/// How the broker is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose pods it enrols: their `spec.nodeName`.
    pub node: String,
    /// Kubernetes objects as files; says which pods there are.
    pub config_dir: PathBuf,
    /// `broker.pid`, `worker.pid` and `pods`, a list of what is enrolled, are kept here.
    pub run_dir: PathBuf,
    /// Where the last good snapshot of the mesh is kept.
    pub state_dir: PathBuf,
    /// What authenticates this node to the control plane, unless that is on this machine.
    pub token_file: Option<PathBuf>,
    /// The certificate that the control plane must be signed by, in PEM; likewise.
    pub control_root: Option<PathBuf>,
    /// Revocation lists, followed.
    pub crl: Option<PathBuf>,
    /// Certificates that the receiver of spans must be signed by, in PEM; otherwise the system's.
    pub otlp_root: Option<PathBuf>,
    /// How many threads carry traffic.
    pub threads: usize,
    /// Whether DNS queries are captured, of pods that do not opt out.
    pub dns_capture: bool,
    /// Whether connections go straight from pod to pod of the node where policy allows it, of pods
    /// that do not opt out.
    pub same_node: bool,
    pub kernel: sluice_kernel::Config,
    /// Whether flow events are read and logged.
    pub events: Events,
    /// What the worker is told.
    pub worker: Settings,
}

/// What the broker's main loop waits for.
#[derive(Debug)]
enum Event {
    /// The configuration directory was read.
    Pods(Vec<sluice_objects::enrolment::Enrolment>),
    WorkerExited {
        pid: u32,
        status: String,
    },
    WorkerReady {
        pid: u32,
    },
    Egress {
        pid: u32,
        news: link::Egress,
        /// Dropped when it has been dealt with; the worker's next message is not read before.
        _pending: mpsc::Sender<()>,
    },
    Neighbours {
        pid: u32,
        news: link::Neighbours,
        /// As above.
        _pending: mpsc::Sender<()>,
    },
    /// A worker leaves something to the next one.
    Keep {
        pid: u32,
        memory: link::Memory,
        fd: OwnedFd,
        /// As above.
        _pending: mpsc::Sender<()>,
    },
    /// Whether somebody traces.
    Trace {
        pid: u32,
        on: bool,
    },
    Stop,
}

/// For how long the kernel believes a broker that says nothing more.
const VOUCHED: Duration = Duration::from_secs(5 * TICK.as_secs());
/// For how long what a worker has said stands when none is there to judge it again.
const ORPHANED: Duration = Duration::from_secs(10);

/// How often slow truths are checked: addresses of pods, credentials on disk.
const TICK: Duration = Duration::from_secs(2);

/// Runs until a signal ends it; then withdraws every pod and removes every pin.
///
/// # Errors
/// When it cannot start: what is missing, and where.
pub fn run(config: Config) -> Result<()> {
    let (events, inbox) = mpsc::channel();
    // Before any other thread, so that all of them leave the signals to one.
    signals::watch(events.clone())?;
    raise_descriptor_limit();
    let _running = claim(&config.run_dir)?;
    let (mut kernel, reader) = Kernel::load(&config.kernel).context("load the eBPF programs")?;
    // Among it the description of all the kernel's types.
    sluice_kernel::heap::give_back();
    kernel.set_events(config.events)?;
    let flows = flows::Flows::default();
    let _events = flows::read(reader, flows.clone())?;
    let _directory = watch_pods(&config, events.clone())?;
    let mut broker = Broker {
        pods: Pods::new(kernel, &config)?,
        worker: Worker::new(&config, events, flows.clone())?,
        flows,
        events: config.events,
        rest: Rest::begin(),
    };
    tracing::info!(node = config.node, "broker started");
    broker.worker.start(&broker.pods)?;
    let mut next_tick = Instant::now() + TICK;
    loop {
        let wait = next_tick.min(broker.worker.restart_at().unwrap_or(next_tick));
        match inbox.recv_timeout(wait.saturating_duration_since(Instant::now())) {
            Ok(Event::Stop) => break,
            Ok(event) => broker.handle(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("every source of events is gone"),
        }
        broker.worker.restart_if_due(&broker.pods);
        if Instant::now() >= next_tick {
            broker.tick();
            next_tick = Instant::now() + TICK;
        }
    }
    tracing::info!("stopping: pods leave the mesh");
    broker.pods.withdraw_all();
    broker.worker.stop();
    Ok(())
}

struct Broker {
    pods: Pods,
    worker: Worker,
    flows: flows::Flows,
    /// Whether events are wanted when nobody traces.
    events: Events,
    rest: Rest,
}

impl Broker {
    fn handle(&mut self, event: Event) {
        match event {
            Event::Pods(wanted) => self.pods.reconcile(wanted, &self.worker),
            Event::WorkerReady { pid } => tracing::info!(pid, "worker serves"),
            Event::WorkerExited { pid, status } => {
                self.worker.exited(pid, &status);
                self.pods.orphan();
                self.trace(false);
            }
            Event::Trace { pid, on } => {
                if self.worker.is_running(pid) {
                    self.trace(on);
                }
            }
            // A worker that is gone may have left something to say.
            Event::Egress { pid, news, .. } => {
                if self.worker.is_running(pid) {
                    self.pods.hear_of_egress(news);
                }
            }
            Event::Neighbours { pid, news, .. } => {
                if self.worker.is_running(pid) {
                    self.pods.hear_of_neighbours(news);
                }
            }
            Event::Keep {
                pid, memory, fd, ..
            } => {
                if self.worker.is_running(pid) {
                    self.worker.keep(memory, fd);
                }
            }
            Event::Stop => {}
        }
    }

    /// Has the programs tell of connections, and the worker hear of it, while somebody traces.
    fn trace(&mut self, on: bool) {
        self.flows.trace(on);
        let events = if on { Events::On } else { self.events };
        if let Err(error) = self.pods.set_events(events) {
            tracing::warn!(%error, "events of the kernel cannot be turned on or off");
        }
    }

    fn tick(&mut self) {
        self.pods.tick(&self.worker);
        self.worker.refresh_credentials();
        self.rest.look();
    }
}

/// Two descriptors for every connection are soon more than the usual soft limit of 1024. The worker
/// inherits it.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

/// Makes sure that no other broker runs with this directory, and leaves the pid there.
fn claim(run_dir: &Path) -> Result<Flock<fs::File>> {
    fs::create_dir_all(run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    fs::set_permissions(run_dir, fs::Permissions::from_mode(0o755))?;
    let lock = fs::File::create(run_dir.join("lock"))?;
    let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
        bail!("another broker runs with --run-dir {}", run_dir.display());
    };
    fs::write(
        run_dir.join("broker.pid"),
        format!("{}\n", std::process::id()),
    )?;
    Ok(lock)
}

/// Follows the pods of this node.
fn watch_pods(config: &Config, events: mpsc::Sender<Event>) -> Result<Directory> {
    let node = config.node.clone();
    let wanted = directory::Config {
        node: Some(node.as_str().into()),
        ..directory::Config::new(&config.config_dir)
    };
    Directory::watch(wanted, move |snapshot| {
        let (pods, problems) = sluice_objects::enrolment::pods_to_enrol(&snapshot.objects, &node);
        for problem in problems {
            tracing::warn!(%problem, "pod not enrolled");
        }
        // Fails only when the broker is stopping.
        let _ = events.send(Event::Pods(pods));
    })
    .with_context(|| format!("watch {}", config.config_dir.display()))
}
