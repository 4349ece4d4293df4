use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::ca::{Authority, Source, authority_tests as common};

fn open(directory: &TempDir, announcement: u64, overlap: u64) -> Result<Authority, Error> {
    let source = Source::Own {
        directory: directory.path().to_owned(),
        rotation: Rotation {
            root_announcement: announcement,
            root_overlap: overlap,
        },
    };
    Authority::open(source, "cluster.local".parse().unwrap())
}

fn names(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

fn owner(directory: &TempDir) -> u32 {
    fs::metadata(directory.path().join(KEY)).unwrap().uid()
}

fn roots(authority: &Authority) -> Vec<String> {
    let roots = material::certificates(&authority.roots_pem()).unwrap();
    roots.into_iter().map(|root| root.pem).collect()
}

/// Whether what the authority signs now leads to a root, for workloads and for the control plane.
fn signed_by(authority: &Authority, root: &str) -> (bool, bool) {
    let chain = common::sign(authority);
    let server = authority.server_certificate(&[]).unwrap();
    let workload = material::certificates(&chain[0]).unwrap().remove(0).der;
    (
        common::leads_to(&workload, root),
        common::leads_to(&server.chain[0], root),
    )
}

#[test]
fn a_root_is_replaced_step_by_step_and_over_restarts() {
    const LONG: u64 = 3600;
    let directory = tempfile::tempdir().unwrap();
    let authority = open(&directory, LONG, LONG).unwrap();
    let [old] = &roots(&authority)[..] else {
        panic!("not one root")
    };
    assert_eq!(signed_by(&authority, old), (true, true));

    // Announced: believed, but not used.
    request_rotation(directory.path()).unwrap();
    let next = fs::metadata(directory.path().join(NEXT_KEY)).unwrap();
    assert_eq!(
        (next.mode() & 0o777, next.uid()),
        (0o600, owner(&directory))
    );
    let twice = request_rotation(directory.path()).unwrap_err().to_string();
    assert!(twice.contains("a rotation is under way"), "{twice}");
    authority.refresh().unwrap();
    let both = roots(&authority);
    assert_eq!((both.len(), &both[0]), (2, old));
    let new = &both[1];
    for authority in [authority, open(&directory, LONG, LONG).unwrap()] {
        authority.refresh().unwrap();
        assert_eq!(roots(&authority), both);
        assert_eq!(signed_by(&authority, old), (true, true));
    }

    // In use: what proves the control plane to whoever has the old root as a file stays.
    for _ in 0..2 {
        let authority = open(&directory, 0, LONG).unwrap();
        authority.refresh().unwrap();
        assert_eq!(roots(&authority), [new.clone(), old.clone()]);
        assert_eq!(signed_by(&authority, new), (true, false));
        assert_eq!(signed_by(&authority, old), (false, true));
    }
    let mode = fs::metadata(directory.path().join(OLD_KEY)).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);

    // Over.
    let authority = open(&directory, LONG, 0).unwrap();
    authority.refresh().unwrap();
    assert_eq!(roots(&authority), std::slice::from_ref(new));
    assert_eq!(signed_by(&authority, new), (true, true));
    assert_eq!(names(&directory), ["ca-key.pem", "root-cert.pem"]);
    request_rotation(directory.path()).unwrap();
}

#[test]
fn changes_are_told_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(&directory, 0, 0).unwrap();
    let mut changes = authority.changes();
    let first = roots(&authority);
    authority.refresh().unwrap();
    assert!(!changes.has_changed().unwrap());
    request_rotation(directory.path()).unwrap();
    authority.refresh().unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    authority.refresh().unwrap();
    assert!(changes.has_changed().unwrap());
    let last = roots(&authority);
    assert!(last.len() == 1 && last != first);
}

#[test]
fn a_crash_in_the_middle_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let first = roots(&open(&directory, 3600, 3600).unwrap());
    // The key of the next one was written, its certificate was not: it is made.
    request_rotation(directory.path()).unwrap();
    let both = roots(&open(&directory, 3600, 3600).unwrap());
    assert_eq!(both.len(), 2);
    // The old key was put aside, the next one was not put in its place: it is now.
    fs::copy(path(KEY), path(OLD_KEY)).unwrap();
    let authority = open(&directory, 3600, 3600).unwrap();
    assert_eq!(signed_by(&authority, &both[1]), (true, false));
    // The old certificate was dropped, its key was not: it goes.
    fs::write(path(ROOTS), &both[1]).unwrap();
    let authority = open(&directory, 3600, 0).unwrap();
    assert_eq!(names(&directory), ["ca-key.pem", "root-cert.pem"]);
    assert_eq!(roots(&authority), both[1..]);
    assert_ne!(roots(&authority), first);
    // The old key was put aside for nothing: no next one is there.
    fs::copy(path(KEY), path(OLD_KEY)).unwrap();
    open(&directory, 3600, 3600).unwrap();
    assert_eq!(names(&directory), ["ca-key.pem", "root-cert.pem"]);
}

#[test]
fn a_root_in_its_last_year_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = (SystemTime::now() + LAST_YEAR / 2).into();
    let root = params.self_signed(&key).unwrap().pem();
    fs::write(directory.path().join(KEY), key.serialize_pem()).unwrap();
    fs::write(directory.path().join(ROOTS), &root).unwrap();
    let authority = open(&directory, 3600, 3600).unwrap();
    assert_eq!(roots(&authority).len(), 2);
    assert_eq!(signed_by(&authority, &root), (true, true));
}

#[test]
fn there_must_be_a_root_to_replace() {
    let directory = tempfile::tempdir().unwrap();
    let error = request_rotation(directory.path()).unwrap_err().to_string();
    assert!(error.contains("there is no root yet"), "{error}");
}
