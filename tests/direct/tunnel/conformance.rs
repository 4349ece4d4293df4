//! HTTP/2 as RFC 9113 wants it from the two ends of a CONNECT tunnel, case by case: what breaks the
//! protocol ends the tunnel with the right code, what breaks a stream ends that, and what is merely
//! unusual is understood.

use tokio::{io::AsyncReadExt as _, net::TcpListener, task::spawn_local, time::timeout};

use super::garbage::{still_works, survived};
use crate::{
    authority::{DB, Root, WEB},
    fixtures::{Acceptor, PATIENCE, Source, on_worker},
    peers::{Frame, OK, PREFACE, Peer, code, flag, hpack, kind},
};

/// What a peer that breaks the rules is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// The tunnel ends.
    Tunnel(u32),
    /// Stream 1 ends.
    Stream(u32),
    /// Nothing: all goes on.
    Nothing,
}

fn setting(name: u16, value: u32) -> Frame {
    let mut payload = name.to_be_bytes().to_vec();
    payload.extend(value.to_be_bytes());
    Frame::new(kind::SETTINGS, 0, 0, payload)
}

fn credit(stream: u32, bytes: u32) -> Frame {
    Frame::new(kind::WINDOW_UPDATE, 0, stream, bytes.to_be_bytes())
}

/// What a client may and may not say, after its settings and before anything else.
#[test]
fn what_clients_say() {
    use Told::{Nothing, Stream, Tunnel};
    let connect = || hpack(&[(":method", "CONNECT"), (":authority", "127.0.0.1:1")]);
    let begin = |flags, payload: Vec<u8>| Frame::new(kind::HEADERS, flags, 1, payload);
    let padded = |mut bytes: Vec<u8>| {
        bytes.insert(0, 3);
        bytes.extend([0; 3]);
        bytes
    };
    let weighted = |bytes: Vec<u8>| [vec![0, 0, 0, 0, 16], bytes].concat();
    let end = flag::END_HEADERS;
    let cases: Vec<(&str, Vec<Frame>, Told)> = vec![
        (
            "settings of an odd length",
            vec![Frame::new(kind::SETTINGS, 0, 0, [0; 5])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "settings of a stream",
            vec![Frame::new(kind::SETTINGS, 0, 1, [])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "an acknowledgement with settings",
            vec![Frame::new(kind::SETTINGS, flag::ACK, 0, [0; 6])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "push that is neither on nor off",
            vec![setting(2, 2)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a window beyond all bounds",
            vec![setting(4, 1 << 31)],
            Tunnel(code::FLOW_CONTROL_ERROR),
        ),
        (
            "a frame size below all bounds",
            vec![setting(5, (16 << 10) - 1)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        ("a setting nobody knows", vec![setting(0x99, 7)], Nothing),
        (
            "a ping of the wrong length",
            vec![Frame::new(kind::PING, 0, 0, [0; 7])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "a ping of a stream",
            vec![Frame::new(kind::PING, 0, 1, [0; 8])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "an answer to a ping that was not asked",
            vec![Frame::new(kind::PING, flag::ACK, 0, [0; 8])],
            Nothing,
        ),
        (
            "a farewell of a stream",
            vec![Frame::new(kind::GOAWAY, 0, 1, [0; 8])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a farewell that is too short",
            vec![Frame::new(kind::GOAWAY, 0, 0, [0; 7])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "no credit at all",
            vec![credit(0, 0)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "credit beyond all bounds",
            vec![credit(0, i32::MAX as u32)],
            Tunnel(code::FLOW_CONTROL_ERROR),
        ),
        (
            "credit of the wrong length",
            vec![Frame::new(kind::WINDOW_UPDATE, 0, 0, [0; 3])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "credit for a stream that nobody began",
            vec![credit(1, 1)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "no credit for a stream",
            vec![begin(end, connect()), credit(1, 0)],
            Stream(code::PROTOCOL_ERROR),
        ),
        (
            "credit for a stream beyond all bounds",
            vec![begin(end, connect()), credit(1, i32::MAX as u32)],
            Stream(code::FLOW_CONTROL_ERROR),
        ),
        (
            "data of no stream",
            vec![Frame::new(kind::DATA, 0, 0, *b"x")],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "data of a stream that nobody began",
            vec![Frame::new(kind::DATA, 0, 1, *b"x")],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "more padding than data",
            vec![
                begin(end, connect()),
                Frame::new(kind::DATA, flag::PADDED, 1, [2, 0]),
            ],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "padding without a length",
            vec![
                begin(end, connect()),
                Frame::new(kind::DATA, flag::PADDED, 1, []),
            ],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "data after the end",
            vec![
                begin(end | flag::END_STREAM, connect()),
                Frame::new(kind::DATA, 0, 1, *b"x"),
            ],
            Tunnel(code::STREAM_CLOSED),
        ),
        (
            "headers after the end",
            vec![
                begin(end | flag::END_STREAM, connect()),
                begin(end | flag::END_STREAM, Vec::new()),
            ],
            Tunnel(code::STREAM_CLOSED),
        ),
        (
            "trailers that do not end the stream",
            vec![begin(end, connect()), begin(end, hpack(&[("x", "y")]))],
            Stream(code::PROTOCOL_ERROR),
        ),
        (
            "a stream with a server's number",
            vec![Frame::new(kind::HEADERS, end, 2, connect())],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "headers of no stream",
            vec![Frame::new(kind::HEADERS, end, 0, connect())],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "headers that are all padding",
            vec![begin(end | flag::PADDED, vec![9, 0])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a priority that is cut short",
            vec![begin(end | flag::PRIORITY, vec![0; 4])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "a header block that breaks compression",
            vec![begin(end, vec![0x80])],
            Tunnel(code::COMPRESSION_ERROR),
        ),
        (
            "a reset of a stream that nobody began",
            vec![Frame::reset(1, code::CANCEL)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a reset of no stream",
            vec![Frame::reset(0, code::CANCEL)],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a reset of the wrong length",
            vec![
                begin(end, connect()),
                Frame::new(kind::RST_STREAM, 0, 1, [0; 3]),
            ],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "a priority of the wrong length",
            vec![Frame::new(kind::PRIORITY, 0, 1, [0; 4])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "a priority of no stream",
            vec![Frame::new(kind::PRIORITY, 0, 0, [0; 5])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a priority",
            vec![Frame::new(kind::PRIORITY, 0, 7, [0; 5])],
            Nothing,
        ),
        (
            "a push",
            vec![Frame::new(kind::PUSH_PROMISE, end, 1, [0; 4])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a continuation of nothing",
            vec![Frame::new(kind::CONTINUATION, end, 1, [])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a continuation of another stream",
            vec![
                begin(0, connect()),
                Frame::new(kind::CONTINUATION, end, 3, []),
            ],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a ping within a header block",
            vec![begin(0, connect()), Frame::new(kind::PING, 0, 0, [0; 8])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "data within a header block",
            vec![begin(0, connect()), Frame::new(kind::DATA, 0, 1, *b"x")],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a frame that is too long",
            vec![Frame::new(kind::DATA, 0, 1, vec![0; (16 << 10) + 1])],
            Tunnel(code::FRAME_SIZE_ERROR),
        ),
        (
            "a kind of frame that nobody knows",
            vec![Frame::new(0xee, 0xff, 5, *b"whatever")],
            Nothing,
        ),
        (
            "a block in three parts, with padding and a priority",
            vec![
                begin(
                    flag::PADDED | flag::PRIORITY,
                    padded(weighted(connect()[..4].to_vec())),
                ),
                Frame::new(kind::CONTINUATION, 0, 1, &connect()[4..9]),
                Frame::new(kind::CONTINUATION, end, 1, &connect()[9..]),
            ],
            Nothing,
        ),
    ];
    survived(async |world| {
        for (what, frames, told) in &cases {
            let mut peer = Peer::begin(world).await;
            for frame in frames {
                peer.shout(&frame.encode()).await;
            }
            match told {
                Told::Nothing => still_works(&mut peer).await,
                Told::Stream(code) => {
                    let wanted = |frame: &Frame| {
                        frame.kind == kind::GOAWAY
                            || frame.kind == kind::RST_STREAM && frame.code() != code::NO_ERROR
                    };
                    let reset = peer.wait_for(wanted).await;
                    let seen = (reset.kind, reset.code());
                    assert_eq!(seen, (kind::RST_STREAM, *code), "{what}");
                    still_works(&mut peer).await;
                }
                Told::Tunnel(code) => {
                    let last = peer.rest().await;
                    let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
                    let last = last.unwrap_or_else(|| panic!("no GOAWAY: {what}"));
                    assert_eq!(last.code(), *code, "{what}");
                }
            }
        }
    });
}

#[test]
fn a_client_begins_with_settings() {
    survived(async |world| {
        let mut peer = Peer::dial(world).await;
        peer.say(PREFACE).await;
        peer.send(&Frame::connect(1, "127.0.0.1:1")).await;
        let last = peer.rest().await;
        let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
        assert_eq!(last.expect("a GOAWAY").code(), code::PROTOCOL_ERROR);
    });
}

#[test]
fn a_ping_is_answered_with_what_it_said() {
    survived(async |world| {
        let mut peer = Peer::begin(world).await;
        peer.send(&Frame::new(kind::PING, 0, 0, *b"12345678")).await;
        let answer = peer.wait_for(|frame| frame.kind == kind::PING).await;
        assert_eq!(answer, Frame::new(kind::PING, flag::ACK, 0, *b"12345678"));
    });
}

/// Frames that cost their sender little: whoever sends them without end is cut off, and everybody
/// else goes on.
#[test]
fn floods() {
    survived(async |world| {
        let begun = Frame::connect(1, "127.0.0.1:1");
        let floods = [
            Frame::new(kind::PING, 0, 0, [0; 8]),
            Frame::settings(),
            Frame::new(kind::PRIORITY, 0, 1, [0; 5]),
            Frame::new(kind::DATA, 0, 1, []),
            Frame::new(0xee, 0, 0, []),
            credit(0, 1),
        ];
        for flood in floods {
            let mut peer = Peer::begin(world).await;
            peer.send(&begun).await;
            peer.shout(&flood.encode().repeat(50_000)).await;
            let last = peer.rest().await;
            let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
            // The answers to the first may fill both sockets before it is said.
            if let Some(last) = last {
                assert_eq!(last.code(), code::ENHANCE_YOUR_CALM, "{flood:?}");
            }
            assert!(world.destination.ended().await.is_err(), "{flood:?}");
        }
    });
}

/// Whoever says more than it has credit for is cut off.
#[test]
fn credit_is_enforced() {
    survived(async |world| {
        let mut server = Acceptor::start().await;
        let mut peer = Peer::begin(world).await;
        peer.send(&Frame::connect(1, &server.addr.to_string()))
            .await;
        let _unread = server.next().await;
        let data = Frame::new(kind::DATA, 0, 1, [0; 16 << 10]).encode();
        peer.shout(&data.repeat(200)).await;
        let last = peer.rest().await;
        let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
        assert_eq!(last.expect("a GOAWAY").code(), code::FLOW_CONTROL_ERROR);
    });
}

/// Padding is taken off, and its credit is given back.
#[test]
fn padded_data() {
    survived(async |world| {
        const FRAMES: usize = 3000;
        let mut server = Acceptor::start().await;
        let mut peer = Peer::begin(world).await;
        peer.send(&Frame::connect(1, &server.addr.to_string()))
            .await;
        let mut tcp = server.next().await;
        let mut left = 256 << 10;
        let mut payload = vec![255];
        payload.extend(*b"data");
        payload.extend([0; 255]);
        let frame = Frame::new(kind::DATA, flag::PADDED, 1, payload);
        for _ in 0..FRAMES {
            while left < frame.payload.len() {
                let more = peer
                    .wait_for(|frame| frame.kind == kind::WINDOW_UPDATE && frame.stream == 1)
                    .await;
                left += more.code() as usize;
            }
            peer.send(&frame).await;
            left -= frame.payload.len();
        }
        let mut said = vec![0; 4 * FRAMES];
        let reading = timeout(PATIENCE, tcp.read_exact(&mut said)).await;
        reading.expect("all of it").unwrap();
        assert_eq!(said, b"data".repeat(FRAMES));
    });
}

/// What a server may and may not answer.
#[test]
fn what_servers_say() {
    use Told::{Nothing, Stream, Tunnel};
    let end = flag::END_HEADERS;
    let headers = |flags, payload: Vec<u8>| Frame::new(kind::HEADERS, flags, 1, payload);
    let ok = || vec![OK];
    let cases: Vec<(&str, Vec<Frame>, Told)> = vec![
        ("an answer", vec![headers(end, ok())], Nothing),
        (
            "an answer after others that say that it comes",
            vec![
                headers(end, hpack(&[(":status", "103")])),
                headers(end, hpack(&[(":status", "103")])),
                headers(end, ok()),
            ],
            Nothing,
        ),
        (
            "data before the answer",
            vec![Frame::new(kind::DATA, 0, 1, *b"x")],
            Stream(code::PROTOCOL_ERROR),
        ),
        (
            "an answer without a status",
            vec![headers(end, hpack(&[("x", "y")]))],
            Stream(code::PROTOCOL_ERROR),
        ),
        (
            "an answer that asks",
            vec![headers(end, hpack(&[(":method", "GET")]))],
            Stream(code::PROTOCOL_ERROR),
        ),
        (
            "a push",
            vec![Frame::new(kind::PUSH_PROMISE, end, 1, [0; 4])],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "an answer that nobody waits for",
            vec![Frame::new(kind::HEADERS, end, 3, ok())],
            Tunnel(code::PROTOCOL_ERROR),
        ),
        (
            "a stream of the server's own",
            vec![Frame::new(kind::HEADERS, end, 2, ok())],
            Tunnel(code::PROTOCOL_ERROR),
        ),
    ];
    on_worker(async {
        let root = Root::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (what, frames, told) in cases {
            let source = Source::new(root.svid(WEB), listener.local_addr().unwrap()).await;
            let opening = spawn_local({
                let source = source.clone();
                async move { source.open("10.0.0.1:80").await }
            });
            let mut peer = Peer::accept(&listener, root.svid(DB).server_config()).await;
            for frame in &frames {
                peer.send(frame).await;
            }
            let opened = timeout(PATIENCE, opening).await.unwrap().unwrap();
            assert_eq!(opened.is_ok(), told == Nothing, "{what}: {opened:?}");
            let wanted = |frame: &Frame| [kind::RST_STREAM, kind::GOAWAY].contains(&frame.kind);
            let seen = match told {
                Nothing => continue,
                Stream(code) => (kind::RST_STREAM, code),
                Tunnel(code) => (kind::GOAWAY, code),
            };
            let last = peer.wait_for(wanted).await;
            assert_eq!((last.kind, last.code()), seen, "{what}");
        }
    });
}

/// A refusal may come with a page that explains it. It is not read, and holds up nobody.
#[test]
fn a_refusal_with_a_page() {
    on_worker(async {
        let root = Root::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = Source::new(root.svid(WEB), listener.local_addr().unwrap()).await;
        let opening = spawn_local({
            let source = source.clone();
            async move { source.open("10.0.0.1:80").await }
        });
        let mut peer = Peer::accept(&listener, root.svid(DB).server_config()).await;
        let status = hpack(&[(":status", "503"), ("content-length", "4")]);
        let answer = [
            Frame::new(kind::HEADERS, flag::END_HEADERS, 1, status),
            Frame::new(kind::DATA, flag::END_STREAM, 1, *b"page"),
        ];
        peer.say(&[answer[0].encode(), answer[1].encode()].concat())
            .await;
        let refused = timeout(PATIENCE, opening).await.unwrap().unwrap();
        let refused = refused.unwrap_err().to_string();
        assert!(refused.starts_with("http status: 503"), "{refused}");
        // The tunnel goes on.
        let opening = spawn_local(async move { source.open("10.0.0.1:80").await });
        peer.wait_for(|frame| frame.kind == kind::HEADERS && frame.stream == 3)
            .await;
        peer.send(&Frame::accepting(3)).await;
        timeout(PATIENCE, opening).await.unwrap().unwrap().unwrap();
    });
}
