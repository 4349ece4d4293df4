//! Moving bytes between a TCP connection and a stream, or between two TCP connections.
//!
//! Each direction ends on its own: the end of one side's bytes is passed on as the end of the
//! other's, and the opposite direction goes on. When either breaks, both ends are reset, so that
//! nobody takes a cut for an end.
//!
//! Whoever opened an application's socket has set its options, `TCP_NODELAY` among them: a listener's
//! are inherited, so that they cost a connection nothing.

use std::{
    cell::Cell,
    io,
    net::{Shutdown, TcpStream as StdStream},
    os::fd::AsFd,
    rc::Rc,
};

use bytes::{Buf as _, BytesMut};
use socket2::SockRef;
use tokio::{net::TcpStream, sync::oneshot};

use crate::{
    AbortHandle, Engine, TunnelError,
    engine::{StreamId, reset_when_closed},
    splice::Pipe,
};

/// What one read starts with, in bytes; it doubles while reads fill it.
const MIN_READ: usize = 4 << 10;
/// And ends with; a connection that says so much at a time is not copied any more.
const MAX_READ: usize = 256 << 10;
/// A connection that says less than this at a time is copied again, in bytes.
const MANY: usize = 16 << 10;

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
    /// `ended` is called once, by the engine, when both directions have ended, or when either side
    /// broke: the other has been reset then. Until then what it holds is all that the connection
    /// holds, beside what the engine does: no task waits for it.
    pub fn carry_then(
        self,
        tcp: StdStream,
        ended: impl FnOnce(Result<(), CarryError>, Meter) + 'static,
    ) {
        self.engine.carry(self.id, tcp, ended);
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
        tcp: StdStream,
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

/// Carries bytes between an application's connection and another one, without a tunnel.
///
/// # Errors
/// When either side breaks; the other has been reset then, as both are when this is given up.
pub async fn join(
    application: TcpStream,
    peer: TcpStream,
    meter: &Meter,
) -> Result<(), CarryError> {
    for tcp in [&application, &peer] {
        reset_when_closed(tcp, true);
    }
    let result = tokio::try_join!(
        pipe(
            &application,
            &peer,
            &meter.received,
            CarryError::Application,
            CarryError::Peer
        ),
        pipe(
            &peer,
            &application,
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
    from: &TcpStream,
    to: &TcpStream,
    counter: &Cell<u64>,
    read_error: fn(io::Error) -> CarryError,
    write_error: fn(io::Error) -> CarryError,
) -> Result<(), CarryError> {
    let mut size = MIN_READ;
    loop {
        // Nothing is held while there is nothing to say.
        from.readable().await.map_err(read_error)?;
        // The descriptors may have run out: then it is copied.
        let pipe = (size == MAX_READ).then(Pipe::take).and_then(Result::ok);
        let read = match pipe {
            Some(pipe) => splice(pipe, from, to, counter, read_error, write_error).await?,
            None => copy(size, from, to, counter, read_error, write_error).await?,
        };
        size = match read {
            Some(0) => {
                return shutdown(SockRef::from(to).shutdown(Shutdown::Write)).map_err(write_error);
            }
            Some(read) if read >= size => (size * 2).min(MAX_READ),
            Some(read) => size.min(read * 2).max(MIN_READ),
            None => continue,
        };
    }
}

/// Carries what one read brings, and says how many bytes that is: none at the end, and `None` when
/// there was nothing to read after all.
async fn copy(
    size: usize,
    from: &TcpStream,
    to: &TcpStream,
    counter: &Cell<u64>,
    read_error: fn(io::Error) -> CarryError,
    write_error: fn(io::Error) -> CarryError,
) -> Result<Option<usize>, CarryError> {
    let mut buffer = BytesMut::with_capacity(size);
    let read = match from.try_read_buf(&mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        other => other.map_err(read_error)?,
    };
    while !buffer.is_empty() {
        to.writable().await.map_err(write_error)?;
        match to.try_write(&buffer) {
            Ok(written) => buffer.advance(written),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(write_error(error)),
        }
    }
    Meter::add(counter, read);
    Ok(Some(read))
}

/// Carries bytes without looking at them for as long as there are many of them. Says how many the last
/// move brought.
async fn splice(
    mut pipe: Pipe,
    from: &TcpStream,
    to: &TcpStream,
    counter: &Cell<u64>,
    read_error: fn(io::Error) -> CarryError,
    write_error: fn(io::Error) -> CarryError,
) -> Result<Option<usize>, CarryError> {
    loop {
        let taken = match pipe.fill(from) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                pipe.give_back();
                return Ok(None);
            }
            other => other.map_err(read_error)?,
        };
        pipe.empty(to).await.map_err(write_error)?;
        Meter::add(counter, taken);
        if taken < MANY {
            pipe.give_back();
            return Ok(Some(taken));
        }
    }
}

/// The other side may be gone altogether by the time we say that there is no more.
fn shutdown(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}
