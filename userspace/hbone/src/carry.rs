//! Moving bytes between a TCP connection and a stream.
//!
//! Each direction ends on its own: the end of one side's bytes is passed on as the end of the
//! other's, and the opposite direction goes on. When either breaks, both ends are reset, so that
//! nobody takes a cut for an end.
//!
//! Whoever opened an application's socket has set its options, `TCP_NODELAY` among them: a listener's
//! are inherited, so that they cost a connection nothing.

use std::{cell::Cell, future::poll_fn, io, net::TcpStream, os::fd::AsFd, rc::Rc};

use crate::{
    Engine, TunnelError,
    engine::{StreamId, reset_when_closed},
};

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
        tcp: TcpStream,
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
