//! The stream, and its return after it broke.

use std::{convert::Infallible, sync::Arc, time::Duration};

use sluice_identity::ControlPlane;
use sluice_model::Name;
use sluice_proto::discovery::DeltaDiscoveryRequest;
use tokio::{
    sync::watch,
    time::{Instant, Interval, interval_at, sleep},
};
use tonic::metadata::MetadataMap;

use crate::{
    Error, Node, Snapshot, Status, View,
    acknowledgement::Received,
    answers::Answers,
    decode::Part,
    demand::{Demand, Unsent},
    store::{Kind, Response, Store},
    traffic::{Termination, Traffic},
    version::Version,
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

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct Config {
    pub control_plane: ControlPlane,
    pub node: Node,
    /// How long an address may keep silent, as long as it has not said everything and there is
    /// another one to try.
    pub patience: Duration,
    /// Asks for workloads and services by name, once they are needed, in place of all.
    pub on_demand: Option<OnDemand>,
}

/// How a mesh is kept of which only a part is known.
#[derive(Clone, Copy, Debug)]
pub struct OnDemand {
    /// What nobody has used for so long is forgotten.
    pub unused: Duration,
}

impl Default for OnDemand {
    fn default() -> Self {
        Self {
            unused: Duration::from_secs(3600),
        }
    }
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
    demand: Option<Arc<Demand>>,
    traffic: Traffic,
}

/// The name that stands for everything.
const WILDCARD: &str = "*";

/// The address of nobody, which may be asked for at any time.
const NOBODY: &str = "/0.0.0.0";

/// What makes a stream go on.
enum Event {
    /// Of the control plane; `None` when it ended the stream.
    Part(Option<Part>),
    /// Somebody needs what has these names.
    Wanted(Unsent),
    /// It is time to forget what nobody uses.
    Review,
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
        let demand = config.on_demand.map(|_| Arc::default());
        Self {
            config,
            store: Store::default(),
            status: watch::Sender::default(),
            demand,
            traffic: Traffic::default(),
        }
    }

    /// Counts what passes between this client and the control plane.
    pub fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// The mesh that this client keeps.
    pub fn view(&self) -> View {
        View::new(
            self.store.mesh().clone(),
            self.status.subscribe(),
            self.demand.clone(),
        )
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
        let mut reviews = self.config.on_demand.map(reviews);
        loop {
            let start = Instant::now();
            let mut session = Session::default();
            let view = self.view();
            let addresses = self.config.control_plane.addresses.clone();
            let address = addresses.current().to_owned();
            let ended = tokio::select! {
                ended = self.session(&address, &mut session, &mut reviews) => ended,
                never = complain(&view) => match never {},
            };
            let was_open = self
                .status
                .send_if_modified(|status| std::mem::replace(&mut status.connected, false));
            self.traffic.ended(Termination::of(&ended, was_open));
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
    async fn session(
        &mut self,
        address: &str,
        session: &mut Session,
        reviews: &mut Option<Interval>,
    ) -> Result<(), Error> {
        let (requests, mut responses) = self.unless_silent(self.open(address)).await?;
        self.status.send_modify(|status| status.connected = true);
        let mut response = Response::default();
        let mut bytes = 0;
        loop {
            let event = tokio::select! {
                part = self.unless_silent(responses.next()) => Event::Part(part?),
                unsent = wanted(self.demand.as_deref()) => Event::Wanted(unsent),
                () = due(reviews) => Event::Review,
            };
            let answers = match event {
                Event::Part(None) => return Ok(()),
                Event::Part(Some(Part::Resource(resource))) => {
                    bytes += resource.len() as u64;
                    response.push(resource, self.store.interner());
                    continue;
                }
                Event::Part(Some(Part::TooLarge(length))) => {
                    response.push_too_large(length);
                    continue;
                }
                Event::Part(Some(Part::End(envelope))) => {
                    session.answered = true;
                    let mut whole = std::mem::take(&mut response);
                    let bytes = std::mem::take(&mut bytes);
                    if let Some(kind) = Kind::of(&envelope.type_url) {
                        self.traffic.received(kind, bytes);
                    }
                    whole.envelope = envelope;
                    self.handle(whole, &mut session.held)
                }
                Event::Wanted(unsent) => ask(unsent),
                Event::Review => self.forget(),
            };
            for request in answers {
                if requests.send(request.into()).await.is_err() {
                    // The sending half has gone; the receiving half tells why.
                    responses.next().await?;
                    return Ok(());
                }
            }
        }
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

    /// The first request for each type: everything, or nothing yet, except for what we have and
    /// what is waited for.
    fn subscriptions(&self) -> impl Iterator<Item = Outgoing> {
        let mesh = self.store.mesh().load_full();
        Kind::ALL.into_iter().map(move |kind| {
            let mut request = DeltaDiscoveryRequest {
                node: Some((&self.config.node).into()),
                type_url: kind.type_url().to_owned(),
                ..Default::default()
            };
            let mut missing = Vec::new();
            if let (Kind::Address, Some(demand)) = (kind, &self.demand) {
                // Naming nothing would mean everything.
                request.resource_names_subscribe = vec![WILDCARD.to_owned()];
                request.resource_names_unsubscribe = vec![WILDCARD.to_owned()];
                missing = demand.begin(&mesh);
            }
            let missing = missing.iter().map(|name| (&**name, Version::none()));
            let versions = self.store.versions(kind, &mesh).chain(missing);
            Outgoing::with_versions(&request, versions)
        })
    }

    /// The types that the control plane tells all of, and that a mesh is not whole without.
    fn is_told(&self, is_there: impl Fn(Kind) -> bool) -> bool {
        let is_asked_by_name = |kind| kind == Kind::Address && self.demand.is_some();
        let mut all = Kind::ALL.into_iter();
        all.all(|kind| is_asked_by_name(kind) || is_there(kind))
    }

    /// Forgets what nobody has used for long, and tells the control plane so.
    fn forget(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let (Some(demand), Some(on_demand)) = (&self.demand, self.config.on_demand) else {
            return Vec::new();
        };
        let mesh = self.store.mesh().load_full();
        let mut review = demand.forget(on_demand.unused, &mesh);
        let dropped = self.store.forget(&review);
        if !dropped.is_empty() {
            self.announce(true);
        }
        let mut names = std::mem::take(&mut review.forgotten);
        names.extend(dropped);
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Vec::new();
        }
        tracing::debug!(names = names.len(), "what nobody uses is forgotten");
        vec![change(Vec::new(), names)]
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
            return vec![Received::of(&response).acknowledge(&[])];
        };
        held.push((kind, response));
        let is_there = |kind| held.iter().any(|(other, _)| *other == kind);
        if self.status.borrow().snapshot.is_some() && !self.is_told(is_there) {
            return Vec::new();
        }
        let received: Vec<_> = held
            .iter()
            .map(|(_, response)| Received::of(response))
            .collect();
        let answers = self.demand.as_ref().map(|_| Answers::of(held));
        let kinds: Vec<_> = held.iter().map(|(kind, _)| *kind).collect();
        let applied = self.store.apply(std::mem::take(held));
        for (kind, applied) in kinds.into_iter().zip(&applied) {
            self.traffic.rejected(kind, applied.rejected.len());
        }
        if let (Some(demand), Some(answers)) = (&self.demand, answers) {
            let rejected = applied.iter().flat_map(|applied| &applied.rejected);
            let rejected = rejected.map(|(name, _)| name.as_str()).collect();
            answers.tell(demand, rejected, &self.store.mesh().load());
        }
        self.announce(applied.iter().any(|applied| applied.changed));
        let verdicts = received.into_iter().zip(&applied);
        verdicts
            .map(|(received, applied)| received.acknowledge(&applied.rejected))
            .collect()
    }

    fn announce(&self, changed: bool) {
        let answered = self.is_told(|kind| self.store.is_answered(kind));
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

/// When to look for what nobody uses.
fn reviews(on_demand: OnDemand) -> Interval {
    let first = Instant::now() + on_demand.unused;
    interval_at(first, on_demand.unused / 2)
}

async fn due(reviews: &mut Option<Interval>) {
    match reviews {
        Some(reviews) => _ = reviews.tick().await,
        None => std::future::pending().await,
    }
}

async fn wanted(demand: Option<&Demand>) -> Unsent {
    match demand {
        Some(demand) => demand.unsent().await,
        None => std::future::pending().await,
    }
}

/// What asks for names. Those that were asked for before are taken back by a request of their own,
/// since the order within one is the control plane's choice.
fn ask(unsent: Unsent) -> Vec<DeltaDiscoveryRequest> {
    let Unsent { names, again } = unsent;
    let back = (!again.is_empty()).then(|| change(Vec::new(), again));
    back.into_iter()
        .chain([change(names, Vec::new())])
        .collect()
}

/// A request that asks for more names, or for less.
///
/// It always asks for something: istiod answers one that only takes names back as if all that it had
/// ever sent were gone.
fn change(mut subscribe: Vec<Name>, unsubscribe: Vec<Name>) -> DeltaDiscoveryRequest {
    if subscribe.is_empty() {
        subscribe.push(NOBODY.into());
    }
    let owned = |names: Vec<Name>| names.iter().map(ToString::to_string).collect();
    DeltaDiscoveryRequest {
        type_url: Kind::Address.type_url().to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..Default::default()
    }
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
