//! Moving bytes between a TCP connection and a stream.
//!
//! Each direction ends on its own: the end of one side's bytes is passed on as the end of the
//! other's, and the opposite direction goes on. When either breaks, both ends are reset, so that
//! nobody takes a cut for an end.
//!
//! Whoever opened an application's socket has set its options, `TCP_NODELAY` among them: a listener's
//! are inherited, so that they cost a connection nothing.

use std::{cell::Cell, io, net::TcpStream, os::fd::AsFd, rc::Rc};

use tokio::sync::oneshot;

use crate::{
    AbortHandle, Engine, TunnelError,
    engine::{StreamId, reset_when_closed},
};

/// Bytes carried so far, from the side of the TCP connection.
#[derive(Clone, Debug, Default)]
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

/// Whose connection is carried.
///
/// The engine holds it until the end, in place of a task that would wait for that.
pub trait Carried {
    /// So much was carried until now. The engine is at work, and cannot be used here.
    fn so_far(&mut self, meter: &Meter);

    /// Both directions have ended, or either side broke: the other has been reset then. Called once.
    fn ended(self: Box<Self>, end: Result<(), CarryError>, meter: Meter);
}

/// Asks for nothing but the end.
struct Then<F>(F);

impl<F: FnOnce(Result<(), CarryError>, Meter)> Carried for Then<F> {
    fn so_far(&mut self, _: &Meter) {}

    fn ended(self: Box<Self>, end: Result<(), CarryError>, meter: Meter) {
        (self.0)(end, meter);
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

/// A stream of a tunnel. Dropped before it carries anything, it is reset unless it has ended.
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

    /// Carries an application's connection, a non-blocking socket, through the stream from now on.
    ///
    /// What `owner` holds is all that the connection holds, beside what the engine does: no task waits
    /// for the end. How far it has come the owner is told by [`Engine::tell_so_far`].
    pub fn carry_for(self, tcp: TcpStream, owner: impl Carried + 'static) {
        self.engine.carry(self.id, tcp, owner);
    }

    /// As [`Self::carry_for`], for an owner that asks for nothing but the end.
    pub fn carry_then(
        self,
        tcp: TcpStream,
        ended: impl FnOnce(Result<(), CarryError>, Meter) + 'static,
    ) {
        self.carry_for(tcp, Then(ended));
    }

    /// By which what is carried can be given up.
    pub fn abort_handle(&self) -> AbortHandle {
        self.engine.abort_handle(self.id)
    }

    /// As [`Self::carry_then`], for somebody who waits for the end; `meter` shows then what was
    /// carried.
    ///
    /// # Errors
    /// When either side breaks; the other has been reset then, as both are when this is given up.
    pub fn carry(
        self,
        tcp: TcpStream,
        meter: &Rc<Meter>,
    ) -> impl Future<Output = Result<(), CarryError>> + use<> {
        let (tell, told) = oneshot::channel();
        let (unless_ended, meter) = (AbortOnDrop(self.abort_handle()), meter.clone());
        self.carry_then(tcp, move |end, carried| {
            meter.received.swap(&carried.received);
            meter.sent.swap(&carried.sent);
            // Whoever waited may have given up.
            let _ = tell.send(end);
        });
        async move {
            let _unless_ended = unless_ended;
            // The engine tells, unless it has ended itself.
            told.await
                .unwrap_or(Err(CarryError::Tunnel(TunnelError::Ended)))
        }
    }

    /// Refuses to go on; the peer sees a reset.
    pub fn reset(self) {
        drop(self);
    }
}

/// Gives up what nobody waits for any more.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
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
