//! What a peer says, frame by frame (RFC 9113 §6).

use std::ops::Range;

use http::StatusCode;

use super::{
    super::{
        Life, Rest, StreamId,
        stream::{Piece, Stream},
    },
    Block, LAST_CALL, Leaving, MAX_WINDOW, Side, Tunnel,
};
use crate::{
    Baggage, ErrorCode, TunnelError,
    fields::{Fields, Malformed},
    frame::{Event, Head, MAX_PAYLOAD, MAX_STREAM, Payload, Violation, flag, kind, setting},
    limits, request,
};

/// Its end, a reset, and credit.
pub(super) const IDLE_FRAMES_OF_A_STREAM: i64 = 4;

impl Tunnel {
    /// Reads the frames of a record, or of its part that follows what was read before.
    pub(super) fn frames(
        &mut self,
        bytes: &[u8],
        record: Range<usize>,
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        let mut at = record.start;
        let input = &bytes[..record.end];
        while let Some(event) = self.parser.next(input, &mut at)? {
            match event {
                Event::Data {
                    stream,
                    credit,
                    padding,
                    bytes,
                    end,
                } => {
                    self.data(stream, (credit, padding), bytes, end, rest)?;
                    if end {
                        self.deliver(input, rest);
                        self.heard_all(stream, rest);
                    }
                }
                Event::Frame(head, payload) => {
                    if head.stream != 0 {
                        // A stream's bytes precede whatever else is said in it.
                        self.deliver(input, rest);
                    }
                    match payload {
                        Payload::Given(place) => self.frame(head, &input[place], rest)?,
                        Payload::Held => {
                            let payload = self.parser.take_held();
                            self.frame(head, &payload, rest)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes bytes of a stream, which are delivered together with others.
    fn data(
        &mut self,
        number: u32,
        (credit, padding): (usize, usize),
        bytes: Range<usize>,
        end: bool,
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        if self.block.is_some() {
            return Err(Violation::protocol("a header block that is interrupted"));
        }
        if bytes.is_empty() {
            self.idle_frame()?;
        }
        self.granted -= credit as i64;
        if self.granted < 0 {
            let what = "more data than the tunnel's window";
            return Err(Violation::of(ErrorCode::FLOW_CONTROL_ERROR, what));
        }
        self.heard += credit as u32;
        if self.heard >= limits::TUNNEL_WINDOW / 4 {
            let heard = std::mem::take(&mut self.heard);
            self.granted += i64::from(heard);
            self.say(kind::WINDOW_UPDATE, 0, 0, &heard.to_be_bytes(), rest);
        }
        let Some(id) = self.find(number) else {
            // Data may be on its way when a stream is given up.
            return self.begun(number);
        };
        let Some(stream) = rest.streams.get_mut(id) else {
            return Ok(());
        };
        if stream.heard_all {
            let what = "data after the end of a stream";
            return Err(Violation::of(ErrorCode::STREAM_CLOSED, what));
        }
        stream.granted -= credit as i64;
        if stream.granted < 0 {
            let what = "more data than a stream's window";
            return Err(Violation::of(ErrorCode::FLOW_CONTROL_ERROR, what));
        }
        if self.side == Side::Client && !stream.answered {
            return self.break_stream(id, ErrorCode::PROTOCOL_ERROR, rest);
        }
        // Nobody is interested in what a refusal says beyond its status.
        let refused = self.side == Side::Client && !stream.open;
        if !bytes.is_empty() && !refused {
            rest.pieces.push(Piece { stream: id, bytes });
        }
        // What is delivered from here on is the last.
        stream.heard_all = end;
        if padding > 0 {
            self.taken(id, padding, rest);
        }
        Ok(())
    }

    /// The peer has said all that it has to say in a stream.
    fn heard_all(&mut self, number: u32, rest: &mut Rest) {
        if let Some(id) = self.find(number)
            && let Some(stream) = rest.streams.get_mut(id)
        {
            stream.heard_all = true;
            self.go_on(id, rest);
        }
    }

    /// A frame that carries nothing: a peer may send only so many.
    pub(super) fn idle_frame(&mut self) -> Result<(), Violation> {
        self.idle_frames -= 1;
        if self.idle_frames < 0 {
            let what = "more frames that carry nothing than anybody needs";
            return Err(Violation::of(ErrorCode::ENHANCE_YOUR_CALM, what));
        }
        Ok(())
    }

    /// What is said and done calls for frames that carry nothing, such as credit.
    pub(super) fn expect_idle_frames(&mut self, frames: i64) {
        let most = 10 * limits::IDLE_FRAMES;
        self.idle_frames = (self.idle_frames + frames).min(most.max(self.idle_frames));
    }

    /// Whether a stream of this number was ever begun: frames of one that was not are an error.
    fn begun(&self, number: u32) -> Result<(), Violation> {
        let begun = match self.side {
            Side::Client => number % 2 == 1 && number < self.next,
            Side::Server => number % 2 == 1 && number <= self.last_seen,
        };
        if begun {
            return Ok(());
        }
        Err(Violation::protocol("a frame of a stream that nobody began"))
    }

    fn frame(&mut self, head: Head, payload: &[u8], rest: &mut Rest) -> Result<(), Violation> {
        let young = matches!(*self.status.life(), Life::Young);
        if young && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Violation::protocol(
                "a connection that begins without settings",
            ));
        }
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return Err(Violation::protocol("a header block that is interrupted"));
        }
        let whole = matches!(head.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        if whole && head.stream != 0 {
            return Err(Violation::protocol("a stream's frame that is the tunnel's"));
        }
        let of_a_stream = matches!(
            head.kind,
            kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::CONTINUATION
        );
        if of_a_stream && head.stream == 0 {
            return Err(Violation::protocol("a tunnel's frame that is a stream's"));
        }
        match head.kind {
            kind::HEADERS => self.headers(head, payload, rest),
            kind::CONTINUATION => self.continuation(head, payload, rest),
            kind::RST_STREAM => self.peer_reset(head.stream, payload, rest),
            kind::SETTINGS => self.settings(head, payload, rest),
            kind::PING => self.ping(head, payload, rest),
            kind::GOAWAY => self.peer_leaves(payload, rest),
            kind::WINDOW_UPDATE => self.window_update(head.stream, payload, rest),
            kind::PUSH_PROMISE => Err(Violation::protocol("a push that is not allowed")),
            kind::PRIORITY if payload.len() != 5 => {
                Err(Violation::size("a priority of the wrong length"))
            }
            // Priorities mean nothing to us, nor does what is not known (RFC 9113 §5.5).
            _ => self.idle_frame(),
        }
    }

    fn headers(&mut self, head: Head, payload: &[u8], rest: &mut Rest) -> Result<(), Violation> {
        let mut block = payload;
        if head.has(flag::PADDED) {
            let (padding, rest) = block
                .split_first()
                .ok_or(Violation::size("padding without its length"))?;
            let length = rest.len().checked_sub(usize::from(*padding));
            let length = length.ok_or(Violation::protocol("more padding than frame"))?;
            block = &rest[..length];
        }
        if head.has(flag::PRIORITY) {
            block = block
                .get(5..)
                .ok_or(Violation::size("a priority of the wrong length"))?;
        }
        self.block = Some(Block {
            stream: head.stream,
            end_stream: head.has(flag::END_STREAM),
            bytes: block.to_vec(),
        });
        self.end_block(head, rest)
    }

    fn continuation(
        &mut self,
        head: Head,
        payload: &[u8],
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        self.idle_frame()?;
        let block = self.block.as_mut().filter(|b| b.stream == head.stream);
        let block = block.ok_or(Violation::protocol("a continuation of nothing"))?;
        if block.bytes.len() + payload.len() > limits::MAX_BLOCK {
            let what = "a header block without end";
            return Err(Violation::of(ErrorCode::ENHANCE_YOUR_CALM, what));
        }
        block.bytes.extend_from_slice(payload);
        self.end_block(head, rest)
    }

    /// Reads a header block if this was its last frame.
    fn end_block(&mut self, head: Head, rest: &mut Rest) -> Result<(), Violation> {
        if !head.has(flag::END_HEADERS) {
            return Ok(());
        }
        let Some(block) = self.block.take() else {
            return Ok(());
        };
        // Every block changes the tables, also one that nobody is interested in.
        let mut fields = Fields::default();
        self.hpack
            .decode(&block.bytes, limits::MAX_BLOCK, |name, value| {
                fields.push(name, value);
            })?;
        let Block {
            stream: number,
            end_stream,
            ..
        } = block;
        match (self.find(number), self.side) {
            (Some(id), Side::Client) => self.answer(id, end_stream, fields, rest),
            (Some(id), Side::Server) => self.trailers(id, end_stream, fields, rest),
            (None, Side::Server) if number % 2 == 1 && number > self.last_seen => {
                self.last_seen = number;
                self.request(number, end_stream, fields, rest)
            }
            (None, Side::Server) if fields.asks() => {
                Err(Violation::protocol("a request with a number of before"))
            }
            (None, _) => {
                self.idle_frame()?;
                self.begun(number)
            }
        }
    }

    /// A client wants a stream.
    fn request(
        &mut self,
        number: u32,
        end_stream: bool,
        fields: Fields,
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        // Those that were taken back count until nobody works for them any more.
        let full = self.streams.len() >= limits::MAX_STREAMS_IN as usize
            || self.orphans >= limits::MAX_ORPHANS;
        if full || self.leaving == Leaving::Last {
            self.reset(number, ErrorCode::REFUSED_STREAM, rest);
            return self.idle_frame();
        }
        let request = match fields.request() {
            Ok(request) => request,
            Err(Malformed::Fields) => {
                self.reset(number, ErrorCode::PROTOCOL_ERROR, rest);
                return self.idle_frame();
            }
            Err(Malformed::TooLarge) => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                let block = request::encode_answer(status, &Baggage::default());
                self.say_block(number, true, &block, rest);
                self.reset(number, ErrorCode::NO_ERROR, rest);
                return self.idle_frame();
            }
        };
        let mut stream = Stream::new(self.id, number, self.initial_credit);
        stream.heard_all = end_stream;
        let id = rest.streams.insert(stream);
        self.attach(number, id);
        self.expect_idle_frames(IDLE_FRAMES_OF_A_STREAM);
        self.status.arrived(id, request);
        Ok(())
    }

    /// A server has answered a request, or says that it will.
    fn answer(
        &mut self,
        id: StreamId,
        end_stream: bool,
        fields: Fields,
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        let Some(stream) = rest.streams.get_mut(id) else {
            return Ok(());
        };
        if stream.answered {
            return self.trailers(id, end_stream, fields, rest);
        }
        match fields.answer() {
            Ok(answer) if answer.status.is_informational() && !end_stream => {
                self.idle_frame()?;
            }
            Ok(answer) if !answer.status.is_informational() => {
                stream.answered = true;
                stream.open = answer.status == StatusCode::OK;
                stream.answer = Some(Box::new(answer));
                stream.heard_all = end_stream;
                stream.watcher.wake();
            }
            _ => return self.break_stream(id, ErrorCode::PROTOCOL_ERROR, rest),
        }
        Ok(())
    }

    /// Fields behind the last byte of a stream.
    fn trailers(
        &mut self,
        id: StreamId,
        end_stream: bool,
        fields: Fields,
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        let Some(stream) = rest.streams.get_mut(id) else {
            return Ok(());
        };
        if stream.heard_all {
            let what = "headers after the end of a stream";
            return Err(Violation::of(ErrorCode::STREAM_CLOSED, what));
        }
        if !end_stream || fields.trailers().is_err() {
            return self.break_stream(id, ErrorCode::PROTOCOL_ERROR, rest);
        }
        let number = stream.number;
        self.heard_all(number, rest);
        Ok(())
    }

    fn peer_reset(
        &mut self,
        number: u32,
        payload: &[u8],
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        let code = number_of(payload).ok_or(Violation::size("a reset of the wrong length"))?;
        let code = ErrorCode(code);
        self.idle_frame()?;
        let Some(id) = self.find(number) else {
            return self.begun(number);
        };
        self.detach(id, rest);
        self.abandon(id, rest)?;
        let Some(stream) = rest.streams.get_mut(id) else {
            return Ok(());
        };
        if code == ErrorCode::NO_ERROR && stream.heard_all && stream.open {
            // The peer wants to hear no more, having said everything (RFC 9113 §8.1).
            stream.said_all = true;
            self.go_on(id, rest);
        } else {
            rest.cut(id, TunnelError::Reset(code));
        }
        Ok(())
    }

    /// Resets a stream in which the peer broke the protocol.
    fn break_stream(
        &mut self,
        id: StreamId,
        code: ErrorCode,
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        self.give_up(id, code, rest);
        self.abandon(id, rest)
    }

    /// Whether a peer that does not want the answer to a request any more may go on so: work that
    /// has begun is not undone by that, and room for more is what it must not get.
    fn abandon(&mut self, id: StreamId, rest: &mut Rest) -> Result<(), Violation> {
        let Some(stream) = rest.streams.get_mut(id) else {
            return Ok(());
        };
        if self.side == Side::Client {
            return Ok(());
        }
        if stream.held {
            if !std::mem::replace(&mut stream.orphan, true) {
                self.orphans += 1;
            }
            return Ok(());
        }
        rest.streams.remove(id);
        self.unseen_resets += 1;
        if self.unseen_resets > limits::UNSEEN_RESETS {
            let what = "requests that are taken back at once";
            return Err(Violation::of(ErrorCode::ENHANCE_YOUR_CALM, what));
        }
        Ok(())
    }

    fn settings(&mut self, head: Head, payload: &[u8], rest: &mut Rest) -> Result<(), Violation> {
        if head.has(flag::ACK) {
            return match payload {
                [] => self.idle_frame(),
                _ => Err(Violation::size("an acknowledgement with settings")),
            };
        }
        let (settings, odd) = payload.as_chunks::<6>();
        if !odd.is_empty() {
            return Err(Violation::size("settings of the wrong length"));
        }
        self.idle_frame()?;
        for [a, b, value @ ..] in settings {
            // Each may be work for every stream.
            self.idle_frame()?;
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*a, *b]) {
                setting::INITIAL_WINDOW_SIZE => self.initial_window(value, rest)?,
                setting::MAX_CONCURRENT_STREAMS => self.status.allow(value),
                // A server may not even say that it would (§6.5.2).
                setting::ENABLE_PUSH if value > u32::from(self.side == Side::Server) => {
                    return Err(Violation::protocol("a push that is neither on nor off"));
                }
                setting::MAX_FRAME_SIZE if !(MAX_PAYLOAD as u32..1 << 24).contains(&value) => {
                    return Err(Violation::protocol("a frame size out of bounds"));
                }
                // We neither compress by tables, nor send frames or headers that are long.
                _ => {}
            }
        }
        self.say(kind::SETTINGS, flag::ACK, 0, &[], rest);
        self.status.grow();
        Ok(())
    }

    /// The credit that streams begin with is another one; so it is for those that have begun.
    fn initial_window(&mut self, window: u32, rest: &mut Rest) -> Result<(), Violation> {
        let window = i64::from(window);
        let overflow = Violation::of(ErrorCode::FLOW_CONTROL_ERROR, "a window that is too large");
        if window > MAX_WINDOW {
            return Err(overflow);
        }
        let change = window - self.initial_credit;
        self.initial_credit = window;
        for (_, id) in &self.streams {
            if let Some(stream) = rest.streams.get_mut(*id) {
                stream.credit += change;
                if stream.credit > MAX_WINDOW {
                    return Err(overflow);
                }
                rest.enqueue(*id);
            }
        }
        Ok(())
    }

    fn ping(&mut self, head: Head, payload: &[u8], rest: &mut Rest) -> Result<(), Violation> {
        if payload.len() != 8 {
            return Err(Violation::size("a ping of the wrong length"));
        }
        self.idle_frame()?;
        if !head.has(flag::ACK) {
            self.say(kind::PING, flag::ACK, 0, payload, rest);
        } else if matches!(self.leaving, Leaving::LastCall { .. }) && payload == LAST_CALL {
            self.called_last(rest);
        }
        Ok(())
    }

    fn peer_leaves(&mut self, payload: &[u8], rest: &mut Rest) -> Result<(), Violation> {
        let (Some(last), Some(code)) = (
            payload.get(..4).and_then(number_of),
            payload.get(4..8).and_then(number_of),
        ) else {
            return Err(Violation::size("a farewell of the wrong length"));
        };
        self.idle_frame()?;
        let code = ErrorCode(code);
        self.farewell = Some(code);
        self.status.close();
        if self.side == Side::Client {
            // These were not handled, and may be asked for elsewhere.
            let last = last & MAX_STREAM;
            let unseen = self.streams.partition_point(|(number, _)| *number <= last);
            for (_, id) in self.streams.split_off(unseen) {
                if let Some(stream) = rest.streams.get_mut(id) {
                    stream.attached = false;
                    rest.cut(id, TunnelError::GoneAway(code));
                }
            }
            self.status.count(self.streams.len());
        }
        self.end_if_unused(rest);
        Ok(())
    }

    fn window_update(
        &mut self,
        number: u32,
        payload: &[u8],
        rest: &mut Rest,
    ) -> Result<(), Violation> {
        let more = number_of(payload).ok_or(Violation::size("credit of the wrong length"))?;
        let more = i64::from(more & MAX_STREAM);
        self.idle_frame()?;
        if number == 0 {
            self.credit += more;
            if more == 0 {
                return Err(Violation::protocol("credit of nothing"));
            }
            if self.credit > MAX_WINDOW {
                let what = "a window that is too large";
                return Err(Violation::of(ErrorCode::FLOW_CONTROL_ERROR, what));
            }
            self.wake_waiting(rest);
            return Ok(());
        }
        let Some(id) = self.find(number) else {
            return self.begun(number);
        };
        let Some(stream) = rest.streams.get_mut(id) else {
            return Ok(());
        };
        stream.credit += more;
        if more == 0 {
            return self.break_stream(id, ErrorCode::PROTOCOL_ERROR, rest);
        }
        if stream.credit > MAX_WINDOW {
            return self.break_stream(id, ErrorCode::FLOW_CONTROL_ERROR, rest);
        }
        rest.enqueue(id);
        Ok(())
    }
}

fn number_of(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.try_into().ok()?))
}
