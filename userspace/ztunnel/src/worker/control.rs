//! The worker's main thread: the control plane, certificates, the broker's news, operators.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read as _,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use sluice_identity::{Addresses, CaClient, ControlPlane, Live, Manager, RevocationLists};
use sluice_kernel::{Counters, FlowCounters};
use sluice_model::{SpiffeId, Uid};
use sluice_telemetry::{
    Levels,
    access::{Filter, Lines},
    metrics::Metrics,
    serve::Readiness,
    spans::Tracer,
};
use sluice_xds::{Client, Key, Needed, OnDemand, Snapshot};
use tokio::sync::{Notify, mpsc, watch};

use super::{
    Shared,
    admin::Operators,
    connections::{self, Questions, Threads},
    dial::ByBroker,
    drift::DriftMetrics,
    egress, memory,
    memory::Memories,
    neighbours::{self, Member, Neighbourhood, Wishes},
    numbers, shard,
    sockets::Sockets,
    spans,
    straight::Straight,
    trace::{self, Trace},
};
use crate::link::{
    AsyncLink, Link, PodId, PodInfo, Settings, ToBroker, ToWorker,
    message::{self, AccessLog},
};

/// How long the last spans may take. The broker waits for that and [`shard::LAST_CUTS`].
const LAST_SPANS: Duration = Duration::from_millis(500);

/// How this node and the control plane prove themselves to each other.
pub(super) struct Credentials {
    pub(super) token: String,
    pub(super) control_root: String,
}

/// What the broker says before anything else.
pub(super) struct Start {
    pub(super) settings: Settings,
    pub(super) credentials: Credentials,
    /// The descriptor of revocation lists, if there are any.
    pub(super) revocations: Vec<OwnedFd>,
    /// By which the receiver of spans is known, if it must prove itself.
    pub(super) receiver_roots: Vec<OwnedFd>,
    pub(super) memories: Memories,
    pub(super) counters: KernelCounters,
    /// The links of the threads that carry traffic.
    pub(super) threads: Vec<Link>,
    pub(super) levels: Levels,
}

/// What the kernel counts.
pub(super) struct KernelCounters {
    pub(super) verdicts: Arc<Counters>,
    pub(super) flows: FlowCounters,
}

/// Runs the worker until the broker is gone, an operator ends it, or a thread of traffic fails. `lost`
/// tells how many lines of the log could not be written.
pub(super) async fn run(
    start: Start,
    link: Link,
    lost: impl Fn() -> u64 + Send + Sync + 'static,
) -> Result<()> {
    let Start {
        settings,
        credentials,
        revocations,
        receiver_roots,
        mut memories,
        counters,
        threads,
        levels,
    } = start;
    let (token, roots) = (
        Live::new(credentials.token),
        Live::new(credentials.control_root),
    );
    let link = Arc::new(AsyncLink::new(link)?);
    let dial = Arc::new(ByBroker::new(link.clone(), settings.control.clone()));
    let control_plane = ControlPlane {
        addresses: Addresses::new(settings.control.clone()).context("--control")?,
        dial: dial.clone(),
        server_name: None,
        roots: roots.clone(),
        token: token.clone(),
        cluster: settings.cluster.clone(),
    };
    let (wishes, wished) = neighbours::wishes();
    let trace = Arc::new(Trace::new(counters.verdicts.clone()));
    let metrics = Arc::new(Metrics::new("ztunnel", env!("CARGO_PKG_VERSION")));
    let tracer = spans::start(&settings, receiver_roots, &metrics).context("--otlp-endpoint")?;
    let snapshot = memories.mesh.take();
    let told = (metrics, tracer);
    let (client, shared) = share(settings, control_plane, snapshot, wishes, trace, told)?;
    numbers::show_kernel(&shared.metrics, counters);
    numbers::show_log(&shared.metrics, lost);
    let readiness = Readiness::default();
    let mesh = readiness.pending("the control plane's first answer (there is no snapshot)");
    explain(&shared, &readiness);
    numbers::show(&shared, &readiness, client.traffic());
    memories.restore_certificates(&shared.identities);
    // Before the first peer: with the certificates at hand, nothing else has to be waited for.
    if !revocations.is_empty() {
        revoke(&shared, revocations);
    }
    let pods = watch::Sender::default();
    let listed = connections::Straight::default();
    let sockets = Sockets::show(&shared.metrics, link.clone());
    let (asked, questions) = connections::threads(threads.len(), listed.clone());
    let quit = Arc::new(Notify::new());
    let operators = Operators {
        shared: shared.clone(),
        readiness: readiness.clone(),
        levels: Arc::new(levels),
        threads: asked.clone(),
        sockets: sockets.clone(),
        pods: pods.subscribe(),
        quit: quit.clone(),
    };
    operators.start().await?;
    tokio::spawn(client.run());
    tokio::spawn(memory::give_back_at_rest());
    tokio::spawn(trace::remember(shared.trace.clone()));
    tokio::spawn(ask_for_events(shared.clone(), link.clone()));
    let mut failures = start_shards(threads.into_iter().zip(questions), &shared)?;
    let broker = Broker {
        link,
        dial,
        pods,
        sockets,
        neighbourhood: Neighbourhood::default(),
    };
    let pods = numbers::Pods::show(&shared, broker.neighbourhood.members.subscribe());
    let straight = Straight::listed(listed);
    let follow = broker.follow(&shared, &token, &roots, &pods, straight);
    let keep = memory::keep(&shared, &broker.link);
    let serve = async {
        shared.mesh.synced().await;
        mesh.done();
        broker.link.send(&ToBroker::Ready, &[])?;
        tracing::info!("worker serves");
        tokio::try_join!(
            egress::tell(&shared, &broker.link, broker.pods.subscribe()),
            broker.neighbourhood.tell(&shared, &broker.link, wished),
        )
    };
    let ended = tokio::select! {
        result = follow => result,
        result = keep => result.context("write to the broker"),
        result = serve => result.map(drop).context("write to the broker"),
        Some(result) = failures.recv() => result.context("a thread of traffic ended"),
        () = quit.notified() => Ok(()),
    };
    bid_farewell(&asked, &shared).await;
    ended
}

/// Before the worker ends: nothing that a connection has to tell is lost, if that does not take too long.
async fn bid_farewell(threads: &Threads, shared: &Shared) {
    threads.cut_all().await;
    if let Some(tracer) = &shared.tracer {
        tracer.flush(LAST_SPANS).await;
    }
}

/// What all threads know, and who keeps the mesh of it in step.
fn share(
    settings: Settings,
    control_plane: ControlPlane,
    snapshot: Option<Snapshot>,
    wishes: Wishes,
    trace: Arc<Trace>,
    (metrics, tracer): (Arc<Metrics>, Option<Tracer>),
) -> Result<(Client, Arc<Shared>)> {
    let validity = Duration::from_secs(settings.certificate_ttl);
    let addresses = control_plane.addresses.clone();
    // Either half of a control plane may be out of reach alone.
    let authority = ControlPlane {
        addresses: addresses.apart(),
        ..control_plane.clone()
    };
    let ca = CaClient::new(authority, validity);
    let mut client = Client::new(sluice_xds::Config {
        control_plane,
        node: node(&settings),
        patience: sluice_xds::Config::PATIENCE,
        on_demand: settings.on_demand.then(OnDemand::default),
    });
    if let Some(snapshot) = snapshot {
        client.restore(snapshot);
    }
    let shared = Shared {
        access_log: access_log(&settings.access_log),
        tracer,
        network: settings.network.as_str().into(),
        trust_domain: settings.trust_domain.parse().context("--trust-domain")?,
        mesh: client.view(),
        control_plane: addresses,
        identities: Manager::new(
            ca,
            sluice_identity::Config::default(),
            tokio::runtime::Handle::current(),
        ),
        metrics,
        settings,
        wishes,
        trace,
    };
    Ok((client, Arc::new(shared)))
}

/// Shows operators how old the mesh is, while it is from a snapshot.
fn explain(shared: &Shared, readiness: &Readiness) {
    let mesh = shared.mesh.clone();
    let taken = move || mesh.status().snapshot;
    let text = taken.clone();
    readiness.explain(move || {
        let taken = jiff::Timestamp::try_from(text()?).ok()?;
        Some(format!(
            "from the snapshot of {taken}, the control plane is not reached yet"
        ))
    });
    shared.metrics.register_gauge(
        "sluice_snapshot_age_seconds",
        "Age of the snapshot in force; absent while the mesh is the control plane's own",
        move || Some(taken()?.elapsed().unwrap_or_default().as_secs_f64()),
    );
}

fn access_log(settings: &AccessLog) -> Filter {
    let lines = match settings.lines {
        message::Lines::All => Lines::All,
        message::Lines::Errors => Lines::Errors,
        message::Lines::Off => Lines::Off,
    };
    Filter::new(lines)
        .sampling(settings.sample)
        .of_namespaces(settings.namespaces.clone())
        .to_ports(settings.ports.clone())
        .lasting(Duration::from_millis(settings.min_duration))
}

fn node(settings: &Settings) -> sluice_xds::Node {
    sluice_xds::Node {
        // The control plane knows the node by its token and its name; the address is for people.
        ip: Ipv4Addr::UNSPECIFIED.into(),
        name: format!("ztunnel-{}", settings.node),
        namespace: "istio-system".into(),
        node_name: settings.node.clone(),
        cluster: settings.cluster.clone(),
        metadata: BTreeMap::new(),
    }
}

/// Starts the threads that carry traffic; what ends one of them comes out of the channel.
fn start_shards(
    links: impl Iterator<Item = (Link, Questions)>,
    shared: &Arc<Shared>,
) -> Result<mpsc::UnboundedReceiver<Result<()>>> {
    let (failed, failures) = mpsc::unbounded_channel();
    for (index, (link, questions)) in links.enumerate() {
        let (shared, failed) = (shared.clone(), failed.clone());
        std::thread::Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || {
                // Received by the main thread, or the process is ending anyway.
                let _ = failed.send(shard::run(link, shared, questions));
            })?;
    }
    Ok(failures)
}

struct Broker {
    link: Arc<AsyncLink>,
    dial: Arc<ByBroker>,
    /// The pods of this node that are in the mesh.
    pods: watch::Sender<BTreeMap<PodId, Uid>>,
    sockets: Sockets,
    neighbourhood: Neighbourhood,
}

impl Broker {
    /// Takes the broker's news until it is gone.
    async fn follow(
        &self,
        shared: &Arc<Shared>,
        token: &Live,
        roots: &Live,
        pods: &numbers::Pods,
        mut straight: Straight,
    ) -> Result<()> {
        let mut identities = Identities::default();
        let drift = DriftMetrics::register(&shared.metrics);
        let mut needed: HashMap<PodId, Needed> = HashMap::new();
        loop {
            let received = self
                .link
                .recv::<ToWorker>()
                .await
                .context("read from the broker")?;
            let Some(received) = received else {
                return Ok(());
            };
            match received.message {
                ToWorker::AddPod { pod, .. } => {
                    pods.started.inc();
                    let identity = identities.add(shared, &pod);
                    let uid = Uid::pod(&shared.settings.cluster, &pod.namespace, &pod.name);
                    match shared.mesh.want(&Key::Workload(uid.clone())) {
                        Ok(own) => _ = needed.insert(pod.id, own),
                        Err(error) => tracing::error!(%error, "a pod of this node"),
                    }
                    self.pods.send_modify(|pods| {
                        pods.insert(pod.id, uid.clone());
                    });
                    if let Some(identity) = identity {
                        let member = Member {
                            info: pod,
                            uid,
                            identity,
                        };
                        let members = &self.neighbourhood.members;
                        members.send_modify(|members| members.add(member));
                    }
                }
                ToWorker::RemovePod(id) => {
                    pods.stopped.inc();
                    identities.remove(shared, id);
                    needed.remove(&id);
                    self.pods.send_modify(|pods| {
                        pods.remove(&id);
                    });
                    let members = &self.neighbourhood.members;
                    members.send_modify(|members| members.remove(id));
                }
                ToWorker::Credentials {
                    token: text,
                    control_root,
                } => {
                    token.set(text);
                    roots.set(control_root);
                }
                ToWorker::Neighbours(news) => self.neighbourhood.inherit(news),
                ToWorker::Flows(flows) => straight.hear(flows, shared, &self.neighbourhood),
                ToWorker::KernelEvents { events, log, lost } => {
                    let members = self.neighbourhood.members.borrow();
                    shared.trace.tell_kernel(events, log, lost, |event| {
                        let here = || members.at(event.local.ip());
                        let member = members.in_netns(event.netns).or_else(here)?;
                        let (namespace, name) = (&member.info.namespace, &member.info.name);
                        Some(format!("{namespace}/{name}").into())
                    });
                }
                ToWorker::Drift(deviations) => drift.hear(&deviations),
                ToWorker::SocketCounts(counts) => self.sockets.hear(counts),
                ToWorker::Revocations => revoke(shared, received.fds),
                ToWorker::Control(result) => self.dial.answer(result, received.fds),
                ToWorker::Start(_)
                | ToWorker::Maps
                | ToWorker::Memories(_)
                | ToWorker::ReceiverRoots
                | ToWorker::Sockets { .. } => {}
            }
        }
    }
}

/// Has the broker tell of the kernel's events while somebody traces.
async fn ask_for_events(shared: Arc<Shared>, link: Arc<AsyncLink>) {
    let mut wanted = shared.trace.wanted();
    while wanted.changed().await.is_ok() {
        let on = *wanted.borrow_and_update();
        if let Err(error) = link.send_when_room(&ToBroker::Trace(on), &[]).await {
            tracing::warn!(%error, "the broker does not hear whether somebody traces");
        }
    }
}

/// Puts revocation lists in force.
fn revoke(shared: &Shared, fds: Vec<OwnedFd>) {
    let mut bytes = Vec::new();
    let read = fds
        .into_iter()
        .try_for_each(|fd| File::from(fd).read_to_end(&mut bytes).map(drop));
    let lists = read
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(RevocationLists::parse(&bytes)?));
    match lists {
        Ok(lists) => {
            tracing::info!(revoked = lists.revoked(), "revocation lists in force");
            shared.identities.trust().revoke(lists);
        }
        // The broker has read them before.
        Err(error) => tracing::error!(%error, "revocation lists from the broker"),
    }
}

/// Which identities the node's pods use: a certificate is made when the first pod appears, and
/// forgotten with the last.
#[derive(Default)]
struct Identities(HashMap<PodId, SpiffeId>);

impl Identities {
    fn add(&mut self, shared: &Shared, pod: &PodInfo) -> Option<SpiffeId> {
        let domain = shared.trust_domain.clone();
        let identity = SpiffeId::new(domain, &pod.namespace, &pod.service_account).ok()?;
        shared.identities.prefetch(&identity);
        self.0.insert(pod.id, identity.clone());
        Some(identity)
    }

    fn remove(&mut self, shared: &Shared, id: PodId) {
        if let Some(identity) = self.0.remove(&id)
            && !self.0.values().any(|other| *other == identity)
        {
            shared.identities.forget(&identity);
        }
    }
}
