//! One thread that carries traffic: its own runtime, listeners, sockets and tunnels.

use std::{
    cell::RefCell,
    net::{SocketAddr, TcpListener, TcpStream as StdStream},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use sluice_hbone::{Engine, Idle, OpenError, Pool, Watch};
use sluice_kernel::{SocketMapFds, SocketMaps};
use sluice_telemetry::access::Direction;
use tokio::{
    net::TcpStream,
    task::{LocalSet, spawn_local},
};

use super::{
    Shared,
    connections::{self, Questions},
    dns,
    failure::unestablished,
    flows::Cut,
    inbound, outbound, plaintext,
    pods::{Pod, Table},
    resolver::Resolver,
    review, trace,
};
use crate::link::{AsyncLink, Link, PodId, PodInfo, Received, ToWorker, message::Listener};

/// How often unused tunnels are looked for.
const SWEEP: Duration = Duration::from_secs(30);
/// How long it may take to cut all connections when a thread ends.
pub(super) const LAST_CUTS: Duration = Duration::from_millis(300);
/// How often it is looked whether connections that were cut have come to their end.
const LOOK: Duration = Duration::from_millis(2);
/// After a failed accept (no descriptors, no memory), how long until the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What one thread has.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) shared: Arc<Shared>,
    pub(super) link: AsyncLink,
    pub(super) maps: RefCell<SocketMaps>,
    pub(super) engine: Engine,
    pub(super) pool: Pool,
    pub(super) resolver: Resolver,
    pub(super) since: Instant,
    pods: Table,
    /// Pods that have left the mesh, as long as connections of theirs go on.
    departed: RefCell<Vec<Rc<Pod>>>,
}

/// Runs a thread until the broker is gone.
pub(super) fn run(link: Link, shared: Arc<Shared>, questions: Questions) -> Result<()> {
    let Some(Received {
        message: ToWorker::Maps,
        fds,
    }) = link.recv()?
    else {
        bail!("the broker sent no maps");
    };
    let fds = <[OwnedFd; SocketMapFds::COUNT]>::try_from(fds)
        .map_err(|fds| anyhow::anyhow!("the broker sent {} maps", fds.len()))?;
    let maps = SocketMaps::from_fds(fds).context("open the kernel's socket maps")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let link = {
        let _inside = runtime.enter();
        AsyncLink::new(link)?
    };
    LocalSet::new().block_on(&runtime, async {
        let resolver = Resolver::new(&shared.settings.nameservers);
        let engine = Engine::start().context("start the tunnels' engine")?;
        let counted = Rc::new(Counted(shared.clone()));
        let shard = Rc::new(Shard {
            shared,
            link,
            maps: RefCell::new(maps),
            pool: Pool::new(engine.clone()).watched(counted),
            engine,
            resolver,
            since: Instant::now(),
            pods: Table::default(),
            departed: RefCell::default(),
        });
        spawn_local(trace::remember(shard.shared.trace.clone()));
        spawn_local(sweep(shard.clone()));
        spawn_local(review::follow(shard.clone()));
        spawn_local(connections::answer(shard.clone(), questions));
        let engine = shard.engine.clone();
        let ended = tokio::select! {
            ended = shard.clone().follow_broker() => ended,
            // The broker starts another worker.
            () = engine.failed() => Err(anyhow!("the tunnels' engine has failed")),
        };
        shard.cut_all().await;
        ended
    })
}

impl Shard {
    async fn follow_broker(self: Rc<Self>) -> Result<()> {
        while let Some(received) = self.link.recv().await.context("read from the broker")? {
            self.handle(received);
        }
        Ok(())
    }

    fn handle(self: &Rc<Self>, received: Received<ToWorker>) {
        let Received { message, fds } = received;
        match message {
            ToWorker::AddPod { pod, listeners } => self.add_pod(pod, &listeners, fds),
            ToWorker::RemovePod(id) => self.remove_pod(id),
            ToWorker::Sockets {
                pod,
                transport,
                family,
            } => {
                // Without the pod the sockets are closed: it has just left.
                if let Some(pod) = self.pods.borrow().get(&pod) {
                    pod.stock(transport, family).add(fds);
                }
            }
            ToWorker::Start(_)
            | ToWorker::Maps
            | ToWorker::Memories(_)
            | ToWorker::Neighbours(_)
            | ToWorker::Flows(_)
            | ToWorker::Drift(_)
            | ToWorker::SocketCounts(_)
            | ToWorker::KernelEvents { .. }
            | ToWorker::Control(_)
            | ToWorker::Credentials { .. }
            | ToWorker::Revocations
            | ToWorker::ReceiverRoots => {}
        }
    }

    fn add_pod(self: &Rc<Self>, info: PodInfo, listeners: &[Listener], fds: Vec<OwnedFd>) {
        let pod = match Pod::new(
            info,
            &self.shared.settings.cluster,
            &self.shared.trust_domain,
        ) {
            Ok(pod) => Rc::new(pod),
            Err(error) => {
                tracing::error!(%error, "a pod has no identity; it is not served");
                return;
            }
        };
        self.end_other_identities(&pod);
        self.pods.borrow_mut().insert(pod.info.id, pod.clone());
        for (kind, fd) in listeners.iter().zip(fds) {
            if *kind == Listener::Dns {
                dns::start(self, &pod, fd);
                continue;
            }
            match self.engine.listen(TcpListener::from(fd)) {
                Ok(listener) => {
                    spawn_local(self.clone().accept(pod.clone(), *kind, listener));
                }
                Err(error) => tracing::error!(%error, ?kind, "a listener is lost"),
            }
        }
    }

    fn remove_pod(&self, id: PodId) {
        if let Some(pod) = self.pods.borrow_mut().remove(&id) {
            pod.leave();
            for ip in &pod.info.ips {
                self.pool.forget_source(*ip);
            }
            let mut departed = self.departed.borrow_mut();
            departed.retain(|pod| !pod.flows.is_empty());
            departed.push(pod);
        }
    }

    /// The pods whose connections go on.
    pub(super) fn serving(&self) -> Vec<Rc<Pod>> {
        let (pods, departed) = (self.pods.borrow(), self.departed.borrow());
        pods.values().chain(departed.iter()).cloned().collect()
    }

    /// Accepts nothing any more, and cuts what there is; resolves when all of it has been reported, or
    /// that takes too long.
    pub(super) async fn cut_all(&self) {
        let pods = self.serving();
        for pod in &pods {
            pod.leave();
            pod.flows.review(|_| Some(Cut::Stopped));
        }
        let until = Instant::now() + LAST_CUTS;
        let under_way = || pods.iter().map(|pod| pod.flows.len()).sum::<usize>();
        while under_way() > 0 {
            if Instant::now() >= until {
                let left = under_way();
                return tracing::warn!(left, "connections end without a report");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Cuts what was proven under the identity that a pod of this name had before.
    fn end_other_identities(&self, new: &Pod) {
        let same_name = |pod: &Rc<Pod>| pod.uid == new.uid && pod.identity != new.identity;
        for old in self.serving().into_iter().filter(same_name) {
            old.flows
                .review(|_| Some(Cut::OwnIdentity(old.identity.clone())));
        }
    }

    /// Serves one listener until its pod leaves. Established connections go on after that.
    async fn accept(
        self: Rc<Self>,
        pod: Rc<Pod>,
        kind: Listener,
        listener: sluice_hbone::Listener,
    ) {
        let mut left = pod.left();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = left.wait_for(|left| *left) => return,
            };
            match accepted {
                Ok((tcp, peer)) => self.clone().serve(pod.clone(), kind, tcp, peer),
                Err(error) => {
                    tracing::warn!(%error, ?kind, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(self: Rc<Self>, pod: Rc<Pod>, kind: Listener, tcp: StdStream, peer: SocketAddr) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        match kind {
            Listener::Outbound => _ = spawn_local(outbound::serve(self, pod, tcp, peer)),
            Listener::Plaintext => _ = spawn_local(plaintext::serve(self, pod, tcp, peer)),
            Listener::Hbone | Listener::DnsByTcp => self.serve_here(pod, kind, tcp, peer),
            // Not accepted, but received.
            Listener::Dns => {}
        }
    }

    /// Serves a connection whose first bytes are read here.
    fn serve_here(self: Rc<Self>, pod: Rc<Pod>, kind: Listener, tcp: StdStream, peer: SocketAddr) {
        let tcp = match TcpStream::from_std(tcp) {
            Ok(tcp) => tcp,
            Err(error) => return tracing::warn!(%error, ?kind, "a connection is lost"),
        };
        if kind == Listener::Hbone {
            spawn_local(inbound::serve(self, pod, tcp, peer));
        } else {
            spawn_local(dns::serve_tcp(self, pod, tcp, peer));
        }
    }
}

/// Counts the tunnels of a pool.
#[derive(Debug)]
struct Counted(Arc<Shared>);

impl Watch for Counted {
    fn established(&self) -> Box<dyn std::fmt::Debug> {
        Box::new(self.0.metrics.tunnels().open(Direction::Outbound))
    }

    fn failed(&self, why: &OpenError) {
        let tunnels = self.0.metrics.tunnels();
        tunnels.failed(Direction::Outbound, unestablished(why));
    }
}

/// Closes tunnels that nobody uses.
async fn sweep(shard: Rc<Shard>) {
    let mut idle = Idle::default();
    let mut interval = tokio::time::interval(SWEEP);
    loop {
        interval.tick().await;
        shard.pool.sweep(&mut idle);
    }
}
