//! HTTP/2 as RFC 9113 wants it from the two ends of a CONNECT tunnel, case by case: what breaks the
//! protocol ends the tunnel with the right code, what breaks a stream ends that, and what is merely
//! unusual is understood.

mod cases;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::timeout,
};

use cases::{Case, Told};

use super::{
    garbage::{still_works, survived},
    pool::quiet,
    resets::until_reset,
};
use crate::{
    authority::{DB, Root, WEB},
    fixtures::{Acceptor, PATIENCE, Source, World, on_worker, source_alone},
    peers::{Frame, PREFACE, Peer, code, flag, hpack, kind},
};

/// Stream 1 works in both directions.
async fn goes_on(peer: &mut Peer, app: &mut TcpStream) {
    peer.send(&Frame::new(kind::DATA, 0, 1, *b"!")).await;
    let heard = async { while app.read_u8().await.unwrap() != b'!' {} };
    timeout(PATIENCE, heard)
        .await
        .expect("a byte in bounded time");
    app.write_all(b"?").await.unwrap();
    let data = peer.wait_for(|frame| frame.kind == kind::DATA).await;
    assert_eq!((data.stream, &*data.payload), (1, &b"?"[..]));
}

/// Says what a case is about, and hears what it leads to; `app` is what stream 1 leads to. Says
/// whether the tunnel goes on.
async fn says(peer: &mut Peer, app: &mut TcpStream, case: &Case) -> bool {
    eprintln!("{}: {}", case.section, case.what);
    for frame in &case.frames {
        peer.shout(&frame.encode()).await;
    }
    let ends = |frame: &Frame| {
        frame.kind == kind::GOAWAY
            || frame.kind == kind::RST_STREAM && frame.code() != code::NO_ERROR
    };
    match case.told {
        Told::Nothing => goes_on(peer, app).await,
        Told::End => {
            let mut said = Vec::new();
            let ending = timeout(PATIENCE, app.read_to_end(&mut said));
            ending.await.expect("an end in bounded time").unwrap();
        }
        Told::Cut => drop(until_reset(app).await),
        Told::Stream(stream, code) => {
            let reset = peer.wait_for(ends).await;
            assert_eq!(reset, Frame::reset(stream, code));
            if stream == 1 {
                until_reset(app).await;
            } else {
                goes_on(peer, app).await;
            }
        }
        Told::Tunnel(code) => {
            let last = peer.wait_for(ends).await;
            assert_eq!((last.kind, last.code()), (kind::GOAWAY, code));
            // A reset, or the end that was said before.
            let mut said = Vec::new();
            let ending = timeout(PATIENCE, app.read_to_end(&mut said));
            let _ = ending.await.expect("an end of some kind in bounded time");
            return false;
        }
    }
    true
}

/// What clients may and may not say.
#[test]
fn what_clients_say() {
    survived(async |world| {
        let mut server = Acceptor::start().await;
        for case in cases::of_either_side().iter().chain(&cases::of_clients()) {
            let mut peer = Peer::begin(world).await;
            peer.send(&Frame::connect(1, &server.addr.to_string()))
                .await;
            let mut app = server.next().await;
            if says(&mut peer, &mut app, case).await {
                still_works(&mut peer).await;
            }
        }
    });
}

/// What servers may and may not say, having accepted stream 1.
#[test]
fn what_servers_say() {
    on_worker(async {
        let root = Root::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for case in cases::of_either_side().iter().chain(&cases::of_servers()) {
            let source = Source::new(root.svid(WEB), listener.local_addr().unwrap()).await;
            let mut connection = source.connect("10.0.0.1:80".parse().unwrap()).await;
            let mut peer = Peer::accept(&listener, root.svid(DB).server_config()).await;
            peer.send(&Frame::accepting(1)).await;
            goes_on(&mut peer, &mut connection.app).await;
            says(&mut peer, &mut connection.app, case).await;
        }
    });
}

/// What servers may and may not answer.
#[test]
fn what_servers_answer() {
    on_worker(async {
        let root = Root::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for case in cases::answers() {
            eprintln!("{}: {}", case.section, case.what);
            let source = Source::new(root.svid(WEB), listener.local_addr().unwrap()).await;
            let opening = spawn_local({
                let source = source.clone();
                async move { source.open("10.0.0.1:80").await }
            });
            let mut peer = Peer::accept(&listener, root.svid(DB).server_config()).await;
            for frame in &case.frames {
                peer.send(frame).await;
            }
            let opened = timeout(PATIENCE, opening).await.unwrap().unwrap();
            let Told::Stream(stream, code) = case.told else {
                opened.unwrap();
                continue;
            };
            opened.unwrap_err();
            let wanted = |frame: &Frame| [kind::RST_STREAM, kind::GOAWAY].contains(&frame.kind);
            assert_eq!(peer.wait_for(wanted).await, Frame::reset(stream, code));
        }
    });
}

/// A server begins with settings as well (RFC 9113 §3.4).
#[test]
fn a_server_begins_with_settings() {
    on_worker(async {
        let root = Root::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ping = Frame::new(kind::PING, 0, 0, [0; 8]);
        let acknowledged = Frame::new(kind::SETTINGS, flag::ACK, 0, []);
        for first in [ping, acknowledged, Frame::accepting(1)] {
            let source = Source::new(root.svid(WEB), listener.local_addr().unwrap()).await;
            let opening = spawn_local(async move { source.open("10.0.0.1:80").await });
            let tls = root.svid(DB).server_config();
            let mut peer = Peer::accept_silently(&listener, tls).await;
            peer.send(&first).await;
            let last = peer.wait_for(|frame| frame.kind == kind::GOAWAY).await;
            assert_eq!(last.code(), code::PROTOCOL_ERROR);
            timeout(PATIENCE, opening)
                .await
                .unwrap()
                .unwrap()
                .unwrap_err();
        }
    });
}

/// More streams at a time than we have allowed are refused, and may be asked for again
/// (RFC 9113 §5.1.2).
#[test]
fn more_streams_than_allowed() {
    on_worker(async {
        const ALLOWED: u32 = 200;
        let world = World::new().await;
        let quiet = quiet().await;
        let mut peer = Peer::begin(&world).await;
        let mut streams = (1..).step_by(2);
        for stream in streams.by_ref().take(ALLOWED as usize) {
            peer.send(&Frame::connect(stream, &quiet)).await;
        }
        let more = streams.next().unwrap();
        peer.send(&Frame::connect(more, &quiet)).await;
        let refused = peer.wait_for(|frame| frame.stream == more).await;
        assert_eq!(refused, Frame::reset(more, code::REFUSED_STREAM));
        // There is room again when one of them ends.
        peer.send(&Frame::reset(1, code::CANCEL)).await;
        still_works(&mut peer).await;
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
            Frame::credit(0, 1),
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

/// A server that says more than it has credit for is cut off as well.
#[test]
fn a_server_without_credit() {
    on_worker(async {
        let (source, listener, tls) = source_alone().await;
        let _unread = source.connect("10.0.0.1:80".parse().unwrap()).await;
        let mut peer = Peer::accept(&listener, tls).await;
        peer.send(&Frame::accepting(1)).await;
        let data = Frame::new(kind::DATA, 0, 1, [0; 16 << 10]).encode();
        peer.shout(&data.repeat(200)).await;
        let last = peer.rest().await;
        let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
        assert_eq!(last.expect("a GOAWAY").code(), code::FLOW_CONTROL_ERROR);
    });
}

/// A refusal may come with a page that explains it. It is not read, and holds up nobody.
#[test]
fn a_refusal_with_a_page() {
    on_worker(async {
        let (source, listener, tls) = source_alone().await;
        let opening = spawn_local({
            let source = source.clone();
            async move { source.open("10.0.0.1:80").await }
        });
        let mut peer = Peer::accept(&listener, tls).await;
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
