//! A connection that breaks is reset at its other end: nobody takes a cut for an end.

use std::{
    io::{self, ErrorKind},
    rc::Rc,
};

use sluice_hbone::Baggage;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::TcpStream,
    sync::Notify,
    task::spawn_local,
    time::timeout,
};

use super::bytes;
use crate::{
    fixtures::{Connection, PATIENCE, World, ended, eventually, on_worker, pair, source_alone},
    noise::Noise,
    peers::{Frame, Peer, code, flag, kind},
};

pub(super) fn reset(tcp: TcpStream) {
    tcp.set_zero_linger().unwrap();
}

/// What the application reads until its connection breaks.
pub(super) async fn until_reset(tcp: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let broken = read_to_end(tcp, &mut bytes).await;
    let broken = broken.expect_err("an orderly end, though the connection was cut");
    assert_eq!(broken.kind(), ErrorKind::ConnectionReset, "{broken}");
    bytes
}

async fn read_to_end(tcp: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let reading = timeout(PATIENCE, tcp.read_to_end(bytes));
    reading.await.expect("an end of some kind in bounded time")
}

/// Lets a few bytes through in both directions.
pub(super) async fn greet(client: &mut TcpStream, server: &mut TcpStream) {
    for seed in 0..2 {
        Noise::new(seed).send(client, 100).await;
        Noise::new(seed).expect(server, 100).await;
        Noise::new(!seed).send(server, 100).await;
        Noise::new(!seed).expect(client, 100).await;
    }
}

#[test]
fn a_reset_arrives_as_a_reset_and_leaves_other_streams_alone() {
    on_worker(async {
        let world = World::new().await;
        let (mut other, mut other_server) = pair(&world.source).await;
        for of_the_client in [true, false] {
            let (mut connection, mut server) = pair(&world.source).await;
            greet(&mut connection.app, &mut server).await;
            if of_the_client {
                reset(connection.app);
                until_reset(&mut server).await;
            } else {
                reset(server);
                until_reset(&mut connection.app).await;
            }
            greet(&mut other.app, &mut other_server).await;
            bytes::exchange(world.source.clone(), 3, 1 << 20, 1 << 20).await;
        }
        assert_eq!(world.destination.accepted(), 1);
    });
}

#[test]
fn a_reset_after_the_end_of_the_bytes_arrives_too() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, mut server) = pair(&world.source).await;
        connection.app.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        reset(connection.app);
        // There is nothing more to read; but who waits for the client's departure hears of it.
        let broken = timeout(PATIENCE, server.ready(Interest::ERROR)).await;
        broken.expect("a reset in bounded time").unwrap();
        assert!(server.write_all(b"x").await.is_err());
    });
}

#[test]
fn an_answer_arrives_before_the_reset_that_follows_it() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, mut server) = pair(&world.source).await;
        connection
            .app
            .write_all(b"a question too long")
            .await
            .unwrap();
        server.read_exact(&mut [0; 10]).await.unwrap();
        let answer = vec![b'!'; 20_000];
        server.write_all(&answer).await.unwrap();
        // Closing with something unread makes the kernel reset.
        drop(server);
        assert!(until_reset(&mut connection.app).await == answer);
    });
}

#[test]
fn a_connection_that_the_proxy_gives_up_is_reset_at_both_ends() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, mut server) = pair(&world.source).await;
        greet(&mut connection.app, &mut server).await;
        connection.proxy.abort();
        until_reset(&mut connection.app).await;
        until_reset(&mut server).await;
    });
}

#[test]
fn a_stream_that_the_server_gives_up_is_reset() {
    on_worker(async {
        let enough = Rc::new(Notify::new());
        let world = World::serving({
            let enough = enough.clone();
            move |incoming| {
                let enough = enough.clone();
                async move {
                    let stream = incoming.accept(&Baggage::default()).unwrap();
                    enough.notified().await;
                    stream.reset();
                }
            }
        })
        .await;
        let mut connection = world.source.connect("127.0.0.1:1".parse().unwrap()).await;
        eventually("the stream is open", || world.source.pool.len() == 1).await;
        Noise::new(1).send(&mut connection.app, 100).await;
        enough.notify_one();
        until_reset(&mut connection.app).await;
    });
}

#[test]
fn a_broken_tunnel_resets_its_connections() {
    on_worker(async {
        let world = World::new().await;
        let (mut one, mut one_server) = pair(&world.source).await;
        let (mut two, mut two_server) = pair(&world.source).await;
        greet(&mut one.app, &mut one_server).await;
        world.destination.kill();
        for tcp in [&mut one.app, &mut two.app, &mut one_server, &mut two_server] {
            until_reset(tcp).await;
        }
    });
}

/// A server that is played frame by frame, and an application whose connection it accepts.
async fn played() -> (Peer, Connection) {
    let (source, listener, tls) = source_alone().await;
    let connection = source.connect("127.0.0.1:1".parse().unwrap()).await;
    let mut peer = Peer::accept(&listener, tls).await;
    peer.send(&Frame::accepting(1)).await;
    (peer, connection)
}

/// Envoy ends a stream in this way when a server has closed before its client has
/// (RFC 9113 §8.1).
#[test]
fn a_reset_without_an_error_after_the_last_byte_is_an_end() {
    on_worker(async {
        let answer = vec![b'!'; 10_000];
        // A client that has nothing to say at the time, and one that waits for credit to say more.
        for question in [1000, 1 << 20] {
            let (mut peer, connection) = played().await;
            let (mut from, mut to) = connection.app.into_split();
            let asking = spawn_local(async move {
                // As much as there is room for, until the connection ends.
                let _ = to.write_all(&vec![b'?'; question]).await;
                to
            });
            let mut heard = 0;
            while heard < question.min(65_535) {
                heard += peer.wait_for(|f| f.kind == kind::DATA).await.payload.len();
            }
            peer.send(&Frame::new(kind::DATA, flag::END_STREAM, 1, &*answer))
                .await;
            peer.send(&Frame::reset(1, code::NO_ERROR)).await;
            let mut bytes = vec![0; answer.len()];
            timeout(PATIENCE, from.read_exact(&mut bytes))
                .await
                .expect("an answer in bounded time")
                .unwrap();
            assert!(bytes == answer);
            ended(connection.proxy).await.expect("an orderly end");
            drop(ended(asking).await);
        }
    });
}

#[test]
fn a_reset_without_an_error_in_the_middle_is_a_cut() {
    on_worker(async {
        let (mut peer, mut connection) = played().await;
        peer.send(&Frame::new(kind::DATA, 0, 1, *b"half an ans"))
            .await;
        peer.send(&Frame::reset(1, code::NO_ERROR)).await;
        assert_eq!(until_reset(&mut connection.app).await, b"half an ans");
    });
}
