//! Revocation lists: reading them, and what they do to handshakes and to established peers.

use std::{sync::Arc, time::SystemTime};

use sluice_identity::{Distrust, Error, Peer, RevocationLists, Roots, Side, Svid, Trust};

use crate::{
    authority::{Root, id},
    handshake::{error, handshake},
};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

fn svid(root: &Root, identity: &str, trust: &Trust) -> Svid {
    root.svid(&id(identity), &[identity], trust.clone())
}

fn lists(pem: &str) -> RevocationLists {
    RevocationLists::parse(pem.as_bytes()).unwrap()
}

#[test]
fn lists_come_in_pem_or_der_one_or_several() {
    let (a, b) = (Root::new(), Root::new());
    let (one, two) = (a.revoke(&[b"\x01"]), b.revoke(&[b"\x02", b"\x03"]));
    let pem = format!("# by hand\n{}\n{}", one.pem().unwrap(), two.pem().unwrap());
    let der = [&one.der()[..], two.der()].concat();
    for bytes in [pem.as_bytes(), &der] {
        let lists = RevocationLists::parse(bytes).unwrap();
        assert_eq!(lists.revoked(), 3);
        assert!(lists.due().unwrap().at > SystemTime::now());
    }
    let empty = RevocationLists::parse(a.revoke(&[]).der()).unwrap();
    assert_eq!(empty.revoked(), 0);
}

#[test]
fn what_is_no_list_is_named() {
    let good = Root::new().revoke(&[b"\x01"]);
    let bad = |bytes: &[u8]| RevocationLists::parse(bytes).unwrap_err();
    assert!(matches!(bad(b""), Error::NoRevocationLists));
    for text in ["garbage", &Root::new().pem()] {
        let text = bad(text.as_bytes()).to_string();
        assert!(text.starts_with("revocation list 0 (from 0)"), "{text}");
    }
    let cut = &good.der()[..good.der().len() - 1];
    assert!(matches!(
        bad(cut),
        Error::BadRevocationList { index: 0, .. }
    ));
    let second = [&good.der()[..], b"more"].concat();
    assert!(matches!(
        bad(&second),
        Error::BadRevocationList { index: 1, .. }
    ));
    let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let second = good.pem().unwrap() + broken;
    let text = bad(second.as_bytes()).to_string();
    assert!(text.starts_with("revocation list 1 (from 0)"), "{text}");
}

#[tokio::test]
async fn a_revoked_peer_is_refused_by_either_end() {
    let root = Root::new();
    let trust = root.trust();
    let (web, db) = (svid(&root, WEB, &trust), svid(&root, DB, &trust));
    let attempt = || handshake(web.client_config([id(DB)]), db.server_config());
    trust.revoke(lists(&root.revoke(&[]).pem().unwrap()));
    assert!(attempt().await.client.is_ok());

    trust.revoke(lists(&root.revoke_svid(&web)));
    let outcome = attempt().await;
    assert!(sluice_identity::is_revoked(&outcome.server.unwrap_err()));
    let told = error(outcome.client);
    assert!(told.contains("CertificateRevoked"), "{told}");

    trust.revoke(lists(&root.revoke_svid(&db)));
    let outcome = attempt().await;
    assert!(sluice_identity::is_revoked(&outcome.client.unwrap_err()));
    let told = error(outcome.server);
    assert!(told.contains("CertificateRevoked"), "{told}");

    // Once it is off the list.
    trust.revoke(lists(&root.revoke(&[]).pem().unwrap()));
    assert!(attempt().await.client.is_ok());
}

#[tokio::test]
async fn a_revoked_intermediate_takes_its_leaves_along() {
    let root = Root::new();
    let (trust, between) = (root.trust(), root.intermediate());
    let web = between.svid_through(&id(WEB), trust.clone());
    let db = svid(&root, DB, &trust);
    let attempt = || handshake(web.client_config([id(DB)]), db.server_config());
    assert!(attempt().await.server.is_ok());
    trust.revoke(lists(&root.revoke(&[&between.serial()]).pem().unwrap()));
    assert!(sluice_identity::is_revoked(
        &attempt().await.server.unwrap_err()
    ));
    assert!(!web.is_vouched_for() && db.is_vouched_for());
}

/// The old and the new root of a rotation often share a name, and serial numbers may meet.
#[tokio::test]
async fn a_list_counts_for_the_key_that_signed_it_only() {
    let root = Root::new();
    let namesake = root.namesake();
    let trust = root.trust();
    let (web, db) = (svid(&root, WEB, &trust), svid(&root, DB, &trust));
    let attempt = || handshake(web.client_config([id(DB)]), db.server_config());
    let theirs = namesake.revoke_svid(&web);
    trust.revoke(lists(&theirs));
    assert!(attempt().await.server.is_ok());
    let stranger = Root::new().revoke_svid(&web);
    trust.revoke(lists(&stranger));
    assert!(attempt().await.server.is_ok());
    // Theirs does not hide ours.
    trust.revoke(lists(&(theirs + &root.revoke_svid(&web))));
    assert!(attempt().await.server.is_err());
}

#[test]
fn an_established_peer_is_judged_again() {
    let root = Root::new();
    let trust = root.trust();
    let web = svid(&root, WEB, &trust);
    for side in [Side::Client, Side::Server] {
        let peer = Peer::new(side, web.chain(), trust.clone(), trust.version()).unwrap();
        assert_eq!(*peer.identity(), id(WEB));
        assert_eq!(peer.standing(), Ok(()));
        let other = Root::new();
        let both = root.pem() + &other.pem();
        assert!(trust.replace(Roots::from_pem(both.as_bytes()).unwrap()));
        assert_eq!(peer.standing(), Ok(()));
        trust.revoke(lists(&root.revoke_svid(&web)));
        let Err(Distrust::Revoked(who, revoked)) = peer.standing() else {
            panic!("{:?}", peer.standing())
        };
        assert_eq!((who, &*revoked.serial), (id(WEB), web.serial()));
        trust.revoke(RevocationLists::default());
        assert_eq!(peer.standing(), Ok(()));
        assert!(trust.replace(Roots::from_pem(other.pem().as_bytes()).unwrap()));
        assert_eq!(peer.standing(), Err(Distrust::Unvouched(id(WEB))));
        assert!(!web.is_vouched_for());
        assert!(trust.replace(Roots::from_pem(root.pem().as_bytes()).unwrap()));
    }
}

#[tokio::test]
async fn who_waits_for_changes_of_trust_is_told_of_each() {
    let root = Root::new();
    let trust = root.trust();
    let seen = trust.version();
    let same = Roots::from_pem((root.pem() + &root.pem()).as_bytes()).unwrap();
    assert!(!trust.replace(same), "the same roots");
    assert_eq!(trust.version(), seen);
    let waiting = trust.clone();
    let waiting = tokio::spawn(async move { waiting.changed(seen).await });
    trust.revoke(RevocationLists::default());
    assert_ne!(waiting.await.unwrap(), seen);
    let nobody = Trust::default();
    assert!(nobody.roots().is_none());
    let web = Arc::new(svid(&root, WEB, &nobody));
    assert!(!web.is_vouched_for());
}
