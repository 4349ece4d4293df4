//! A pod as one worker thread sees it, and the sockets to dial from it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdStream, UdpSocket as StdUdpSocket},
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use sluice_model::{SpiffeId, TrustDomain, Uid, identity::ParseSpiffeIdError};
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::{Notify, watch},
};

use super::{application::Demand, flows::Flows, review::Reviewed};
use crate::link::{AsyncLink, Family, PodInfo, ToBroker, Transport};

/// How long a dial may take (wire contract §2).
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A pod in the mesh.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) info: PodInfo,
    /// Its name in the control plane's view.
    pub(super) uid: Uid,
    pub(super) identity: SpiffeId,
    /// Its connections, to be judged again; they outlive its membership.
    pub(super) flows: Rc<Flows>,
    pub(super) reviewed: Reviewed,
    /// By transport and family.
    sockets: [[Sockets; 2]; 2],
    /// How much its applications are dialled.
    pub(super) demand: Demand,
    /// How many DNS queries of the pod are with their servers.
    pub(super) queries: Cell<usize>,
    /// True once the pod has left the mesh.
    gone: watch::Sender<bool>,
}

impl Pod {
    /// Takes the identity from what the broker says, not from the control plane: it is bound to the
    /// network namespace.
    pub(super) fn new(
        info: PodInfo,
        cluster: &str,
        trust_domain: &TrustDomain,
    ) -> Result<Self, ParseSpiffeIdError> {
        let identity = SpiffeId::new(trust_domain.clone(), &info.namespace, &info.service_account)?;
        Ok(Self {
            uid: Uid::pod(cluster, &info.namespace, &info.name),
            info,
            identity,
            flows: Rc::default(),
            reviewed: Reviewed::default(),
            sockets: Default::default(),
            demand: Demand::default(),
            queries: Cell::new(0),
            gone: watch::Sender::new(false),
        })
    }

    /// Its address of a family.
    pub(super) fn ip(&self, family: Family) -> Option<IpAddr> {
        self.info
            .ips
            .iter()
            .find(|ip| Family::of(**ip) == family)
            .copied()
    }

    pub(super) fn leave(&self) {
        self.gone.send_replace(true);
    }

    /// Resolves when the pod has left the mesh.
    pub(super) fn left(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }

    pub(super) fn stock(&self, transport: Transport, family: Family) -> &Sockets {
        &self.sockets[transport as usize][family as usize]
    }

    /// A UDP socket in the pod's network namespace; waits until there is one.
    pub(super) async fn datagram_socket(
        &self,
        link: &AsyncLink,
        family: Family,
    ) -> io::Result<UdpSocket> {
        let stock = self.stock(Transport::Udp, family);
        let socket = stock.take(link, &self.info, Transport::Udp, family).await;
        UdpSocket::from_std(StdUdpSocket::from(socket))
    }

    /// Connects from inside the pod's network namespace. `prepare` sees the socket before. The
    /// connection is non-blocking, and known to no runtime.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` after [`CONNECT_TIMEOUT`].
    pub(super) async fn dial(
        &self,
        link: &AsyncLink,
        destination: SocketAddr,
        prepare: impl FnOnce(&StdStream) -> io::Result<()>,
    ) -> io::Result<StdStream> {
        let family = Family::of(destination.ip());
        let stock = self.stock(Transport::Tcp, family);
        let connected = async {
            let socket = stock.take(link, &self.info, Transport::Tcp, family).await;
            let socket = StdStream::from(socket);
            prepare(&socket)?;
            connect(socket, destination).await
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connected)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// Connects a non-blocking socket. Whoever is on this machine has answered when `connect` returns,
/// so that there is nothing to wait for.
async fn connect(socket: StdStream, destination: SocketAddr) -> io::Result<StdStream> {
    match rustix::net::connect(&socket, &destination) {
        Ok(()) => return Ok(socket),
        Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut answer = [PollFd::new(&socket, PollFlags::OUT)];
    poll(&mut answer, Some(&Timespec::default()))?;
    let socket = match answer[0].revents() {
        PollFlags::OUT => return Ok(socket),
        answer if !answer.is_empty() => socket,
        _ => Box::pin(until_writable(socket)).await?,
    };
    match socket.take_error()? {
        Some(error) => Err(error),
        None => Ok(socket),
    }
}

async fn until_writable(socket: StdStream) -> io::Result<StdStream> {
    let socket = TcpStream::from_std(socket)?;
    socket.writable().await?;
    socket.into_std()
}

/// Unconnected sockets of one family in a pod's namespace, made by the broker.
///
/// Few are kept for a pod that rarely dials. The busier it is, the more are ordered at a time: each
/// order wakes the broker.
#[derive(Debug)]
pub(super) struct Sockets {
    ready: RefCell<VecDeque<OwnedFd>>,
    arrived: Notify,
    /// How many to ask for at a time.
    batch: Cell<u8>,
    /// When that was done last.
    ordered_at: Cell<Option<Instant>>,
    /// How many were asked for and have not come.
    ordered: Cell<usize>,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            ready: RefCell::default(),
            arrived: Notify::new(),
            batch: Cell::new(Self::FIRST_BATCH),
            ordered_at: Cell::default(),
            ordered: Cell::new(0),
        }
    }
}

impl Sockets {
    const FIRST_BATCH: u8 = 4;
    const MAX_BATCH: u8 = 64;
    /// A batch should last so long,
    const BUSY: Duration = Duration::from_millis(100);
    /// and not longer.
    const QUIET: Duration = Duration::from_secs(10);

    /// Adds what the broker sent.
    pub(super) fn add(&self, sockets: Vec<OwnedFd>) {
        self.ordered
            .set(self.ordered.get().saturating_sub(sockets.len()));
        self.ready.borrow_mut().extend(sockets);
        self.arrived.notify_waiters();
    }

    async fn take(
        &self,
        link: &AsyncLink,
        pod: &PodInfo,
        transport: Transport,
        family: Family,
    ) -> OwnedFd {
        loop {
            // Registered before the look, so that an arrival in between is not missed.
            let arrived = self.arrived.notified();
            let taken = self.ready.borrow_mut().pop_front();
            if let Some(count) = self.due(Instant::now()) {
                let order = ToBroker::NeedSockets {
                    pod: pod.id,
                    transport,
                    family,
                    count,
                };
                self.order(link, &order, count);
            }
            match taken {
                Some(socket) => return socket,
                None => arrived.await,
            }
        }
    }

    /// How many more to order, when fewer than half a batch are left.
    fn due(&self, now: Instant) -> Option<u8> {
        let batch = self.batch.get();
        let stock = self.ready.borrow().len() + self.ordered.get();
        if stock > usize::from(batch / 2) {
            return None;
        }
        let lasted = self.ordered_at.replace(Some(now)).map(|at| now - at);
        let batch = match lasted {
            Some(lasted) if lasted < Self::BUSY => batch.saturating_mul(2).min(Self::MAX_BATCH),
            Some(lasted) if lasted > Self::QUIET => (batch / 2).max(Self::FIRST_BATCH),
            _ => batch,
        };
        self.batch.set(batch);
        Some(batch)
    }

    fn order(&self, link: &AsyncLink, order: &ToBroker, count: u8) {
        match link.send(order, &[]) {
            Ok(()) => self.ordered.set(self.ordered.get() + usize::from(count)),
            // Asked again with the next connection; this one waits until its own time is out.
            Err(error) => tracing::warn!(%error, "cannot ask the broker for sockets"),
        }
    }
}

/// Pods by id.
pub(super) type Table = RefCell<std::collections::HashMap<crate::link::PodId, Rc<Pod>>>;

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses up so many sockets, one each `pause`; says how many are ordered at a time in the end, and how
    /// many orders there were.
    fn use_up(sockets: &Sockets, now: &mut Instant, count: usize, pause: Duration) -> (u8, usize) {
        let (mut batch, mut orders) = (0, 0);
        for _ in 0..count {
            *now += pause;
            if let Some(count) = sockets.due(*now) {
                (batch, orders) = (count, orders + 1);
                sockets
                    .ordered
                    .set(sockets.ordered.get() + usize::from(count));
            }
            // Taken from what comes, as if it had come.
            sockets.ordered.set(sockets.ordered.get() - 1);
        }
        (batch, orders)
    }

    #[test]
    fn the_busier_a_pod_is_the_more_are_ordered_at_a_time() {
        let (sockets, mut now) = (Sockets::default(), Instant::now());
        let mut used = |count, pause| use_up(&sockets, &mut now, count, pause);
        let (batch, _) = used(100, Duration::from_secs(1));
        assert_eq!(batch, Sockets::FIRST_BATCH);
        let (batch, orders) = used(10_000, Duration::from_micros(100));
        assert_eq!(batch, Sockets::MAX_BATCH);
        assert!(orders < 250, "{orders}");
        // What one busy moment needed is not kept for ever.
        let (batch, _) = used(200, Duration::from_secs(1));
        assert!(batch < Sockets::MAX_BATCH / 2, "{batch}");
    }
}
