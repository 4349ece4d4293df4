//! The certificate service.

use rcgen::{CertificateParams, KeyPair, SanType};
use sluice_proto::ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use tonic::Code;

use crate::world::{OTHER_TOKEN, TOKEN, World, authorized, eventually};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn csr(identity: Option<&str>) -> String {
    let mut params = CertificateParams::default();
    let uri = |identity: &str| SanType::URI(identity.try_into().unwrap());
    params.subject_alt_names = identity.map(uri).into_iter().collect();
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn request(identity: &str) -> IstioCertificateRequest {
    let value = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(identity.to_owned())),
    };
    IstioCertificateRequest {
        csr: csr(Some(WEB)),
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

/// The proxy of a single workload asks for nobody but itself, and names itself in the CSR only.
#[tokio::test]
async fn a_csr_may_name_the_identity_itself() {
    let world = World::start().await;
    let mut message = request(WEB);
    message.metadata = None;
    let request = authorized(message, Some(&bearer(TOKEN)));
    let response = world.ca().await.create_certificate(request).await.unwrap();
    let leaf = response.into_inner().cert_chain.remove(0);
    let (_, leaf) = x509_parser::pem::parse_x509_pem(leaf.as_bytes()).unwrap();
    let leaf = leaf.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let expected = format!("[URI({WEB:?})]");
    assert_eq!(format!("{:?}", names.value.general_names), expected);
}

#[tokio::test]
async fn everyone_else_is_refused_without_a_reason() {
    let world = World::start().await;
    let mut ca = world.ca().await;
    let mine = bearer(TOKEN);
    let theirs = bearer(OTHER_TOKEN);
    let unnamed = |csr: String| IstioCertificateRequest {
        csr,
        metadata: None,
        ..request(WEB)
    };
    let stranger = "spiffe://cluster.local/ns/shop/sa/db";
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
        ("no identity", unnamed(csr(None)), Some(&mine)),
        (
            "no such account, in the CSR alone",
            unnamed(csr(Some(stranger))),
            Some(&mine),
        ),
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
