use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair,
    PKCS_ECDSA_P384_SHA384, SanType,
};
use rustls::{RootCertStore, pki_types::UnixTime, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sluice_model::SpiffeId;
use x509_parser::extensions::ParsedExtension;

use super::{Authority, Rotation, ServerName, SignError, Source, authority::P256_POINT};
use crate::Error;

fn open(directory: &Path) -> Result<Authority, Error> {
    let source = Source::Own {
        directory: directory.to_owned(),
        rotation: Rotation {
            root_announcement: 3600,
            root_overlap: 3600,
        },
    };
    Authority::open(source, "cluster.local".parse().unwrap())
}

fn web() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn csr_of(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = "spiffe://cluster.local/ns/evil/sa/evil";
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn csr() -> String {
    csr_of(&KeyPair::generate().unwrap())
}

/// A chain for `web`, for as long as there is one.
pub(super) fn sign(authority: &Authority) -> Vec<String> {
    authority.sign(&csr(), &web(), Duration::ZERO).unwrap()
}

/// Whether peers that believe this root accept the leaf.
pub(super) fn leads_to(leaf: &CertificateDer<'_>, root: &str) -> bool {
    leads_through(leaf, &[], root)
}

pub(super) fn leads_through(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    root: &str,
) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(der(root)).unwrap();
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let verified = rustls::client::verify_server_cert_signed_by_trust_anchor(
        &rustls::server::ParsedCertificate::try_from(leaf).unwrap(),
        &roots,
        intermediates,
        UnixTime::now(),
        algorithms.all,
    );
    verified.is_ok()
}

pub(super) fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[test]
fn the_root_is_made_once_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let first = open(&path).unwrap().roots_pem();
    let mode = |name| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca-key.pem"), mode("root-cert.pem")), (0o600, 0o644));
    assert_eq!(
        fs::read_to_string(path.join("root-cert.pem")).unwrap(),
        first
    );
    assert_eq!(open(&path).unwrap().roots_pem(), first);
    assert_eq!(
        fs::read_dir(&path).unwrap().count(),
        2,
        "nothing else is left behind"
    );
    // A crash between the two files: the key is kept.
    fs::remove_file(path.join("root-cert.pem")).unwrap();
    let key = fs::read_to_string(path.join("ca-key.pem")).unwrap();
    assert_ne!(open(&path).unwrap().roots_pem(), first);
    assert_eq!(fs::read_to_string(path.join("ca-key.pem")).unwrap(), key);
}

#[test]
fn a_state_directory_that_does_not_fit_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    open(path).unwrap();
    let key = fs::read(path.join("ca-key.pem")).unwrap();
    let other = KeyPair::generate().unwrap().serialize_pem();
    let attempt = |file: &str, text: &[u8]| {
        fs::write(path.join(file), text).unwrap();
        open(path).unwrap_err().to_string()
    };
    let error = attempt("ca-key.pem", other.as_bytes());
    assert!(
        error.contains("root-cert.pem is not usable: no certificate in it belongs to ca-key.pem"),
        "{error}"
    );
    let error = attempt("ca-key.pem", b"garbage");
    assert!(error.contains("ca-key.pem"), "{error}");
    fs::write(path.join("ca-key.pem"), &key).unwrap();
    let error = attempt("root-cert.pem", b"garbage");
    assert!(error.contains("root-cert.pem"), "{error}");
    open(&path.join("root-cert.pem")).unwrap_err();
    let authority = tempfile::tempdir().unwrap();
    open(authority.path()).unwrap();
    fs::remove_file(authority.path().join("ca-key.pem")).unwrap();
    let error = open(authority.path()).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_certificate_is_what_peers_expect() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let hour = Duration::from_secs(3600);
    let chain = authority.sign(&csr(), &web(), hour).unwrap();
    assert_eq!(chain[1], authority.roots_pem());
    let leaf = der(&chain[0]);
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "the subject is empty");
    let expected = format!("[URI({:?})]", web().to_string());
    assert_eq!(
        format!("{:?}", names.value.general_names),
        expected,
        "not what the CSR asked for"
    );
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.flags.count_ones() == 1);
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth);
    assert!(!leaf.is_ca());
    let authority_key =
        |e: &ParsedExtension<'_>| matches!(e, ParsedExtension::AuthorityKeyIdentifier(_));
    assert!(
        leaf.extensions()
            .iter()
            .any(|e| authority_key(e.parsed_extension()))
    );
}

#[test]
fn a_certificate_is_valid_no_longer_than_a_day() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let lifetime = |seconds| {
        let chain = authority
            .sign(&csr(), &web(), Duration::from_secs(seconds))
            .unwrap();
        let leaf = der(&chain[0]);
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let now = x509_parser::time::ASN1Time::now().timestamp();
        assert!(
            leaf.validity().not_before.timestamp() <= now - 60,
            "clocks differ"
        );
        leaf.validity().not_after.timestamp() - now
    };
    for (asked, granted) in [(10, 10), (3600, 3600), (0, 86400), (10 * 86400, 86400)] {
        let found = lifetime(asked);
        assert!(
            (granted - 5..=granted + 1).contains(&found),
            "{asked}: {found}"
        );
    }
}

#[test]
fn chains_verify_against_the_root() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let leaf = der(&authority.sign(&csr(), &web(), Duration::ZERO).unwrap()[0]);
    let verify = |root: &str| {
        let mut roots = RootCertStore::empty();
        roots.add(der(root)).unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider().into();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        let verifier = verifier.build().unwrap();
        verifier
            .verify_client_cert(&leaf, &[], UnixTime::now())
            .is_ok()
    };
    assert!(verify(&authority.roots_pem()));
    let other = tempfile::tempdir().unwrap();
    assert!(!verify(&open(other.path()).unwrap().roots_pem()));
}

#[test]
fn two_certificates_never_share_a_serial_number() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let request = csr();
    let serial = || {
        let leaf = der(&authority.sign(&request, &web(), Duration::ZERO).unwrap()[0]);
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        leaf.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn csrs_must_prove_a_p256_key() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path()).unwrap();
    let sign = |csr: &str| authority.sign(csr, &web(), Duration::ZERO).unwrap_err();
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(matches!(sign(&csr_of(&p384)), SignError::Key));
    assert!(matches!(sign(""), SignError::Csr(_)));
    assert!(matches!(sign(&authority.roots_pem()), SignError::Csr(_)));
    // Another key in a signed request: the signature no longer fits.
    let (mine, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let pem = csr_of(&mine);
    let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let mut der = parsed.contents.clone();
    let at = der
        .windows(P256_POINT)
        .position(|w| w == mine.public_key_raw())
        .unwrap();
    der[at..at + P256_POINT].copy_from_slice(theirs.public_key_raw());
    let forged = rustls_pki_types::CertificateSigningRequestDer::from(der);
    assert!(CertificateSigningRequestParams::from_der(&forged).is_err());
}

#[test]
fn server_names_are_dns_names_or_addresses() {
    assert_eq!(
        "10.0.0.1".parse::<ServerName>().unwrap(),
        ServerName::Ip([10, 0, 0, 1].into())
    );
    assert_eq!(
        "a.b".parse::<ServerName>().unwrap(),
        ServerName::Dns("a.b".to_owned())
    );
    for bad in ["", "a b", "https://x", "a..b", "é"] {
        assert!(bad.parse::<ServerName>().is_err(), "{bad:?}");
    }
}
