//! A stream, and the application's connection that it carries.

use std::{
    cell::Cell,
    collections::VecDeque,
    io::{self, IoSlice, Read as _},
    mem,
    net::{Shutdown, TcpStream},
    ops::Range,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, send, sendmsg},
};
use socket2::SockRef;

use super::{StreamId, TunnelId, watcher::Watcher};
use crate::{CarryError, Meter, fields::Answer, limits};

/// How many pieces one write takes at most …
const SLICES: usize = 64;
/// … and how many it mostly has. Room for all of them is written before it is used, each time.
const FEW: usize = 2;

/// Bytes of the peer for a stream, by their place in what was read.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) stream: StreamId,
    pub(super) bytes: Range<usize>,
}

/// An application's connection.
#[derive(Debug)]
pub(super) struct App {
    pub(super) tcp: TcpStream,
    /// Whether there may be something to read, and room to write: until the kernel says otherwise.
    pub(super) readable: bool,
    writable: bool,
    /// Whether the other end has said that it is done, or broke: then a short read is not the last.
    pub(super) hung_up: bool,
    /// Whether the connection broke.
    pub(super) broken: bool,
    /// Whether the last read filled all that was offered.
    pub(super) bulk: bool,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) tunnel: TunnelId,
    pub(super) number: u32,
    pub(super) app: Option<App>,
    /// What may still be said, in bytes: less than nothing, when the peer has lowered its windows.
    pub(super) credit: i64,
    /// What the peer may still say.
    pub(super) granted: i64,
    /// What the peer may have said, at a time, without the application having taken it.
    pub(super) window: u32,
    /// What the application has taken since credit was returned.
    pub(super) taken: u32,
    /// What the application said and we passed on before the request was answered. It has not been
    /// taken from its connection yet, so that it can be said to another peer instead.
    pub(super) early: u32,
    /// Whether the application kept the peer's bytes waiting since then.
    pub(super) slow: bool,
    /// What the application has not taken yet.
    #[expect(
        clippy::box_collection,
        reason = "it mostly takes everything, and each idle stream would hold the room"
    )]
    pending: Option<Box<VecDeque<u8>>>,
    /// Whether the request has been answered, and whether so that bytes may be said.
    pub(super) answered: bool,
    pub(super) open: bool,
    /// Whether everything has been said: END_STREAM was sent, or the peer wants to hear no more.
    pub(super) said_all: bool,
    /// Whether the peer has said everything.
    pub(super) heard_all: bool,
    /// Whether the application was told so.
    shut: bool,
    /// Whether frames of this stream may still be sent.
    pub(super) attached: bool,
    /// What the peer answered to our request.
    pub(super) answer: Option<Box<Answer>>,
    pub(super) end: Option<Result<(), CarryError>>,
    /// What was carried so far.
    pub(super) meter: Meter,
    /// For the answer, or for the end.
    pub(super) watcher: Watcher,
    /// Whether somebody outside of the engine knows of it.
    pub(super) held: bool,
    /// Whether its tunnel counts it among those that the peer does not want any more.
    pub(super) orphan: bool,
    /// Whether it is in the queue of those that can go on.
    pub(super) queued: bool,
    /// Whether it is in its tunnel's queue of those that wait for it.
    pub(super) waiting: bool,
}

/// Each connection under way holds one, and most of them idle.
const _: () = assert!(size_of::<Stream>() <= 152);

impl Stream {
    pub(super) fn new(tunnel: TunnelId, number: u32, credit: i64) -> Self {
        Self {
            tunnel,
            number,
            app: None,
            credit,
            granted: limits::STREAM_WINDOW.into(),
            window: limits::STREAM_WINDOW,
            taken: 0,
            early: 0,
            slow: false,
            pending: None,
            answered: false,
            open: false,
            said_all: false,
            heard_all: false,
            shut: false,
            attached: true,
            answer: None,
            end: None,
            meter: Meter::default(),
            watcher: Watcher::Nobody,
            held: false,
            orphan: false,
            queued: false,
            waiting: false,
        }
    }

    /// Takes an application's connection, which is reset from now on when it is dropped.
    pub(super) fn attach(&mut self, tcp: TcpStream) -> io::Result<()> {
        reset_when_closed(&tcp, true);
        let taken = take(&tcp, mem::take(&mut self.early) as usize);
        self.app = Some(App {
            tcp,
            // Told at once, by whoever watches the socket from now on.
            readable: false,
            writable: true,
            hung_up: false,
            broken: false,
            bulk: false,
        });
        self.read(taken?);
        Ok(())
    }

    /// Whether the application should be read.
    pub(super) fn wants_to_say(&self) -> bool {
        self.open && !self.said_all && self.app.as_ref().is_some_and(|app| app.readable)
    }

    pub(super) fn read(&mut self, bytes: usize) {
        Meter::add(&self.meter.received, bytes);
    }

    /// What the kernel says of the application's connection.
    pub(super) fn ready(&mut self, readable: bool, writable: bool, hung_up: bool, broken: bool) {
        if let Some(app) = &mut self.app {
            app.readable |= readable;
            app.writable |= writable;
            app.hung_up |= hung_up;
            app.broken |= broken;
        }
    }

    /// Hands bytes of the peer to the application, and keeps what it does not take. Says how many
    /// it took.
    pub(super) fn deliver(&mut self, from: &[u8], pieces: &[Piece]) -> io::Result<usize> {
        let ends = self.is_shut_next();
        let Some(app) = self
            .app
            .as_mut()
            .filter(|app| app.writable && self.pending.is_none())
        else {
            self.slow |= self.app.is_some();
            let pending = self.pending.get_or_insert_default();
            for piece in pieces {
                pending.extend(&from[piece.bytes.clone()]);
            }
            return Ok(0);
        };
        let mut few = [IoSlice::new(&[]); FEW];
        let mut many;
        let slices: &mut [_] = if pieces.len() <= FEW {
            &mut few
        } else {
            many = [IoSlice::new(&[]); SLICES];
            &mut many
        };
        let (mut taken, mut done) = (0, 0);
        while done < pieces.len() && app.writable {
            let batch = &pieces[done..pieces.len().min(done + SLICES)];
            let mut offered = 0;
            for (slice, piece) in slices.iter_mut().zip(batch) {
                *slice = IoSlice::new(&from[piece.bytes.clone()]);
                offered += piece.bytes.len();
            }
            done += batch.len();
            let last = ends && done == pieces.len();
            let mut written = app.write(&slices[..batch.len()], last, &self.meter.sent)?;
            taken += written;
            app.writable = written == offered;
            if app.writable {
                continue;
            }
            let pending = self.pending.get_or_insert_default();
            for piece in batch {
                let Range { start, end } = piece.bytes;
                let skipped = written.min(end - start);
                written -= skipped;
                pending.extend(&from[start + skipped..end]);
            }
        }
        if done < pieces.len() {
            let pending = self.pending.get_or_insert_default();
            for piece in &pieces[done..] {
                pending.extend(&from[piece.bytes.clone()]);
            }
        }
        self.slow |= self.pending.is_some();
        Ok(taken)
    }

    /// Whether the application, once it has taken everything, is told that there is no more.
    fn is_shut_next(&self) -> bool {
        self.heard_all && !self.shut && !self.said_all
    }

    /// Hands over what was kept, and says how many bytes the application took; and tells it, after
    /// the last, that there is no more.
    pub(super) fn drain(&mut self) -> io::Result<usize> {
        let ends = self.is_shut_next();
        let Some(app) = &mut self.app else {
            return Ok(0);
        };
        let mut taken = 0;
        while app.writable
            && let Some(pending) = &mut self.pending
        {
            let (front, back) = pending.as_slices();
            let offered = pending.len();
            let slices = [IoSlice::new(front), IoSlice::new(back)];
            let slices = &slices[..1 + usize::from(!back.is_empty())];
            let written = app.write(slices, ends, &self.meter.sent)?;
            pending.drain(..written);
            taken += written;
            app.writable = written == offered;
            if pending.is_empty() {
                // An idle connection holds no memory.
                self.pending = None;
            }
        }
        if self.heard_all && self.pending.is_none() && !self.shut {
            self.shut = true;
            if self.said_all {
                // It is closed next, which says the same.
                return Ok(taken);
            }
            match app.tcp.shutdown(Shutdown::Write) {
                // The other side may be gone altogether by the time.
                Err(error) if error.kind() != io::ErrorKind::NotConnected => return Err(error),
                _ => {}
            }
        }
        Ok(taken)
    }

    /// Whether both directions have come to their end.
    pub(super) fn is_done(&self) -> bool {
        self.said_all && self.shut
    }

    /// Ends it: the application's connection is closed in order, or else reset. Says whether it
    /// had not ended before.
    pub(super) fn finish(&mut self, end: Result<(), CarryError>) -> bool {
        if self.end.is_some() {
            return false;
        }
        // What comes before a cut is kept for an application that is yet to come.
        if let Some(app) = self.app.take() {
            self.pending = None;
            if end.is_ok() {
                reset_when_closed(&app.tcp, false);
            }
        }
        self.end = Some(end);
        true
    }

    /// For an application that comes after the end: gives it what there is, and resets it.
    pub(super) fn deliver_late(&mut self) {
        // It may be gone as well, and then needs nothing.
        let _ = self.drain();
        self.app = None;
        self.pending = None;
    }
}

impl App {
    /// Writes what the socket takes, which may be nothing, and counts it. The last bytes wait for the
    /// end that follows at once: together they are one packet, and wake the application once.
    fn write(
        &mut self,
        slices: &[IoSlice<'_>],
        last: bool,
        counter: &Cell<u64>,
    ) -> io::Result<usize> {
        let mut flags = SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, last);
        loop {
            let written = match slices {
                // The kernel has no list to copy and to check.
                [one] => send(&self.tcp, one, flags),
                _ => sendmsg(
                    &self.tcp,
                    slices,
                    &mut SendAncillaryBuffer::default(),
                    flags,
                ),
            };
            match written {
                Ok(written) => {
                    Meter::add(counter, written);
                    return Ok(written);
                }
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the other end has said everything, and all of it was read.
    pub(super) fn has_ended(&self) -> io::Result<bool> {
        match self.tcp.peek(&mut [0]) {
            Ok(waiting) => Ok(waiting == 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Why the connection broke.
    pub(super) fn error(&self) -> Option<io::Error> {
        self.tcp.take_error().unwrap_or_else(Some)
    }
}

/// Takes what was seen before from a connection; says how many bytes these are.
fn take(mut tcp: &TcpStream, seen: usize) -> io::Result<usize> {
    let mut left = seen;
    while left > 0 {
        match tcp.read(&mut [0; limits::EARLY][..left.min(limits::EARLY)]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => left -= read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

/// Whether closing a connection resets it instead of ending it. It is set as long as the connection
/// is carried, so that a cut looks like one even when nobody is left to say so.
pub(crate) fn reset_when_closed(tcp: &impl std::os::fd::AsFd, reset: bool) {
    // Lingering for no time at all is how a socket is told. It can only fail on a socket that is
    // dead, which the next use reports better.
    let _ = SockRef::from(tcp).set_linger(reset.then_some(Duration::ZERO));
}
