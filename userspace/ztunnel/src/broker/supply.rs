//! Supplies a worker with sockets: those that live in pods' network namespaces, and those of a control
//! plane on this machine.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sluice_identity::socket_path;

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

    /// All of them at this moment.
    pub(super) fn all(&self) -> Vec<Arc<Netns>> {
        self.table().values().cloned().collect()
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

/// Connects a worker to the control plane at a place of this list, or tells it why not. It can name no
/// other socket than the operator has.
pub(super) fn control(link: &Link, addresses: &[String], place: usize) {
    let path = addresses
        .get(place)
        .and_then(|address| socket_path(address));
    let opened = path
        .ok_or_else(|| "it is not on this machine".to_owned())
        .and_then(|path| local_socket(path).map_err(|error| format!("{path}: {error}")));
    let sent = match opened {
        Ok(socket) => link.send(&ToWorker::Control(Ok(())), &[socket.as_fd()]),
        Err(reason) => link.send(&ToWorker::Control(Err(reason)), &[]),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "a worker does not get its socket");
    }
}

/// A connected socket. Never waits: a control plane that accepts nothing must not hold the broker.
fn local_socket(path: &str) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_worker_is_connected_to_what_the_operator_named_and_to_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let address = format!("unix://{}", path.display());
        let addresses = ["https://a:1".to_owned(), address];
        let (broker, worker) = Link::pair().unwrap();
        let ask = |place| {
            control(&broker, &addresses, place);
            let received = worker.recv::<ToWorker>().unwrap().unwrap();
            let ToWorker::Control(result) = received.message else {
                panic!("{:?}", received.message);
            };
            (result, received.fds.len())
        };
        let (refused, fds) = ask(1);
        assert!(refused.unwrap_err().contains("control.sock"));
        assert_eq!(fds, 0);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(ask(1), (Ok(()), 1));
        listener.accept().unwrap();
        for elsewhere in [0, 2] {
            assert_eq!(ask(elsewhere).1, 0);
        }
    }
}
