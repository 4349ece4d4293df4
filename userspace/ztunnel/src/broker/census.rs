//! Counts the ztunnel's sockets, when a worker wants to know: it cannot look into the pods' network
//! namespaces itself.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, TryLockError},
};

use sluice_kernel::TcpSockets;

use super::supply::Namespaces;
use crate::link::{Link, ToWorker, message::SocketCount};

/// How many sockets there are, by purpose and state.
type Counts = BTreeMap<(&'static str, &'static str), u64>;

/// Counts in all pods' namespaces.
#[derive(Clone)]
pub(super) struct Census {
    namespaces: Namespaces,
    /// Held while somebody counts.
    sockets: Arc<Mutex<TcpSockets>>,
}

impl Census {
    pub(super) fn new(namespaces: Namespaces, sockets: TcpSockets) -> Self {
        Self {
            namespaces,
            sockets: Arc::new(Mutex::new(sockets)),
        }
    }

    /// Counts in the background, and tells a worker; nothing else waits for it. Who asks meanwhile
    /// gets the same answer.
    pub(super) fn begin(&self, link: Arc<Link>) {
        let census = self.clone();
        let count = move || {
            let sockets = match census.sockets.try_lock() {
                Ok(sockets) => sockets,
                // A count is a new one each time, so a panic has left nothing behind.
                Err(TryLockError::Poisoned(sockets)) => sockets.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let counts = count(&census.namespaces, &sockets);
            if let Err(error) = link.send(&message(counts), &[]) {
                tracing::debug!(%error, "a worker does not hear how many sockets there are");
            }
        };
        let thread = std::thread::Builder::new().name("census".into());
        if let Err(error) = thread.spawn(count) {
            tracing::warn!(%error, "sockets cannot be counted");
        }
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

fn message(counts: Counts) -> ToWorker {
    let one = |((purpose, state), count): ((&str, &str), u64)| SocketCount {
        purpose: purpose.to_owned(),
        state: state.to_owned(),
        count,
    };
    ToWorker::SocketCounts(counts.into_iter().map(one).collect())
}
