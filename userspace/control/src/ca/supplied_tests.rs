use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

use super::*;
use crate::ca::{Authority, authority_tests as common};

const DAY: Duration = Duration::from_secs(24 * 3600);

type Ca = CertifiedIssuer<'static, KeyPair>;

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + 100 * DAY).into();
    params
}

fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(params(name), KeyPair::generate().unwrap()).unwrap()
}

fn intermediate(name: &str, issuer: &Ca) -> Ca {
    signed(params(name), issuer)
}

fn signed(params: CertificateParams, issuer: &Ca) -> Ca {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), issuer).unwrap()
}

/// A directory with these files.
fn directory(files: &[(&str, String)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, files);
    directory
}

fn write(directory: &TempDir, files: &[(&str, String)]) {
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
}

fn open(directory: &TempDir) -> Result<Authority, Error> {
    let source = crate::ca::Source::Supplied(directory.path().to_owned());
    Authority::open(source, "cluster.local".parse().unwrap())
}

/// As Istio lays it out: the chain repeats the signer and ends with the root.
fn layout(signer: &Ca, between: &[&Ca], root: &Ca) -> Vec<(&'static str, String)> {
    let between: String = between.iter().map(|ca| ca.pem()).collect();
    vec![
        (KEY, signer.key().serialize_pem()),
        (SIGNER, signer.pem()),
        (CHAIN, signer.pem() + &between + &root.pem()),
        (ROOTS, root.pem()),
    ]
}

#[test]
fn answers_carry_the_leaf_then_intermediates_then_roots() {
    let (root, other) = (root("root"), self::root("other"));
    let upper = intermediate("upper", &root);
    let signer = intermediate("signer", &upper);
    let mut files = layout(&signer, &[&upper], &root);
    files[3].1 += &other.pem();
    let authority = open(&directory(&files)).unwrap();
    let chain = common::sign(&authority);
    let expected = [signer.pem(), upper.pem(), root.pem() + &other.pem()];
    let normal = |text: &str| text.replace('\r', "");
    assert_eq!(chain.len(), 4);
    for (found, expected) in chain[1..].iter().zip(&expected) {
        assert_eq!(normal(found), normal(expected));
    }
    assert!(common::leads_through(
        &common::der(&chain[0]),
        &[common::der(&chain[1]), common::der(&chain[2])],
        &root.pem()
    ));
    let server = authority.server_certificate(&[]).unwrap();
    assert_eq!(server.chain.len(), 3);
}

#[test]
fn a_root_may_sign_by_itself() {
    let root = root("root");
    let key = root.key().serialize_pem();
    let old = self::root("old").pem();
    let files = [(KEY, key), (ROOTS, old + &root.pem())];
    let chain = common::sign(&open(&directory(&files)).unwrap());
    assert_eq!(chain.len(), 2);
    assert!(common::leads_to(&common::der(&chain[0]), &root.pem()));
}

#[test]
fn a_leaf_never_outlives_what_signs_it() {
    let soon = |name: &str| {
        let mut params = params(name);
        params.not_after = (SystemTime::now() + Duration::from_secs(600)).into();
        params
    };
    let long = root("long");
    let short = CertifiedIssuer::self_signed(soon("short"), KeyPair::generate().unwrap()).unwrap();
    for (signer, root) in [
        (signed(soon("a"), &long), &long),
        (intermediate("b", &short), &short),
    ] {
        let chain = common::sign(&open(&directory(&layout(&signer, &[], root))).unwrap());
        let leaf = common::der(&chain[0]);
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
        let left = leaf.validity().time_to_expiration().unwrap();
        assert!(left <= Duration::from_secs(600), "{left:?}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_file() {
    let root = root("root");
    let signer = intermediate("signer", &root);
    let good = layout(&signer, &[], &root);
    let with = |file: &'static str, text: String| {
        let mut files = good.clone();
        files.iter_mut().find(|f| f.0 == file).unwrap().1 = text;
        files
    };
    let without = |file: &str| {
        let files = good.iter().filter(|f| f.0 != file).cloned();
        files.collect::<Vec<_>>()
    };
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = params("changed");
        change(&mut params);
        let signer = signed(params, &root);
        layout(&signer, &[], &root)
    };
    let upper = intermediate("upper", &root);
    let deep = intermediate("deep", &upper);
    for (files, file, why) in [
        (without(KEY), KEY, "it is missing"),
        (without(ROOTS), ROOTS, "it is missing"),
        (without(SIGNER), ROOTS, "no certificate in it belongs to"),
        (with(KEY, "garbage".into()), KEY, "no private key"),
        (
            with(KEY, root.key().serialize_pem()),
            SIGNER,
            "does not belong",
        ),
        (with(SIGNER, String::new()), SIGNER, "holds no certificate"),
        (with(ROOTS, "garbage".into()), ROOTS, "holds no certificate"),
        (
            with(ROOTS, self::root("other").pem()),
            CHAIN,
            "does not lead to a root: the certificate of CN=root is missing",
        ),
        (
            layout(&deep, &[], &root),
            SIGNER,
            "the certificate of CN=upper is missing",
        ),
        (
            changed(|params| params.is_ca = IsCa::NoCa),
            SIGNER,
            "is not the certificate of an authority",
        ),
        (
            changed(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
            SIGNER,
            "is not the certificate of an authority",
        ),
        (
            changed(|params| params.not_after = (SystemTime::now() - DAY / 2).into()),
            SIGNER,
            "has expired on",
        ),
        (
            changed(|params| params.not_before = (SystemTime::now() + DAY).into()),
            SIGNER,
            "is not valid yet",
        ),
    ] {
        let directory = directory(&files);
        let error = open(&directory).unwrap_err().to_string();
        let path = directory.path().join(file).display().to_string();
        assert!(error.contains(&path), "{error}, and not {path}");
        assert!(error.contains(why), "{error}, and not {why}");
    }
}

#[test]
fn changed_files_count_at_once_and_broken_ones_do_not() {
    let (first, second) = (root("first"), root("second"));
    let directory = directory(&layout(&intermediate("a", &first), &[], &first));
    let authority = open(&directory).unwrap();
    let signer = intermediate("b", &second);
    let [key, certificate, chain, _] = &layout(&signer, &[], &second)[..] else {
        unreachable!("four files")
    };
    // The roots first, then the rest: as an operator does, file by file.
    write(&directory, &[(ROOTS, first.pem() + &second.pem())]);
    authority.refresh().unwrap();
    assert_eq!(common::sign(&authority)[2].matches("BEGIN").count(), 2);
    write(&directory, std::slice::from_ref(key));
    let error = authority.refresh().unwrap_err().to_string();
    assert!(error.contains("does not belong to ca-key.pem"), "{error}");
    let before = common::sign(&authority);
    let through = |chain: &[String], root: &Ca| {
        common::leads_through(
            &common::der(&chain[0]),
            &[common::der(&chain[1])],
            &root.pem(),
        )
    };
    assert!(through(&before, &first) && !through(&before, &second));
    write(&directory, &[certificate.clone(), chain.clone()]);
    authority.refresh().unwrap();
    let after = common::sign(&authority);
    assert!(through(&after, &second) && !through(&after, &first));
}
