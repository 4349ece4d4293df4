//! A tunnel: HTTP/2 over TLS on one socket (RFC 9113), either side of it.

mod frames;
mod streams;

use std::{
    collections::VecDeque,
    io::{self, Read as _},
    net::{Shutdown, TcpStream},
    rc::Rc,
};

use tokio::time::Instant;

use super::{Life, Rest, Status, StreamId, TunnelId, outbox::Outbox};
use crate::{
    ErrorCode, TunnelError,
    frame::{Head, MAX_PAYLOAD, MAX_STREAM, PREFACE, Parser, Violation, flag, kind, setting},
    hpack::Decoder,
    limits,
    tls::{self, Content, Messages, Opener, Sealer, Secrets, Wish},
};

/// Windows that no setting has changed (RFC 9113 §6.9.2).
const DEFAULT_WINDOW: i64 = 65_535;
/// The most that a window may be.
const MAX_WINDOW: i64 = i32::MAX as i64;
/// What the question after which a server takes no new streams says: until it is answered, the peer
/// may not have heard that it should begin no more.
const LAST_CALL: [u8; 8] = *b"lastcall";
/// What the question whether a peer is still there says.
const ARE_YOU_THERE: [u8; 8] = *b"sluiced?";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// How far a tunnel is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The peer was asked to begin no more streams, and has so long to say that it has heard it.
    LastCall {
        until: Instant,
    },
    /// Streams that the peer begins are refused; the last one closes the tunnel.
    Last,
}

/// A header block whose end has not come yet.
#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Tunnel {
    id: TunnelId,
    side: Side,
    socket: TcpStream,
    pub(super) status: Rc<Status>,
    /// Whether there may be something to read: until the kernel says otherwise.
    pub(super) readable: bool,
    hung_up: bool,
    /// Whether it is in the queue of those that are to be read, and of those with something to say.
    pub(super) queued: bool,
    dirty: bool,
    opener: Opener,
    sealer: Sealer,
    secrets: Secrets,
    messages: Messages,
    /// The beginning of a record.
    records: Vec<u8>,
    parser: Parser,
    hpack: Decoder,
    block: Option<Block>,
    out: Outbox,
    /// The streams that are open, by number.
    streams: Vec<(u32, StreamId)>,
    /// Those that have something to say, and wait for credit of the tunnel or room in its socket.
    waiting: VecDeque<StreamId>,
    /// The number of our next stream.
    next: u32,
    /// The last stream that the peer began.
    last_seen: u32,
    /// What may still be said, in bytes.
    credit: i64,
    /// What the peer may still say, and what it has said since that was renewed.
    granted: i64,
    heard: u32,
    /// Bytes read and written since time was looked at.
    carried: u64,
    /// What the windows of streams may still grow by.
    growth: u32,
    /// What a stream may say at its begin.
    initial_credit: i64,
    /// Frames without content that the peer may still send.
    idle_frames: i64,
    unseen_resets: u32,
    /// Requests that the peer does not want any more, and somebody still works for.
    pub(super) orphans: usize,
    /// When the peer was heard of, and when it was asked because it was not.
    last_heard: Instant,
    asked: Option<Instant>,
    begun: Instant,
    leaving: Leaving,
    /// What the peer said when it announced that it leaves.
    farewell: Option<ErrorCode>,
    /// Until when the peer's last words are waited for, after ours.
    lingering: Option<Instant>,
    /// What makes it impossible to go on.
    failure: Option<TunnelError>,
}

impl Tunnel {
    pub(super) fn new(
        id: TunnelId,
        side: Side,
        socket: TcpStream,
        tls: (Opener, Sealer, Secrets),
        rest: &mut Rest,
    ) -> Self {
        let (opener, sealer, secrets) = tls;
        let now = Instant::now();
        let mut tunnel = Self {
            id,
            side,
            socket,
            status: Rc::new(Status::new()),
            readable: true,
            hung_up: false,
            queued: false,
            dirty: false,
            opener,
            sealer,
            secrets,
            messages: Messages::default(),
            records: Vec::new(),
            parser: Parser::new(side == Side::Server),
            hpack: Decoder::new(),
            block: None,
            out: Outbox::new(),
            streams: Vec::new(),
            waiting: VecDeque::new(),
            next: rest.first_stream,
            last_seen: 0,
            credit: DEFAULT_WINDOW,
            granted: limits::TUNNEL_WINDOW.into(),
            heard: 0,
            carried: 0,
            growth: limits::GROWTH,
            initial_credit: DEFAULT_WINDOW,
            idle_frames: limits::IDLE_FRAMES,
            unseen_resets: 0,
            orphans: 0,
            last_heard: now,
            asked: None,
            begun: now,
            leaving: Leaving::No,
            farewell: None,
            lingering: None,
            failure: None,
        };
        tunnel.begin(rest);
        tunnel
    }

    /// Says what every connection begins with.
    fn begin(&mut self, rest: &mut Rest) {
        let mut settings = vec![
            (setting::INITIAL_WINDOW_SIZE, limits::STREAM_WINDOW),
            (setting::MAX_HEADER_LIST_SIZE, limits::MAX_HEADER_LIST),
        ];
        match self.side {
            Side::Client => {
                settings.push((setting::ENABLE_PUSH, 0));
                self.say_raw(PREFACE, rest);
            }
            Side::Server => {
                settings.push((setting::MAX_CONCURRENT_STREAMS, limits::MAX_STREAMS_IN));
            }
        }
        let mut payload = Vec::with_capacity(settings.len() * 6);
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        self.say(kind::SETTINGS, 0, 0, &payload, rest);
        let more = limits::TUNNEL_WINDOW - DEFAULT_WINDOW as u32;
        self.say(kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes(), rest);
    }

    /// What was already heard while TLS began.
    pub(super) fn hear_early(&mut self, said: Vec<u8>, records: Vec<u8>, rest: &mut Rest) {
        if let Err(error) = self.frames(&said, 0..said.len(), rest) {
            self.fail(error.into());
        }
        self.deliver(&said, rest);
        self.records = records;
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// What the kernel says of the socket.
    pub(super) fn ready(&mut self, readable: bool, writable: bool, hung_up: bool, rest: &mut Rest) {
        self.readable |= readable;
        self.hung_up |= hung_up;
        if writable && self.out.is_blocked() {
            self.out.unblock();
            self.mark_dirty(rest);
        }
    }

    fn mark_dirty(&mut self, rest: &mut Rest) {
        if !std::mem::replace(&mut self.dirty, true) {
            rest.dirty.push_back(self.id);
        }
    }

    fn say(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8], rest: &mut Rest) {
        let head = Head::new(kind, flags, stream, payload.len());
        let pushed = self
            .out
            .push(&head.encode(), payload, &mut self.sealer, &mut rest.spare);
        if let Err(error) = pushed {
            self.fail(TunnelError::tls(error));
        }
        if self.out.late() > limits::MAX_LATE {
            let what = "questions without end, and nobody who reads the answers";
            self.fail(Violation::of(ErrorCode::ENHANCE_YOUR_CALM, what).into());
        }
        self.mark_dirty(rest);
    }

    fn say_raw(&mut self, bytes: &[u8], rest: &mut Rest) {
        let pushed = self.out.push(bytes, &[], &mut self.sealer, &mut rest.spare);
        if let Err(error) = pushed {
            self.fail(TunnelError::tls(error));
        }
        self.mark_dirty(rest);
    }

    fn say_record(&mut self, content: Content, bytes: &[u8], rest: &mut Rest) {
        let pushed = self
            .out
            .push_record(content, bytes, &mut self.sealer, &mut rest.spare);
        if let Err(error) = pushed {
            self.fail(TunnelError::tls(error));
        }
        self.mark_dirty(rest);
    }

    /// Says a header block, in as many frames as it takes.
    fn say_block(&mut self, stream: u32, end_stream: bool, block: &[u8], rest: &mut Rest) {
        let mut flags = if end_stream { flag::END_STREAM } else { 0 };
        let mut kind = kind::HEADERS;
        let mut pieces = block.chunks(MAX_PAYLOAD).peekable();
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            self.say(kind, flags, stream, piece, rest);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    fn reset(&mut self, stream: u32, code: ErrorCode, rest: &mut Rest) {
        self.say(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes(), rest);
    }

    fn go_away(&mut self, last: u32, code: ErrorCode, rest: &mut Rest) {
        let payload = [last.to_be_bytes(), code.0.to_be_bytes()].concat();
        self.say(kind::GOAWAY, 0, 0, &payload, rest);
    }

    /// Goes on with a new key once the old one has sealed enough.
    fn change_keys_if_worn(&mut self, rest: &mut Rest) {
        if self.sealer.is_worn() {
            self.change_keys(rest);
        }
    }

    fn change_keys(&mut self, rest: &mut Rest) {
        self.say_record(Content::Handshake, &tls::key_update(false), rest);
        self.out.note_key_update();
        match self.secrets.next_sealer() {
            Ok(sealer) => self.sealer = sealer,
            Err(error) => self.fail(TunnelError::tls(error)),
        }
    }

    /// Writes what the socket takes.
    pub(super) fn flush(&mut self, rest: &mut Rest) {
        self.dirty = false;
        if self.lingering.is_none() {
            self.change_keys_if_worn(rest);
            self.dirty = false;
        }
        let flushed = self
            .out
            .flush(&self.socket, &mut self.sealer, &mut rest.spare);
        if let Err(error) = flushed {
            return self.fail(TunnelError::io(error));
        }
        if self.out.is_blocked() {
            return;
        }
        if self.lingering.is_some() {
            // The peer may be gone, and then hears nothing.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        self.wake_waiting(rest);
    }

    /// Writes what there is when others need the buffer; what a pass does last otherwise.
    pub(super) fn flush_if_stretched(&mut self, rest: &mut Rest) {
        if self.dirty && rest.spare.is_stretched() {
            self.flush(rest);
        }
    }

    /// Reads what has come, a bounded part of it at a time.
    pub(super) fn read(&mut self, buffer: &mut [u8], rest: &mut Rest) {
        let held = self.records.len();
        buffer[..held].copy_from_slice(&self.records);
        let read = match (&self.socket).read(&mut buffer[held..]) {
            Ok(0) => return self.fail(TunnelError::Closed),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => return self.fail(TunnelError::io(error)),
        };
        if held + read < buffer.len() && !self.hung_up {
            self.readable = false;
        }
        self.carried += read as u64;
        self.last_heard = rest.now;
        self.asked = None;
        if self.lingering.is_some() {
            return;
        }
        self.records.clear();
        let bytes = &mut buffer[..held + read];
        match self.open(bytes, rest) {
            Ok(opened) => {
                self.deliver(bytes, rest);
                self.records.extend_from_slice(&bytes[opened..]);
                if self.records.is_empty() {
                    // A tunnel that idles holds no memory.
                    self.records = Vec::new();
                }
            }
            Err(error) => {
                // What has come before counts.
                self.deliver(bytes, rest);
                self.fail(error);
            }
        }
    }

    /// Opens whole records, and says where the first one begins that is not.
    fn open(&mut self, bytes: &mut [u8], rest: &mut Rest) -> Result<usize, TunnelError> {
        let mut at = 0;
        while self.failure.is_none()
            && let Some(length) = tls::length(&bytes[at..]).map_err(TunnelError::tls)?
            && length <= bytes.len() - at
        {
            let opened = self.opener.open(&mut bytes[at..at + length]);
            let (content, inner) = opened.map_err(TunnelError::tls)?;
            let inner = at + tls::HEADER..at + tls::HEADER + inner;
            at += length;
            if content != Content::Handshake && self.messages.is_within() {
                let what = "a handshake message that does not end".into();
                return Err(TunnelError::tls(rustls::Error::General(what)));
            }
            match content {
                Content::Data => self.frames(bytes, inner, rest)?,
                Content::Handshake => self.handshake(&bytes[inner], rest)?,
                Content::Alert => {
                    tls::alert(&bytes[inner]).map_err(TunnelError::tls)?;
                    return Err(TunnelError::Closed);
                }
            }
        }
        Ok(at)
    }

    fn handshake(&mut self, bytes: &[u8], rest: &mut Rest) -> Result<(), TunnelError> {
        self.idle_frame()?;
        self.messages.push(bytes).map_err(TunnelError::tls)?;
        while let Some(wish) = self.messages.next().map_err(TunnelError::tls)? {
            self.idle_frame()?;
            match wish {
                Wish::NewKeys { answer } => {
                    self.opener = self.secrets.next_opener().map_err(TunnelError::tls)?;
                    // One answer will do for questions that come before it has left. It has a place
                    // kept for it, however full the socket is.
                    if answer && !self.out.holds_key_update() {
                        self.change_keys(rest);
                    }
                }
                Wish::Ticket if self.side == Side::Client => {}
                Wish::Ticket => {
                    let what = "a session ticket from a client".into();
                    return Err(TunnelError::tls(rustls::Error::General(what)));
                }
            }
        }
        Ok(())
    }

    /// Takes no new streams, and ends with the last one.
    pub(super) fn drain(&mut self, rest: &mut Rest) {
        if self.leaving != Leaving::No || self.lingering.is_some() {
            return;
        }
        self.status.close();
        match self.side {
            Side::Client => self.leaving = Leaving::Last,
            Side::Server => {
                let until = Instant::now() + limits::PING_TIMEOUT;
                self.leaving = Leaving::LastCall { until };
                self.go_away(MAX_STREAM, ErrorCode::NO_ERROR, rest);
                self.say(kind::PING, 0, 0, &LAST_CALL, rest);
            }
        }
        self.end_if_unused(rest);
    }

    /// Takes no more streams from here on.
    fn called_last(&mut self, rest: &mut Rest) {
        self.leaving = Leaving::Last;
        self.go_away(self.last_seen, ErrorCode::NO_ERROR, rest);
        self.end_if_unused(rest);
    }

    fn end_if_unused(&mut self, rest: &mut Rest) {
        let leaving =
            self.leaving == Leaving::Last || (self.side == Side::Client && self.farewell.is_some());
        if leaving && self.streams.is_empty() && self.lingering.is_none() {
            if self.side == Side::Client {
                self.go_away(0, ErrorCode::NO_ERROR, rest);
            }
            self.last_words(tls::CLOSE_NOTIFY, TunnelError::Ended, rest);
        }
    }

    /// Ends the session, and waits a little for the peer to do so too: what was said last might be
    /// lost with the connection otherwise.
    fn last_words(&mut self, alert: [u8; 2], why: TunnelError, rest: &mut Rest) {
        if self.out.late() == 0 {
            self.say_record(Content::Alert, &alert, rest);
        }
        self.lingering = Some(Instant::now() + limits::LINGER);
        self.readable = true;
        self.status.end(why);
    }

    /// Ends it at once, unless it is about to end anyway.
    pub(super) fn end(&mut self) {
        if self.lingering.is_none() {
            self.fail(TunnelError::Ended);
        }
    }

    /// Notes that this cannot go on; [`Self::settle`] does the rest.
    pub(super) fn fail(&mut self, error: TunnelError) {
        self.failure.get_or_insert(error);
    }

    /// After anything was done: ends a tunnel that failed. Says whether it is over.
    pub(super) fn settle(&mut self, rest: &mut Rest) -> bool {
        let Some(error) = self.failure.take() else {
            return false;
        };
        if self.lingering.is_some() {
            return true;
        }
        let error = match (error, self.farewell) {
            (TunnelError::Closed | TunnelError::Io(_), Some(code))
                if code != ErrorCode::NO_ERROR =>
            {
                TunnelError::Failed(code)
            }
            (error, _) => error,
        };
        for (_, id) in std::mem::take(&mut self.streams) {
            let Some(stream) = rest.streams.get_mut(id) else {
                continue;
            };
            stream.attached = false;
            let held = stream.held;
            rest.cut(id, error.clone());
            if !held {
                rest.streams.remove(id);
            }
        }
        self.status.count(0);
        match &error {
            TunnelError::Violation(violation) => {
                self.go_away(self.last_seen, violation.code, rest);
                self.last_words(tls::CLOSE_NOTIFY, error, rest);
            }
            TunnelError::Tls(broken) if let Some(alert) = tls::complaint(broken) => {
                self.last_words(alert, error, rest);
            }
            _ => {
                self.status.end(error);
                return true;
            }
        }
        // A second failure, of these last words, is the end.
        self.failure.is_some()
    }

    /// What time has brought: called every second or so. Says whether the tunnel is over.
    pub(super) fn tick(&mut self, now: Instant, elapsed: f64, rest: &mut Rest) -> bool {
        if let Some(until) = self.lingering {
            return now >= until;
        }
        let carried = std::mem::take(&mut self.carried);
        self.status.carried(carried as f64 / elapsed);
        let more = (limits::IDLE_FRAMES_PER_SECOND as f64 * elapsed) as i64;
        if self.idle_frames < limits::IDLE_FRAMES {
            self.idle_frames = (self.idle_frames + more).min(limits::IDLE_FRAMES);
        }
        let forgiven = (f64::from(limits::UNSEEN_RESETS_PER_SECOND) * elapsed) as u32;
        self.unseen_resets = self.unseen_resets.saturating_sub(forgiven);
        if let Leaving::LastCall { until } = self.leaving
            && now >= until
        {
            // It may say what it likes instead: what proved who it is may be outdated.
            self.called_last(rest);
        }
        let young = matches!(*self.status.life(), Life::Young);
        if young && now - self.begun >= limits::HANDSHAKE_TIMEOUT {
            self.fail(TunnelError::NotBegun(limits::HANDSHAKE_TIMEOUT));
        } else if let Some(asked) = self.asked {
            if now - asked >= limits::PING_TIMEOUT {
                self.fail(TunnelError::Silent);
            }
        } else if !young && now - self.last_heard >= limits::SILENCE {
            self.asked = Some(now);
            self.say(kind::PING, 0, 0, &ARE_YOU_THERE, rest);
        }
        false
    }
}
