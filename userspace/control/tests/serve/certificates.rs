//! The certificate service.

use rcgen::{CertificateParams, KeyPair, SanType};
use sluice_proto::ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use tonic::Code;

use crate::world::{OTHER_TOKEN, TOKEN, World, authorized, eventually};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn csr() -> String {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn request(identity: &str) -> IstioCertificateRequest {
    let value = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(identity.to_owned())),
    };
    IstioCertificateRequest {
        csr: csr(),
        validity_duration: 3600,
        metadata: Some(prost_types::Struct {
            fields: [(IMPERSONATED_IDENTITY.to_owned(), value)].into(),
        }),
    }
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn a_node_gets_certificates_for_its_own_pods() {
    let world = World::start().await;
    let request = authorized(request(WEB), Some(&bearer(TOKEN)));
    let response = world.ca().await.create_certificate(request).await.unwrap();
    let chain = response.into_inner().cert_chain;
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], world.root());
    let (_, leaf) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
    let leaf = leaf.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        format!("{:?}", names.value.general_names),
        format!("[URI({WEB:?})]")
    );
}

#[tokio::test]
async fn everyone_else_is_refused_without_a_reason() {
    let world = World::start().await;
    let mut ca = world.ca().await;
    let mine = bearer(TOKEN);
    let theirs = bearer(OTHER_TOKEN);
    let mut nameless = request(WEB);
    nameless.metadata = None;
    for (what, message, authorization) in [
        ("no token", request(WEB), None),
        ("unknown token", request(WEB), Some("Bearer x")),
        ("another node", request(WEB), Some(theirs.as_str())),
        (
            "no such account",
            request("spiffe://cluster.local/ns/shop/sa/db"),
            Some(&mine),
        ),
        (
            "another namespace",
            request("spiffe://cluster.local/ns/x/sa/web"),
            Some(&mine),
        ),
        (
            "foreign trust domain",
            request("spiffe://evil/ns/shop/sa/web"),
            Some(&mine),
        ),
        (
            "not an identity",
            request("spiffe://cluster.local/web"),
            Some(&mine),
        ),
        ("no identity", nameless, Some(&mine)),
    ] {
        let refused = ca
            .create_certificate(authorized(message, authorization))
            .await;
        let status = refused.err().unwrap_or_else(|| panic!("{what}: issued"));
        assert_eq!(status.code(), Code::Unauthenticated, "{what}");
        assert_eq!(status.message(), "authentication failure", "{what}");
    }
}

#[tokio::test]
async fn a_broken_csr_is_the_callers_fault() {
    let world = World::start().await;
    let mut message = request(WEB);
    message.csr = "garbage".to_owned();
    let request = authorized(message, Some("Bearer token-of-n1"));
    let refused = world
        .ca()
        .await
        .create_certificate(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_pod_that_leaves_takes_its_identity_along() {
    let world = World::start().await;
    world.remove("web.yaml");
    let published = world.published.clone();
    let identity = WEB.parse().unwrap();
    eventually("gone", || !published.borrow().runs_on("n1", &identity)).await;
    let request = authorized(request(WEB), Some("Bearer token-of-n1"));
    let refused = world
        .ca()
        .await
        .create_certificate(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
