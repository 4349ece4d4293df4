//! Moving bytes between a TCP connection and a stream, or between two TCP connections.
//!
//! Each direction ends on its own: the end of one side's bytes is passed on as the end of the
//! other's, and the opposite direction goes on. When either breaks, both ends are reset, so that
//! nobody takes a cut for an end.
//!
//! Whoever opened an application's socket has set its options, `TCP_NODELAY` among them: a listener's
//! are inherited, so that they cost a connection nothing.

use std::{cell::Cell, future::poll_fn, io, net::TcpStream as StdStream, os::fd::AsFd, rc::Rc};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use crate::{
    Engine, TunnelError,
    engine::{StreamId, reset_when_closed},
};

/// What one read starts with, in bytes; it doubles while reads fill it.
const MIN_READ: usize = 4 << 10;
/// And ends with.
const MAX_READ: usize = 256 << 10;

/// Bytes carried so far, from the side of the TCP connection.
#[derive(Debug, Default)]
pub struct Meter {
    /// Read from the TCP connection.
    pub received: Cell<u64>,
    /// Written to the TCP connection.
    pub sent: Cell<u64>,
}

impl Meter {
    pub(crate) fn add(counter: &Cell<u64>, bytes: usize) {
        counter.set(counter.get() + bytes as u64);
    }
}

/// Why a connection ended before both sides had said that they were done.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    #[error("the application's connection: {0}")]
    Application(#[source] io::Error),
    #[error("the peer's connection: {0}")]
    Peer(#[source] io::Error),
    #[error("the tunnel: {0}")]
    Tunnel(#[source] TunnelError),
}

/// A stream of a tunnel. Dropped, it is reset unless it has ended.
#[derive(Debug)]
pub struct Stream {
    engine: Engine,
    id: StreamId,
}

impl Stream {
    pub(crate) fn new(engine: Engine, id: StreamId) -> Self {
        Self { engine, id }
    }

    pub(crate) fn respond(&self, accept: bool, block: &[u8]) -> Result<(), TunnelError> {
        self.engine.respond(self.id, accept, block)
    }

    /// Carries an application's connection, a non-blocking socket, through the stream from now on;
    /// the future resolves when both directions have ended, and is small.
    ///
    /// # Errors
    /// When either side breaks; the other has been reset then, as both are when this is given up.
    pub fn carry(
        self,
        tcp: StdStream,
        meter: &Rc<Meter>,
    ) -> impl Future<Output = Result<(), CarryError>> + use<> {
        self.engine.carry(self.id, tcp, meter.clone());
        poll_fn(move |cx| self.engine.poll_end(self.id, cx))
    }

    /// Refuses to go on; the peer sees a reset.
    pub fn reset(self) {
        drop(self);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.engine.forget(self.id);
    }
}

/// Ends a connection by a reset instead of an orderly end, so that nobody takes a refusal for an
/// empty answer.
pub fn reset(tcp: impl AsFd) {
    reset_when_closed(&tcp, true);
}

/// Carries bytes between an application's connection and another one, without a tunnel.
///
/// # Errors
/// When either side breaks; the other has been reset then, as both are when this is given up.
pub async fn join(
    mut application: TcpStream,
    mut peer: TcpStream,
    meter: &Meter,
) -> Result<(), CarryError> {
    for tcp in [&application, &peer] {
        reset_when_closed(tcp, true);
    }
    let (app_read, app_write) = application.split();
    let (peer_read, peer_write) = peer.split();
    let result = tokio::try_join!(
        pipe(
            app_read,
            peer_write,
            &meter.received,
            CarryError::Application,
            CarryError::Peer
        ),
        pipe(
            peer_read,
            app_write,
            &meter.sent,
            CarryError::Peer,
            CarryError::Application
        ),
    );
    if result.is_ok() {
        reset_when_closed(&application, false);
        reset_when_closed(&peer, false);
    }
    result.map(|_| ())
}

async fn pipe(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    counter: &Cell<u64>,
    read_error: fn(io::Error) -> CarryError,
    write_error: fn(io::Error) -> CarryError,
) -> Result<(), CarryError> {
    let mut buffer = BytesMut::new();
    let mut size = MIN_READ;
    loop {
        buffer.reserve(size);
        let read = from.read_buf(&mut buffer).await.map_err(read_error)?;
        if read == 0 {
            return shutdown(to.shutdown().await).map_err(write_error);
        }
        size = if read >= size {
            (size * 2).min(MAX_READ)
        } else {
            size.min(read * 2).max(MIN_READ)
        };
        to.write_all(&buffer).await.map_err(write_error)?;
        Meter::add(counter, read);
        buffer.clear();
    }
}

/// The other side may be gone altogether by the time we say that there is no more.
fn shutdown(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}
