//! The numbers of streams only grow, and end with 2³¹ - 1 (RFC 9113 §5.1.1): whoever wants more
//! needs another tunnel, and what runs in the old one goes on.

use std::rc::Rc;

use sluice_hbone::inspect::engine_with_streams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    bytes::exchange,
    garbage::still_works_with,
    pool::{all_opened, open_all, quiet},
    resets::greet,
};
use crate::{
    fixtures::{Acceptor, Source, World, eventually, on_worker, pair},
    peers::{Frame, Peer, code, flag, kind},
};

/// The last number of a stream.
const LAST: u32 = i32::MAX as u32;

/// A world whose clients have numbers for so many streams in each tunnel.
async fn with_streams(left: u32) -> (World, Rc<Source>) {
    let world = World::new().await;
    let engine = engine_with_streams(left).unwrap();
    let svid = world.source.svid.clone();
    let source = Source::driven_by(engine, svid, world.destination.addr).await;
    (world, source)
}

#[test]
fn another_tunnel_is_made_when_ours_has_no_numbers_left() {
    on_worker(async {
        let (world, source) = with_streams(3).await;
        let mut old = Vec::new();
        for _ in 0..3 {
            old.push(pair(&source).await);
        }
        assert_eq!(world.destination.accepted(), 1);
        let mut new = pair(&source).await;
        assert_eq!(world.destination.accepted(), 2);
        for (connection, server) in old.iter_mut().chain([&mut new]) {
            greet(&mut connection.app, server).await;
        }
        // The last one ends the old tunnel, in order.
        for (connection, server) in old {
            assert_eq!(world.destination.serving(), 2);
            drop(server);
            assert_eq!(connection.carried().await, (200, 200));
        }
        world.destination.ended().await.unwrap();
        assert_eq!(world.destination.serving(), 1);
        greet(&mut new.0.app, &mut new.1).await;
        exchange(source.clone(), 1, 1 << 20, 1 << 20).await;
        assert_eq!(world.destination.accepted(), 2);
    });
}

/// Each tunnel carries as many as it has numbers for, also when all ask at once.
#[test]
fn a_burst_that_no_tunnel_has_numbers_for() {
    on_worker(async {
        let (world, source) = with_streams(3).await;
        let quiet = quiet().await;
        let streams = all_opened(open_all(&source, &source.key, &quiet, 50).await);
        assert_eq!(world.destination.accepted(), 50_usize.div_ceil(3));
        drop(streams);
        // One of them has a number left.
        eventually("the others end", || world.destination.serving() == 1).await;
        eventually("and leave nothing", || source.engine.tunnels() == 1).await;
    });
}

/// A client may use the last number there is. What runs goes on, until the client begins again with 1.
#[test]
fn a_client_without_numbers() {
    on_worker(async {
        let world = World::new().await;
        let mut server = Acceptor::start().await;
        let authority = server.addr.to_string();
        let mut peer = Peer::begin(&world).await;
        let running = LAST - 2;
        peer.send(&Frame::connect(running, &authority)).await;
        let mut tcp = server.next().await;
        still_works_with(&mut peer, LAST).await;
        // What is said of a stream that is gone may have been on its way.
        peer.send(&Frame::reset(LAST, code::CANCEL)).await;
        let end = flag::END_STREAM;
        peer.send(&Frame::new(kind::DATA, end, running, *b"question"))
            .await;
        let mut said = Vec::new();
        tcp.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"question");
        tcp.write_all(b"answer").await.unwrap();
        let answer = |frame: &Frame| frame.kind == kind::DATA && frame.stream == running;
        assert_eq!(peer.wait_for(answer).await.payload, b"answer");
        // Its other tunnels are no other one's business.
        exchange(world.source.clone(), 1, 1000, 1000).await;

        peer.send(&Frame::connect(LAST + 2, &authority)).await;
        let last = peer.wait_for(|frame| frame.kind == kind::GOAWAY).await;
        assert_eq!(last.code(), code::PROTOCOL_ERROR);
        assert_eq!(last.payload[..4], LAST.to_be_bytes());
    });
}
