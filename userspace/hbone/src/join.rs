//! Moving bytes between two TCP connections, without a tunnel: copied while they are few, and left in
//! the kernel while they are many. They end as a connection and a stream do (see [`crate::carry`]).

use std::{cell::Cell, io, net::Shutdown};

use bytes::{Buf as _, BytesMut};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::{CarryError, Meter, engine::reset_when_closed, splice::Pipe};

/// What one read starts with, in bytes; it doubles while reads fill it.
const MIN_READ: usize = 4 << 10;
/// And ends with; a connection that says so much at a time is not copied any more.
const MAX_READ: usize = 256 << 10;
/// A connection that says less than this at a time is copied again, in bytes.
const MANY: usize = 16 << 10;

/// Carries bytes between an application's connection and another one.
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
    let to_peer = Way {
        from: &application,
        to: &peer,
        counter: &meter.received,
        unread: CarryError::Application,
        unwritten: CarryError::Peer,
    };
    let to_application = Way {
        from: &peer,
        to: &application,
        counter: &meter.sent,
        unread: CarryError::Peer,
        unwritten: CarryError::Application,
    };
    let result = tokio::try_join!(to_peer.carry(), to_application.carry());
    if result.is_ok() {
        reset_when_closed(&application, false);
        reset_when_closed(&peer, false);
    }
    result.map(|_| ())
}

/// One direction.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    counter: &'a Cell<u64>,
    /// What it means when `from` cannot be read, and when `to` cannot be written.
    unread: fn(io::Error) -> CarryError,
    unwritten: fn(io::Error) -> CarryError,
}

impl Way<'_> {
    /// Carries all that there is, and then says that it is all.
    async fn carry(&self) -> Result<(), CarryError> {
        let mut size = MIN_READ;
        loop {
            // Nothing is held while there is nothing to say.
            self.from.readable().await.map_err(self.unread)?;
            // The descriptors may have run out: then it is copied.
            let pipe = (size == MAX_READ).then(Pipe::take).and_then(Result::ok);
            let read = match pipe {
                Some(pipe) => self.splice(pipe).await?,
                None => self.copy(size).await?,
            };
            size = match read {
                Some(0) => return self.shutdown().map_err(self.unwritten),
                Some(read) if read >= size => (size * 2).min(MAX_READ),
                Some(read) => size.min(read * 2).max(MIN_READ),
                None => continue,
            };
        }
    }

    /// Carries what one read brings, and says how many bytes that is: none at the end, and `None` when
    /// there was nothing to read after all.
    async fn copy(&self, size: usize) -> Result<Option<usize>, CarryError> {
        let mut buffer = BytesMut::with_capacity(size);
        let read = match self.from.try_read_buf(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other.map_err(self.unread)?,
        };
        while !buffer.is_empty() {
            self.to.writable().await.map_err(self.unwritten)?;
            match self.to.try_write(&buffer) {
                Ok(written) => buffer.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err((self.unwritten)(error)),
            }
        }
        Meter::add(self.counter, read);
        Ok(Some(read))
    }

    /// Carries bytes without looking at them for as long as there are many of them. Says how many the
    /// last move brought.
    async fn splice(&self, mut pipe: Pipe) -> Result<Option<usize>, CarryError> {
        loop {
            let taken = match pipe.fill(self.from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    pipe.give_back();
                    return Ok(None);
                }
                other => other.map_err(self.unread)?,
            };
            pipe.empty(self.to).await.map_err(self.unwritten)?;
            Meter::add(self.counter, taken);
            if taken < MANY {
                pipe.give_back();
                return Ok(Some(taken));
            }
        }
    }

    fn shutdown(&self) -> io::Result<()> {
        match SockRef::from(self.to).shutdown(Shutdown::Write) {
            // It may be gone altogether by now.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => other,
        }
    }
}
