//! The certificate service.

use rcgen::{CertificateParams, KeyPair, SanType};
use sluice_proto::ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest};
use tonic::Code;

use crate::{
    log::Log,
    world::{TOKEN, World, authorized, eventually},
};

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

pub(crate) fn csr(identity: Option<&str>) -> String {
    let mut params = CertificateParams::default();
    let uri = |identity: &str| SanType::URI(identity.try_into().unwrap());
    params.subject_alt_names = identity.map(uri).into_iter().collect();
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

pub(crate) fn request(identity: &str) -> IstioCertificateRequest {
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

/// A node that still has the trust domain from which the mesh is on its way.
#[tokio::test]
async fn a_node_gets_certificates_of_an_alias_as_long_as_there_is_one() {
    let world = World::start().await;
    let old = "spiffe://old.example/ns/shop/sa/web";
    let ask = async || {
        let request = authorized(request(old), Some(&bearer(TOKEN)));
        world.ca().await.create_certificate(request).await
    };
    assert_eq!(ask().await.unwrap_err().code(), Code::Unauthenticated);
    world.write(
        "mesh.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
         data: {mesh: 'trustDomainAliases: [old.example]'}\n",
    );
    let (published, domain) = (world.published.clone(), "old.example".parse().unwrap());
    eventually("published", || published.borrow().is_alias(&domain)).await;
    let chain = ask().await.unwrap().into_inner().cert_chain;
    let (_, leaf) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
    let leaf = leaf.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let expected = format!("[URI({old:?})]");
    assert_eq!(format!("{:?}", names.value.general_names), expected);
    world.remove("mesh.yaml");
    eventually("gone", || !published.borrow().is_alias(&domain)).await;
    assert_eq!(ask().await.unwrap_err().code(), Code::Unauthenticated);
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

/// What is refused, with what comes to the log and to nobody else.
struct Abuse {
    what: &'static str,
    message: IstioCertificateRequest,
    authorization: Option<&'static str>,
    logged: &'static str,
}

fn abuses() -> Vec<Abuse> {
    const MINE: Option<&str> = Some("Bearer token-of-n1");
    let abuse = |what, message, authorization, logged| Abuse {
        what,
        message,
        authorization,
        logged,
    };
    let by_token = |what, authorization, logged| abuse(what, request(WEB), authorization, logged);
    let by_identity = |what, identity, logged| abuse(what, request(identity), MINE, logged);
    let by_csr = |what, csr, logged| {
        let message = IstioCertificateRequest {
            csr,
            metadata: None,
            ..request(WEB)
        };
        abuse(what, message, MINE, logged)
    };
    let no_pod = "certificate for node n1: no pod with spiffe://cluster.local/ns/shop/sa/db runs";
    vec![
        by_token("no token", None, "it sent no authorization header"),
        by_token("empty", Some(""), "holds no bearer token"),
        by_token("no credentials", Some("Bearer "), "holds no bearer token"),
        by_token("malformed", Some("token-of-n1"), "holds no bearer token"),
        by_token(
            "another scheme",
            Some("Basic token-of-n1"),
            "no bearer token",
        ),
        by_token("unknown", Some("Bearer x"), "its token is not a join token"),
        by_token("a part", Some("Bearer token-of-n"), "is not a join token"),
        by_token("a node's name", Some("Bearer n1"), "is not a join token"),
        by_token(
            "expired",
            Some("Bearer token-of-old"),
            "its join token, of node n1, expired at 2020-01-01T00:00:00Z",
        ),
        by_token("a comment", Some("Bearer # nodes"), "is not a join token"),
        by_token(
            "a pod of another node",
            Some("Bearer token-of-n2"),
            "certificate for node n2: no pod with spiffe://cluster.local/ns/shop/sa/web runs there",
        ),
        by_identity(
            "no such account",
            "spiffe://cluster.local/ns/shop/sa/db",
            no_pod,
        ),
        by_identity(
            "another namespace",
            "spiffe://cluster.local/ns/x/sa/web",
            "no pod with spiffe://cluster.local/ns/x/sa/web runs there",
        ),
        by_identity(
            "another trust domain",
            "spiffe://evil/ns/shop/sa/web",
            "spiffe://evil/ns/shop/sa/web is not of the trust domain cluster.local",
        ),
        by_identity(
            "not an identity",
            "spiffe://cluster.local/web",
            "for node n1: ",
        ),
        by_identity("no identity at all", "", "certificate for node n1: "),
        by_csr("nobody", csr(None), "nor the CSR names an identity"),
        by_csr(
            "no such account, in the CSR alone",
            csr(Some("spiffe://cluster.local/ns/shop/sa/db")),
            no_pod,
        ),
        by_csr("no CSR", String::new(), "nor the CSR names an identity"),
    ]
}

/// The caller learns nothing; the operator, who it was and why; and nobody, a token.
#[tokio::test]
async fn everyone_else_is_refused_without_a_reason() {
    let world = World::start().await;
    let mut ca = world.ca().await;
    let log = Log::begin();
    for abuse in abuses() {
        let Abuse { what, logged, .. } = abuse;
        let request = authorized(abuse.message, abuse.authorization);
        let refused = ca.create_certificate(request).await;
        let status = refused.err().unwrap_or_else(|| panic!("{what}: issued"));
        assert_eq!(status.code(), Code::Unauthenticated, "{what}");
        assert_eq!(status.message(), "authentication failure", "{what}");
        assert!(status.details().is_empty(), "{what}");
        let line = log.refusal(what);
        assert!(line.contains("peer=\"127.0.0.1:"), "{line}");
        assert!(line.contains(logged), "{what}: {line}");
    }
    // Whoever was refused is not held against those who share the connection.
    let good = authorized(request(WEB), Some("Bearer token-of-n1"));
    ca.create_certificate(good).await.unwrap();
    let told = log.take();
    assert!(
        told.contains("certificate issued") && told.contains("node=n1"),
        "{told}"
    );
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
