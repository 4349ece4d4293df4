//! The discovery service: one session per connected client.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use sluice_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Client, Clients, Resources, Type,
    clients::Rejection,
    subscription::{Delta, Subscription},
};
use crate::{
    auth::{Authenticator, Caller, Claim},
    feed::Published,
    metrics::ControlMetrics,
};

/// Responses that may wait for a slow client; further changes are merged until it reads on.
const BACKLOG: usize = 2;

/// Serves what is published.
#[derive(Clone, Debug)]
pub struct Discovery {
    published: watch::Receiver<Arc<Published>>,
    callers: Arc<Authenticator>,
    clients: Clients,
    metrics: ControlMetrics,
}

impl Discovery {
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
        }
    }
}

type Answer = Result<DeltaDiscoveryResponse, Status>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Answer>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self.callers.authenticate(&Claim::of(&request))?;
        let (answers, stream) = mpsc::channel(BACKLOG);
        let session = Session::new(&self.clients, caller, self.metrics.clone());
        let published = self.published.clone();
        tokio::spawn(session.run(request.into_inner(), published, answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One client's stream, from its first request to its end.
struct Session {
    caller: Caller,
    client: Client,
    subscriptions: BTreeMap<Type, Subscription>,
    /// The nonce of the last response of each type, and the version of the set that it was about.
    last: BTreeMap<Type, (String, String)>,
    nonces: u64,
    metrics: ControlMetrics,
}

impl Session {
    fn new(clients: &Clients, caller: Caller, metrics: ControlMetrics) -> Self {
        Self {
            client: clients.connect(&caller),
            caller,
            subscriptions: BTreeMap::new(),
            last: BTreeMap::new(),
            nonces: 0,
            metrics,
        }
    }

    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        mut published: watch::Receiver<Arc<Published>>,
        answers: mpsc::Sender<Answer>,
    ) {
        let node = self.caller.node.clone();
        tracing::info!(%node, peer = %self.caller.peer, "client connected");
        loop {
            let mut answer = None;
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => answer = self.request(request),
                    Ok(None) => break,
                    Err(status) => {
                        tracing::debug!(%node, %status, "client's stream broke");
                        break;
                    }
                },
                changed = published.changed() => if changed.is_err() { break },
                () = answers.closed() => break,
            }
            let resources = published.borrow_and_update().resources.clone();
            for answer in answer.into_iter().chain(self.due(&resources)) {
                if answers.send(Ok(answer)).await.is_err() {
                    break;
                }
            }
        }
        tracing::info!(%node, "client disconnected");
    }

    /// Takes note of a request. The answer is only for a type that is not served.
    fn request(&mut self, mut request: DeltaDiscoveryRequest) -> Option<DeltaDiscoveryResponse> {
        if let Some(node) = request.node.take() {
            self.client.named(&node.id);
        }
        let Some(kind) = Type::from_url(&request.type_url) else {
            // An empty answer, once: the client shall not wait for what never comes.
            let first = request.response_nonce.is_empty();
            tracing::debug!(node = %self.caller.node, type_url = request.type_url, "unknown type");
            return first.then(|| DeltaDiscoveryResponse {
                type_url: request.type_url,
                nonce: self.nonce(),
                ..DeltaDiscoveryResponse::default()
            });
        };
        self.acknowledged(kind, &request);
        self.subscriptions.entry(kind).or_default().request(request);
        None
    }

    fn acknowledged(&mut self, kind: Type, request: &DeltaDiscoveryRequest) {
        if request.response_nonce.is_empty() {
            return;
        }
        let last = self.last.get(&kind);
        // What answers an older response says nothing about the last.
        let version = last
            .filter(|(nonce, _)| *nonce == request.response_nonce)
            .map(|(_, version)| version.clone());
        let Some(error) = &request.error_detail else {
            if let Some(version) = version {
                self.client
                    .progress(kind, |progress| progress.acknowledged = Some(version));
            }
            return;
        };
        tracing::warn!(
            node = %self.caller.node,
            type_url = kind.url(),
            nonce = request.response_nonce,
            "client rejected: {}",
            error.message
        );
        self.metrics.rejects.get_or_create(&kind.into()).inc();
        let rejection = Rejection {
            at: Timestamp::now(),
            version,
            message: error.message.clone(),
        };
        self.client
            .progress(kind, |progress| progress.last_rejection = Some(rejection));
    }

    /// What the client lacks, in an order in which no workload is ever without its policies:
    /// new policies come before the workloads that refer to them, and old ones go after.
    fn due(&mut self, resources: &Resources) -> Vec<DeltaDiscoveryResponse> {
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
        .filter_map(|(kind, delta)| Some(self.response(kind, delta?, resources)))
        .collect()
    }

    fn response(
        &mut self,
        kind: Type,
        delta: Delta,
        resources: &Resources,
    ) -> DeltaDiscoveryResponse {
        let version = resources.set(kind).version.clone();
        let nonce = self.nonce();
        self.last.insert(kind, (nonce.clone(), version.clone()));
        self.client
            .progress(kind, |progress| progress.sent = Some(version.clone()));
        self.metrics.pushes.get_or_create(&kind.into()).inc();
        DeltaDiscoveryResponse {
            system_version_info: version,
            type_url: kind.url().to_owned(),
            resources: delta.resources,
            removed_resources: delta.removed,
            nonce,
        }
    }

    fn nonce(&mut self) -> String {
        self.nonces += 1;
        self.nonces.to_string()
    }
}
