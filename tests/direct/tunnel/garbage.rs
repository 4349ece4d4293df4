//! What peers may send that is no tunnel: they are cut off, and nobody else notices.

use std::{sync::Arc, time::Duration};

use rustls::ClientConfig;
use sluice_hbone::{Incoming, ServeError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::bytes;
use crate::{
    fixtures::{Acceptor, PATIENCE, World, on_worker, pair, to_application},
    noise::Noise,
    peers::{BAD_REQUEST, Frame, OK, PREFACE, Peer, code, flag, hpack, kind},
};

/// TLS's record type of alerts.
const ALERT: u8 = 21;
/// How long TLS and HTTP/2 may take to begin.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Lets an attacker loose beside a connection that goes on, and before one that begins.
pub(super) fn survived(attack: impl AsyncFnOnce(&World)) {
    async fn serve(incoming: Incoming) {
        if incoming.authority().is_none() {
            return incoming.refuse(http::StatusCode::BAD_REQUEST);
        }
        to_application(incoming).await;
    }
    on_worker(async {
        let world = World::serving(serve).await;
        let (mut other, mut server) = pair(&world.source).await;
        attack(&world).await;
        Noise::new(1).send(&mut other.app, 100_000).await;
        Noise::new(1).expect(&mut server, 100_000).await;
        world.source.pool.forget_source(world.source.key.source_ip);
        bytes::exchange(world.source.clone(), 2, 100_000, 100_000).await;
    });
}

/// Sends raw bytes, and returns what comes back until the end.
async fn shout(world: &World, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(world.destination.addr).await.unwrap();
    // The other end need not listen to the end.
    let _ = tcp.write_all(bytes).await;
    let mut answer = Vec::new();
    let closed = timeout(PATIENCE, tcp.read_to_end(&mut answer)).await;
    let _ = closed.expect("an end in bounded time");
    answer
}

async fn noise(bytes: u64) -> Vec<u8> {
    let mut noise = Vec::new();
    Noise::new(bytes).send(&mut noise, bytes).await;
    noise
}

#[test]
fn bytes_that_are_no_tls() {
    survived(async |world| {
        let noise = noise(64 << 10).await;
        for bytes in [
            &*noise,
            b"GET / HTTP/1.1\r\nhost: db\r\n\r\n",
            PREFACE,
            b"SSH-2.0-OpenSSH_9.9\r\n",
        ] {
            let answer = shout(world, bytes).await;
            assert!(
                answer.first().is_none_or(|first| *first == ALERT),
                "{answer:?}"
            );
            let error = world.destination.ended().await.unwrap_err();
            assert!(matches!(error, ServeError::Tls(_)), "{error:?}");
        }
    });
}

#[test]
fn a_connection_without_a_byte() {
    survived(async |world| {
        drop(TcpStream::connect(world.destination.addr).await.unwrap());
        let error = world.destination.ended().await.unwrap_err();
        assert!(matches!(error, ServeError::Tls(_)), "{error:?}");
    });
}

#[test]
fn other_protocols_inside_tls() {
    survived(async |world| {
        let noise = noise(4 << 10).await;
        for bytes in [&*noise, b"GET / HTTP/1.1\r\nhost: db\r\n\r\n"] {
            let mut peer = Peer::dial(world).await;
            peer.say(bytes).await;
            peer.rest().await;
            let error = world.destination.ended().await.unwrap_err();
            assert!(matches!(error, ServeError::Http(_)), "{error:?}");
        }
    });
}

#[test]
fn a_client_that_speaks_only_http1() {
    survived(async |world| {
        let key = &world.source.key;
        let mut tls = ClientConfig::clone(&world.source.svid.client_config(&*key.expected));
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = TcpStream::connect(world.destination.addr).await.unwrap();
        let name = world.destination.addr.ip().into();
        let refused = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("NoApplicationProtocol"), "{refused}");
        let error = world.destination.ended().await.unwrap_err();
        assert!(matches!(error, ServeError::Tls(_)), "{error:?}");
    });
}

/// Whoever stops in the middle of the beginning is not waited for: a connection costs memory.
#[test]
fn silence_in_the_middle_of_the_beginning() {
    survived(async |world| {
        const CLIENT_HELLO: &[u8] = &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
        let mut silent: Vec<TcpStream> = Vec::new();
        for bytes in [&b""[..], CLIENT_HELLO] {
            let mut tcp = TcpStream::connect(world.destination.addr).await.unwrap();
            tcp.write_all(bytes).await.unwrap();
            silent.push(tcp);
        }
        let mut halves = Vec::new();
        for bytes in [&b""[..], &PREFACE[..12]] {
            let mut peer = Peer::dial(world).await;
            peer.say(bytes).await;
            halves.push(peer);
        }
        let begin = tokio::time::Instant::now();
        tokio::time::pause();
        for _ in 0..4 {
            let error = world.destination.ended().await.unwrap_err();
            assert!(matches!(error, ServeError::Timeout(HANDSHAKE)), "{error:?}");
        }
        assert!(begin.elapsed() < 2 * HANDSHAKE, "{:?}", begin.elapsed());
        for mut tcp in silent {
            assert_eq!(tcp.read(&mut [0]).await.unwrap_or(0), 0);
        }
        for mut peer in halves {
            peer.rest().await;
        }
    });
}

#[test]
fn requests_that_are_no_connect() {
    survived(async |world| {
        let get = [
            (":method", "GET"),
            (":authority", "10.0.0.2:80"),
            (":scheme", "https"),
            (":path", "/"),
        ];
        let mut peer = Peer::begin(world).await;
        peer.send(&Frame::headers(1, &get)).await;
        let answer = peer.wait_for(|frame| frame.stream == 1).await;
        assert_eq!(
            (answer.kind, answer.payload[0]),
            (kind::HEADERS, BAD_REQUEST)
        );
        still_works(&mut peer).await;
    });
}

/// Requests that no HTTP/2 client may send. Each is refused alone (RFC 9113 §8.1.1).
#[test]
fn malformed_requests() {
    survived(async |world| {
        let connect = (":method", "CONNECT");
        let authority = (":authority", "10.0.0.2:80");
        let path = (":path", "/");
        let scheme = (":scheme", "https");
        let malformed = [
            &[connect, authority, path][..],
            &[connect, authority, scheme],
            &[connect, (":protocol", "websocket"), authority, path, scheme],
            &[connect, (":authority", "10.0.0.2:80/x y")],
            &[authority],
            &[connect, connect, authority],
            &[connect, authority, (":status", "200")],
            &[connect, authority, ("connection", "close")],
            &[connect, ("baggage", "a=b"), authority],
            &[connect, authority, ("Forwarded", "for=x")],
        ];
        for fields in malformed {
            let mut peer = Peer::begin(world).await;
            peer.send(&Frame::headers(1, fields)).await;
            let answer = peer
                .wait_for(|frame| {
                    [kind::RST_STREAM, kind::GOAWAY, kind::HEADERS].contains(&frame.kind)
                })
                .await;
            assert_eq!(answer.kind, kind::RST_STREAM, "{fields:?}: {answer:?}");
            assert_eq!(answer.code(), code::PROTOCOL_ERROR, "{fields:?}");
            still_works(&mut peer).await;
        }
    });
}

#[test]
fn claims_that_make_no_sense() {
    survived(async |world| {
        let mut server = Acceptor::start().await;
        let authority = server.addr.to_string();
        let connect = [(":method", "CONNECT"), (":authority", &*authority)];
        let claims = [
            ("forwarded", "for=;;;=\"\"\"host"),
            ("forwarded", "for=\"10.0.0.1:99999\""),
            ("baggage", ",,,=,k8s.namespace.name"),
            ("traceparent", "zz-00"),
        ];
        let mut peer = Peer::begin(world).await;
        for (claim, stream) in claims.into_iter().zip((1..).step_by(2)) {
            peer.send(&Frame::headers(stream, &[connect[0], connect[1], claim]))
                .await;
            let answer = peer.wait_for(|frame| frame.stream == stream).await;
            assert_eq!(
                (answer.kind, answer.payload[0]),
                (kind::HEADERS, OK),
                "{claim:?}"
            );
            server.next().await;
        }
    });
}

/// A request that is a little too large is refused; one that never ends, cut off.
#[test]
fn headers_without_end() {
    survived(async |world| {
        let value = "x".repeat(8 << 10);
        let block = |fields: usize| {
            let mut list = vec![(":method", "CONNECT"), (":authority", "10.0.0.2:80")];
            list.extend([("x-large", &*value)].repeat(fields));
            hpack(&list)
        };
        let mut peer = Peer::begin(world).await;
        let long = block(9);
        let mut pieces = long.chunks(16 << 10).peekable();
        let mut frame_kind = kind::HEADERS;
        while let Some(piece) = pieces.next() {
            let last = pieces.peek().is_none();
            let flags = if last { flag::END_HEADERS } else { 0 };
            peer.send(&Frame::new(frame_kind, flags, 1, piece)).await;
            frame_kind = kind::CONTINUATION;
        }
        let answer = peer.wait_for(|frame| frame.stream == 1).await;
        let refused = answer.kind == kind::RST_STREAM || answer.payload[0] != OK;
        assert!(refused, "{answer:?}");
        still_works(&mut peer).await;

        let mut peer = Peer::begin(world).await;
        peer.send(&Frame::new(kind::HEADERS, 0, 1, block(1))).await;
        let endless = Frame::new(kind::CONTINUATION, 0, 1, hpack(&[("x-large", &*value)]));
        for _ in 0..1000 {
            peer.shout(&endless.encode()).await;
        }
        peer.rest().await;
        assert!(world.destination.ended().await.is_err());
    });
}

/// Rapid reset (CVE-2023-44487): requests that cost the server work and the client nothing.
#[test]
fn a_flood_of_requests_that_are_taken_back() {
    survived(async |world| {
        let mut peer = Peer::begin(world).await;
        let mut flood = Vec::new();
        for stream in (1..20_000).step_by(2) {
            flood.extend(Frame::connect(stream, "127.0.0.1:1").encode());
            flood.extend(Frame::reset(stream, code::CANCEL).encode());
        }
        peer.shout(&flood).await;
        let last = peer.rest().await;
        let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
        assert_eq!(last.expect("a GOAWAY").code(), code::ENHANCE_YOUR_CALM);
        assert!(world.destination.ended().await.is_err());
    });
}

/// The same tunnel goes on.
pub(super) async fn still_works(peer: &mut Peer) {
    still_works_with(peer, 1001).await;
}

/// The same tunnel takes a stream with this number.
pub(super) async fn still_works_with(peer: &mut Peer, stream: u32) {
    let mut server = Acceptor::start().await;
    peer.send(&Frame::connect(stream, &server.addr.to_string()))
        .await;
    let answer = peer.wait_for(|frame| frame.stream == stream).await;
    assert_eq!((answer.kind, answer.payload[0]), (kind::HEADERS, OK));
    peer.send(&Frame::new(kind::DATA, flag::END_STREAM, stream, *b"good"))
        .await;
    let mut said = Vec::new();
    let mut tcp = server.next().await;
    tcp.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"good");
}
