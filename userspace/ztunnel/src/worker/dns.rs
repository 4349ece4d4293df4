//! DNS queries of pods: names of the mesh are answered here, and everything else is forwarded, as the
//! bytes that it is, to the server that the pod asked.

mod answer;
mod tcp;

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use sluice_model::hosts::Asker;
use sluice_telemetry::metrics::DnsLabels;
use tokio::{net::UdpSocket, task::spawn_local};

use super::{pods::Pod, shard::Shard};
use crate::link::Family;
use answer::Question;
pub(super) use tcp::serve as serve_tcp;

/// How long a server may take. Less than the five seconds after which resolvers try the next one, so
/// that they learn of the failure and need not guess.
const SERVER_PATIENCE: Duration = Duration::from_secs(4);
/// How long after the start of a worker unknown names wait for the control plane. After that others
/// are asked, so that a mesh without a control plane does not slow down the rest of the world.
const MESH_PATIENCE: Duration = Duration::from_secs(2);
/// How many queries of a pod are under way at one time; each forwarded one is a socket. More are
/// dropped, and asked again by who still waits.
const MAX_QUERIES: usize = 256;
/// The largest datagram there is.
const MAX_DATAGRAM: usize = 65_535;
/// After a failed receive, how long until the next.
const RECEIVE_PAUSE: Duration = Duration::from_millis(20);

/// Serves the queries that come to a socket, until its pod leaves.
pub(super) fn start(shard: &Rc<Shard>, pod: &Rc<Pod>, socket: OwnedFd) {
    let socket = StdUdpSocket::from(socket);
    let open = || {
        let port = socket.local_addr()?.port();
        Ok::<_, io::Error>((UdpSocket::from_std(socket)?, port))
    };
    match open() {
        Ok((socket, port)) => {
            let inbox = Inbox {
                shard: shard.clone(),
                pod: pod.clone(),
                socket: Rc::new(socket),
                port,
            };
            spawn_local(inbox.receive());
        }
        Err(error) => tracing::error!(%error, "a socket for DNS queries is lost"),
    }
}

/// Where the queries of a pod come in.
struct Inbox {
    shard: Rc<Shard>,
    pod: Rc<Pod>,
    socket: Rc<UdpSocket>,
    port: u16,
}

impl Inbox {
    async fn receive(self) {
        let mut left = self.pod.left();
        loop {
            let received = tokio::select! {
                received = receive(&self.socket) => received,
                _ = left.wait_for(|left| *left) => return,
            };
            match received {
                Ok((datagram, client)) => self.take(datagram, client),
                Err(error) => {
                    tracing::warn!(%error, "cannot receive DNS queries");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, datagram: Vec<u8>, client: SocketAddr) {
        let (shard, pod) = (&self.shard, &self.pod);
        let question = Question::read(&datagram);
        let query = Query {
            labels: labels(shard, pod, question.as_ref(), "udp"),
            question,
            bytes: datagram,
            server: self.server_asked(client),
        };
        shard.shared.metrics.dns().asked(&query.labels);
        let Some(turn) = Turn::take(pod) else {
            tracing::debug!(pod = %pod.uid, "more than {MAX_QUERIES} DNS queries at one time");
            return;
        };
        let (shard, pod, socket) = (shard.clone(), pod.clone(), self.socket.clone());
        spawn_local(async move {
            let answer = serve(&shard, &pod, &query).await;
            drop(turn);
            // A client that has gone away needs no answer.
            if let Some(answer) = answer
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%error, %client, "an answer to a DNS query was not sent");
            }
        });
    }

    /// Before anything else is received: another socket may have the client's port by then.
    fn server_asked(&self, client: SocketAddr) -> Option<SocketAddr> {
        let maps = self.shard.maps.borrow();
        let asked = maps.server_asked(client, self.port, self.pod.info.netns);
        asked.unwrap_or_else(|error| {
            tracing::error!(%error, %client, "the server that was asked cannot be read");
            None
        })
    }
}

/// The next datagram, and who sent it. Nothing is held for it before it is there: most pods ask seldom.
async fn receive(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    loop {
        socket.readable().await?;
        let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
        match socket.try_recv_buf_from(&mut datagram) {
            Ok((_, sender)) => {
                datagram.shrink_to_fit();
                return Ok((datagram, sender));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// A datagram that a pod sent to a DNS server.
struct Query {
    bytes: Vec<u8>,
    /// What it asks, if that is something that the mesh can know.
    question: Option<Question>,
    server: Option<SocketAddr>,
    labels: DnsLabels,
}

/// One of the queries that a pod may have under way.
struct Turn(Rc<Pod>);

impl Turn {
    fn take(pod: &Rc<Pod>) -> Option<Self> {
        let queries: &Cell<usize> = &pod.queries;
        (queries.get() < MAX_QUERIES).then(|| {
            queries.set(queries.get() + 1);
            Self(pod.clone())
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.queries.set(self.0.queries.get() - 1);
    }
}

async fn serve(shard: &Shard, pod: &Pod, query: &Query) -> Option<Vec<u8>> {
    if let Some(question) = &query.question
        && let Some(answer) = from_mesh(shard, pod, question, question.payload()).await
    {
        return Some(answer);
    }
    let started = Instant::now();
    let forwarded = match query.server {
        Some(server) => forward(shard, pod, &query.bytes, server).await,
        // Somebody in the pod asked our port itself: there is nobody else to ask.
        None => Err(io::ErrorKind::NotConnected.into()),
    };
    let took = forwarded.is_ok().then(|| started.elapsed());
    if query.server.is_some() {
        shard.shared.metrics.dns().forwarded(&query.labels, took);
    }
    match forwarded {
        Ok(answer) => Some(answer),
        Err(error) => {
            let server = query.server;
            tracing::debug!(%error, ?server, pod = %pod.uid, "a DNS query was not answered");
            answer::failure(&query.bytes)
        }
    }
}

/// The answer, of at most `limit` bytes, to a question about a name of the mesh.
async fn from_mesh(shard: &Shard, pod: &Pod, question: &Question, limit: u16) -> Option<Vec<u8>> {
    let shared = &shard.shared;
    let asker = Asker {
        namespace: &pod.info.namespace,
        network: &shared.network,
        cluster_domain: &shared.settings.cluster_domain,
    };
    let look = || shared.mesh.load().host(&question.name, &asker);
    let mut host = look();
    // What only the mesh knows would be denied by others, and that remembered.
    if host.is_none() && !shared.mesh.status().is_live() {
        let until = shard.since + MESH_PATIENCE;
        let _ = tokio::time::timeout_at(until.into(), shared.mesh.live()).await;
        host = look();
    }
    question.answer(host?, limit)
}

/// Sends a query on and returns what comes back.
async fn forward(
    shard: &Shard,
    pod: &Pod,
    query: &[u8],
    server: SocketAddr,
) -> io::Result<Vec<u8>> {
    let exchange = async {
        let family = Family::of(server.ip());
        // A port of its own for every query: who would forge an answer has to guess it.
        let socket = pod.datagram_socket(&shard.link, family).await?;
        socket.connect(server).await?;
        socket.send(query).await?;
        loop {
            let (answer, _) = receive(&socket).await?;
            // A message begins with its id.
            if answer.get(..2) == query.get(..2) {
                return Ok(answer);
            }
        }
    };
    tokio::time::timeout(SERVER_PATIENCE, exchange)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn labels(
    shard: &Shard,
    pod: &Pod,
    question: Option<&Question>,
    protocol: &'static str,
) -> DnsLabels {
    let mesh = shard.shared.mesh.load();
    let workload = mesh.workload(&pod.uid);
    DnsLabels {
        query_type: question.map_or("other", Question::kind),
        protocol,
        canonical_service: workload.map_or_else(Default::default, |w| w.canonical_name.clone()),
        canonical_revision: workload
            .map_or_else(Default::default, |w| w.canonical_revision.clone()),
    }
}
