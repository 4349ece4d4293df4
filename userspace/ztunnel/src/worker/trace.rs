//! The steps of connections, for whoever traces them.
//!
//! Steps are told only while somebody listens; otherwise each costs one relaxed load. What connections
//! came to is kept by each thread for itself, for those who come later, and handed out on demand.

mod history;
mod join;
mod stream;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use nix::time::{ClockId, clock_gettime};
use sluice_kernel::{Counters, Reason};
use sluice_telemetry::trace::Step;
use tokio::sync::{broadcast, mpsc, watch};

pub(super) use history::{Past, keep, remember};
pub(super) use stream::open;

use crate::link::message::KernelEvent;

/// How many steps may wait for a listener that is slow.
const PENDING: usize = 8192;

/// Added to the numbers that the worker gives to connections. It leaves them exact in JSON, whose readers
/// often take numbers for floating-point ones.
const OWN_NUMBERS: u64 = 1 << 52;

/// What is told to listeners.
#[derive(Clone, Debug)]
enum Seen {
    /// By the worker; nanoseconds since boot.
    Step {
        at: u64,
        connection: u64,
        /// The end of a socket by which the kernel's events are found that belong to it.
        end: Option<End>,
        step: Arc<Step>,
    },
    /// By the kernel, with the name of the pod.
    Kernel {
        event: KernelEvent,
        pod: Option<Arc<str>>,
    },
    /// What a program of the kernel's has logged.
    Log(Arc<str>),
    /// What the broker could not pass on.
    Lost(u64),
}

/// An end of a socket, by the cookie of its network namespace, its family and its port. The address says
/// nothing more: what is captured has loopback's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct End {
    netns: u64,
    ipv4: bool,
    port: u16,
}

impl End {
    pub(super) fn new(netns: u64, address: SocketAddr) -> Self {
        Self {
            netns,
            ipv4: address.ip().to_canonical().is_ipv4(),
            port: address.port(),
        }
    }
}

/// Tells steps to those who listen.
pub(super) struct Trace {
    listeners: AtomicU32,
    /// Whether anybody listens, for the broker.
    wanted: watch::Sender<bool>,
    /// Made when somebody listens for the first time: it has room for all that may wait.
    steps: OnceLock<broadcast::Sender<Seen>>,
    next: AtomicU64,
    /// The threads that keep what connections came to.
    threads: Mutex<Vec<mpsc::UnboundedSender<history::Ask>>>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}

impl Trace {
    /// `counters` say what the kernel has lost.
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            listeners: AtomicU32::new(0),
            wanted: watch::Sender::new(false),
            steps: OnceLock::new(),
            next: AtomicU64::new(1),
            threads: Mutex::default(),
            counters,
        }
    }

    /// Whether anybody listens.
    pub(super) fn is_heard(&self) -> bool {
        self.listeners.load(Ordering::Relaxed) != 0
    }

    /// Follows whether anybody listens.
    pub(super) fn wanted(&self) -> watch::Receiver<bool> {
        self.wanted.subscribe()
    }

    /// A number for a connection. Cookies of sockets are smaller.
    pub(super) fn number(&self) -> u64 {
        OWN_NUMBERS | self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells a step of the worker's.
    pub(super) fn tell(&self, connection: u64, end: Option<End>, step: Step) {
        let seen = Seen::Step {
            at: since_boot(),
            connection,
            end,
            step: Arc::new(step),
        };
        // Fails when the last listener has just gone.
        let _ = self.steps().send(seen);
    }

    /// Tells what the kernel has seen; `name` names the pod with a cookie or an address.
    pub(super) fn tell_kernel(
        &self,
        events: Vec<KernelEvent>,
        log: Vec<String>,
        lost: u64,
        name: impl Fn(&KernelEvent) -> Option<Arc<str>>,
    ) {
        for event in events {
            let pod = name(&event);
            let _ = self.steps().send(Seen::Kernel { event, pod });
        }
        for line in log {
            let _ = self.steps().send(Seen::Log(line.into()));
        }
        if lost > 0 {
            let _ = self.steps().send(Seen::Lost(lost));
        }
    }

    /// Has steps told as long as the result lives.
    fn listen(self: &Arc<Self>) -> Listener {
        let steps = self.steps().subscribe();
        if self.listeners.fetch_add(1, Ordering::Relaxed) == 0 {
            self.wanted.send_replace(true);
        }
        Listener {
            trace: self.clone(),
            steps,
        }
    }

    fn steps(&self) -> &broadcast::Sender<Seen> {
        self.steps.get_or_init(|| broadcast::Sender::new(PENDING))
    }

    /// How many events of the kernel did not fit into its ring so far.
    fn lost_in_kernel(&self) -> u64 {
        let counts = self.counters.read().unwrap_or_default();
        let mut lost = counts
            .into_iter()
            .filter(|(reason, _)| *reason == Reason::EventLost);
        lost.next().map_or(0, |(_, count)| count)
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<mpsc::UnboundedSender<history::Ask>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who listens.
struct Listener {
    trace: Arc<Trace>,
    steps: broadcast::Receiver<Seen>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.trace.listeners.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.trace.wanted.send_replace(false);
        }
    }
}

/// Nanoseconds since boot, as the kernel's events count them.
fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        let (seconds, nanos) = (now.tv_sec() as u64, now.tv_nsec() as u64);
        seconds * 1_000_000_000 + nanos
    })
}
