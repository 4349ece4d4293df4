//! Captured outbound connections.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::AsRawFd,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{StatusCode, uri::Authority};
use sluice_hbone::{
    ConnectRequest, Dialled, ForwardedFor, OpenError, Opened, Traceparent, TunnelKey,
};
use sluice_model::{
    Name, OrigDst, Uid, Workload,
    route::{self, Client, Hop, Named, Refusal, Route},
};
use sluice_xds::Unanswered;
use tokio::{net::TcpStream, task::spawn_local};

use super::{
    PATIENCE, carry,
    flows::{Claim, Cut, Flow, Needs, Way},
    pods::Pod,
    report::Report,
    resolver,
    shard::Shard,
    spans::Place,
    trace::End,
    words,
};
use crate::link::Family;

/// How long a connection is held when a pod of the mesh refuses tunnels.
const HOLD: Duration = Duration::from_secs(1);
/// How many endpoints of a service are tried before the application is told.
const ATTEMPTS: usize = 3;

/// Why an outbound connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{}", words::not_synced())]
    NotSynced,
    #[error("{}", words::UNKNOWN_WORKLOAD)]
    UnknownWorkload,
    #[error("{0}")]
    UnknownDestination(#[from] Unanswered),
    #[error("{}", explain(*.0, .1))]
    Open(SocketAddr, #[source] OpenError),
    #[error("connect to {0}: {why}", why = words::connect(.1))]
    Connect(SocketAddr, #[source] io::Error),
    #[error("{0}, the host of a service, has no address: {1}")]
    Resolve(Name, #[source] resolver::Error),
    #[error("{0}")]
    Cut(#[from] Box<Cut>),
}

/// Serves one captured connection from its accept to its end.
pub(super) async fn serve(shard: Rc<Shard>, pod: Rc<Pod>, tcp: StdStream, peer: SocketAddr) {
    if let Some(orig) = original(&shard, &pod, &tcp, peer) {
        connect(shard, pod, tcp, peer, orig).await;
    }
}

/// Where a captured connection wanted to go.
pub(super) fn original(
    shard: &Shard,
    pod: &Pod,
    tcp: &impl AsRawFd,
    peer: SocketAddr,
) -> Option<OrigDst> {
    let looked_up = shard.maps.borrow().orig_dst(tcp, peer, pod.info.netns);
    match looked_up {
        Ok(Some(orig)) => Some(OrigDst(orig)),
        // Not captured: somebody in the pod dialled our port. There is nowhere to go.
        Ok(None) => {
            tracing::warn!(%peer, "a connection to the outbound port was not captured; closed");
            None
        }
        Err(error) => {
            tracing::error!(%error, %peer, "the original destination cannot be read; closed");
            None
        }
    }
}

/// Carries a connection of which nothing has been read to where it wanted to go.
pub(super) async fn connect(
    shard: Rc<Shard>,
    pod: Rc<Pod>,
    tcp: StdStream,
    peer: SocketAddr,
    orig: OrigDst,
) {
    // The captured socket's own address is loopback's; to everybody else it is the pod's.
    let ip = pod.ip(Family::of(orig.0.ip())).unwrap_or_else(|| peer.ip());
    let client = SocketAddr::new(ip, peer.port());
    let mut report = Box::new(Report::outbound(&shard.shared, &pod, client, orig.0));
    let place = Place::of(&shard.shared, None);
    report.traced(place);
    report.accepted(End::new(pod.info.netns, peer));
    // What the connection goes to stays known for as long as it lasts.
    let mut needed = Needs::default();
    let origin = Origin {
        client,
        orig,
        trace: place.traceparent(),
    };
    match reach(&shard, &pod, &tcp, origin, &mut needed, &mut report).await {
        Ok(Reached::Plain(peer, flow)) => {
            report.opened();
            spawn_local(carry::join(tcp, peer, flow.needing(needed), report));
        }
        Ok(Reached::Tunnel(opened, flow)) => {
            report.peer(&pod.identity, opened.peer.identity());
            report.tunnel(&opened);
            report.opened();
            let flow = flow.needing(needed);
            carry::through(opened.stream, tcp, flow, report);
        }
        Err(error) => {
            sluice_hbone::reset(tcp);
            report.finish(Some(error.into()));
        }
    }
}

/// What is known of a connection before its other end.
#[derive(Clone, Copy)]
struct Origin {
    client: SocketAddr,
    orig: OrigDst,
    trace: Traceparent,
}

/// The other end of a connection, before a byte has moved.
enum Reached {
    Plain(StdStream, Flow),
    Tunnel(Opened, Flow),
}

async fn reach(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    application: &StdStream,
    origin: Origin,
    needed: &mut Needs,
    report: &mut Report,
) -> Result<Reached, Error> {
    let (shared, orig) = (&shard.shared, origin.orig);
    if !shared.synced().await {
        return Err(Error::NotSynced);
    }
    // What it may reach is part of what the control plane says of it.
    let source = shared.workload(pod).await.ok_or(Error::UnknownWorkload)?;
    report.source(Some(&source));
    *needed = shared.destination(orig).await?;
    let client = Client {
        network: &shared.network,
        workload: &source,
    };
    let way = |to| Way::new(origin.client, orig.0, to);
    let mut attempts = Attempts::begin();
    // What is boxed is seldom waited for: connections through tunnels hold no room for it.
    loop {
        let roll = rand::random_range(0.0..1.0);
        let route = route::outbound(&shared.mesh.load(), client, orig, &attempts.tried, roll);
        let (failure, workload, service) = match route {
            Route::Refuse(refusal) => {
                Box::pin(attempts.ran_out(refusal)).await?;
                continue;
            }
            Route::Plain {
                to,
                workload,
                service,
            } => {
                report.plain(to, workload.as_ref(), service.as_ref());
                match Box::pin(plain(shard, pod, way(to))).await {
                    Ok(reached) => return Ok(reached),
                    Err(error) => (error, workload, service),
                }
            }
            Route::Named(host) => {
                let reached = named(shard, pod, way(orig.0), &host, roll, report);
                match Box::pin(reached).await {
                    Ok(reached) => return Ok(reached),
                    Err(error) => (error, Some(host.workload), host.service),
                }
            }
            Route::Hbone(hop) => {
                report.hop(&hop);
                match open(shard, pod, application, origin, &source, &hop).await {
                    Ok(opened) => {
                        let flow = note(shard, pod, &hop, &opened, way(hop.tunnel));
                        if *hop.workload.node == *shared.settings.node {
                            shared.wishes.wish(pod, orig.0);
                        }
                        return Ok(Reached::Tunnel(opened, flow));
                    }
                    Err(error) => (
                        Error::Open(hop.tunnel, error),
                        Some(hop.workload),
                        hop.service,
                    ),
                }
            }
        };
        let service = service.is_some();
        Box::pin(attempts.go_on(failure, workload, service)).await?;
    }
}

/// Dials in plaintext.
async fn plain(shard: &Rc<Shard>, pod: &Rc<Pod>, way: Way) -> Result<Reached, Error> {
    let to = way.to();
    let flow = pod.flows.note(Claim::Plain(way));
    let dialled = pin!(pod.dial(&shard.link, to, |_| Ok(())));
    match flow.unless_cut(dialled).await? {
        Ok(peer) => Ok(Reached::Plain(peer, flow)),
        Err(error) => Err(Error::Connect(to, error)),
    }
}

/// Resolves a host, and dials its addresses until one answers.
async fn named(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    way: Way,
    host: &Named,
    roll: f64,
    report: &mut Report,
) -> Result<Reached, Error> {
    // For the line in the log, should there be no address.
    report.plain(way.dialled(), Some(&host.workload), host.service.as_ref());
    let resolved = shard.resolver.addresses(&host.host).await;
    let addresses = resolved.map_err(|error| Error::Resolve(host.host.clone(), error))?;
    let mut failure = None;
    let order = host.order(&addresses, roll);
    // A pod without IPv6 cannot dial it.
    let reachable = order
        .into_iter()
        .filter(|to| pod.ip(Family::of(to.ip())).is_some());
    for to in reachable.take(ATTEMPTS) {
        report.plain(to, Some(&host.workload), host.service.as_ref());
        match plain(shard, pod, Way::new(way.source(), way.dialled(), to)).await {
            Err(error) if error.is_unreached() => failure = Some(error),
            result => return result,
        }
    }
    let no_family = || Refusal::NoAddress(host.host.clone(), way.dialled()).into();
    Err(failure.unwrap_or_else(no_family))
}

/// Notes a connection through a tunnel. Its peer is compared with what the mesh says now: that may
/// have changed since the hop was chosen.
fn note(shard: &Shard, pod: &Pod, hop: &Hop, opened: &Opened, way: Way) -> Flow {
    let mesh = shard.shared.mesh.load();
    let uid = &hop.workload.uid;
    let destination = mesh.workload(uid).unwrap_or(&hop.workload);
    let own = destination.is(opened.peer.identity());
    pod.flows.note(Claim::Tunnel {
        destination: own.then(|| uid.clone()),
        peer: opened.peer.clone(),
        way,
    })
}

/// What was tried for a connection. Trying again is safe: what the application has said was passed on
/// by nobody, and is still to be read from its connection.
struct Attempts {
    /// Endpoints that did not answer; none of them is tried again.
    tried: Vec<Uid>,
    /// Why the last of them did not.
    failure: Option<Error>,
    since: Instant,
}

impl Attempts {
    fn begin() -> Self {
        Self {
            tried: Vec::new(),
            failure: None,
            since: Instant::now(),
        }
    }

    /// After a failure: with another endpoint of the service, or, after a while, with the same; or
    /// not at all.
    async fn go_on(
        &mut self,
        failure: Error,
        workload: Option<Arc<Workload>>,
        service: bool,
    ) -> Result<(), Error> {
        let Some(workload) = workload.filter(|_| failure.is_unreached()) else {
            return Err(failure);
        };
        self.tried.push(workload.uid.clone());
        if service && self.tried.len() < ATTEMPTS {
            tracing::debug!(error = %failure, endpoint = %workload.uid, "another one is tried");
            self.failure = Some(failure);
            return Ok(());
        }
        self.hold(failure).await
    }

    /// There is nothing else to try. What went wrong with the last endpoint says more than that.
    async fn ran_out(&mut self, refusal: Refusal) -> Result<(), Error> {
        match self.failure.take() {
            Some(failure) => self.hold(failure).await,
            None => Err(refusal.into()),
        }
    }

    /// A pod whose label has just changed may be known to us before its own node has opened its
    /// port: then all begins again after a pause.
    async fn hold(&mut self, failure: Error) -> Result<(), Error> {
        if !failure.is_refused_tunnel() || self.since.elapsed() >= HOLD {
            return Err(failure);
        }
        tokio::time::sleep(HOLD / 10).await;
        self.tried.clear();
        self.failure = None;
        Ok(())
    }
}

impl Error {
    /// Whether the endpoint cannot be reached, or its application cannot: 503 (wire contract §3).
    fn is_unreached(&self) -> bool {
        match self {
            Self::Connect(..) | Self::Resolve(..) => true,
            Self::Open(_, error) => match error {
                OpenError::Connect(_) | OpenError::ConnectTimeout(_) => true,
                OpenError::Refused(status) => *status == StatusCode::SERVICE_UNAVAILABLE,
                _ => false,
            },
            Self::Refused(_)
            | Self::NotSynced
            | Self::UnknownWorkload
            | Self::UnknownDestination(_)
            | Self::Cut(_) => false,
        }
    }

    /// Whether nobody listens where the tunnel should end.
    fn is_refused_tunnel(&self) -> bool {
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        matches!(self, Self::Open(_, OpenError::Connect(error)) if refused(error))
    }
}

/// Why no stream could be opened in a tunnel to this address.
fn explain(tunnel: SocketAddr, error: &OpenError) -> String {
    match error {
        OpenError::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => format!(
            "tunnel to {tunnel}: {}; is the pod still there, and the ztunnel of its node running?",
            words::connect(error)
        ),
        OpenError::Connect(error) => format!("tunnel to {tunnel}: {}", words::connect(error)),
        // These say themselves what to look for.
        OpenError::ConnectTimeout(_) | OpenError::Refused(_) | OpenError::Identity(_) => {
            error.to_string()
        }
        _ if error.is_revoked() => error.to_string(),
        OpenError::Tls(_) => {
            format!("{error}; do both nodes trust the same roots, and are their clocks right?")
        }
        OpenError::Peer(_) => format!(
            "{error}; has the address another owner by now, or the pod another service account?"
        ),
        OpenError::Handshake(_) | OpenError::HandshakeTimeout(_) => {
            format!("{error}; is it a ztunnel that listens at {tunnel}, and does its log say why?")
        }
        OpenError::AnswerTimeout(_) => {
            format!("{error}; is the application at {tunnel} behind a firewall, or overloaded?")
        }
        OpenError::Tunnel(_) | OpenError::Lost(_) => {
            format!("{error}; has the ztunnel at {tunnel} just ended?")
        }
    }
}

async fn open(
    shard: &Rc<Shard>,
    pod: &Rc<Pod>,
    application: &StdStream,
    origin: Origin,
    source: &Workload,
    hop: &Hop,
) -> Result<Opened, OpenError> {
    let request = ConnectRequest {
        authority: authority(hop.authority),
        forwarded: ForwardedFor {
            client: origin.client,
            host: hop
                .service
                .as_ref()
                .map(|service| service.hostname.to_string()),
        },
        baggage: sluice_hbone::Baggage::of(source),
        trace: origin.trace,
    };
    let key = TunnelKey {
        source: pod.identity.clone(),
        source_ip: pod
            .ip(Family::of(hop.tunnel.ip()))
            .unwrap_or_else(|| origin.client.ip()),
        expected: hop.expected.clone(),
        destination: hop.tunnel,
    };
    shard
        .pool
        .open(&key, &request, Some(application), || dial(shard, pod, hop))
        .await
}

/// As a request names it.
fn authority(address: SocketAddr) -> Authority {
    // Without the scope of an IPv6 address, which means nothing to others.
    let address = SocketAddr::new(address.ip(), address.port());
    Authority::try_from(address.to_string()).expect("an address and a port")
}

async fn dial(shard: &Rc<Shard>, pod: &Rc<Pod>, hop: &Hop) -> Result<Dialled, OpenError> {
    let identities = &shard.shared.identities;
    let svid = identities
        .certificate(&pod.identity, PATIENCE)
        .await
        .map_err(|error| OpenError::Identity(error.to_string().into()))?;
    let tcp = pod
        .dial(&shard.link, hop.tunnel, |_| Ok(()))
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => OpenError::ConnectTimeout(super::pods::CONNECT_TIMEOUT),
            _ => OpenError::Connect(Rc::new(error)),
        })?;
    let connect_error = |error| OpenError::Connect(Rc::new(error));
    Ok(Dialled {
        tcp: TcpStream::from_std(tcp).map_err(connect_error)?,
        tls: svid.client_config(hop.expected.as_slice()),
        trust: svid.trust().clone(),
        expires: svid.not_after(),
    })
}
