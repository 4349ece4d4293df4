//! The stream, and its return after it broke.

use std::{convert::Infallible, time::Duration};

use sluice_identity::ControlPlane;
use sluice_proto::discovery::{DeltaDiscoveryRequest, Status as RpcStatus};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::metadata::MetadataMap;

use crate::{
    Error, Node, Snapshot, Status, View,
    decode::Part,
    resource::Resource,
    store::{Kind, Response, Store},
    wire::{self, Outgoing, Requests, Responses},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LAST_BACKOFF: Duration = Duration::from_secs(15);
/// A stream that lasted this long was a good one: the next failure begins with a short wait again.
const STABLE: Duration = Duration::from_secs(15);
/// How often a control plane that has not said everything yet is complained about.
const COMPLAINT: Duration = Duration::from_secs(30);
/// What the control plane may send before it has been read, in bytes. Enough for a good line, and
/// little enough to be no burden.
const WINDOW: u32 = 1 << 20;
/// How many refused resources a refusal names.
const REJECTIONS_NAMED: usize = 100;

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Config {
    pub control_plane: ControlPlane,
    pub node: Node,
    /// How long an address may keep silent, as long as it has not said everything and there is
    /// another one to try.
    pub patience: Duration,
}

impl Config {
    /// For [`Config::patience`]: a control plane that is well answers much sooner.
    pub const PATIENCE: Duration = Duration::from_secs(10);
}

/// Keeps a mesh in step with a control plane, for as long as it runs.
#[derive(Debug)]
pub struct Client {
    config: Config,
    store: Store,
    status: watch::Sender<Status>,
}

/// How a stream went, for the choice of the next wait.
#[derive(Debug, Default)]
struct Session {
    answered: bool,
    /// Responses that wait for those of the other types.
    held: Vec<(Kind, Response)>,
}

impl Client {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            store: Store::default(),
            status: watch::Sender::default(),
        }
    }

    /// The mesh that this client keeps.
    pub fn view(&self) -> View {
        View::new(self.store.mesh().clone(), self.status.subscribe())
    }

    /// Begins with a snapshot: it is the mesh until the control plane answers. What has gone
    /// meanwhile is removed then, since the control plane is told the names of all that is here.
    pub fn restore(&mut self, snapshot: Snapshot) {
        let taken = snapshot.taken();
        for (name, reason) in self.store.restore(snapshot) {
            tracing::warn!(name, reason, "a resource of the snapshot is not understood");
        }
        self.status.send_modify(|status| {
            status.version += 1;
            status.synced = true;
            status.snapshot = Some(taken);
        });
    }

    /// Connects, and connects again, forever. No failure empties the mesh.
    pub async fn run(mut self) -> Infallible {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let start = Instant::now();
            let mut session = Session::default();
            let view = self.view();
            let addresses = self.config.control_plane.addresses.clone();
            let address = addresses.current().to_owned();
            let ended = tokio::select! {
                ended = self.session(&address, &mut session) => ended,
                never = complain(&view) => match never {},
            };
            self.status
                .send_if_modified(|status| std::mem::replace(&mut status.connected, false));
            let graceful = ended.is_ok() && session.answered;
            if graceful || start.elapsed() >= STABLE {
                backoff = FIRST_BACKOFF;
            }
            // Up to half as much again: nodes that lost one control plane shall not meet at the
            // next one.
            let wait = backoff.mul_f64(1.0 + 0.5 * rand::random::<f64>());
            match ended {
                Ok(()) => tracing::info!(address, ?wait, "the control plane closed the stream"),
                Err(error) => {
                    let cause = cause(&error);
                    tracing::warn!(address, %error, cause, ?wait, "no stream from the control plane");
                }
            }
            if !graceful {
                addresses.give_up(&address);
            }
            sleep(wait).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Runs one stream to its end, which is `Ok` when the control plane closed it in order.
    async fn session(&mut self, address: &str, session: &mut Session) -> Result<(), Error> {
        let (requests, mut responses) = self.unless_silent(self.open(address)).await?;
        self.status.send_modify(|status| status.connected = true);
        let mut arrived = Vec::new();
        while let Some(part) = self.unless_silent(responses.next()).await? {
            let place = arrived.len();
            let envelope = match part {
                Part::Resource(bytes) => {
                    arrived.push(Resource::parse(place, bytes, self.store.interner()));
                    continue;
                }
                Part::TooLarge(length) => {
                    arrived.push(Resource::too_large(place, length));
                    continue;
                }
                Part::End(envelope) => envelope,
            };
            session.answered = true;
            let response = Response {
                envelope,
                resources: std::mem::take(&mut arrived),
            };
            for verdict in self.handle(response, &mut session.held) {
                if requests.send(verdict.into()).await.is_err() {
                    // The sending half has gone; the receiving half tells why.
                    responses.next().await?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits for what the control plane does next, but not forever while another may do more.
    async fn unless_silent<T>(
        &self,
        next: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let others = self.config.control_plane.addresses.has_others();
        if !others || self.status.borrow().is_live() {
            return next.await;
        }
        let patience = self.config.patience;
        let next = tokio::time::timeout(patience, next).await;
        next.unwrap_or(Err(Error::Silent(patience)))
    }

    async fn open(&self, address: &str) -> Result<(Requests, Responses), Error> {
        let control_plane = &self.config.control_plane;
        let endpoint = control_plane
            .endpoint(address)?
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let channel = control_plane.connect(address, endpoint).await;
        let channel = channel.map_err(Error::Connect)?;
        let mut metadata = MetadataMap::new();
        control_plane.authorize(address, &mut metadata)?;
        let opened = wire::open(channel, metadata, self.subscriptions()).await?;
        tracing::info!(address, "connected to the control plane");
        Ok(opened)
    }

    /// The first request for each type: everything, except for what we have.
    fn subscriptions(&self) -> impl Iterator<Item = Outgoing> {
        let mesh = self.store.mesh().load_full();
        Kind::ALL.into_iter().map(move |kind| {
            let request = DeltaDiscoveryRequest {
                node: Some((&self.config.node).into()),
                type_url: kind.type_url().to_owned(),
                ..Default::default()
            };
            Outgoing::with_versions(&request, self.store.versions(kind, &mesh))
        })
    }

    /// Applies a response, and returns the requests that accept or refuse what was applied.
    ///
    /// What takes the place of a snapshot is held until there is something of each type: workloads
    /// as they are now under policies as they were would be open to more than either.
    fn handle(
        &mut self,
        response: Response,
        held: &mut Vec<(Kind, Response)>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let Some(kind) = Kind::of(&response.envelope.type_url) else {
            // Nothing that we asked for, and nothing that harms.
            return vec![verdict(Received::of(&response), &[])];
        };
        held.push((kind, response));
        let is_there = |kind| held.iter().any(|(other, _)| *other == kind);
        if self.status.borrow().snapshot.is_some() && !Kind::ALL.into_iter().all(is_there) {
            return Vec::new();
        }
        let received: Vec<_> = held
            .iter()
            .map(|(_, response)| Received::of(response))
            .collect();
        let applied = self.store.apply(std::mem::take(held));
        self.announce(applied.iter().any(|applied| applied.changed));
        let verdicts = received.into_iter().zip(&applied);
        verdicts
            .map(|(received, applied)| verdict(received, &applied.rejected))
            .collect()
    }

    fn announce(&self, changed: bool) {
        let answered = self.store.is_synced();
        self.status.send_if_modified(|status| {
            let first = answered && !status.is_live();
            if first {
                tracing::info!("the mesh is in step with the control plane");
                status.synced = true;
                status.snapshot = None;
            }
            status.version += u64::from(changed);
            changed || first
        });
    }
}

/// What remains of a response that has been applied.
#[derive(Debug)]
struct Received {
    type_url: String,
    nonce: String,
    resources: usize,
    removed: usize,
}

impl Received {
    fn of(response: &Response) -> Self {
        Self {
            type_url: response.envelope.type_url.clone(),
            nonce: response.envelope.nonce.clone(),
            resources: response.resources.len(),
            removed: response.envelope.removed.len(),
        }
    }
}

/// The request that accepts or refuses a response.
fn verdict(response: Received, rejected: &[(String, String)]) -> DeltaDiscoveryRequest {
    let (resources, removed) = (response.resources, response.removed);
    let (type_url, rejections) = (response.type_url, rejected.len());
    tracing::debug!(
        type_url,
        resources,
        removed,
        rejected = rejections,
        "response"
    );
    DeltaDiscoveryRequest {
        type_url,
        response_nonce: response.nonce,
        error_detail: refusal(rejected),
        ..Default::default()
    }
}

/// The detail of a request that refuses some resources; `None` when all were right.
fn refusal(rejected: &[(String, String)]) -> Option<RpcStatus> {
    if rejected.is_empty() {
        return None;
    }
    let mut reasons: Vec<String> = rejected
        .iter()
        .take(REJECTIONS_NAMED)
        .map(|(name, reason)| format!("{name}: {reason}"))
        .collect();
    if let Some(more) = rejected.len().checked_sub(REJECTIONS_NAMED + 1) {
        reasons.push(format!("and {} more", more + 1));
    }
    let message = reasons.join("; ");
    tracing::warn!(
        refused = message,
        "resources refused; what was in force in their place stays"
    );
    Some(RpcStatus {
        message,
        ..Default::default()
    })
}

/// Says, again and again, that there is no whole mesh yet: a control plane may keep silent.
async fn complain(view: &View) -> Infallible {
    loop {
        sleep(COMPLAINT).await;
        if !view.status().is_live() {
            tracing::warn!("the control plane has not sent the whole mesh yet");
        }
    }
}

/// The innermost reason; the outer ones of a failed connect say little.
fn cause(error: &Error) -> Option<String> {
    let mut source = std::error::Error::source(error)?;
    while let Some(inner) = source.source() {
        source = inner;
    }
    Some(source.to_string())
}
