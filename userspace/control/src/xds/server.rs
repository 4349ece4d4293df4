//! The discovery service: one session per connected client.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use sluice_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Request, Status, Streaming};

use super::{
    Client, Clients, Resources, Type,
    clients::{Mark, Rejection},
    subscription::{Delta, Subscription},
    transport::Answer,
};
use crate::{
    auth::{Authenticator, Caller, Claim, refuse},
    feed::Published,
    metrics::ControlMetrics,
};

/// Responses that may wait for a slow client; further changes are merged until it reads on.
const BACKLOG: usize = 2;
/// Responses whose answer is still recognised, of a client that answers late.
const REMEMBERED: usize = 32;

/// Serves what is published.
#[derive(Clone, Debug)]
pub struct Discovery {
    published: watch::Receiver<Arc<Published>>,
    callers: Arc<Authenticator>,
    clients: Clients,
    metrics: ControlMetrics,
    recheck: Duration,
}

impl Discovery {
    /// For [`Discovery::recheck_every`].
    pub const RECHECK: Duration = Duration::from_secs(60);

    pub fn new(
        published: watch::Receiver<Arc<Published>>,
        callers: Arc<Authenticator>,
        clients: Clients,
        metrics: ControlMetrics,
    ) -> Self {
        Self {
            published,
            callers,
            clients,
            metrics,
            recheck: Self::RECHECK,
        }
    }

    /// How often it is asked whether the caller of a stream may still have it.
    #[must_use]
    pub fn recheck_every(self, recheck: Duration) -> Self {
        Self { recheck, ..self }
    }
}

type Answers = mpsc::Sender<Result<Answer, Status>>;

impl Discovery {
    /// Begins a client's session, if it is a client.
    pub(super) async fn connect(
        self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<mpsc::Receiver<Result<Answer, Status>>, Status> {
        let claim = Claim::of(&request);
        let caller = self.callers.authenticate(&claim).await?;
        let (answers, received) = mpsc::channel(BACKLOG);
        let refused = refused(self.callers, claim, caller.clone(), self.recheck);
        let session = Session::new(&self.clients, caller, self.metrics);
        tokio::spawn(session.run(request.into_inner(), self.published, answers, refused));
        Ok(received)
    }
}

/// Waits until a caller has to be refused that was not before: its token has expired, or was
/// withdrawn, or is for another node now. While nobody can tell, it may stay.
async fn refused(
    callers: Arc<Authenticator>,
    claim: Claim,
    caller: Caller,
    recheck: Duration,
) -> Status {
    loop {
        tokio::time::sleep(recheck).await;
        match callers.authenticate(&claim).await {
            Ok(now) if now.node == caller.node => {}
            Ok(now) => {
                let why = format!(
                    "its token is for node {} now, and was for {}",
                    now.node, caller.node
                );
                return refuse(caller.peer, &why);
            }
            Err(status) if status.code() == Code::Unavailable => {}
            Err(status) => return status,
        }
    }
}

/// One client's stream, from its first request to its end.
struct Session {
    caller: Caller,
    client: Client,
    subscriptions: BTreeMap<Type, Subscription>,
    /// Responses of each type that are not answered yet, the oldest first.
    outstanding: BTreeMap<Type, VecDeque<Sent>>,
    nonces: u64,
    metrics: ControlMetrics,
}

/// A response under way.
struct Sent {
    nonce: String,
    /// The version of the set that it was about.
    version: String,
    /// When what it tells was published; absent when it answers a request.
    changed: Option<Instant>,
}

impl Session {
    fn new(clients: &Clients, caller: Caller, metrics: ControlMetrics) -> Self {
        Self {
            client: clients.connect(&caller),
            caller,
            subscriptions: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            nonces: 0,
            metrics,
        }
    }

    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        mut published: watch::Receiver<Arc<Published>>,
        answers: Answers,
        refused: impl Future<Output = Status>,
    ) {
        tokio::pin!(refused);
        let node = self.caller.node.clone();
        tracing::info!(%node, peer = %self.caller.peer, "client connected");
        loop {
            let mut answer = None;
            let mut change = false;
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => answer = self.request(request),
                    Ok(None) => break,
                    Err(status) => {
                        tracing::debug!(%node, %status, "client's stream broke");
                        break;
                    }
                },
                changed = published.changed() => match changed {
                    Ok(()) => change = true,
                    Err(_) => break,
                },
                () = answers.closed() => break,
                status = &mut refused => {
                    tracing::warn!(%node, "client's stream is ended: it is not admitted any more");
                    // One that does not read finds the stream ended all the same.
                    let _ = answers.try_send(Err(status));
                    break;
                }
            }
            let current = published.borrow_and_update().clone();
            let changed = change.then_some(current.changed);
            let due = self.due(&current.resources, changed);
            for answer in answer.into_iter().chain(due) {
                if answers.send(answer).await.is_err() {
                    break;
                }
            }
        }
        tracing::info!(%node, "client disconnected");
    }

    /// Takes note of a request. The answer is only for a type that is not served.
    fn request(&mut self, mut request: DeltaDiscoveryRequest) -> Option<Result<Answer, Status>> {
        if let Some(node) = request.node.take() {
            self.client.named(&node.id);
        }
        let Some(kind) = Type::from_url(&request.type_url) else {
            // An empty answer, once: the client shall not wait for what never comes.
            let first = request.response_nonce.is_empty();
            tracing::debug!(node = %self.caller.node, type_url = request.type_url, "unknown type");
            return first.then(|| {
                let empty = DeltaDiscoveryResponse {
                    type_url: request.type_url,
                    nonce: self.nonce(),
                    ..DeltaDiscoveryResponse::default()
                };
                Answer::new(&empty, Bytes::new())
            });
        };
        self.acknowledged(kind, &request);
        self.subscriptions.entry(kind).or_default().request(request);
        None
    }

    fn acknowledged(&mut self, kind: Type, request: &DeltaDiscoveryRequest) {
        let nonce = &request.response_nonce;
        if nonce.is_empty() {
            return;
        }
        let outstanding = self.outstanding.entry(kind).or_default();
        let Some(place) = outstanding.iter().position(|sent| sent.nonce == *nonce) else {
            self.metrics
                .expired_nonces
                .get_or_create(&kind.into())
                .inc();
            return;
        };
        let Some(sent) = outstanding.drain(..=place).next_back() else {
            return;
        };
        let mark = sent.mark();
        let Some(error) = &request.error_detail else {
            if let Some(changed) = sent.changed {
                let seconds = changed.elapsed().as_secs_f64();
                self.metrics.convergence.observe(seconds);
            }
            self.client
                .progress(kind, |progress| progress.acknowledged = Some(mark));
            return;
        };
        tracing::warn!(
            node = %self.caller.node,
            type_url = kind.url(),
            nonce,
            "client rejected: {}",
            error.message
        );
        self.metrics.rejects.get_or_create(&kind.into()).inc();
        let rejection = Rejection {
            response: mark,
            message: error.message.clone(),
        };
        self.client
            .progress(kind, |progress| progress.last_rejection = Some(rejection));
    }

    /// What the client lacks, in an order in which no workload is ever without its policies:
    /// new policies come before the workloads that refer to them, and old ones go after.
    fn due(
        &mut self,
        resources: &Resources,
        changed: Option<Instant>,
    ) -> Vec<Result<Answer, Status>> {
        let mut delta = |kind: Type| {
            let subscription = self.subscriptions.get_mut(&kind)?;
            subscription.delta(resources.set(kind))
        };
        let mut policies = delta(Type::Authorization);
        let addresses = delta(Type::Address);
        let goes = policies
            .as_mut()
            .filter(|_| addresses.is_some())
            .and_then(|policies| {
                let removed = std::mem::take(&mut policies.removed);
                (!removed.is_empty()).then_some(Delta {
                    removed,
                    ..Delta::default()
                })
            });
        [
            (Type::Authorization, policies),
            (Type::Address, addresses),
            (Type::Authorization, goes),
        ]
        .into_iter()
        .filter_map(|(kind, delta)| Some(self.response(kind, delta?, resources, changed)))
        .collect()
    }

    fn response(
        &mut self,
        kind: Type,
        delta: Delta,
        resources: &Resources,
        changed: Option<Instant>,
    ) -> Result<Answer, Status> {
        let sent = Sent {
            nonce: self.nonce(),
            version: resources.set(kind).version.clone(),
            changed,
        };
        let rest = DeltaDiscoveryResponse {
            system_version_info: sent.version.clone(),
            type_url: kind.url().to_owned(),
            resources: Vec::new(),
            removed_resources: delta.removed.iter().map(ToString::to_string).collect(),
            nonce: sent.nonce.clone(),
        };
        let answer = Answer::new(&rest, delta.resources)?;
        self.client
            .progress(kind, |progress| progress.sent = Some(sent.mark()));
        self.metrics.pushed(kind, answer.len(), changed);
        let outstanding = self.outstanding.entry(kind).or_default();
        if outstanding.len() == REMEMBERED {
            outstanding.pop_front();
        }
        outstanding.push_back(sent);
        Ok(answer)
    }

    fn nonce(&mut self) -> String {
        self.nonces += 1;
        self.nonces.to_string()
    }
}

impl Sent {
    fn mark(&self) -> Mark {
        Mark {
            version: self.version.clone(),
            nonce: self.nonce.clone(),
            at: Timestamp::now(),
        }
    }
}
