//! Counts the ztunnel's sockets, when a worker wants to know: it cannot look into the pods' network
//! namespaces itself.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, TryLockError},
    time::{Duration, Instant},
};

use sluice_kernel::TcpSockets;

use super::supply::Namespaces;
use crate::link::{Link, ToWorker, message::SocketCount};

/// How much of a processor's time counting may take: one part in so many. For each namespace the kernel
/// goes through its table of all connections, which takes about a millisecond.
const SHARE: u32 = 100;

/// How many sockets there are, by purpose and state.
type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// Counts in all pods' namespaces.
#[derive(Clone)]
pub(super) struct Census {
    namespaces: Namespaces,
    /// Held while somebody counts.
    counter: Arc<Mutex<Counter>>,
}

struct Counter {
    sockets: TcpSockets,
    last: Option<Counted>,
}

/// What there was at some time.
struct Counted {
    at: Instant,
    took: Duration,
    counts: Counts,
}

impl Counted {
    /// Whether it has to do, since a new count would take too much.
    fn is_good(&self) -> bool {
        self.at.elapsed() < self.took * SHARE
    }
}

impl Census {
    pub(super) fn new(namespaces: Namespaces, sockets: TcpSockets) -> Self {
        Self {
            namespaces,
            counter: Arc::new(Mutex::new(Counter {
                sockets,
                last: None,
            })),
        }
    }

    /// Counts in the background, if the last count is not good enough, and tells a worker; nothing else
    /// waits for it. Who asks meanwhile gets the same answer.
    pub(super) fn begin(&self, link: Arc<Link>) {
        let census = self.clone();
        let thread = std::thread::Builder::new().name("census".into());
        if let Err(error) = thread.spawn(move || census.answer(&link)) {
            tracing::warn!(%error, "sockets cannot be counted");
        }
    }

    fn answer(&self, link: &Link) {
        let mut counter = match self.counter.try_lock() {
            Ok(counter) => counter,
            // What a panic has left is an older count, or none.
            Err(TryLockError::Poisoned(counter)) => counter.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let Counter { sockets, last } = &mut *counter;
        let good = last.take().filter(Counted::is_good);
        let counted = good.unwrap_or_else(|| {
            let at = Instant::now();
            let counts = count(&self.namespaces, sockets);
            let took = at.elapsed();
            Counted { at, took, counts }
        });
        if let Err(error) = link.send(&message(&counted.counts), &[]) {
            tracing::debug!(%error, "a worker does not hear how many sockets there are");
        }
        *last = Some(counted);
    }
}

/// Moves the calling thread from namespace to namespace.
fn count(namespaces: &Namespaces, sockets: &TcpSockets) -> Counts {
    let mut counts = Counts::new();
    for netns in namespaces.all() {
        let counted = netns.enter().and_then(|()| add(&mut counts, sockets));
        if let Err(error) = counted {
            tracing::warn!(%error, netns = %netns.path.display(), "a pod's sockets cannot be counted");
        }
    }
    counts
}

fn add(counts: &mut Counts, sockets: &TcpSockets) -> io::Result<()> {
    sockets.for_each(|socket| {
        if let Some(purpose) = socket.purpose() {
            *counts.entry((purpose, socket.state)).or_default() += 1;
        }
    })
}

fn message(counts: &Counts) -> ToWorker {
    let one = |((purpose, state), count): (&(&str, &str), &u64)| SocketCount {
        purpose: (*purpose).to_owned(),
        state: (*state).to_owned(),
        count: *count,
    };
    ToWorker::SocketCounts(counts.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_has_to_do_for_a_hundred_times_what_it_took() {
        let took = Duration::from_millis(300);
        let ago = |seconds| Counted {
            at: Instant::now() - Duration::from_secs(seconds),
            took,
            counts: Counts::new(),
        };
        assert!(ago(29).is_good());
        assert!(!ago(30).is_good());
    }
}
