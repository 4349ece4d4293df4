//! The life of a certificate, from the first request on.

use std::time::Duration;

use sluice_identity::{CertificateState, Error, Manager};
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
    let manager = Manager::new(ca.clone(), Handle::current());
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
    let manager = Manager::new(ca.clone(), Handle::current());
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
    let manager = Manager::new(ca.clone(), Handle::current());
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
    let manager = Manager::new(ca.clone(), Handle::current());
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
    let manager = Manager::new(ca.clone(), Handle::current());
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
    let manager = Manager::new(ca.clone(), Handle::current());
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
    let manager = Manager::new(ca.clone(), Handle::current());
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
    let manager = Manager::new(ca.clone(), Handle::current());
    for parts in of.export() {
        manager.adopt(parts).unwrap();
    }
    manager
}

#[tokio::test(start_paused = true)]
async fn a_successor_goes_on_with_the_same_certificates() {
    let ca = TestCa::signing(DAY);
    let manager = Manager::new(ca.clone(), Handle::current());
    let mut changes = manager.changes();
    let first = manager.certificate(&web(), PATIENCE).await.unwrap();
    assert!(changes.has_changed().unwrap());
    changes.borrow_and_update();
    ca.fail();
    let second = successor(&manager, &ca);
    assert_eq!(second.status(), [], "nobody has asked for it yet");
    let svid = second.certificate(&web(), PATIENCE).await.unwrap();
    assert_eq!(svid.serial(), first.serial());
    assert_eq!(svid.roots().certificates(), first.roots().certificates());
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
    let manager = Manager::new(ca.clone(), Handle::current());
    manager.certificate(&web(), PATIENCE).await.unwrap();
    let second = successor(&manager, &ca);
    drop(manager);
    let start = Instant::now();
    second.prefetch(&web());
    eventually(MINUTE, "renewal", || ca.requests() == 2).await;
    let age = start.elapsed();
    assert!(
        (DAY * 2 / 5..=DAY / 2).contains(&age),
        "renewed after {age:?}"
    );
}

/// On the real clock, since certificates expire by that one, in whole seconds.
#[tokio::test]
async fn what_has_expired_meanwhile_is_not_taken_over() {
    let ca = TestCa::signing(Duration::from_secs(2));
    let manager = Manager::new(ca.clone(), Handle::current());
    manager.certificate(&web(), PATIENCE).await.unwrap();
    ca.fail();
    let parts = manager.export();
    eventually(Duration::from_millis(20), "expiry", || {
        manager.cached(&web()).is_none()
    })
    .await;
    assert!(manager.export().is_empty());
    let second = Manager::new(ca.clone(), Handle::current());
    for parts in parts {
        second.adopt(parts).unwrap();
    }
    second.prefetch(&web());
    assert_eq!(second.status()[0].state, CertificateState::Requested);
}

/// The error with which an answer of the CA is refused.
async fn refusal(
    answer: impl Fn(&Root, &str) -> Result<Vec<String>, Error> + Send + Sync + 'static,
) -> String {
    let ca = TestCa::signing(DAY);
    ca.answer(answer);
    let manager = Manager::new(ca, Handle::current());
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
