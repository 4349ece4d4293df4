//! The unprivileged half of the node proxy: everything that parses what came over a network.
//!
//! The main thread talks to the control plane and to operators; the others carry traffic, each with
//! its own runtime, listeners, sockets and tunnels ([`shard`]). What they share is read-only
//! ([`Shared`]).

mod address;
mod admin;
mod admission;
mod application;
mod carry;
mod connections;
mod control;
mod dial;
mod dns;
mod drift;
mod egress;
mod failure;
mod flows;
mod inbound;
mod live;
mod memory;
mod neighbours;
mod numbers;
mod outbound;
mod plaintext;
mod pods;
mod privileges;
mod report;
mod resolver;
mod review;
mod shard;
mod sockets;
mod spans;
mod straight;
mod trace;
mod words;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use sluice_identity::{Addresses, Manager};
use sluice_kernel::{Counters, FlowCounters};
use sluice_model::{Mesh, Name, NetworkAddress, OrigDst, TrustDomain, Workload, route};
use sluice_telemetry::{access::Filter, metrics::Metrics, spans::Tracer};
use sluice_xds::{Key, Unanswered, View};

use flows::Needs;
use memory::Memories;
use neighbours::Wishes;
use pods::Pod;
use trace::Trace;

use crate::link::{Link, Received, Settings, ToWorker};

/// How long a connection waits for what must arrive by itself: the first snapshot, its workload,
/// its certificate.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection waits for what it could do without: the name of its other end.
const COURTESY: Duration = Duration::from_millis(500);

/// What all threads of a worker know.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    network: Name,
    trust_domain: TrustDomain,
    mesh: View,
    /// Where the mesh comes from.
    control_plane: Addresses,
    identities: Manager,
    metrics: Arc<Metrics>,
    access_log: Filter,
    /// Takes spans, if they go anywhere.
    tracer: Option<Tracer>,
    wishes: Wishes,
    trace: Arc<Trace>,
}

impl Shared {
    /// The workload of a pod of this node, as the control plane knows it; waits for it a while.
    async fn workload(&self, pod: &Pod) -> Option<Arc<Workload>> {
        self.eventually(|mesh| mesh.workload(&pod.uid).cloned())
            .await
    }

    /// Makes the mesh know what a captured connection goes to, and the way there.
    async fn destination(&self, dst: OrigDst) -> Result<Needs, Unanswered> {
        let address = NetworkAddress::new(self.network.clone(), dst.0.ip());
        let mut needed = Needs::default();
        needed[0] = self.mesh.learn(&Key::Address(address), PATIENCE).await?;
        let waypoint = route::waypoint(&self.mesh.load(), &self.network, dst);
        if let Some(waypoint) = waypoint {
            needed[1] = self.mesh.learn(&Key::from(&waypoint), PATIENCE).await?;
        }
        Ok(needed)
    }

    /// Makes the mesh know who is at an address, if that does not take long: it is good to know,
    /// and nothing is decided by it.
    async fn visitor(&self, ip: IpAddr) {
        let address = NetworkAddress::new(self.network.clone(), ip);
        if let Err(error) = self.mesh.learn(&Key::Address(address), COURTESY).await {
            tracing::debug!(%error, "a visitor remains unknown");
        }
    }

    /// The first `Some` that a snapshot yields, or `None` when patience ends.
    async fn eventually<T>(&self, look: impl Fn(&Arc<Mesh>) -> Option<T>) -> Option<T> {
        if let Some(found) = look(&self.mesh.load()) {
            return Some(found);
        }
        let found = async {
            loop {
                let seen = self.mesh.status().version;
                if let Some(found) = look(&self.mesh.load()) {
                    return found;
                }
                self.mesh.changed(seen).await;
            }
        };
        Box::pin(tokio::time::timeout(PATIENCE, found)).await.ok()
    }

    /// Waits for the first whole snapshot; false when patience ends.
    async fn synced(&self) -> bool {
        // Boxed: each connection asks, and hardly any has to wait.
        self.mesh.is_synced()
            || Box::pin(tokio::time::timeout(PATIENCE, self.mesh.synced()))
                .await
                .is_ok()
    }
}

/// Runs a worker whose link to the broker is its standard input. Returns when the broker is gone.
///
/// # Errors
/// When it was not started by a broker, or cannot start.
pub fn run() -> Result<()> {
    let link = Link::from(rustix::io::dup(io::stdin())?);
    let Some(Received {
        message: ToWorker::Start(settings),
        fds,
    }) = first(&link)?
    else {
        bail!("the broker did not say what to do");
    };
    let Some(Received {
        message: ToWorker::Credentials {
            token,
            control_root,
        },
        ..
    }) = first(&link)?
    else {
        bail!("the broker sent no credentials");
    };
    let mut revocations = Vec::new();
    let mut receiver_roots = Vec::new();
    let (kinds, kept) = loop {
        match first(&link)? {
            Some(Received {
                message: ToWorker::Memories(kinds),
                fds,
            }) => break (kinds, fds),
            Some(Received {
                message: ToWorker::Revocations,
                fds,
            }) => revocations = fds,
            Some(Received {
                message: ToWorker::ReceiverRoots,
                fds,
            }) => receiver_roots = fds,
            _ => bail!("the broker did not say what it remembers"),
        }
    };
    privileges::drop_all(settings.uid).context("give up privileges")?;
    let (log, levels) = sluice_telemetry::init_logging(&settings.log, settings.log_json)?;
    let memories = Memories::read(&settings, &kinds, kept);
    let mut fds = fds.into_iter();
    let mut counters = || fds.next().context("the broker sent no counters");
    let (verdicts, flows) = (counters()?, counters()?);
    let counters = control::KernelCounters {
        verdicts: Arc::new(Counters::from_fd(verdicts).context("open the kernel's counters")?),
        flows: FlowCounters::from_fd(flows).context("open the kernel's counters of connections")?,
    };
    let threads = fds.map(Link::from).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let start = control::Start {
        settings: *settings,
        credentials: control::Credentials {
            token,
            control_root,
        },
        revocations,
        receiver_roots,
        memories,
        counters,
        threads,
        levels,
    };
    runtime.block_on(control::run(start, link, log.lost()))
}

fn first(link: &Link) -> Result<Option<Received<ToWorker>>> {
    link.recv()
        .context("`ztunnel worker` is started by `ztunnel` itself, and not by hand")
}
