//! Which connections are under way, for operators: each thread is asked for its own.

use std::{collections::BTreeMap, net::SocketAddr, rc::Rc, time::Duration};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{
    flows::{Claim, Way},
    shard::Shard,
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
}

/// The connections of a pod that the worker carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Connections {
    pub(super) inbound: Vec<Connection>,
    pub(super) outbound: Vec<Connection>,
}

/// By the uid of the pod.
pub(super) type ByPod = BTreeMap<String, Connections>;

type Question = oneshot::Sender<ByPod>;

/// What a thread is asked.
pub(super) type Questions = mpsc::Receiver<Question>;

/// Asks the threads that carry traffic.
#[derive(Clone, Debug)]
pub(super) struct Threads(Vec<mpsc::Sender<Question>>);

/// For so many threads: who asks, and what each of them is asked.
pub(super) fn threads(count: usize) -> (Threads, Vec<Questions>) {
    let (senders, receivers) = (0..count).map(|_| mpsc::channel(QUEUE)).unzip();
    (Threads(senders), receivers)
}

impl Threads {
    /// The connections of all threads, in order.
    pub(super) async fn connections(&self) -> ByPod {
        let mut all = ByPod::new();
        for thread in &self.0 {
            let Some(answer) = ask(thread).await else {
                tracing::warn!("a thread did not say which connections it has");
                continue;
            };
            for (pod, Connections { inbound, outbound }) in answer {
                let pod = all.entry(pod).or_default();
                pod.inbound.extend(inbound);
                pod.outbound.extend(outbound);
            }
        }
        for pod in all.values_mut() {
            pod.inbound.sort();
            pod.outbound.sort();
        }
        all
    }
}

async fn ask(thread: &mpsc::Sender<Question>) -> Option<ByPod> {
    let (question, answer) = oneshot::channel();
    let answered = async {
        thread.send(question).await.ok()?;
        answer.await.ok()
    };
    tokio::time::timeout(PATIENCE, answered).await.ok()?
}

/// Answers for a thread, for as long as it runs.
pub(super) async fn answer(shard: Rc<Shard>, mut questions: Questions) {
    while let Some(question) = questions.recv().await {
        let mut all = ByPod::new();
        for pod in shard.serving() {
            let connections = all.entry(pod.uid.to_string()).or_default();
            pod.flows.for_each(|claim| connections.add(claim));
        }
        // Whoever asked may have gone.
        let _ = question.send(all);
    }
}

impl Connections {
    fn add(&mut self, claim: &Claim) {
        let protocol = match claim.peer() {
            Some(_) => "HBONE",
            None => "TCP",
        };
        let peer = claim.peer().map(|peer| peer.identity().to_string());
        let (list, way) = match claim {
            // No connection of an application; its streams are.
            Claim::Served(_) => return,
            Claim::Inbound {
                source,
                destination,
                ..
            } => {
                let way = Way {
                    source: *source,
                    dialled: *destination,
                    to: *destination,
                };
                (&mut self.inbound, way)
            }
            Claim::Tunnel { way, .. } | Claim::Plain(way) => (&mut self.outbound, *way),
        };
        list.push(Connection {
            src: way.source,
            original_dst: way.dialled,
            actual_dst: way.to,
            protocol,
            peer,
        });
    }
}
