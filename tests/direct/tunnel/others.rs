//! The other implementation of HTTP/2 as the peer, on either side: every byte arrives, in order.

use std::{net::SocketAddr, rc::Rc};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex},
    task::{JoinHandle, spawn_local},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::resets::until_reset;
use crate::{
    fixtures::{PATIENCE, Source, World, application, ended, eventually, on_worker, source_alone},
    noise::{Dice, MUCH, Noise},
    peers::Peer,
};

/// Both directions of a stream, as bytes.
fn bytes(mut to: SendStream<Bytes>, mut from: RecvStream) -> DuplexStream {
    let (ours, theirs) = duplex(64 << 10);
    let (mut reader, mut writer) = tokio::io::split(theirs);
    spawn_local(async move {
        let mut buffer = BytesMut::new();
        while reader.read_buf(&mut buffer).await.unwrap() > 0 {
            while !buffer.is_empty() {
                to.reserve_capacity(buffer.len());
                let capacity = std::future::poll_fn(|cx| to.poll_capacity(cx)).await;
                let Some(Ok(capacity)) = capacity else {
                    return;
                };
                let piece = buffer.split_to(capacity.min(buffer.len())).freeze();
                to.send_data(piece, false).unwrap();
            }
        }
        to.send_data(Bytes::new(), true).unwrap();
    });
    spawn_local(async move {
        while let Some(Ok(piece)) = from.data().await {
            writer.write_all(&piece).await.unwrap();
            from.flow_control().release_capacity(piece.len()).unwrap();
        }
        writer.shutdown().await.unwrap();
    });
    ours
}

/// Sizes around those of frames and windows, and any others.
fn sizes(dice: &mut Dice) -> Vec<u64> {
    let edges = [0, 1, 16_374, 16_375, 16_384, 65_535, 65_536, 300_000];
    let any = (0..8).map(|_| dice.below(3 << 20));
    edges.into_iter().chain(any).collect()
}

/// A client of ours, and a server of the crate's that sends back what it gets, or, at port 1, breaks
/// the stream.
async fn client_and_other_server() -> Rc<Source> {
    let (source, listener, tls) = source_alone().await;
    let tls = TlsAcceptor::from(tls);
    spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut server = h2::server::handshake(tls.accept(tcp).await.unwrap())
            .await
            .unwrap();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let port = request.uri().authority().and_then(|a| a.port_u16());
            let to = respond.send_response(http::Response::new(()), false);
            let mut to = to.unwrap();
            if port == Some(1) {
                let mut from = request.into_body();
                spawn_local(async move {
                    from.data().await.unwrap().unwrap();
                    to.send_reset(h2::Reason::INTERNAL_ERROR);
                });
                continue;
            }
            let (mut from, mut to) = tokio::io::split(bytes(to, request.into_body()));
            spawn_local(async move {
                tokio::io::copy(&mut from, &mut to).await.unwrap();
                to.shutdown().await.unwrap();
            });
        }
    });
    source
}

/// Says so much to the crate's server, and hears it back.
async fn to_other_server(source: Rc<Source>, size: u64) {
    let mut connection = source.connect("127.0.0.1:2".parse().unwrap()).await;
    let (mut from, mut to) = connection.app.split();
    say_and_hear(&mut from, &mut to, size).await;
    assert_eq!(connection.carried().await, (size, size));
}

async fn say_and_hear(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    size: u64,
) {
    let (mut said, mut heard) = (Noise::new(size), Noise::new(size));
    let saying = async {
        said.send(to, size).await;
        to.shutdown().await.unwrap();
    };
    tokio::join!(saying, heard.expect_all(from, size));
}

#[test]
fn a_server_of_the_h2_crate() {
    on_worker(async {
        let source = client_and_other_server().await;
        let exchange = |size| spawn_local(to_other_server(source.clone(), size));
        let exchanges: Vec<_> = sizes(&mut Dice(1)).into_iter().map(exchange).collect();
        let mut broken = source.connect("127.0.0.1:1".parse().unwrap()).await;
        broken.app.write_all(b"a question").await.unwrap();
        until_reset(&mut broken.app).await;
        for exchange in exchanges {
            ended(exchange).await;
        }
        drop(broken);
        eventually("no stream is left", || source.engine.streams() == 0).await;
        assert_eq!(source.dialled(), 1);
    });
}

#[test]
fn much_to_a_server_of_the_h2_crate_and_back() {
    on_worker(async {
        let source = client_and_other_server().await;
        to_other_server(source, MUCH).await;
    });
}

#[test]
fn much_from_a_client_of_the_h2_crate_and_back() {
    on_worker(async {
        let world = World::new().await;
        let (client, _driver) = other_client(&world).await;
        let (to, from) = open(&client, echo().await).await;
        let (mut from, mut to) = tokio::io::split(bytes(to, from));
        say_and_hear(&mut from, &mut to, MUCH).await;
    });
}

/// A client of the crate's, and a server of ours.
async fn other_client(
    world: &World,
) -> (
    h2::client::SendRequest<Bytes>,
    JoinHandle<Result<(), h2::Error>>,
) {
    let (client, driver) = h2::client::handshake(Peer::dial(world).await.0)
        .await
        .unwrap();
    (client, spawn_local(driver))
}

async fn open(
    client: &h2::client::SendRequest<Bytes>,
    to: SocketAddr,
) -> (SendStream<Bytes>, RecvStream) {
    let mut client = client.clone().ready().await.unwrap();
    let request = http::Request::connect(to.to_string()).body(()).unwrap();
    let (answer, to) = client.send_request(request, false).unwrap();
    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), http::StatusCode::OK);
    (to, answer.into_body())
}

/// Sends back what it gets.
async fn echo() -> SocketAddr {
    application(|mut tcp| async move {
        let (mut from, mut to) = tcp.split();
        if tokio::io::copy(&mut from, &mut to).await.is_ok() {
            to.shutdown().await.unwrap();
        }
    })
    .await
}

#[test]
fn a_client_of_the_h2_crate() {
    on_worker(async {
        let world = World::new().await;
        let echo = echo().await;
        let (client, driver) = other_client(&world).await;
        let mut exchanges = Vec::new();
        for size in sizes(&mut Dice(2)) {
            let (to, from) = open(&client, echo).await;
            exchanges.push(spawn_local(async move {
                let (mut from, mut to) = tokio::io::split(bytes(to, from));
                say_and_hear(&mut from, &mut to, size).await;
            }));
        }
        // One that is taken back in the middle.
        let (mut to, from) = open(&client, echo).await;
        to.send_data(Bytes::from_static(b"never mind"), false)
            .unwrap();
        to.send_reset(h2::Reason::CANCEL);
        drop((to, from));
        for exchange in exchanges {
            ended(exchange).await;
        }
        let engine = &world.destination.engine;
        eventually("no stream is left", || engine.streams() == 0).await;
        drop(client);
        ended(driver).await.unwrap();
        assert!(world.destination.ended().await.is_ok());
        eventually("no tunnel is left", || engine.tunnels() == 0).await;
    });
}
