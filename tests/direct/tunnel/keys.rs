//! Keys wear out: either side goes on with new ones, in the middle of whatever is being said.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use rustls::{
    CipherSuiteCommon, ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedCipherSuite,
    Tls13CipherSuite,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs::{cipher_suite, default_provider},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use sluice_hbone::Dialled;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::{Instant, timeout},
};
use tokio_rustls::TlsStream;

use super::{bytes, garbage::survived};
use crate::{
    authority::{DB, Root, WEB},
    fixtures::{Acceptor, PATIENCE, Source, World, ended, eventually, on_worker, request},
    noise::Noise,
    peers::{Frame, PREFACE, Peer, code, flag, kind, setting},
    wire::{Lane, Wire},
};

const MIB: u64 = 1 << 20;

/// The names and keys of another suite, which wears out after so many records.
fn worn_after(suite: SupportedCipherSuite, records: u64) -> SupportedCipherSuite {
    let suite = suite.tls13().unwrap();
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            confidentiality_limit: records,
            ..suite.common
        },
        ..*suite
    })))
}

/// Believes everybody: this is about keys.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// What a client of the world uses, with another suite.
fn client_config(world: &World, suite: SupportedCipherSuite) -> Arc<ClientConfig> {
    let own = world.source.svid.client_config(&*world.source.key.expected);
    let mut provider = default_provider();
    provider.cipher_suites = vec![suite];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(own.client_auth_cert_resolver.clone());
    config.alpn_protocols.clone_from(&own.alpn_protocols);
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// Both suites that the mesh knows, with keys that change every few records of ours: a key that is not changed on both
/// sides at the same record opens nothing.
#[test]
fn our_keys_change_while_bytes_flow() {
    for suite in [
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_AES_128_GCM_SHA256,
    ] {
        on_worker(async move {
            let world = World::new().await;
            let tls = client_config(&world, worn_after(suite, 20));
            let mut server = Acceptor::start().await;
            let authority = request(&server.addr.to_string());
            let dial = async || {
                Ok(Dialled {
                    tcp: TcpStream::connect(world.destination.addr).await.unwrap(),
                    tls: tls.clone(),
                    trust: world.source.svid.trust().clone(),
                    expires: world.source.svid.not_after(),
                })
            };
            let key = &world.source.key;
            let opened = world
                .source
                .pool
                .open(key, &authority, None, dial)
                .await
                .unwrap();
            let (mut app, captured) = crate::fixtures::sockets().await;
            let meter = Rc::default();
            let carried = opened.stream.carry(captured.into_std().unwrap(), &meter);
            let mut server = server.next().await;
            let talk = async {
                for round in 0..3 {
                    let (mut there, mut back) = (Noise::new(round), Noise::new(!round));
                    let mut heard = Noise::new(round);
                    tokio::join!(
                        there.send(&mut app, 4 * MIB),
                        heard.expect(&mut server, 4 * MIB)
                    );
                    let mut heard = Noise::new(!round);
                    tokio::join!(back.send(&mut server, MIB), heard.expect(&mut app, MIB));
                }
                drop((app, server));
            };
            let (carried, ()) = tokio::join!(carried, talk);
            carried.unwrap();
        });
    }
}

/// The peer changes its keys, and asks that ours be changed.
fn new_keys(peer: &mut Peer) {
    match &mut peer.0 {
        TlsStream::Client(tls) => tls.get_mut().1.refresh_traffic_keys().unwrap(),
        TlsStream::Server(tls) => tls.get_mut().1.refresh_traffic_keys().unwrap(),
    }
}

/// A peer that asks for new keys gets them, as often as it likes within reason.
#[test]
fn peers_change_keys_and_ask_us_to() {
    on_worker(async {
        let world = World::new().await;
        let mut server = Acceptor::start().await;
        let mut peer = Peer::begin(&world).await;
        peer.send(&Frame::connect(1, &server.addr.to_string()))
            .await;
        let mut tcp = server.next().await;
        for round in 0..50_u8 {
            new_keys(&mut peer);
            peer.send(&Frame::new(kind::DATA, 0, 1, [round])).await;
            assert_eq!(tcp.read_u8().await.unwrap(), round);
            tokio::io::AsyncWriteExt::write_u8(&mut tcp, round)
                .await
                .unwrap();
            let answer = peer.wait_for(|frame| frame.kind == kind::DATA).await;
            assert_eq!(answer.payload, [round]);
        }
        peer.send(&Frame::new(kind::DATA, flag::END_STREAM, 1, []))
            .await;
        assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0);
        bytes::exchange(world.source.clone(), 1, MIB, MIB).await;
    });
}

/// What a record with a change of keys holds: the message, the kind of its content and the tag. No
/// frame of HTTP/2 is so short.
const KEY_UPDATE: usize = 5 + 1 + 16;
/// More than the sockets of a connection hold.
const MUCH: u64 = 24 * MIB;

/// Asks for new keys, time and again, while nothing that we say gets through; then hears it all.
async fn asked_while_blocked(peer: &mut Peer, lane: &Lane, mut app: TcpStream) {
    for round in 0..3_u64 {
        let before = lane.records().len();
        lane.open(false);
        let (mut reading, mut writing) = app.into_split();
        let said = Rc::new(Cell::new(0));
        let saying = spawn_local({
            let said = said.clone();
            async move {
                let mut noise = Noise::new(round);
                while said.get() < MUCH {
                    noise.send(&mut writing, 16 << 10).await;
                    said.set(said.get() + (16 << 10));
                }
                writing
            }
        });
        // Until there is no more room in any socket.
        let last = Cell::new((0, Instant::now()));
        eventually("it is blocked", || {
            if said.get() != last.get().0 {
                last.set((said.get(), Instant::now()));
            }
            said.get() > 0 && last.get().1.elapsed() > Duration::from_millis(200)
        })
        .await;
        assert!(said.get() < MUCH, "nothing was held up");
        for question in 0..3 {
            new_keys(peer);
            peer.send(&Frame::new(kind::DATA, 0, 1, [question])).await;
            // It was sealed with the new keys, and understood.
            let heard = timeout(PATIENCE, reading.read_u8()).await;
            assert_eq!(heard.expect("a byte in bounded time").unwrap(), question);
        }
        lane.open(true);
        let mut noise = Noise::new(round);
        let mut heard = 0;
        while heard < MUCH {
            let data = peer.wait_for(|frame| frame.kind == kind::DATA).await;
            let bytes = data.payload.len() as u64;
            noise.expect(&mut &*data.payload, bytes).await;
            heard += bytes;
        }
        app = ended(saying).await.reunite(reading).unwrap();
        // New keys were used as soon as there was room, and not for each time they were asked for.
        let records = &lane.records()[before..];
        let answers = records.iter().filter(|length| **length == KEY_UPDATE);
        assert!((1..=3).contains(&answers.count()), "{records:?}");
        let answer = records.iter().position(|length| *length == KEY_UPDATE);
        let later: usize = records[answer.unwrap()..].iter().sum();
        assert!(later as u64 > MIB, "only {later} bytes had new keys");
    }
}

/// A peer whose socket is full may ask for new keys all the same: it hears of them once it reads,
/// in the right place, and nothing is lost.
#[test]
fn new_keys_that_are_asked_for_while_nobody_reads() {
    let all = Frame::setting(setting::INITIAL_WINDOW_SIZE, i32::MAX as u32);
    let tunnel = Frame::credit(0, i32::MAX as u32 - 65_535);
    on_worker(async {
        let world = World::new().await;
        let mut server = Acceptor::start().await;
        let wire = Wire::to(world.destination.addr).await;
        let tls = world.source.svid.client_config(&*world.source.key.expected);
        let mut peer = Peer::dial_at(wire.addr, tls).await;
        peer.say(PREFACE).await;
        peer.send(&all).await;
        peer.send(&tunnel).await;
        peer.send(&Frame::connect(1, &server.addr.to_string()))
            .await;
        asked_while_blocked(&mut peer, &wire.to_client, server.next().await).await;
    });
    on_worker(async {
        let root = Root::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire::to(listener.local_addr().unwrap()).await;
        let source = Source::new(root.svid(WEB), wire.addr).await;
        let connection = source.connect("127.0.0.1:1".parse().unwrap()).await;
        let tls = root.svid(DB).server_config();
        let mut peer = Peer::accept_saying(&listener, tls, &all).await;
        peer.send(&tunnel).await;
        peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
        peer.send(&Frame::accepting(1)).await;
        asked_while_blocked(&mut peer, &wire.to_server, connection.app).await;
    });
}

/// Each change of keys is work: whoever wants them without end is cut off.
#[test]
fn new_keys_without_end() {
    survived(async |world| {
        let mut peer = Peer::begin(world).await;
        // From then on it is the tunnel's business, and not that of the handshake.
        peer.wait_for(|frame| frame.kind == kind::SETTINGS && frame.flags == flag::ACK)
            .await;
        for _ in 0..100 {
            for _ in 0..200 {
                new_keys(&mut peer);
            }
            peer.shout(&[]).await;
        }
        let last = peer.rest().await;
        let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
        assert_eq!(last.expect("a GOAWAY").code(), code::ENHANCE_YOUR_CALM);
    });
}

/// Bytes that were not sealed by the peer end the tunnel, with TLS's word for it.
#[test]
fn a_record_that_was_changed_on_the_way() {
    on_worker(async {
        let world = World::new().await;
        let mut peer = Peer::begin(&world).await;
        peer.wait_for(|frame| frame.kind == kind::SETTINGS && frame.flags == flag::ACK)
            .await;
        let record = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
        let (tcp, _) = peer.0.get_mut();
        tokio::io::AsyncWriteExt::write_all(tcp, &record)
            .await
            .unwrap();
        let broken = async {
            let mut bytes = Vec::new();
            peer.0.read_to_end(&mut bytes).await.unwrap_err()
        };
        let broken = broken.await.to_string();
        assert_eq!(broken, "received fatal alert: BadRecordMac");
        let error = world.destination.ended().await.unwrap_err().to_string();
        assert!(error.contains("cannot decrypt peer's message"), "{error}");
    });
}
