//! Who may talk to whom, and what an operator reads when they may not.

use std::sync::Arc;

use rustls::{ClientConfig, client::ResolvesClientCert, sign::CertifiedKey};
use sluice_hbone::{OpenError, ServeError, TunnelKey};
use sluice_identity::Svid;
use tokio::{io::AsyncReadExt as _, time::timeout};

use crate::{
    authority::{DB, Root, WEB, id},
    fixtures::{Destination, PATIENCE, Source, World, ended, on_worker, request, to_application},
    peers::{Peer, flag, kind},
};

const ELSEWHERE: &str = "spiffe://elsewhere.example/ns/shop/sa/web";

#[test]
fn both_ends_learn_who_the_other_is() {
    on_worker(async {
        let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let world = World::serving(move |incoming| {
            sender.send(incoming.peer.identity().clone()).unwrap();
            let _ = incoming.accept(&sluice_hbone::Baggage::default());
            async {}
        })
        .await;
        let opened = world.source.open("10.0.0.1:80").await.unwrap();
        assert_eq!(*opened.peer.identity(), id(DB));
        assert_eq!(seen.recv().await, Some(id(WEB)));
    });
}

#[test]
fn an_unexpected_server_is_named_and_so_is_the_expected_one() {
    on_worker(async {
        let world = World::new().await;
        let other = "spiffe://cluster.local/ns/shop/sa/cache";
        let key = TunnelKey {
            expected: vec![id(WEB), id(other)],
            ..world.source.key.clone()
        };
        let request = request("10.0.0.1:80");
        let error = world.source.open_with(&key, &request).await.unwrap_err();
        assert!(matches!(error, OpenError::Tls(_)), "{error:?}");
        assert_eq!(
            error.to_string(),
            format!("TLS with the peer: peer presented [{DB}], expected one of [{WEB}, {other}]")
        );
        let error = world.destination.ended().await.unwrap_err();
        assert!(matches!(error, ServeError::Tls(_)), "{error}");
    });
}

/// A client that must not get in, and what the two sides' operators read.
struct Stranger {
    tls: Arc<ClientConfig>,
    /// What the server says.
    reason: String,
    /// What the client is told: an alert.
    alert: &'static str,
}

fn strangers(world: &World) -> Vec<Stranger> {
    let trust = world.root.trust();
    let svid = |svid: Arc<Svid>| svid.client_config([id(DB)]);
    let mut anonymous = ClientConfig::clone(&svid(world.source.svid.clone()));
    anonymous.client_auth_cert_resolver = Arc::new(NoCertificate);
    vec![
        Stranger {
            tls: svid(world.root.svid(ELSEWHERE)),
            reason: format!(
                "peer presented {ELSEWHERE}, which is not of the trust domain cluster.local"
            ),
            alert: "CertificateUnknown",
        },
        Stranger {
            tls: svid(Root::new().svid_trusting(WEB, trust.clone())),
            reason: "UnknownIssuer".to_owned(),
            alert: "UnknownCA",
        },
        Stranger {
            tls: svid(
                world
                    .root
                    .svid_with(&id(WEB), &["https://web.example"], trust),
            ),
            reason: "peer presented no SPIFFE identity, only [https://web.example]".to_owned(),
            alert: "CertificateUnknown",
        },
        Stranger {
            tls: Arc::new(anonymous),
            reason: "peer sent no certificates".to_owned(),
            alert: "CertificateRequired",
        },
    ]
}

#[test]
fn a_stranger_gets_an_alert_and_not_a_byte_more() {
    on_worker(async {
        let world = World::new().await;
        for stranger in strangers(&world) {
            let Stranger { tls, reason, alert } = stranger;
            let mut peer = Peer::dial_with(&world, tls).await;
            let mut bytes = Vec::new();
            let refused = timeout(PATIENCE, peer.0.read_to_end(&mut bytes)).await;
            let refused = refused.expect("an end in bounded time").unwrap_err();
            assert_eq!(
                refused.to_string(),
                format!("received fatal alert: {alert}"),
                "{reason}"
            );
            assert_eq!(bytes, b"", "{reason}");
            let error = world.destination.ended().await.unwrap_err();
            assert!(matches!(error, ServeError::Tls(_)), "{error:?}");
            let error = error.to_string();
            assert!(
                error.starts_with("TLS with the peer: ") && error.ends_with(&reason),
                "{error}"
            );
            good(&world).await;
        }
    });
}

/// The same from our own client's side: in TLS 1.3 it believes itself connected until the alert.
#[test]
fn a_refused_client_is_told_so_and_does_not_insist() {
    on_worker(async {
        let world = World::new().await;
        let foreign = Root::new().svid_trusting(WEB, world.root.trust());
        let source = Source::new(foreign, world.destination.addr).await;
        let openings: Vec<_> = (0..20)
            .map(|_| {
                let source = source.clone();
                tokio::task::spawn_local(async move { source.open("10.0.0.1:80").await })
            })
            .collect();
        for opening in openings {
            let error = ended(opening).await.unwrap_err();
            assert!(matches!(error, OpenError::Tls(_)), "{error:?}");
            assert_eq!(
                error.to_string(),
                "TLS with the peer: received fatal alert: UnknownCA"
            );
        }
        assert_eq!(source.dialled(), 1);
    });
}

#[test]
fn a_server_that_is_no_mesh_member_is_refused() {
    on_worker(async {
        let world = World::new().await;
        let foreign = Root::new().svid(DB);
        let destination = Destination::start(&foreign, to_application).await;
        let source = Source::new(world.source.svid.clone(), destination.addr).await;
        let error = source.open("10.0.0.1:80").await.unwrap_err().to_string();
        assert!(
            error.starts_with("TLS with the peer: ") && error.contains("UnknownIssuer"),
            "{error}"
        );
    });
}

/// The first thing a server says after TLS is HTTP/2, to those that it let in.
#[test]
fn a_member_gets_an_http2_session() {
    on_worker(async {
        let world = World::new().await;
        let mut peer = Peer::begin(&world).await;
        let frame = peer.next().await.unwrap();
        assert_eq!((frame.kind, frame.flags & flag::ACK), (kind::SETTINGS, 0));
    });
}

async fn good(world: &World) {
    super::bytes::exchange(world.source.clone(), 1, 1000, 1000).await;
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
