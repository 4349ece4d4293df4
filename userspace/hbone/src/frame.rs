//! HTTP/2 frames (RFC 9113 §4, §6): how they are written, and how they are found in a stream of
//! bytes that comes in pieces of any size.

use std::ops::Range;

use crate::{code::ErrorCode, hpack::HpackError};

/// The beginning of every connection, from its client (§3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame's head, in bytes.
pub(crate) const HEAD: usize = 9;
/// The largest payload that every peer takes, and that we do, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 16 << 10;
/// The last stream identifier.
pub(crate) const MAX_STREAM: u32 = i32::MAX as u32;

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) mod flag {
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Settings (§6.5.2).
pub(crate) mod setting {
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// How a peer broke the protocol, so that its connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({code})")]
pub struct Violation {
    /// What it is told.
    pub code: ErrorCode,
    pub what: &'static str,
}

impl Violation {
    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self::of(ErrorCode::PROTOCOL_ERROR, what)
    }

    pub(crate) const fn size(what: &'static str) -> Self {
        Self::of(ErrorCode::FRAME_SIZE_ERROR, what)
    }

    pub(crate) const fn of(code: ErrorCode, what: &'static str) -> Self {
        Self { code, what }
    }
}

impl From<HpackError> for Violation {
    fn from(error: HpackError) -> Self {
        let what = match error {
            HpackError::TooLong => {
                let what = "a header block that holds more than anybody needs";
                return Self::of(ErrorCode::ENHANCE_YOUR_CALM, what);
            }
            HpackError::Truncated => "a header block that ends within a field",
            HpackError::Number => "a header block with a number that is too large",
            HpackError::Index => "a header field of which there is none in the table",
            HpackError::Huffman => "a header string that breaks the Huffman code",
            HpackError::TableSize => "a header table that is larger than allowed",
        };
        Self::of(ErrorCode::COMPRESSION_ERROR, what)
    }
}

/// What precedes a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Of the payload, in bytes.
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, length: usize) -> Self {
        Self {
            length,
            kind,
            flags,
            stream,
        }
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn encode(&self) -> [u8; HEAD] {
        let length = (self.length as u32).to_be_bytes();
        let stream = self.stream.to_be_bytes();
        [
            length[1], length[2], length[3], self.kind, self.flags, stream[0], stream[1],
            stream[2], stream[3],
        ]
    }

    fn decode(bytes: [u8; HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & MAX_STREAM,
        }
    }
}

/// Where a frame's payload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// In the piece that was given, at these places.
    Given(Range<usize>),
    /// It came in several pieces: [`Parser::take_held`].
    Held,
}

/// What a piece of the stream of bytes holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Bytes of a DATA frame, without padding.
    Data {
        stream: u32,
        /// What the whole frame takes of the credit, and how much of that is padding: told with
        /// its first bytes only.
        credit: usize,
        padding: usize,
        /// Where the bytes are in the piece that was given.
        bytes: Range<usize>,
        /// Whether these are the last of the stream.
        end: bool,
    },
    /// Any other frame, whole.
    Frame(Head, Payload),
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    Head,
    /// The length of the padding of a DATA frame comes next.
    PadLength(Head),
    /// Bytes of a DATA frame, and padding, are to come.
    Data {
        head: Head,
        /// Whether none of it was told yet.
        first: bool,
        left: usize,
        padding: usize,
    },
    Padding(usize),
    Payload(Head),
}

/// Finds the frames in what one side says.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    /// The beginning of a head or of a payload, whose end has not come yet.
    held: Vec<u8>,
    /// Whether it was whole, and handed out.
    done: bool,
}

impl Parser {
    /// For what a client says, if `preface`, or a server.
    pub(crate) fn new(preface: bool) -> Self {
        Self {
            state: if preface {
                State::Preface(0)
            } else {
                State::Head
            },
            held: Vec::new(),
            done: false,
        }
    }

    /// The payload of the last event, if it came in several pieces.
    pub(crate) fn take_held(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The next event of a piece of input, from `at` on, which moves behind it; `None` when the
    /// next event needs more than there is.
    ///
    /// # Errors
    /// When this is not HTTP/2 within our limits.
    pub(crate) fn next(
        &mut self,
        input: &[u8],
        at: &mut usize,
    ) -> Result<Option<Event>, Violation> {
        loop {
            let rest = &input[*at..];
            match self.state {
                State::Preface(seen) => {
                    let more = rest.len().min(PREFACE.len() - seen);
                    if rest[..more] != PREFACE[seen..seen + more] {
                        return Err(Violation::protocol("no HTTP/2"));
                    }
                    *at += more;
                    if seen + more < PREFACE.len() {
                        self.state = State::Preface(seen + more);
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
                State::Head => {
                    let Some(head) = self.head(rest, at) else {
                        return Ok(None);
                    };
                    self.state = Self::begin(head)?;
                }
                State::PadLength(head) => {
                    let Some(padding) = rest.first() else {
                        return Ok(None);
                    };
                    *at += 1;
                    let padding = usize::from(*padding);
                    let Some(left) = (head.length - 1).checked_sub(padding) else {
                        return Err(Violation::protocol("more padding than frame"));
                    };
                    self.state = State::Data {
                        head,
                        first: true,
                        left,
                        padding,
                    };
                }
                State::Data {
                    head,
                    first,
                    left,
                    padding,
                } => {
                    let here = rest.len().min(left);
                    if here == 0 && left > 0 {
                        return Ok(None);
                    }
                    let bytes = *at..*at + here;
                    *at += here;
                    let whole = here == left;
                    self.state = if whole {
                        State::Padding(padding)
                    } else {
                        State::Data {
                            head,
                            first: false,
                            left: left - here,
                            padding,
                        }
                    };
                    let told = |length| if first { length } else { 0 };
                    let padded = head.length - left;
                    return Ok(Some(Event::Data {
                        stream: head.stream,
                        credit: told(head.length),
                        padding: told(padded),
                        bytes,
                        end: whole && head.has(flag::END_STREAM),
                    }));
                }
                State::Padding(left) => {
                    let here = rest.len().min(left);
                    *at += here;
                    if here < left {
                        self.state = State::Padding(left - here);
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
                State::Payload(head) => {
                    let Some(payload) = self.payload(head.length, rest, at) else {
                        return Ok(None);
                    };
                    self.state = State::Head;
                    return Ok(Some(Event::Frame(head, payload)));
                }
            }
        }
    }

    fn begin(head: Head) -> Result<State, Violation> {
        if head.length > MAX_PAYLOAD {
            return Err(Violation::size("a frame that is too long"));
        }
        if head.kind != kind::DATA {
            return Ok(State::Payload(head));
        }
        if head.stream == 0 {
            return Err(Violation::protocol("data of no stream"));
        }
        if head.has(flag::PADDED) {
            if head.length == 0 {
                return Err(Violation::size("padding without its length"));
            }
            return Ok(State::PadLength(head));
        }
        Ok(State::Data {
            head,
            first: true,
            left: head.length,
            padding: 0,
        })
    }

    fn head(&mut self, rest: &[u8], at: &mut usize) -> Option<Head> {
        let mut bytes = [0; HEAD];
        match self.payload(HEAD, rest, at)? {
            Payload::Given(_) => bytes.copy_from_slice(&rest[..HEAD]),
            Payload::Held => bytes.copy_from_slice(&self.held),
        }
        Some(Head::decode(bytes))
    }

    /// So many bytes in one piece. What was handed out before is dropped.
    fn payload(&mut self, length: usize, rest: &[u8], at: &mut usize) -> Option<Payload> {
        if std::mem::take(&mut self.done) {
            // Between frames, a tunnel that idles holds no memory.
            self.held = Vec::new();
        }
        let begin = *at;
        if self.held.is_empty() && rest.len() >= length {
            *at += length;
            return Some(Payload::Given(begin..begin + length));
        }
        let here = rest.len().min(length - self.held.len());
        self.held.extend_from_slice(&rest[..here]);
        *at += here;
        self.done = self.held.len() == length;
        self.done.then_some(Payload::Held)
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
