//! Supplies a worker thread with sockets that live in pods' network namespaces.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::netns::{self, Netns};
use crate::link::{Family, Link, MAX_FDS, PodId, ToBroker, ToWorker, Transport};

/// The namespaces of the pods that are in the mesh. Workers name pods by id only, so they can get a
/// socket in these namespaces and in no other.
#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces(Arc<Mutex<HashMap<PodId, Arc<Netns>>>>);

impl Namespaces {
    pub(super) fn insert(&self, pod: PodId, netns: Arc<Netns>) {
        self.table().insert(pod, netns);
    }

    pub(super) fn remove(&self, pod: PodId) {
        self.table().remove(&pod);
    }

    fn get(&self, pod: PodId) -> Option<Arc<Netns>> {
        self.table().get(&pod).cloned()
    }

    fn table(&self) -> MutexGuard<'_, HashMap<PodId, Arc<Netns>>> {
        // Each use is one whole operation on the map, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one worker thread until its link closes. Runs on a thread of its own, which moves from
/// namespace to namespace.
pub(super) fn serve(link: Arc<Link>, namespaces: &Namespaces) {
    loop {
        let request = match link.recv::<ToBroker>() {
            Ok(Some(received)) => received.message,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "a worker thread sent nonsense; its link is closed");
                return;
            }
        };
        let ToBroker::NeedSockets {
            pod,
            transport,
            family,
            count,
        } = request
        else {
            continue;
        };
        // A pod that has just left: the worker learns it from its own message.
        let Some(netns) = namespaces.get(pod) else {
            continue;
        };
        if let Err(error) = supply(&link, pod, &netns, (transport, family), count) {
            tracing::warn!(%error, ?pod, "cannot supply sockets");
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                return;
            }
        }
    }
}

fn supply(
    link: &Link,
    pod: PodId,
    netns: &Netns,
    (transport, family): (Transport, Family),
    count: u8,
) -> std::io::Result<()> {
    netns.enter()?;
    let count = usize::from(count).min(MAX_FDS);
    let sockets: Vec<OwnedFd> = (0..count)
        .map(|_| netns::dialling_socket(transport, family))
        .collect::<Result<_, _>>()?;
    let fds: Vec<_> = sockets.iter().map(OwnedFd::as_fd).collect();
    let message = ToWorker::Sockets {
        pod,
        transport,
        family,
    };
    link.send(&message, &fds)
}
