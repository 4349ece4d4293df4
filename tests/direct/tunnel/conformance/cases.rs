//! The table: what RFC 9113 has to say of what a peer may say, section by section.
//!
//! Where the RFC asks for the end of a stream, that of the tunnel is allowed as well (§5.4). Where it
//! leaves a choice, we pass over what may have been on its way when a stream ended (§5.1), and take
//! trailers in a stream of CONNECT (§8.5), as other implementations do.

use crate::peers::{Frame, OK, code, flag, hpack, kind, setting};

/// What a peer is told for what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The tunnel ends.
    Tunnel(u32),
    /// A stream ends, and the others go on.
    Stream(u32, u32),
    /// Nothing: all goes on.
    Nothing,
    /// Nothing; the application of stream 1 hears the end of it, or that it broke.
    End,
    Cut,
}

use Told::{Cut, End, Nothing, Stream, Tunnel};

#[derive(Debug)]
pub(super) struct Case {
    pub(super) section: &'static str,
    pub(super) what: &'static str,
    pub(super) frames: Vec<Frame>,
    pub(super) told: Told,
}

fn case(
    section: &'static str,
    what: &'static str,
    frames: impl Into<Vec<Frame>>,
    told: Told,
) -> Case {
    Case {
        section,
        what,
        frames: frames.into(),
        told,
    }
}

const MAX_WINDOW: u32 = i32::MAX as u32;
const MAX_PAYLOAD: usize = 16 << 10;
/// A stream that nobody has begun.
const IDLE: u32 = 7;

const END: u8 = flag::END_HEADERS;
const LAST: u8 = flag::END_HEADERS | flag::END_STREAM;

fn headers(flags: u8, block: impl Into<Vec<u8>>) -> Frame {
    Frame::new(kind::HEADERS, flags, 1, block)
}

fn more(flags: u8, block: impl Into<Vec<u8>>) -> Frame {
    Frame::new(kind::CONTINUATION, flags, 1, block)
}

fn data(flags: u8, bytes: impl Into<Vec<u8>>) -> Frame {
    Frame::new(kind::DATA, flags, 1, bytes)
}

/// Fields that may follow the last byte.
fn trailers() -> Vec<u8> {
    hpack(&[("x-last", "words")])
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.insert(0, 3);
    bytes.extend([0; 3]);
    bytes
}

fn weighted(bytes: Vec<u8>) -> Vec<u8> {
    [vec![0, 0, 0, 0, 16], bytes].concat()
}

/// What either side may say, while stream 1 is open.
pub(super) fn of_either_side() -> Vec<Case> {
    [
        frames(),
        streams(),
        data_frames(),
        header_frames(),
        header_blocks(),
        resets_and_priorities(),
        settings(),
        of_the_tunnel(),
        credit(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn frames() -> Vec<Case> {
    let unknown = |kind, stream| Frame::new(kind, 0xff, stream, *b"whatever");
    vec![
        case(
            "4.1",
            "flags that nobody knows",
            [
                data(0xd2, []),
                Frame::new(kind::PING, 0xfe, 0, [0; 8]),
                Frame::new(kind::WINDOW_UPDATE, 0xff, 1, [0, 0, 0, 1]),
            ],
            Nothing,
        ),
        case(
            "4.1",
            "a reserved bit",
            [Frame::new(kind::DATA, 0, 1 | 1 << 31, [])],
            Nothing,
        ),
        case(
            "4.2",
            "the longest frame",
            [data(0, [0; MAX_PAYLOAD])],
            Nothing,
        ),
        case(
            "4.2",
            "data that are too long",
            [data(0, [0; MAX_PAYLOAD + 1])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "4.2",
            "headers that are too long",
            [headers(LAST, [0; MAX_PAYLOAD + 1])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "4.2",
            "a frame of an unknown kind that is too long",
            [Frame::new(0xee, 0, 0, [0; MAX_PAYLOAD + 1])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "5.5",
            "frames of kinds that nobody knows",
            // Of these, some are extensions: ALTSVC, ORIGIN, PRIORITY_UPDATE.
            [0xa, 0xc, 0x10, 0xee].map(|kind| unknown(kind, 0)),
            Nothing,
        ),
        case(
            "5.5",
            "frames of an unknown kind, of a stream that is open and one that is not",
            [unknown(0xee, 1), unknown(0xee, IDLE)],
            Nothing,
        ),
    ]
}

fn streams() -> Vec<Case> {
    let idle = |what, frame| case("5.1", what, [frame], Tunnel(code::PROTOCOL_ERROR));
    vec![
        idle(
            "data of a stream that nobody began",
            Frame::new(kind::DATA, 0, IDLE, *b"x"),
        ),
        idle(
            "data of a stream of a server",
            Frame::new(kind::DATA, 0, 2, *b"x"),
        ),
        idle(
            "a reset of a stream that nobody began",
            Frame::reset(IDLE, code::CANCEL),
        ),
        idle(
            "credit for a stream that nobody began",
            Frame::credit(IDLE, 1),
        ),
        idle(
            "a continuation of a stream that nobody began",
            Frame::new(kind::CONTINUATION, END, IDLE, trailers()),
        ),
        case(
            "5.1",
            "a priority of a stream that nobody began",
            [Frame::new(kind::PRIORITY, 0, IDLE, [0; 5])],
            Nothing,
        ),
        case(
            "5.1",
            "data after the end",
            [data(flag::END_STREAM, []), data(0, *b"x")],
            Tunnel(code::STREAM_CLOSED),
        ),
        case(
            "5.1",
            "a second end",
            [data(flag::END_STREAM, []), data(flag::END_STREAM, [])],
            Tunnel(code::STREAM_CLOSED),
        ),
        case(
            "5.1",
            "headers after the end",
            [data(flag::END_STREAM, []), headers(LAST, trailers())],
            Tunnel(code::STREAM_CLOSED),
        ),
        case(
            "5.1",
            "credit and a priority after the end",
            [
                data(flag::END_STREAM, []),
                Frame::credit(1, 1),
                Frame::new(kind::PRIORITY, 0, 1, [0; 5]),
            ],
            End,
        ),
        case(
            "5.1",
            "data, trailers, credit and another reset after a reset",
            [
                Frame::reset(1, code::CANCEL),
                data(0, *b"x"),
                Frame::credit(1, 1),
                headers(LAST, trailers()),
                Frame::reset(1, code::CANCEL),
            ],
            Cut,
        ),
    ]
}

fn data_frames() -> Vec<Case> {
    vec![
        case(
            "6.1",
            "data of no stream",
            [Frame::new(kind::DATA, 0, 0, *b"x")],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.1",
            "more padding than data",
            [data(flag::PADDED, [2, 0])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.1",
            "padding without a length",
            [data(flag::PADDED, [])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.1",
            "data that are all padding",
            [data(flag::PADDED, [2, 0, 0]), data(flag::PADDED, [0])],
            Nothing,
        ),
        case(
            "6.1",
            "an end with padding",
            [data(flag::PADDED | flag::END_STREAM, [2, 0, 0])],
            End,
        ),
    ]
}

fn header_frames() -> Vec<Case> {
    let within = |what, frame| {
        let frames = [headers(flag::END_STREAM, trailers()), frame];
        case("6.10", what, frames, Tunnel(code::PROTOCOL_ERROR))
    };
    vec![
        case(
            "6.2",
            "headers of no stream",
            [Frame::new(kind::HEADERS, LAST, 0, trailers())],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.2",
            "more padding than headers",
            [headers(LAST | flag::PADDED, [9, 0])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.2",
            "padding of headers without a length",
            [headers(LAST | flag::PADDED, [])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.2",
            "a priority of headers that is cut short",
            [headers(LAST | flag::PRIORITY, [0; 4])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.2",
            "headers with padding and a priority, in three parts",
            [
                headers(
                    flag::END_STREAM | flag::PADDED | flag::PRIORITY,
                    padded(weighted(trailers()[..4].to_vec())),
                ),
                more(0, &trailers()[4..9]),
                more(END, &trailers()[9..]),
            ],
            End,
        ),
        case(
            "6.10",
            "a continuation of nothing",
            [more(END, trailers())],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "a continuation of no stream",
            [
                headers(flag::END_STREAM, trailers()),
                Frame::new(kind::CONTINUATION, END, 0, []),
            ],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "a continuation of what is complete",
            [headers(LAST, trailers()), more(END, [])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "a continuation of a continuation that was the last",
            [
                headers(flag::END_STREAM, trailers()),
                more(END, []),
                more(END, []),
            ],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.10",
            "a continuation of data",
            [data(0, []), more(END, [])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        within(
            "a continuation of another stream, within a block",
            Frame::new(kind::CONTINUATION, END, 3, []),
        ),
        within("data within a block", data(0, *b"x")),
        within("an empty frame of data within a block", data(0, [])),
        within("headers within a block", headers(LAST, trailers())),
        within(
            "headers of another stream within a block",
            Frame::new(kind::HEADERS, LAST, 3, trailers()),
        ),
        within(
            "a priority within a block",
            Frame::new(kind::PRIORITY, 0, 1, [0; 5]),
        ),
        within("a reset within a block", Frame::reset(1, code::CANCEL)),
        within("settings within a block", Frame::settings()),
        within(
            "a ping within a block",
            Frame::new(kind::PING, 0, 0, [0; 8]),
        ),
        within(
            "a farewell within a block",
            Frame::new(kind::GOAWAY, 0, 0, [0; 8]),
        ),
        within("credit within a block", Frame::credit(0, 1)),
        within(
            "a frame of an unknown kind within a block",
            Frame::new(0xee, 0, 1, []),
        ),
    ]
}

fn header_blocks() -> Vec<Case> {
    let broken = |section, what, block: &[u8]| {
        case(
            section,
            what,
            [headers(LAST, block)],
            Tunnel(code::COMPRESSION_ERROR),
        )
    };
    let malformed = |section, what, fields: &[(&str, &str)]| {
        let told = Stream(1, code::PROTOCOL_ERROR);
        case(section, what, [headers(LAST, hpack(fields))], told)
    };
    let largest = [0x3f, 0xe1, 0x1f];
    vec![
        broken("4.3, HPACK 6.1", "field 0 of the table", &[0x80]),
        broken(
            "4.3, HPACK 2.3.3",
            "a field that no table has",
            &[0xff, 0x20],
        ),
        broken(
            "4.3, HPACK 2.3.3",
            "a name that no table has",
            &[0x7f, 0x20, 1, b'x'],
        ),
        broken(
            "4.3, HPACK 5.1",
            "a number without end",
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        broken(
            "4.3, HPACK 5.2",
            "a string that is cut short",
            &[0, 1, b'x', 3, b'y'],
        ),
        broken(
            "4.3, HPACK 5.2",
            "a Huffman code with more padding than a byte",
            &[0, 1, b'x', 0x82, 0x1f, 0xff],
        ),
        broken(
            "4.3, HPACK 5.2",
            "a Huffman code padded with zeros",
            &[0, 1, b'x', 0x81, 0x18],
        ),
        broken(
            "4.3, HPACK 5.2",
            "a Huffman code with its end in it",
            &[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff],
        ),
        broken(
            "4.3, HPACK 6.3",
            "a table larger than allowed",
            &[0x3f, 0xe2, 0x1f],
        ),
        broken(
            "4.3, HPACK 4.2",
            "a new size of the table behind a field",
            &[&trailers()[..], &largest].concat(),
        ),
        case(
            "4.3, HPACK 4.2",
            "new sizes of the table before the fields",
            [headers(LAST, [&[0x20], &largest[..], &trailers()].concat())],
            End,
        ),
        case("8.1", "trailers", [headers(LAST, trailers())], End),
        case("8.1", "trailers without a field", [headers(LAST, [])], End),
        case(
            "8.1",
            "trailers that do not end the stream",
            [headers(END, trailers())],
            Stream(1, code::PROTOCOL_ERROR),
        ),
        malformed("8.2.1", "a name in upper case", &[("X-Last", "words")]),
        malformed("8.2.1", "a name with a space", &[("x last", "words")]),
        malformed("8.2.1", "a name of nothing", &[("", "words")]),
        malformed("8.2.1", "a value with a new line", &[("x", "a\r\nb: c")]),
        malformed("8.2.1", "a value with a zero", &[("x", "a\0b")]),
        malformed(
            "8.2.2",
            "a field of HTTP/1.1's connections",
            &[("connection", "close")],
        ),
        malformed("8.2.2", "another", &[("keep-alive", "1")]),
        malformed("8.2.2", "another", &[("proxy-connection", "close")]),
        malformed("8.2.2", "another", &[("transfer-encoding", "chunked")]),
        malformed("8.2.2", "another", &[("upgrade", "websocket")]),
        malformed("8.2.2", "what is no trailers in TE", &[("te", "gzip")]),
        malformed("8.3", "a pseudo-field in trailers", &[(":status", "200")]),
        malformed("8.3", "another", &[(":method", "CONNECT")]),
        malformed("8.3", "one that nobody knows", &[(":x", "y")]),
    ]
}

fn resets_and_priorities() -> Vec<Case> {
    vec![
        case(
            "6.3",
            "a priority of no stream",
            [Frame::new(kind::PRIORITY, 0, 0, [0; 5])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.3",
            "a priority of the wrong length",
            [Frame::new(kind::PRIORITY, 0, 1, [0; 4])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.3",
            "a stream that depends on itself",
            [Frame::new(kind::PRIORITY, 0, 1, [0, 0, 0, 1, 16])],
            Nothing,
        ),
        case(
            "6.4",
            "a reset of no stream",
            [Frame::reset(0, code::CANCEL)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.4",
            "a reset of the wrong length",
            [Frame::new(kind::RST_STREAM, 0, 1, [0; 3])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case("6.4", "a reset", [Frame::reset(1, code::CANCEL)], Cut),
        case(
            "7",
            "a reset for a reason that nobody knows",
            [Frame::reset(1, 0xff)],
            Cut,
        ),
        case(
            "8.4",
            "a push",
            [Frame::new(kind::PUSH_PROMISE, END, 1, [0, 0, 0, 2])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
    ]
}

fn settings() -> Vec<Case> {
    use setting::{ENABLE_PUSH, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE};
    let set = |what, name, value, told| case("6.5.2", what, [Frame::setting(name, value)], told);
    vec![
        case(
            "6.5",
            "settings of an odd length",
            [Frame::new(kind::SETTINGS, 0, 0, [0; 5])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.5",
            "settings of a stream",
            [Frame::new(kind::SETTINGS, 0, 1, [])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.5",
            "an acknowledgement with settings",
            [Frame::new(kind::SETTINGS, flag::ACK, 0, [0; 6])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.5",
            "settings that set nothing",
            [Frame::settings()],
            Nothing,
        ),
        set(
            "push that is neither on nor off",
            ENABLE_PUSH,
            2,
            Tunnel(code::PROTOCOL_ERROR),
        ),
        set("no push", ENABLE_PUSH, 0, Nothing),
        set(
            "a window beyond all bounds",
            INITIAL_WINDOW_SIZE,
            MAX_WINDOW + 1,
            Tunnel(code::FLOW_CONTROL_ERROR),
        ),
        set(
            "the largest window",
            INITIAL_WINDOW_SIZE,
            MAX_WINDOW,
            Nothing,
        ),
        set(
            "a frame size below all bounds",
            MAX_FRAME_SIZE,
            (16 << 10) - 1,
            Tunnel(code::PROTOCOL_ERROR),
        ),
        set(
            "a frame size beyond all bounds",
            MAX_FRAME_SIZE,
            1 << 24,
            Tunnel(code::PROTOCOL_ERROR),
        ),
        set(
            "the largest frame size",
            MAX_FRAME_SIZE,
            (1 << 24) - 1,
            Nothing,
        ),
        set("a setting nobody knows", 0x99, u32::MAX, Nothing),
    ]
}

fn of_the_tunnel() -> Vec<Case> {
    vec![
        case(
            "6.7",
            "a ping of a stream",
            [Frame::new(kind::PING, 0, 1, [0; 8])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.7",
            "a ping of the wrong length",
            [Frame::new(kind::PING, 0, 0, [0; 7])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.7",
            "an answer to a ping that was not asked",
            [Frame::new(kind::PING, flag::ACK, 0, [0; 8])],
            Nothing,
        ),
        case(
            "6.8",
            "a farewell of a stream",
            [Frame::new(kind::GOAWAY, 0, 1, [0; 8])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.8",
            "a farewell that is too short",
            [Frame::new(kind::GOAWAY, 0, 0, [0; 7])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "7",
            "a farewell to come, with words, for a reason that nobody knows",
            [Frame::new(
                kind::GOAWAY,
                0,
                0,
                *b"\x7f\xff\xff\xff\0\0\0\xffbye",
            )],
            Nothing,
        ),
    ]
}

fn credit() -> Vec<Case> {
    let too_much = [1 << 30; 2];
    vec![
        case(
            "6.9",
            "no credit at all",
            [Frame::credit(0, 0)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "6.9",
            "no credit for a stream",
            [Frame::credit(1, 0)],
            Stream(1, code::PROTOCOL_ERROR),
        ),
        case(
            "6.9",
            "credit of the wrong length",
            [Frame::new(kind::WINDOW_UPDATE, 0, 0, [0; 3])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        case(
            "6.9",
            "credit with a reserved bit",
            [Frame::credit(0, 1 | 1 << 31)],
            Nothing,
        ),
        case(
            "6.9.1",
            "credit beyond all bounds",
            [Frame::credit(0, MAX_WINDOW)],
            Tunnel(code::FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.1",
            "credit that adds up beyond all bounds",
            too_much.map(|bytes| Frame::credit(0, bytes)),
            Tunnel(code::FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.1",
            "credit for a stream beyond all bounds",
            [Frame::credit(1, MAX_WINDOW)],
            Stream(1, code::FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.1",
            "credit for a stream that adds up beyond all bounds",
            too_much.map(|bytes| Frame::credit(1, bytes)),
            Stream(1, code::FLOW_CONTROL_ERROR),
        ),
        case(
            "6.9.1",
            "all credit that there can be",
            [0, 1].map(|stream| Frame::credit(stream, MAX_WINDOW - 65_535)),
            Nothing,
        ),
        case(
            "6.9.2",
            "a setting that lifts a window beyond all bounds",
            [
                Frame::credit(1, MAX_WINDOW - 65_535),
                Frame::setting(setting::INITIAL_WINDOW_SIZE, 65_600),
            ],
            Tunnel(code::FLOW_CONTROL_ERROR),
        ),
    ]
}

/// What a client may say beyond that, of streams that it begins.
pub(super) fn of_clients() -> Vec<Case> {
    let connect = hpack(&[(":method", "CONNECT"), (":authority", "127.0.0.1:1")]);
    let begin = |stream| Frame::new(kind::HEADERS, END, stream, connect.clone());
    vec![
        case(
            "5.1.1",
            "a stream with a server's number",
            [begin(2)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "5.1.1",
            "a stream with a number that was passed over",
            [begin(5), begin(3)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "5.1.1",
            "what ends streams that were passed over",
            [begin(5), Frame::reset(3, code::CANCEL), Frame::credit(3, 1)],
            Nothing,
        ),
        case(
            "5.1.1",
            "a number for the second time, when the stream is gone",
            [begin(3), Frame::reset(3, code::CANCEL), begin(3)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "5.1.1",
            "a number for the second time, while the stream is open",
            [begin(1)],
            Stream(1, code::PROTOCOL_ERROR),
        ),
        case(
            "8.3.1",
            "a request without a method",
            [Frame::headers(3, &[(":authority", "127.0.0.1:1")])],
            Stream(3, code::PROTOCOL_ERROR),
        ),
        case(
            "8.3.1",
            "a pseudo-field behind another field",
            [Frame::headers(
                3,
                &[("x", "y"), (":method", "CONNECT"), (":authority", "a:1")],
            )],
            Stream(3, code::PROTOCOL_ERROR),
        ),
        case(
            "8.5",
            "CONNECT to nobody",
            [Frame::headers(3, &[(":method", "CONNECT")])],
            Stream(3, code::PROTOCOL_ERROR),
        ),
    ]
}

/// What a server may say beyond that.
pub(super) fn of_servers() -> Vec<Case> {
    vec![
        case(
            "6.5.2",
            "a server that would push",
            [Frame::setting(setting::ENABLE_PUSH, 1)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "5.1.1",
            "an answer that nobody waits for",
            [Frame::new(kind::HEADERS, END, IDLE, [OK])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "5.1.1",
            "a stream of the server's own",
            [Frame::new(kind::HEADERS, END, 2, [OK])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        case(
            "8.1",
            "a second answer",
            [headers(END, [OK])],
            Stream(1, code::PROTOCOL_ERROR),
        ),
    ]
}

/// What a server may answer to the request of stream 1. `Nothing`: it is an answer.
pub(super) fn answers() -> Vec<Case> {
    let malformed = |section, what, fields: &[(&str, &str)]| {
        let told = Stream(1, code::PROTOCOL_ERROR);
        case(section, what, [headers(END, hpack(fields))], told)
    };
    let hint = || headers(END, hpack(&[(":status", "103")]));
    vec![
        case("8.1", "an answer", [headers(END, [OK])], Nothing),
        case(
            "8.1",
            "an answer after others that say that it comes",
            [hint(), hint(), headers(END, [OK])],
            Nothing,
        ),
        case(
            "8.1",
            "an answer and nothing more",
            [headers(LAST, [OK])],
            Nothing,
        ),
        case(
            "8.1",
            "an end before the answer",
            [headers(LAST, hpack(&[(":status", "103")]))],
            Stream(1, code::PROTOCOL_ERROR),
        ),
        case(
            "8.1",
            "data before the answer",
            [data(0, *b"x")],
            Stream(1, code::PROTOCOL_ERROR),
        ),
        malformed("8.3.2", "an answer without a status", &[("x", "y")]),
        malformed(
            "8.3.2",
            "an answer with two",
            &[(":status", "200"), (":status", "200")],
        ),
        malformed("8.3.2", "a status that is none", &[(":status", "2000")]),
        malformed("8.3", "an answer that asks", &[(":method", "GET")]),
        malformed(
            "8.3",
            "a status behind a field",
            &[("x", "y"), (":status", "200")],
        ),
        malformed(
            "8.2.2",
            "an answer of HTTP/1.1",
            &[(":status", "200"), ("connection", "close")],
        ),
    ]
}
