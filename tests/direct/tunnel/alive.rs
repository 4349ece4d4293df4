//! Peers that are gone without a word are noticed.

use std::{io::ErrorKind, time::Duration};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    fixtures::{Acceptor, PATIENCE, World, on_worker, request, source_alone},
    peers::{Frame, Peer, flag, kind},
};

/// After so much silence a peer is asked, and has so long to answer (wire contract §2).
const SILENCE: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(20);
/// The question comes at most one more interval later.
const GIVEN_UP: Duration = Duration::from_secs(10 + 10 + 20 + 1);

#[test]
fn a_client_that_no_longer_answers_is_given_up() {
    on_worker(async {
        tokio::time::pause();
        let world = World::new().await;
        let mut peer = Peer::begin(&world).await;
        peer.wait_for(|frame| frame.kind == kind::SETTINGS && frame.flags == flag::ACK)
            .await;
        let begin = Instant::now();
        let error = world.destination.ended().await.unwrap_err();
        assert_eq!(error.to_string(), "the peer no longer answers");
        let waited = begin.elapsed();
        assert!(
            waited >= SILENCE + ANSWER && waited < GIVEN_UP,
            "{waited:?}"
        );
    });
}

#[test]
fn a_server_that_no_longer_answers_is_replaced() {
    on_worker(async {
        tokio::time::pause();
        let (source, listener, tls) = source_alone().await;
        let mut tunnels = Vec::new();
        for _ in 0..2 {
            let mut one = source.connect("127.0.0.1:1".parse().unwrap()).await;
            let mut peer = Peer::accept(&listener, tls.clone()).await;
            greet(&mut peer, 1, &mut one.app).await;
            // The tunnel works, and takes others.
            let mut two = source.connect("127.0.0.1:1".parse().unwrap()).await;
            peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
            greet(&mut peer, 3, &mut two.app).await;
            // Kept, and silent from now on.
            tunnels.push(peer);
            let begin = Instant::now();
            let ends = [one.app.read_u8().await, two.app.read_u8().await];
            for end in ends {
                assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
            let waited = begin.elapsed();
            assert!(
                waited >= SILENCE + ANSWER && waited < GIVEN_UP,
                "{waited:?}"
            );
        }
    });
}

/// A peer that is there, and says so, may still never come to an answer.
#[test]
fn a_request_that_is_never_answered_is_given_up() {
    on_worker(async {
        tokio::time::pause();
        let (source, listener, tls) = source_alone().await;
        let begin = Instant::now();
        let wanted = request("127.0.0.1:1");
        let opening = source
            .pool
            .open(&source.key, &wanted, None, || source.dial(&source.key));
        let alive = async {
            let mut peer = Peer::accept(&listener, tls).await;
            loop {
                let question = peer.wait_for(|frame| frame.kind == kind::PING).await;
                peer.send(&question.answered()).await;
            }
        };
        let opened = tokio::select! {
            opened = timeout(2 * PATIENCE, opening) => opened.expect("it is given up"),
            () = alive => unreachable!("it answers for ever"),
        };
        let error = opened.unwrap_err().to_string();
        assert!(
            error.contains("has not answered the request within 30s"),
            "{error}"
        );
        let waited = begin.elapsed();
        let patience = Duration::from_secs(30);
        assert!(waited >= patience && waited < 2 * patience, "{waited:?}");
    });
}

/// Accepts a stream, and says something in it.
async fn greet(peer: &mut Peer, stream: u32, app: &mut TcpStream) {
    peer.send(&Frame::accepting(stream)).await;
    peer.send(&Frame::new(kind::DATA, 0, stream, *b"hello"))
        .await;
    let mut hello = [0; 5];
    app.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
}

/// A tunnel whose peer is heard from is not asked: the question would only be in the way.
#[test]
fn a_tunnel_in_use_is_not_asked() {
    on_worker(async {
        tokio::time::pause();
        let world = World::new().await;
        let mut server = Acceptor::start().await;
        let mut peer = Peer::begin(&world).await;
        peer.send(&Frame::connect(1, &server.addr.to_string()))
            .await;
        peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
        let mut server = server.next().await;
        for _ in 0..12 {
            sleep(SILENCE / 2).await;
            peer.send(&Frame::new(kind::DATA, 0, 1, *b"busy")).await;
            server.read_exact(&mut [0; 4]).await.unwrap();
        }
        // Whatever was asked precedes the end of the stream.
        peer.send(&Frame::new(kind::DATA, flag::END_STREAM, 1, []))
            .await;
        drop(server);
        let asked = |frame: &Frame| frame.kind == kind::PING;
        let ended = |frame: &Frame| frame.kind == kind::DATA && frame.flags == flag::END_STREAM;
        let frame = peer.wait_for(|frame| asked(frame) || ended(frame)).await;
        assert!(ended(&frame), "asked though busy");

        // Silence is asked about; who answers is kept.
        for _ in 0..6 {
            let question = peer.wait_for(asked).await;
            assert_eq!(question.flags, 0);
            peer.send(&question.answered()).await;
        }
        assert_eq!(world.destination.serving(), 1);
        // To be sure that it was not just about to end.
        super::bytes::exchange(world.source.clone(), 1, 1000, 1000).await;
    });
}
