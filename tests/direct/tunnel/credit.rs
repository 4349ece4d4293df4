//! Peers that let us say little: every byte of leave counts, and what needs none is said without
//! (RFC 9113 §6.9).

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::resets::reset;
use crate::{
    fixtures::{Acceptor, PATIENCE, World, on_worker, source_alone},
    peers::{Frame, PREFACE, Peer, code, flag, kind, setting},
};

/// What a peer lets us say in a whole tunnel, until it says otherwise.
const TUNNEL_WINDOW: usize = 65_535;
/// What it lets us say in a stream: until the stream, the tunnel or both have no credit left; and
/// nothing at all.
const WINDOWS: [usize; 4] = [1000, 1 << 20, TUNNEL_WINDOW, 0];

fn window(bytes: usize) -> Frame {
    Frame::setting(setting::INITIAL_WINDOW_SIZE, u32::try_from(bytes).unwrap())
}

/// Runs a test on both of our sides: with a peer that has opened or taken stream 1, in which it
/// lets us say so much; and the application whose bytes we say.
fn on_both_sides(bytes: usize, test: impl AsyncFn(&mut Peer, TcpStream)) {
    on_worker(async {
        let world = World::new().await;
        let mut server = Acceptor::start().await;
        let mut peer = Peer::dial(&world).await;
        peer.say(PREFACE).await;
        peer.send(&window(bytes)).await;
        peer.send(&Frame::connect(1, &server.addr.to_string()))
            .await;
        test(&mut peer, server.next().await).await;
    });
    on_worker(async {
        let (source, listener, tls) = source_alone().await;
        let connection = source.connect("127.0.0.1:1".parse().unwrap()).await;
        let mut peer = Peer::accept_saying(&listener, tls, &window(bytes)).await;
        peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
        peer.send(&Frame::accepting(1)).await;
        test(&mut peer, connection.app).await;
    });
}

/// Hears so many bytes, and not one more with them.
async fn hear(peer: &mut Peer, bytes: usize) {
    let mut heard = 0;
    while heard < bytes {
        let data = peer.wait_for(|frame| frame.kind == kind::DATA).await;
        assert_eq!(data.flags & flag::END_STREAM, 0, "not yet");
        heard += data.payload.len();
    }
    assert_eq!(heard, bytes, "more than there was credit for");
}

/// Hears what precedes the answer to a question: no byte, and no end.
async fn hear_nothing(peer: &mut Peer) {
    peer.send(&Frame::new(kind::PING, 0, 0, [7; 8])).await;
    let of_interest = |frame: &Frame| [kind::DATA, kind::PING].contains(&frame.kind);
    let answer = peer.wait_for(of_interest).await;
    assert_eq!(answer.kind, kind::PING, "{answer:?}");
}

async fn hear_the_end(peer: &mut Peer) {
    let end = peer.wait_for(|frame| frame.kind == kind::DATA).await;
    assert_eq!(end, Frame::new(kind::DATA, flag::END_STREAM, 1, []));
}

/// The other direction goes on, to its own end.
async fn answer(peer: &mut Peer, mut app: TcpStream) {
    peer.send(&Frame::new(kind::DATA, flag::END_STREAM, 1, *b"answer"))
        .await;
    let mut said = Vec::new();
    let reading = timeout(PATIENCE, app.read_to_end(&mut said)).await;
    reading.expect("an end in bounded time").unwrap();
    assert_eq!(said, b"answer");
}

/// As `sort` does, a peer may wait for the end before it says or takes anything.
#[test]
fn an_end_needs_no_credit() {
    for bytes in WINDOWS {
        let room = bytes.min(TUNNEL_WINDOW);
        for at_once in [true, false] {
            on_both_sides(bytes, async |peer, mut app| {
                app.write_all(&vec![b'?'; room]).await.unwrap();
                if at_once {
                    app.shutdown().await.unwrap();
                }
                hear(peer, room).await;
                if !at_once {
                    app.shutdown().await.unwrap();
                }
                hear_the_end(peer).await;
                answer(peer, app).await;
            });
        }
    }
}

/// What there is no credit for still comes before the end.
#[test]
fn an_end_is_not_said_before_the_last_byte() {
    for bytes in WINDOWS {
        let room = bytes.min(TUNNEL_WINDOW);
        on_both_sides(bytes, async |peer, mut app| {
            app.write_all(&vec![b'?'; room + 100]).await.unwrap();
            app.shutdown().await.unwrap();
            hear(peer, room).await;
            hear_nothing(peer).await;
            for stream in [0, 1] {
                peer.send(&Frame::credit(stream, 99)).await;
            }
            hear(peer, 99).await;
            hear_nothing(peer).await;
            for stream in [1, 0] {
                peer.send(&Frame::credit(stream, 1)).await;
            }
            hear(peer, 1).await;
            hear_the_end(peer).await;
            answer(peer, app).await;
        });
    }
}

#[test]
fn a_reset_needs_no_credit() {
    for bytes in WINDOWS {
        let room = bytes.min(TUNNEL_WINDOW);
        // With bytes that are lost with the connection, and without.
        for more in [0, 100] {
            on_both_sides(bytes, async |peer, mut app| {
                app.write_all(&vec![b'?'; room + more]).await.unwrap();
                hear(peer, room).await;
                reset(app);
                let of_interest =
                    |frame: &Frame| [kind::DATA, kind::RST_STREAM].contains(&frame.kind);
                let cut = peer.wait_for(of_interest).await;
                assert_eq!(cut, Frame::reset(1, code::CANCEL));
            });
        }
    }
}

/// Credit may come byte by byte, and be taken back by a setting: then it is less than nothing
/// (RFC 9113 §6.9.2).
#[test]
fn windows_that_change() {
    on_both_sides(5, async |peer, mut app| {
        app.write_all(&[b'?'; 12]).await.unwrap();
        hear(peer, 5).await;
        // Less by three, and more by three.
        peer.send(&window(2)).await;
        peer.send(&Frame::credit(1, 3)).await;
        hear_nothing(peer).await;
        peer.send(&Frame::credit(1, 1)).await;
        hear(peer, 1).await;
        peer.send(&window(4)).await;
        hear(peer, 2).await;
        // Of two values in one frame, the last one holds (§6.5.3).
        let mut both = window(1000);
        both.payload.extend(window(7).payload);
        peer.send(&both).await;
        hear(peer, 3).await;
        hear_nothing(peer).await;
        peer.send(&Frame::credit(1, 1)).await;
        hear(peer, 1).await;
        app.shutdown().await.unwrap();
        hear_the_end(peer).await;
    });
}
