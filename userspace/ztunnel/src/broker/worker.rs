//! The worker process: started, watched, replaced.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_kernel::verify::Ledger;

use super::{
    Config, Event,
    census::Census,
    crl::RevocationFile,
    flows::Flows,
    memory::Memories,
    pods::{PodRecord, Pods},
    receiver::ReceiverRoots,
    supply,
};
use crate::{
    link::{Link, Memory, PodId, Received, ToBroker, ToWorker},
    one_line,
};

/// A worker that lives at least this long is replaced at once when it dies.
const HEALTHY: Duration = Duration::from_secs(2);
/// How long a worker may take to write what it has to say when it is to end.
const FAREWELL: Duration = Duration::from_secs(1);
/// Others are replaced after a pause that doubles from this …
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// … up to this.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Keeps one worker running.
pub(super) struct Worker {
    config: Config,
    events: Sender<Event>,
    credentials: Credentials,
    crl: Option<RevocationFile>,
    receiver_roots: Option<ReceiverRoots>,
    memories: Memories,
    flows: Flows,
    running: Option<Running>,
    pause: Duration,
    restart_at: Option<Instant>,
}

struct Running {
    pid: u32,
    /// Is closed when the process has ended.
    ended: Receiver<()>,
    since: Instant,
    /// The worker's own link.
    link: Arc<Link>,
    /// One link per thread.
    threads: Vec<Arc<Link>>,
}

impl Worker {
    pub(super) fn new(config: &Config, events: Sender<Event>, flows: Flows) -> Result<Self> {
        let credentials =
            Credentials::read(config.token_file.clone(), config.control_root.clone())?;
        // Makes the directory, in which lists are kept too.
        let memories = Memories::open(&config.state_dir)?;
        let crl = config.crl.clone();
        let crl = crl.map(|path| RevocationFile::open(path, &config.state_dir));
        let traces = config.worker.traces.as_ref();
        let receiver_roots = traces
            .filter(|traces| traces.is_encrypted())
            .map(|_| ReceiverRoots::read(config.otlp_root.as_deref()))
            .transpose()
            .context("--otlp-endpoint")?;
        Ok(Self {
            config: config.clone(),
            events,
            credentials,
            memories,
            crl: crl.transpose()?,
            receiver_roots,
            flows,
            running: None,
            pause: FIRST_PAUSE,
            restart_at: None,
        })
    }

    /// Starts a worker and gives it everything.
    pub(super) fn start(&mut self, pods: &Pods) -> Result<()> {
        // A token that has changed since the last tick would keep this worker out until the next.
        self.refresh_credentials();
        let (link, worker_end) = Link::pair()?;
        // The worker's link is its standard input: the one descriptor that a child always has.
        let mut child = Command::new("/proc/self/exe")
            .arg("worker")
            .stdin(Stdio::from(OwnedFd::from(worker_end)))
            .spawn()
            .context("start the worker")?;
        let pid = child.id();
        let events = self.events.clone();
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new()
            .name("worker-exit".into())
            .spawn(move || {
                let status = child
                    .wait()
                    .map_or_else(|e| e.to_string(), |s| s.to_string());
                drop(end);
                let _ = events.send(Event::WorkerExited { pid, status });
            })?;
        let running = self.equip(pid, ended, link, pods)?;
        for pod in pods.records() {
            running.add_pod(pod);
        }
        for message in pods.inheritance().into_iter().chain([pods.drift()]) {
            running.tell(&running.link, &message, &[]);
        }
        self.flows.tell_to(Some(running.link.clone()));
        fs::write(self.config.run_dir.join("worker.pid"), format!("{pid}\n"))?;
        self.running = Some(running);
        Ok(())
    }

    fn equip(&mut self, pid: u32, ended: Receiver<()>, link: Link, pods: &Pods) -> Result<Running> {
        let (maps, counters) = (pods.socket_maps()?, pods.counters()?);
        let pairs = (0..self.config.threads)
            .map(|_| Link::pair())
            .collect::<Result<Vec<_>, _>>()?;
        let ends = pairs.iter().map(|(_, worker)| worker.as_fd());
        let counters = counters.iter().map(|counters| counters.as_fd());
        let ends: Vec<_> = counters.chain(ends).collect();
        link.send(
            &ToWorker::Start(Box::new(self.config.worker.clone())),
            &ends,
        )?;
        link.send(&self.credentials.message(), &[])?;
        if let Some(crl) = &mut self.crl {
            crl.send(&link)?;
        }
        if let Some(roots) = &self.receiver_roots {
            roots.send(&link)?;
        }
        self.memories.tell(&link)?;
        let mut threads = Vec::new();
        for (index, (thread, _)) in pairs.into_iter().enumerate() {
            thread.send(&ToWorker::Maps, &maps.as_fds())?;
            let thread = Arc::new(thread);
            threads.push(thread.clone());
            let namespaces = pods.namespaces().clone();
            std::thread::Builder::new()
                .name(format!("supply-{index}"))
                .spawn(move || supply::serve(thread, &namespaces))?;
        }
        let link = Arc::new(link);
        let (listening, events) = (link.clone(), self.events.clone());
        let control = self.config.worker.control.clone();
        let census = Census::new(pods.namespaces().clone(), pods.tcp_sockets()?);
        std::thread::Builder::new()
            .name("worker-link".into())
            .spawn(move || {
                while let Ok(Some(received)) = listening.recv::<ToBroker>() {
                    match received.message {
                        ToBroker::NeedControl(place) => {
                            supply::control(&listening, &control, place);
                        }
                        ToBroker::CountSockets => census.begin(listening.clone()),
                        _ => hear(pid, received, &events),
                    }
                }
            })?;
        Ok(Running {
            pid,
            ended,
            since: Instant::now(),
            link,
            threads,
        })
    }

    /// Tells the worker of a pod. Without a worker nothing is lost: the next one is told at its
    /// start.
    pub(super) fn add_pod(&self, pod: &PodRecord) {
        if let Some(running) = &self.running {
            running.add_pod(pod);
        }
    }

    /// Tells the worker something that the next one is told at its start.
    pub(super) fn tell(&self, message: &ToWorker) {
        if let Some(running) = &self.running {
            running.tell(&running.link, message, &[]);
        }
    }

    pub(super) fn is_running(&self, pid: u32) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.pid == pid)
    }

    pub(super) fn remove_pod(&self, id: PodId) {
        if let Some(running) = &self.running {
            running.tell_all(&ToWorker::RemovePod(id));
        }
    }

    /// Notes the death of a worker; connections wait in the listeners until the next one serves.
    pub(super) fn exited(&mut self, pid: u32, status: &str) {
        let Some(running) = self.running.take_if(|running| running.pid == pid) else {
            return;
        };
        self.flows.tell_to(None);
        let healthy = running.since.elapsed() >= HEALTHY;
        self.memories.worker_died(!healthy);
        if healthy {
            self.pause = FIRST_PAUSE;
            self.restart_at = Some(Instant::now());
        } else {
            self.restart_at = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(MAX_PAUSE);
        }
        tracing::error!(pid, status, "worker exited; a new one takes over");
    }

    /// Keeps what the worker leaves to the next one.
    pub(super) fn keep(&mut self, memory: Memory, fd: OwnedFd) {
        self.memories.keep(memory, fd);
    }

    /// When the next worker is due, if none runs.
    pub(super) fn restart_at(&self) -> Option<Instant> {
        self.restart_at
    }

    pub(super) fn restart_if_due(&mut self, pods: &Pods) {
        if self.restart_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.restart_at = None;
        if let Err(error) = self.start(pods) {
            tracing::error!(error = one_line(&error), "cannot start a worker");
            if self.running.is_none() {
                self.restart_at = Some(Instant::now() + self.pause);
            }
        }
    }

    /// Passes changed credentials and revocation lists on.
    pub(super) fn refresh_credentials(&mut self) {
        match self.credentials.refresh() {
            Ok(true) => {
                if let Some(running) = &self.running {
                    running.tell(&running.link, &self.credentials.message(), &[]);
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(error = one_line(&error), "credentials not refreshed"),
        }
        if let Some(crl) = &mut self.crl {
            crl.refresh();
            if let Some(running) = &self.running {
                crl.pass_on(&running.link);
            }
        }
    }

    /// Ends the worker.
    pub(super) fn stop(mut self) {
        if let Some(running) = self.running.take() {
            // It holds nothing that outlives it: what it carried ends with the mesh. But it has lines
            // of the log to write.
            running.link.shut();
            if running.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(Pid::from_raw(running.pid as i32), Signal::SIGKILL);
            }
        }
        for name in ["worker.pid", "broker.pid", "pods", Ledger::FILE] {
            let _ = fs::remove_file(self.config.run_dir.join(name));
        }
    }
}

/// Passes a message of the worker on, and waits until it has been dealt with: a worker that talks
/// without end fills its own link, and not the broker's memory.
fn hear(pid: u32, received: Received<ToBroker>, events: &Sender<Event>) {
    match received.message {
        ToBroker::Ready => {
            let _ = events.send(Event::WorkerReady { pid });
        }
        ToBroker::Trace(on) => {
            let _ = events.send(Event::Trace { pid, on });
        }
        ToBroker::Egress(news) => {
            let (_pending, done) = mpsc::channel();
            let event = Event::Egress {
                pid,
                news,
                _pending,
            };
            if events.send(event).is_ok() {
                // Nothing is ever sent: the other end is dropped.
                let _ = done.recv();
            }
        }
        ToBroker::Neighbours(news) => {
            let (_pending, done) = mpsc::channel();
            let event = Event::Neighbours {
                pid,
                news,
                _pending,
            };
            if events.send(event).is_ok() {
                let _ = done.recv();
            }
        }
        ToBroker::Keep(memory) => {
            let Ok([fd]) = <[OwnedFd; 1]>::try_from(received.fds) else {
                return;
            };
            let (_pending, done) = mpsc::channel();
            let event = Event::Keep {
                pid,
                memory,
                fd,
                _pending,
            };
            if events.send(event).is_ok() {
                let _ = done.recv();
            }
        }
        // Asked for on the links of threads only, or dealt with before.
        ToBroker::NeedSockets { .. } | ToBroker::NeedControl(_) | ToBroker::CountSockets => {}
    }
}

impl Running {
    fn add_pod(&self, pod: &PodRecord) {
        let message = |listeners| ToWorker::AddPod {
            pod: pod.info.clone(),
            listeners,
        };
        self.tell(&self.link, &message(Vec::new()), &[]);
        for (thread, listeners) in self.threads.iter().zip(&pod.listeners) {
            let kinds = listeners.iter().map(|(kind, _)| *kind).collect();
            let fds: Vec<_> = listeners.iter().map(|(_, fd)| fd.as_fd()).collect();
            self.tell(thread, &message(kinds), &fds);
        }
    }

    fn tell_all(&self, message: &ToWorker) {
        for link in self.threads.iter().chain([&self.link]) {
            self.tell(link, message, &[]);
        }
    }

    fn tell(&self, link: &Link, message: &ToWorker, fds: &[std::os::fd::BorrowedFd<'_>]) {
        // A worker that has just died is noticed by its exit, and replaced.
        if let Err(error) = link.send(message, fds) {
            tracing::debug!(%error, pid = self.pid, "message to the worker lost");
        }
    }
}

/// What authenticates this node and the control plane to each other, as files.
struct Credentials {
    token_file: Option<PathBuf>,
    root_file: Option<PathBuf>,
    token: String,
    control_root: String,
}

impl Credentials {
    fn read(token_file: Option<PathBuf>, root_file: Option<PathBuf>) -> Result<Self> {
        let mut credentials = Self {
            token_file,
            root_file,
            token: String::new(),
            control_root: String::new(),
        };
        credentials.refresh()?;
        Ok(credentials)
    }

    /// Reads both files again; true when something changed.
    fn refresh(&mut self) -> Result<bool> {
        let read = |path: &Option<PathBuf>, flag: &str| match path {
            Some(path) => fs::read_to_string(path)
                .with_context(|| format!("read {} ({flag})", path.display())),
            None => Ok(String::new()),
        };
        let token = read(&self.token_file, "--token-file")?.trim().to_owned();
        let control_root = read(&self.root_file, "--control-root")?;
        let changed = token != self.token || control_root != self.control_root;
        (self.token, self.control_root) = (token, control_root);
        Ok(changed)
    }

    fn message(&self) -> ToWorker {
        ToWorker::Credentials {
            token: self.token.clone(),
            control_root: self.control_root.clone(),
        }
    }
}
