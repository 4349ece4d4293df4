//! The streams of a tunnel: their beginning, their bytes in both directions, their end.

use std::{io, net::TcpStream, rc::Rc};

use super::{
    super::{Life, Rest, StreamId, outbox::TURN, stream::Stream},
    Tunnel,
    frames::IDLE_FRAMES_OF_A_STREAM,
};
use crate::{
    CarryError, ErrorCode, TunnelError,
    frame::{MAX_STREAM, flag, kind},
    limits,
};

impl Tunnel {
    /// Lets those go on that waited for credit or for room.
    pub(super) fn wake_waiting(&mut self, rest: &mut Rest) {
        while self.credit > 0
            && !self.out.is_blocked()
            && let Some(id) = self.waiting.pop_front()
        {
            if let Some(stream) = rest.streams.get_mut(id) {
                stream.waiting = false;
                rest.enqueue(id);
            }
        }
    }

    /// Hands over the bytes that were noted.
    pub(super) fn deliver(&mut self, from: &[u8], rest: &mut Rest) {
        let mut pieces = std::mem::take(&mut rest.pieces);
        for run in pieces.chunk_by(|one, other| one.stream == other.stream) {
            let id = run[0].stream;
            let Some(stream) = rest.streams.get_mut(id) else {
                continue;
            };
            match stream.deliver(from, run) {
                Ok(taken) => self.taken(id, taken, rest),
                Err(error) => self.application_broke(id, error, rest),
            }
        }
        pieces.clear();
        rest.pieces = pieces;
    }

    /// An application has taken bytes: the credit for them is returned, now and then. It grows
    /// while the application takes everything at once, because then the window alone may be what
    /// holds up its peer.
    pub(in crate::engine) fn taken(&mut self, id: StreamId, bytes: usize, rest: &mut Rest) {
        let Some(stream) = rest.streams.get_mut(id) else {
            return;
        };
        stream.taken += bytes as u32;
        if !stream.attached || stream.heard_all || stream.taken < stream.window / 2 {
            return;
        }
        let mut credit = std::mem::take(&mut stream.taken);
        let slow = std::mem::take(&mut stream.slow);
        if !slow && stream.window < limits::MAX_STREAM_WINDOW && stream.window <= self.growth {
            credit += stream.window;
            self.growth -= stream.window;
            stream.window *= 2;
        }
        stream.granted += i64::from(credit);
        let number = stream.number;
        self.say(kind::WINDOW_UPDATE, 0, number, &credit.to_be_bytes(), rest);
    }

    /// Hands an application what was kept for it, and ends its stream when both sides are done.
    pub(in crate::engine) fn go_on(&mut self, id: StreamId, rest: &mut Rest) {
        let Some(stream) = rest.streams.get_mut(id) else {
            return;
        };
        match stream.drain() {
            Ok(taken) => self.taken(id, taken, rest),
            Err(error) => return self.application_broke(id, error, rest),
        }
        if rest.streams.get(id).is_some_and(Stream::is_done) {
            rest.finish(id, Ok(()));
            self.detach(id, rest);
        }
    }

    pub(super) fn find(&self, number: u32) -> Option<StreamId> {
        let place = self.streams.binary_search_by_key(&number, |(n, _)| *n);
        Some(self.streams[place.ok()?].1)
    }

    /// Numbers only grow.
    pub(super) fn attach(&mut self, number: u32, id: StreamId) {
        self.streams.push((number, id));
        self.status.count(self.streams.len());
    }

    /// Forgets a stream in which nothing more is said by either side.
    pub(super) fn detach(&mut self, id: StreamId, rest: &mut Rest) {
        let Some(stream) = rest.streams.get_mut(id) else {
            return;
        };
        if !std::mem::replace(&mut stream.attached, false) {
            return;
        }
        self.growth += stream.window - limits::STREAM_WINDOW;
        let number = stream.number;
        if let Ok(place) = self.streams.binary_search_by_key(&number, |(n, _)| *n) {
            self.streams.remove(place);
        }
        self.status.count(self.streams.len());
        self.end_if_unused(rest);
    }

    /// Begins a stream with a request.
    ///
    /// # Errors
    /// When there can be no more of them.
    pub(in crate::engine) fn open_stream(
        &mut self,
        block: &[u8],
        rest: &mut Rest,
    ) -> Result<StreamId, TunnelError> {
        if let Some(code) = self.farewell {
            return Err(TunnelError::GoneAway(code));
        }
        let number = self.next;
        if number > MAX_STREAM {
            return Err(TunnelError::Ended);
        }
        self.next += 2;
        let mut stream = Stream::new(self.id, number, self.initial_credit);
        stream.held = true;
        let id = rest.streams.insert(stream);
        self.attach(number, id);
        self.expect_idle_frames(IDLE_FRAMES_OF_A_STREAM);
        self.say_block(number, false, block, rest);
        if self.next > MAX_STREAM {
            // The numbers have run out: others begin in another tunnel.
            self.drain(rest);
        }
        Ok(id)
    }

    /// Says what an application has said already beside the request, which saves a round trip: an
    /// application's first words mostly come with its connection. A peer passes them on once it has
    /// accepted the request, and only then.
    pub(in crate::engine) fn say_early(
        &mut self,
        id: StreamId,
        application: &TcpStream,
        rest: &mut Rest,
    ) {
        let there = matches!(*self.status.life(), Life::Grown)
            && self.last_heard.elapsed() < limits::EARLY_AFTER;
        let Some(stream) = rest.streams.get_mut(id).filter(|_| there) else {
            return;
        };
        let credit = stream
            .credit
            .min(self.credit)
            .clamp(0, limits::EARLY as i64);
        let number = stream.number;
        let seen = self
            .out
            .look_at(application, number, credit as usize, &mut rest.spare);
        // One of which nothing can be read is dealt with once the request is answered.
        let Ok(seen @ 1..) = seen else {
            return;
        };
        stream.early = seen as u32;
        stream.credit -= seen as i64;
        self.note_said(seen, rest);
    }

    /// Takes into account that so many bytes of a stream were said.
    fn note_said(&mut self, bytes: usize, rest: &mut Rest) {
        self.credit -= bytes as i64;
        self.carried += bytes as u64;
        // Credit for these may come piece by piece.
        self.expect_idle_frames(2 + (bytes / limits::CREDIT_FOR) as i64 * 2);
        self.mark_dirty(rest);
    }

    /// Answers a request.
    pub(in crate::engine) fn respond(
        &mut self,
        id: StreamId,
        accept: bool,
        block: &[u8],
        rest: &mut Rest,
    ) {
        let Some(stream) = rest.streams.get_mut(id).filter(|stream| stream.attached) else {
            return;
        };
        let number = stream.number;
        stream.open = accept;
        self.say_block(number, !accept, block, rest);
        if !accept {
            self.reset(number, ErrorCode::NO_ERROR, rest);
            self.detach(id, rest);
        }
    }

    /// Resets a stream, and its application's connection.
    pub(in crate::engine) fn give_up(&mut self, id: StreamId, code: ErrorCode, rest: &mut Rest) {
        let Some(stream) = rest.streams.get(id) else {
            return;
        };
        let (attached, number) = (stream.attached, stream.number);
        rest.finish(id, Err(CarryError::Tunnel(TunnelError::GivenUp(code))));
        if attached {
            self.reset(number, code, rest);
            self.detach(id, rest);
        }
    }

    pub(in crate::engine) fn application_broke(
        &mut self,
        id: StreamId,
        error: io::Error,
        rest: &mut Rest,
    ) {
        let Some(stream) = rest.streams.get(id) else {
            return;
        };
        let (attached, number) = (stream.attached, stream.number);
        rest.finish(id, Err(CarryError::Application(error)));
        if attached {
            self.reset(number, ErrorCode::CANCEL, rest);
            self.detach(id, rest);
        }
    }

    /// Reads an application, a bounded part of what it says at a time.
    pub(in crate::engine) fn upload(&mut self, id: StreamId, rest: &mut Rest) {
        let Some(mut stream) = rest.streams.get_mut(id) else {
            return;
        };
        let mut left = TURN as i64;
        while stream.wants_to_say() && stream.attached {
            let credit = stream.credit.min(self.credit);
            if credit <= 0
                && let Some(app) = &stream.app
                && app.hung_up
            {
                // An end needs no credit (RFC 9113 §6.9.1), and the peer may well wait for it.
                match app.has_ended() {
                    Ok(true) => return self.end_upload(id, rest),
                    Ok(false) => {}
                    Err(error) => return self.application_broke(id, error, rest),
                }
            }
            if stream.credit <= 0 {
                break;
            }
            if self.credit <= 0 || self.out.is_blocked() {
                if !std::mem::replace(&mut stream.waiting, true) {
                    self.waiting.push_back(id);
                }
                break;
            }
            if left <= 0 {
                rest.enqueue(id);
                return;
            }
            let limit = credit.min(left) as usize;
            let Some(app) = &mut stream.app else {
                return;
            };
            let received = self.out.receive(
                &app.tcp,
                stream.number,
                limit,
                app.bulk,
                &mut self.sealer,
                &mut rest.spare,
            );
            match received {
                Ok(None) => {
                    self.flush_some(rest);
                    if self.failure.is_some() {
                        // Nothing leaves any more, so there would never be room.
                        return;
                    }
                    let Some(again) = rest.streams.get_mut(id) else {
                        return;
                    };
                    stream = again;
                }
                Ok(Some((0, _))) => return self.end_upload(id, rest),
                Ok(Some((read, offered))) => {
                    app.bulk = read == offered;
                    app.readable = app.bulk || app.hung_up;
                    stream.credit -= read as i64;
                    left -= read as i64;
                    stream.read(read);
                    self.note_said(read, rest);
                    let Some(again) = rest.streams.get_mut(id) else {
                        return;
                    };
                    stream = again;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => app.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return self.fail(TunnelError::Tls(Rc::new(error)));
                }
                Err(error) => return self.application_broke(id, error, rest),
            }
        }
        self.check_application(id, rest);
    }

    /// The application has said everything.
    fn end_upload(&mut self, id: StreamId, rest: &mut Rest) {
        let Some(stream) = rest.streams.get_mut(id) else {
            return;
        };
        stream.said_all = true;
        let number = stream.number;
        self.say(kind::DATA, flag::END_STREAM, number, &[], rest);
        self.go_on(id, rest);
        self.check_application(id, rest);
    }

    /// Notices that a connection broke of which nothing can be read: there is nothing more, or no
    /// credit for it.
    pub(super) fn check_application(&mut self, id: StreamId, rest: &mut Rest) {
        let Some(stream) = rest.streams.get_mut(id) else {
            return;
        };
        let stuck = stream.said_all || stream.credit <= 0 || stream.waiting;
        if let Some(app) = &mut stream.app
            && app.broken
            && stuck
        {
            app.broken = false;
            if let Some(error) = app.error() {
                self.application_broke(id, error, rest);
            }
        }
    }

    /// Makes room in the middle of a turn.
    pub(super) fn flush_some(&mut self, rest: &mut Rest) {
        let flushed = self
            .out
            .flush(&self.socket, &mut self.sealer, &mut rest.spare);
        if let Err(error) = flushed {
            self.fail(TunnelError::io(error));
        }
        self.mark_dirty(rest);
    }
}
