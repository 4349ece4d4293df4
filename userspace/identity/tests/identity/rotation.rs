//! The life of a certificate, from the first request on.

use std::{sync::Arc, time::Duration};

use sluice_identity::{CertificateState, Config, Error, Manager, RevocationLists, Svid};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};

use crate::authority::{Root, TestCa, id};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(5);

fn web() -> sluice_model::SpiffeId {
    id("spiffe://cluster.local/ns/shop/sa/web")
}

/// A manager that renews for no other reason than age.
fn manager(ca: &TestCa) -> Manager {
    let config = Config {
        ask_at_least: 1000 * DAY,
        ..Config::default()
    };
    Manager::new(ca.clone(), config, Handle::current())
}

/// Looks, every `step`, for something that another task does.
async fn eventually(step: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            sleep(step).await;
        }
    };
    timeout(Duration::from_secs(60 * 3600), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// With the clock paused, tokio passes the time whenever all tasks sleep.
#[tokio::test(start_paused = true)]
async fn askers_share_one_request() {
    let ca = TestCa::signing(DAY);
    let manager = manager(&ca);
    assert!(manager.cached(&web()).is_none());
    let identity = web();
    let (a, b) = tokio::join!(
        manager.certificate(&identity, PATIENCE),
        manager.certificate(&identity, PATIENCE)
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.serial(), b.serial());
    assert_eq!(ca.requests(), 1);
    assert_eq!(*a.identity(), web());
    assert_eq!(manager.cached(&web()).unwrap().serial(), a.serial());
    let [status] = &manager.status()[..] else {
        panic!("{manager:?}")
    };
    assert_eq!(status.state, CertificateState::Valid);
    assert_eq!(status.serial.as_deref(), Some(a.serial()));
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_half_life() {
    let ca = TestCa::signing(DAY);
    let manager = manager(&ca);
    let first = manager.certificate(&web(), PATIENCE).await.unwrap();
    let start = Instant::now();
    eventually(MINUTE, "renewal", || ca.requests() == 2).await;
    let age = start.elapsed();
    assert!(
        (DAY * 9 / 20..=DAY / 2).contains(&age),
        "renewed after {age:?}"
    );
    eventually(MINUTE, "another certificate", || {
        manager
            .cached(&web())
            .is_some_and(|svid| svid.serial() != first.serial())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn while_the_ca_fails_the_old_certificate_stays() {
    let ca = TestCa::signing(DAY);
    let manager = manager(&ca);
    let first = manager.certificate(&web(), PATIENCE).await.unwrap();
    ca.fail();
    eventually(MINUTE, "attempts to renew", || ca.requests() >= 12).await;
    let now = manager.certificate(&web(), PATIENCE).await.unwrap();
    assert_eq!(now.serial(), first.serial());
    let status = manager.status().remove(0);
    assert_eq!(status.state, CertificateState::Valid);
    assert!(status.last_error.unwrap().contains("the CA is on holiday"));

    // Attempts grow rare, and the first success is taken.
    let (start, before) = (Instant::now(), ca.requests());
    eventually(MINUTE, "ten more attempts", || ca.requests() >= before + 10).await;
    assert!(
        start.elapsed() > 9 * Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
    ca.answer(|root, request| Ok(root.sign(request, DAY)));
    eventually(MINUTE, "renewal", || {
        manager.status()[0].last_error.is_none()
    })
    .await;
    assert_ne!(manager.cached(&web()).unwrap().serial(), first.serial());
}

/// On the real clock, since certificates expire by that one, in whole seconds.
#[tokio::test]
async fn an_expired_certificate_is_not_handed_out() {
    let ca = TestCa::signing(Duration::from_secs(2));
    let manager = manager(&ca);
    manager.certificate(&web(), PATIENCE).await.unwrap();
    ca.fail();
    eventually(Duration::from_millis(20), "expiry", || {
        manager.cached(&web()).is_none()
    })
    .await;
    assert_eq!(manager.status()[0].state, CertificateState::Expired);
    let refused = manager.certificate(&web(), Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(Error::NoCertificate { .. })));
    ca.answer(|root, request| Ok(root.sign(request, DAY)));
    // The connection that waits hurries the next attempt.
    manager.certificate(&web(), PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_is_told_why() {
    let ca = TestCa::signing(DAY);
    ca.fail();
    let manager = manager(&ca);
    let start = Instant::now();
    let error = manager.certificate(&web(), PATIENCE).await.unwrap_err();
    assert_eq!(start.elapsed(), PATIENCE);
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("no certificate for {} after 5s: ", web())),
        "{text}"
    );
    assert!(text.contains("the CA is on holiday"), "{text}");
    assert_eq!(manager.status()[0].state, CertificateState::Requested);
    // Quick at first: more than one attempt in the first second.
    assert!((4..12).contains(&ca.requests()), "{}", ca.requests());
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_recovers_serves_who_still_waits() {
    let ca = TestCa::signing(DAY);
    ca.fail();
    let manager = manager(&ca);
    let recovery = async {
        sleep(Duration::from_millis(120)).await;
        ca.answer(|root, request| Ok(root.sign(request, DAY)));
    };
    let start = Instant::now();
    let identity = web();
    let (svid, ()) = tokio::join!(manager.certificate(&identity, PATIENCE), recovery);
    assert!(svid.is_ok());
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_not_renewed() {
    let ca = TestCa::signing(DAY);
    let manager = manager(&ca);
    manager.certificate(&web(), PATIENCE).await.unwrap();
    manager.forget(&web());
    assert!(manager.cached(&web()).is_none());
    assert_eq!(manager.status(), []);
    sleep(3 * DAY).await;
    assert_eq!(ca.requests(), 1);

    ca.fail();
    let identity = web();
    let waiting = manager.certificate(&identity, PATIENCE);
    let forget = async {
        sleep(Duration::from_secs(1)).await;
        manager.forget(&web());
    };
    let (outcome, ()) = tokio::join!(waiting, forget);
    assert!(matches!(outcome, Err(Error::Forgotten(_))), "{outcome:?}");
}

/// Hands everything over to a new manager.
fn successor(of: &Manager, ca: &TestCa) -> Manager {
    let successor = manager(ca);
    for parts in of.export() {
        successor.adopt(parts).unwrap();
    }
    successor
}

#[tokio::test(start_paused = true)]
async fn a_successor_goes_on_with_the_same_certificates() {
    let ca = TestCa::signing(DAY);
    let manager = manager(&ca);
    let mut changes = manager.changes();
    let first = manager.certificate(&web(), PATIENCE).await.unwrap();
    assert!(changes.has_changed().unwrap());
    changes.borrow_and_update();
    ca.fail();
    let second = successor(&manager, &ca);
    assert_eq!(second.status(), [], "nobody has asked for it yet");
    let svid = second.certificate(&web(), PATIENCE).await.unwrap();
    assert_eq!(svid.serial(), first.serial());
    let roots = |svid: &Svid| svid.trust().roots().unwrap().certificates().to_vec();
    assert_eq!(roots(&svid), roots(&first));
    assert_eq!(ca.requests(), 1, "the CA was not asked");
    assert_eq!(second.export().len(), 1, "and hands it on in turn");

    manager.forget(&web());
    assert!(changes.has_changed().unwrap());
    assert!(manager.export().is_empty(), "its key is handed on no more");
    assert!(successor(&manager, &ca).cached(&web()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_was_taken_over_is_renewed_when_it_would_have_been() {
    let ca = TestCa::signing(DAY);
    // Two fifths of its life are over when it is taken over.
    ca.answer(|root, request| Ok(root.sign_late(request, DAY * 2 / 5, DAY * 3 / 5)));
    let first = manager(&ca);
    first.certificate(&web(), PATIENCE).await.unwrap();
    let second = successor(&first, &ca);
    drop(first);
    let start = Instant::now();
    second.prefetch(&web());
    eventually(MINUTE, "renewal", || ca.requests() == 2).await;
    let rest = start.elapsed();
    assert!(
        (DAY / 25..=DAY / 10).contains(&rest),
        "renewed after {rest:?} more"
    );
}

/// On the real clock, since certificates expire by that one, in whole seconds.
#[tokio::test]
async fn what_has_expired_meanwhile_is_not_taken_over() {
    let ca = TestCa::signing(Duration::from_secs(2));
    let first = manager(&ca);
    first.certificate(&web(), PATIENCE).await.unwrap();
    ca.fail();
    let parts = first.export();
    eventually(Duration::from_millis(20), "expiry", || {
        first.cached(&web()).is_none()
    })
    .await;
    assert!(first.export().is_empty());
    let second = manager(&ca);
    for parts in parts {
        second.adopt(parts).unwrap();
    }
    second.prefetch(&web());
    assert_eq!(second.status()[0].state, CertificateState::Requested);
}

fn other() -> sluice_model::SpiffeId {
    id("spiffe://cluster.local/ns/shop/sa/other")
}

#[tokio::test(start_paused = true)]
async fn roots_that_have_changed_hold_for_all_and_renew_all_soon() {
    let ca = TestCa::signing(DAY);
    let manager = manager(&ca);
    let first = manager.certificate(&web(), PATIENCE).await.unwrap();
    let new = Arc::new(Root::new());
    let overlap = new.clone();
    ca.answer(move |root, request| {
        let mut chain = root.sign(request, DAY);
        chain[1] += &overlap.pem();
        Ok(chain)
    });
    // Somebody else's answer brings them.
    manager.certificate(&other(), PATIENCE).await.unwrap();
    assert_eq!(first.trust().roots().unwrap().certificates().len(), 2);
    let begin = Instant::now();
    eventually(Duration::from_secs(1), "renewal", || {
        manager.cached(&web()).unwrap().serial() != first.serial()
    })
    .await;
    assert!(
        begin.elapsed() <= Duration::from_secs(62),
        "{:?}",
        begin.elapsed()
    );
    // And nobody is renewed for it again.
    sleep(DAY / 4).await;
    assert_eq!(ca.requests(), 3);

    // A CA that was replaced without an overlap: what nobody accepts any more is renewed at once.
    let second = manager.cached(&web()).unwrap();
    ca.answer(move |_, request| Ok(new.sign(request, DAY)));
    manager
        .certificate(&id("spiffe://cluster.local/ns/a/sa/b"), PATIENCE)
        .await
        .unwrap();
    assert!(!second.is_vouched_for());
    let begin = Instant::now();
    eventually(Duration::from_millis(50), "renewal", || {
        manager.cached(&web()).unwrap().is_vouched_for()
    })
    .await;
    assert!(
        begin.elapsed() < Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_was_silent_is_asked_for_its_roots() {
    let ca = TestCa::signing(DAY);
    let manager = Manager::new(ca.clone(), Config::default(), Handle::current());
    for identity in [web(), other()] {
        manager.certificate(&identity, PATIENCE).await.unwrap();
    }
    // One of them asks for both.
    for asked in 3..6 {
        sleep(16 * MINUTE).await;
        assert_eq!(ca.requests(), asked);
    }
    // While it fails, it is not asked more often for that.
    ca.fail();
    sleep(16 * MINUTE).await;
    assert!(ca.requests() > 6);
    assert!(manager.cached(&web()).is_some() && manager.cached(&other()).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_own_certificate_is_replaced_when_it_is_revoked() {
    let ca = TestCa::signing(DAY);
    let manager = manager(&ca);
    let first = manager.certificate(&web(), PATIENCE).await.unwrap();
    let unaffected = manager.certificate(&other(), PATIENCE).await.unwrap();
    let list = ca.root().revoke_svid(&first);
    manager
        .trust()
        .revoke(RevocationLists::parse(list.as_bytes()).unwrap());
    eventually(Duration::from_millis(50), "another certificate", || {
        manager.cached(&web()).unwrap().serial() != first.serial()
    })
    .await;
    sleep(5 * MINUTE).await;
    let now = manager.cached(&other()).unwrap();
    assert_eq!(now.serial(), unaffected.serial());
    assert_eq!(ca.requests(), 3);
}

/// Many pods appear at once, and the CA is slow: whoever has a connection waiting goes first.
#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_goes_first() {
    const SLOW: Duration = Duration::from_secs(1);
    let ca = TestCa::signing(DAY);
    ca.slow_down(SLOW);
    let config = Config {
        unhurried: 2,
        ..Config::default()
    };
    let manager = Manager::new(ca.clone(), config, Handle::current());
    let many = |i: usize| id(&format!("spiffe://cluster.local/ns/shop/sa/s{i}"));
    for i in 0..40 {
        manager.prefetch(&many(i));
    }
    sleep(SLOW / 2).await;
    assert_eq!(ca.requests(), 2);
    let begin = Instant::now();
    manager.certificate(&many(39), PATIENCE).await.unwrap();
    assert!(begin.elapsed() < 2 * SLOW, "{:?}", begin.elapsed());
    let there = (0..40).filter(|i| manager.cached(&many(*i)).is_some());
    assert!(there.count() < 8);
    sleep(20 * SLOW).await;
    assert!((0..40).all(|i| manager.cached(&many(i)).is_some()));
    assert_eq!(ca.requests(), 40);
}

/// The error with which an answer of the CA is refused.
async fn refusal(
    answer: impl Fn(&Root, &str) -> Result<Vec<String>, Error> + Send + Sync + 'static,
) -> String {
    let ca = TestCa::signing(DAY);
    ca.answer(answer);
    let manager = manager(&ca);
    let outcome = manager.certificate(&web(), Duration::from_secs(1)).await;
    outcome.unwrap_err().to_string()
}

#[tokio::test(start_paused = true)]
async fn a_wrong_certificate_is_refused() {
    let other_identity = refusal(|root, _| {
        let (certificate, _) = root.issue(&["spiffe://cluster.local/ns/a/sa/b"]);
        Ok(vec![certificate.pem(), root.pem()])
    })
    .await;
    assert!(
        other_identity.contains("another identity: [spiffe://cluster.local/ns/a/sa/b]"),
        "{other_identity}"
    );
    let other_key = refusal(|root, _| {
        let (certificate, _) = root.issue(&[&web().to_string()]);
        Ok(vec![certificate.pem(), root.pem()])
    })
    .await;
    assert!(other_key.contains("another key"), "{other_key}");
    let other_root = refusal(|root, request| {
        let mut chain = root.sign(request, DAY);
        chain[1] = Root::new().pem();
        Ok(chain)
    })
    .await;
    assert!(other_root.contains("do not vouch"), "{other_root}");
    let no_roots = refusal(|root, request| Ok(root.sign(request, DAY)[..1].to_vec())).await;
    assert!(no_roots.contains("without roots"), "{no_roots}");
    let expired = refusal(|root, request| Ok(root.sign(request, Duration::ZERO))).await;
    assert!(expired.contains("expired"), "{expired}");
    let empty = refusal(|_, _| Ok(Vec::new())).await;
    assert!(empty.contains("no certificate"), "{empty}");
}
