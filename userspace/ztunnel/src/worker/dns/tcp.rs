//! DNS by TCP (RFC 1035, 4.2.2): a connection that begins with a name of the mesh is answered, every
//! other is carried to the server as it is.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Question, Turn, from_mesh, labels};
use crate::worker::{outbound, pods::Pod, shard::Shard};

/// How long a connection may say nothing between two questions.
const IDLE: Duration = Duration::from_secs(10);
/// How long it may say nothing at its beginning. Resolvers ask as soon as they are connected; whoever
/// does not is no resolver, and perhaps waits for the server to speak.
const FIRST: Duration = Duration::from_millis(250);
/// More than a question for an address can be.
const LOOK: usize = 1024;

/// Serves one captured connection from its accept to its end.
pub(in crate::worker) async fn serve(
    shard: Rc<Shard>,
    pod: Rc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
) {
    let Some(orig) = outbound::original(&shard, &pod, &tcp, peer) else {
        return;
    };
    if let Some(question) = first(&tcp).await
        && from_mesh(&shard, &pod, &question, u16::MAX).await.is_some()
        && let Some(_turn) = Turn::take(&pod)
    {
        if let Err(error) = answer(&shard, &pod, tcp).await {
            tracing::debug!(%error, %peer, "DNS by TCP ended");
        }
        return;
    }
    match tcp.into_std() {
        Ok(tcp) => outbound::connect(shard, pod, tcp, peer, orig).await,
        Err(error) => tracing::warn!(%error, %peer, "DNS by TCP ended"),
    }
}

/// The question that a connection begins with, if it came in one piece. It is not taken out.
async fn first(tcp: &TcpStream) -> Option<Question> {
    let mut bytes = [0; LOOK];
    let size = timeout(FIRST, tcp.peek(&mut bytes)).await.ok()?.ok()?;
    let (length, rest) = bytes[..size].split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    Question::read(rest.get(..length)?)
}

/// Answers questions until there are no more, or one is for others: then the connection ends, and
/// the client, which has to expect that (RFC 7766, 6.2.4), asks it by another.
async fn answer(shard: &Shard, pod: &Pod, mut tcp: TcpStream) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, tcp.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length)];
        timeout(IDLE, tcp.read_exact(&mut bytes)).await??;
        let Some(question) = Question::read(&bytes) else {
            return Ok(());
        };
        let Some(answer) = from_mesh(shard, pod, &question, u16::MAX).await else {
            return Ok(());
        };
        let labels = labels(shard, pod, Some(&question), "tcp");
        shard.shared.metrics.dns().asked(&labels);
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes()[..], &answer].concat();
        timeout(IDLE, tcp.write_all(&message)).await??;
    }
}
