//! Which connections are under way, for operators: each thread is asked for its own, and the kernel tells
//! of those that it lets go straight.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use sluice_hbone::Meter;
use sluice_model::Uid;
use sluice_telemetry::access::Direction;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{
    flows::{Claim, Way},
    report,
    shard::{LAST_CUTS, Shard},
};

/// A thread that is too busy to answer is left out after this.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many operators may wait for a thread.
const QUEUE: usize = 16;

/// A connection, in the terms of the contract (§13).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connection {
    src: SocketAddr,
    original_dst: SocketAddr,
    actual_dst: SocketAddr,
    protocol: &'static str,
    /// Whom the other end has proven to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(flatten)]
    carried: Option<Bytes>,
}

/// What a connection has carried until now; what goes past the ztunnel nobody counts before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bytes {
    /// By the client, as in the access log.
    bytes_sent: u64,
    bytes_received: u64,
}

/// The connections of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Connections {
    pub(super) inbound: Vec<Connection>,
    pub(super) outbound: Vec<Connection>,
}

/// By the uid of the pod.
pub(super) type ByPod = BTreeMap<String, Connections>;

/// What a thread is asked.
#[derive(Debug)]
pub(super) enum Question {
    /// Which connections it has.
    Connections(oneshot::Sender<ByPod>),
    /// To count the bytes of connections under way.
    Count(oneshot::Sender<()>),
    /// To cut all connections, and to say when each of them has been reported.
    CutAll(oneshot::Sender<()>),
}

pub(super) type Questions = mpsc::Receiver<Question>;

/// Asks the threads that carry traffic, and who knows of the rest.
#[derive(Clone, Debug)]
pub(super) struct Threads {
    threads: Vec<mpsc::Sender<Question>>,
    straight: Straight,
}

/// For so many threads: who asks, and what each of them is asked.
pub(super) fn threads(count: usize, straight: Straight) -> (Threads, Vec<Questions>) {
    let (threads, receivers) = (0..count).map(|_| mpsc::channel(QUEUE)).unzip();
    (Threads { threads, straight }, receivers)
}

impl Threads {
    /// All connections, in order.
    pub(super) async fn connections(&self) -> ByPod {
        let mut all = ByPod::new();
        for thread in &self.threads {
            let Some(answer) = ask(thread, Question::Connections).await else {
                tracing::warn!("a thread did not say which connections it has");
                continue;
            };
            for (pod, Connections { inbound, outbound }) in answer {
                let pod = all.entry(pod).or_default();
                pod.inbound.extend(inbound);
                pod.outbound.extend(outbound);
            }
        }
        self.straight.list(&mut all);
        for pod in all.values_mut() {
            pod.inbound.sort();
            pod.outbound.sort();
        }
        all
    }

    /// Has the bytes of connections under way counted, up to now. Otherwise they would be at the end:
    /// nobody counts them meanwhile, as long as nobody wants to know.
    pub(super) async fn count(&self) {
        if !self.ask_all(Question::Count).await {
            tracing::warn!("a thread is too busy to count the bytes of connections under way");
        }
    }

    /// Cuts all connections, so that what became of them is told before the worker ends. A thread that
    /// has ended before has told of its own.
    pub(super) async fn cut_all(&self) {
        // A thread that takes longer says so itself.
        let _ = tokio::time::timeout(LAST_CUTS, self.ask_all(Question::CutAll)).await;
    }

    /// Asks all threads at once; true when each has answered in time.
    async fn ask_all(&self, question: fn(oneshot::Sender<()>) -> Question) -> bool {
        let threads = self.threads.iter().cloned();
        let asked: JoinSet<_> = threads
            .map(|thread| async move { ask(&thread, question).await })
            .collect();
        asked.join_all().await.iter().all(Option::is_some)
    }
}

async fn ask<T>(
    thread: &mpsc::Sender<Question>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (asks, answer) = oneshot::channel();
    let answered = async {
        thread.send(question(asks)).await.ok()?;
        answer.await.ok()
    };
    tokio::time::timeout(PATIENCE, answered).await.ok()?
}

/// Answers for a thread, for as long as it runs.
pub(super) async fn answer(shard: Rc<Shard>, mut questions: Questions) {
    while let Some(question) = questions.recv().await {
        // Whoever asked may have gone.
        match question {
            Question::Connections(asks) => _ = asks.send(under_way(&shard)),
            Question::Count(asks) => {
                shard.engine.tell_so_far().await;
                for pod in shard.serving() {
                    pod.flows.count_joined();
                }
                let _ = asks.send(());
            }
            Question::CutAll(asks) => {
                shard.cut_all().await;
                let _ = asks.send(());
            }
        }
    }
}

fn under_way(shard: &Shard) -> ByPod {
    let mut all = ByPod::new();
    for pod in shard.serving() {
        let connections = all.entry(pod.uid.to_string()).or_default();
        pod.flows
            .for_each(|claim, meter| connections.add(claim, meter.as_ref()));
    }
    all
}

impl Connections {
    fn add(&mut self, claim: &Claim, meter: Option<&Meter>) {
        let protocol = match claim.peer() {
            Some(_) => "HBONE",
            None => "TCP",
        };
        let peer = claim.peer().map(|peer| peer.identity().to_string());
        let (list, way, direction) = match claim {
            // No connection of an application; its streams are.
            Claim::Served(_) => return,
            Claim::Inbound {
                source,
                destination,
                ..
            } => {
                let (source, destination) = ((*source).into(), (*destination).into());
                let way = Way::new(source, destination, destination);
                (&mut self.inbound, way, Direction::Inbound)
            }
            Claim::Tunnel { way, .. } | Claim::Plain(way) => {
                (&mut self.outbound, *way, Direction::Outbound)
            }
        };
        let carried = meter.map(|meter| {
            let (bytes_sent, bytes_received) = report::bytes(direction, meter);
            Bytes {
                bytes_sent,
                bytes_received,
            }
        });
        list.push(Connection {
            carried,
            ..Connection::of(&way, protocol, peer)
        });
    }
}

impl Connection {
    fn of(way: &Way, protocol: &'static str, peer: Option<String>) -> Self {
        Self {
            src: way.source(),
            original_dst: way.dialled(),
            actual_dst: way.to(),
            protocol,
            peer,
            carried: None,
        }
    }
}

/// Connections in which the worker has no part, as the kernel tells of them: by the cookies of the
/// clients' sockets.
#[derive(Clone, Debug, Default)]
pub(super) struct Straight(Arc<Mutex<HashMap<u64, StraightConnection>>>);

/// A connection from one pod of the node to another, or out of the mesh.
#[derive(Debug)]
pub(super) struct StraightConnection {
    pub(super) client: Uid,
    /// Absent where it leaves the mesh.
    pub(super) server: Option<Uid>,
    pub(super) way: Way,
}

impl Straight {
    pub(super) fn add(&self, socket: u64, connection: StraightConnection) {
        self.with(|all| all.insert(socket, connection));
    }

    pub(super) fn remove(&self, socket: u64) {
        self.with(|all| all.remove(&socket));
    }

    fn list(&self, by_pod: &mut ByPod) {
        self.with(|all| {
            for one in all.values() {
                let protocol = if one.server.is_some() {
                    "DIRECT"
                } else {
                    "TCP"
                };
                let connection = Connection::of(&one.way, protocol, None);
                if let Some(server) = &one.server {
                    let pod = by_pod.entry(server.to_string()).or_default();
                    pod.inbound.push(connection.clone());
                }
                let pod = by_pod.entry(one.client.to_string()).or_default();
                pod.outbound.push(connection);
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<u64, StraightConnection>) -> T) -> T {
        // Each act is one step, so nobody can have left it half done.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
