//! Handshakes between two ends in memory.

use std::{io, sync::Arc};

use rustls::{ClientConfig, NamedGroup, ProtocolVersion, RootCertStore, ServerConfig, version};
use rustls_pki_types::ServerName;
use sluice_identity::{Roots, Svid, peer_error, peer_identity};
use sluice_model::SpiffeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::{Root, id};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

/// What each end learned: its peer, or why the handshake failed.
pub(crate) struct Outcome {
    pub(crate) client: io::Result<Vec<SpiffeId>>,
    pub(crate) server: io::Result<Vec<SpiffeId>>,
    alpn: Option<Vec<u8>>,
    version: Option<ProtocolVersion>,
    sni: Option<String>,
    group: Option<NamedGroup>,
}

pub(crate) async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Outcome {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]).into());
    let connect = async move {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        let peers = identities(stream.get_ref().1.peer_certificates());
        // In TLS 1.3 a client learns only afterwards that its certificate was refused.
        stream.read_exact(&mut [0]).await?;
        Ok(peers)
    };
    let accept = async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"x").await?;
        Ok(stream)
    };
    let (client, server): (_, io::Result<_>) = tokio::join!(connect, accept);
    let session = server.as_ref().ok().map(|stream| stream.get_ref().1);
    Outcome {
        client,
        alpn: session.and_then(|s| s.alpn_protocol().map(Into::into)),
        version: session.and_then(|s| s.protocol_version()),
        group: session
            .and_then(|s| s.negotiated_key_exchange_group())
            .map(|group| group.name()),
        sni: session.and_then(|s| s.server_name().map(Into::into)),
        server: server.map(|stream| identities(stream.get_ref().1.peer_certificates())),
    }
}

fn identities(chain: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> Vec<SpiffeId> {
    vec![peer_identity(chain.unwrap()).unwrap()]
}

fn svid(root: &Root, identity: &str) -> Svid {
    root.svid(&id(identity), &[identity], root.trust())
}

pub(crate) fn error<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    let error = result.unwrap_err();
    match peer_error(&error) {
        Some(ours) => ours.to_string(),
        None => error.to_string(),
    }
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let root = Root::new();
    let (web, db) = (svid(&root, WEB), svid(&root, DB));
    let expected = vec![id("spiffe://cluster.local/ns/x/sa/y"), id(DB)];
    let outcome = handshake(web.client_config(expected), db.server_config()).await;
    assert_eq!(outcome.client.unwrap(), [id(DB)]);
    assert_eq!(outcome.server.unwrap(), [id(WEB)]);
    assert_eq!(outcome.alpn.as_deref(), Some(&b"h2"[..]));
    assert_eq!(outcome.version, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(outcome.sni, None);
    assert_eq!(outcome.group, Some(NamedGroup::X25519MLKEM768));
}

#[tokio::test]
async fn any_name_of_the_server_may_be_the_expected_one() {
    let root = Root::new();
    let uris = ["https://db.example", "spiffe://other/ns/a/sa/b", DB];
    let db = root.svid(&id(DB), &uris, root.trust());
    let web = svid(&root, WEB);
    let outcome = handshake(web.client_config([id(DB)]), db.server_config()).await;
    assert!(outcome.client.is_ok(), "{:?}", outcome.client);
}

#[tokio::test]
async fn an_unexpected_server_is_refused_by_name() {
    let root = Root::new();
    let (web, db) = (svid(&root, WEB), svid(&root, DB));
    let outcome = handshake(web.client_config([id(WEB)]), db.server_config()).await;
    assert_eq!(
        error(outcome.client),
        format!("peer presented [{DB}], expected one of [{WEB}]")
    );
    assert!(outcome.server.is_err());
    let nobody = handshake(web.client_config([]), db.server_config()).await;
    assert!(error(nobody.client).ends_with("expected one of []"));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let root = Root::new();
    let db = svid(&root, DB);
    let web = svid(&root, WEB);
    let mut anonymous = ClientConfig::clone(&web.client_config([id(DB)]));
    anonymous.client_auth_cert_resolver = Arc::new(NoCertificate);
    let outcome = handshake(Arc::new(anonymous), db.server_config()).await;
    assert_eq!(error(outcome.server), "peer sent no certificates");
    assert!(error(outcome.client).contains("CertificateRequired"));
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn certificates_of_a_foreign_root_are_refused_by_both_ends() {
    let (ours, theirs) = (Root::new(), Root::new());
    let (web, db) = (svid(&ours, WEB), svid(&theirs, DB));
    let outcome = handshake(web.client_config([id(DB)]), db.server_config()).await;
    assert!(error(outcome.client).contains("UnknownIssuer"));

    // The client is not the one to notice: it trusts the server's root.
    let stranger = theirs.svid(&id(WEB), &[WEB], ours.trust());
    let db = svid(&ours, DB);
    let outcome = handshake(stranger.client_config([id(DB)]), db.server_config()).await;
    assert!(error(outcome.server).contains("UnknownIssuer"));
    assert!(outcome.client.is_err());
}

#[tokio::test]
async fn a_client_of_an_equivalent_trust_domain_is_accepted_and_no_other() {
    let root = Root::new();
    let db = svid(&root, DB);
    let domains = ["cluster.local", "old.example"].map(|domain| domain.parse().unwrap());
    let server = db.server_config_accepting(Arc::new(domains)).unwrap();
    for (client, accepted) in [
        ("spiffe://old.example/ns/shop/sa/web", true),
        (WEB, true),
        ("spiffe://elsewhere/ns/shop/sa/web", false),
    ] {
        let client = svid(&root, client);
        let outcome = handshake(client.client_config([id(DB)]), server.clone()).await;
        assert_eq!(outcome.server.is_ok(), accepted, "{:?}", client.identity());
        if !accepted {
            assert_eq!(
                error(outcome.server),
                "peer presented spiffe://elsewhere/ns/shop/sa/web, which is not of the trust \
                 domain cluster.local or old.example"
            );
        }
    }
}

#[tokio::test]
async fn a_client_of_a_foreign_trust_domain_is_refused() {
    let root = Root::new();
    let foreign = svid(&root, "spiffe://elsewhere/ns/shop/sa/web");
    let db = svid(&root, DB);
    let outcome = handshake(foreign.client_config([id(DB)]), db.server_config()).await;
    assert_eq!(
        error(outcome.server),
        "peer presented spiffe://elsewhere/ns/shop/sa/web, which is not of the trust domain \
         cluster.local"
    );
    assert!(outcome.client.is_err());
}

#[tokio::test]
async fn a_client_that_names_no_workload_is_refused() {
    let root = Root::new();
    let nameless = root.svid(&id(WEB), &["spiffe://cluster.local/web"], root.trust());
    let outcome = handshake(
        nameless.client_config([id(DB)]),
        svid(&root, DB).server_config(),
    )
    .await;
    assert_eq!(
        error(outcome.server),
        "peer presented no SPIFFE identity, only [spiffe://cluster.local/web]"
    );
}

#[tokio::test]
async fn a_client_of_an_older_tls_is_refused() {
    let root = Root::new();
    let db = svid(&root, DB);
    let mut roots = RootCertStore::empty();
    roots
        .add(root.trust().roots().unwrap().certificates()[0].clone())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let outcome = handshake(Arc::new(old), db.server_config()).await;
    let server = error(outcome.server);
    assert!(server.contains("peer is incompatible"), "{server}");
    assert!(outcome.client.is_err());
}

#[tokio::test]
async fn replaced_roots_hold_for_the_next_handshake() {
    let (old, new) = (Root::new(), Root::new());
    let trust = old.trust();
    let db = old.svid(&id(DB), &[DB], trust.clone());
    let both = old.pem() + &new.pem();
    let both = || Roots::from_pem(both.as_bytes()).unwrap();
    let web = new.svid(&id(WEB), &[WEB], sluice_identity::Trust::new(both()));
    let client = web.client_config([id(DB)]);
    let server = db.server_config();
    let before = handshake(client.clone(), server.clone()).await;
    assert!(error(before.server).contains("UnknownIssuer"));
    assert!(trust.replace(both()));
    assert!(!trust.replace(both()));
    let after = handshake(client, server).await;
    assert_eq!(after.server.unwrap(), [id(WEB)]);
}

#[test]
fn bad_roots_are_named() {
    let good = Root::new().pem();
    let text = |pem: &str| Roots::from_pem(pem.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        text("not PEM at all"),
        "no certificate among the trust anchors; give at least one in PEM"
    );
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = text(&(good + bad));
    assert!(broken.starts_with("trust anchor 1 (from 0)"), "{broken}");
}
