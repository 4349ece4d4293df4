//! The task that keeps one identity's certificate current.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use sluice_model::SpiffeId;
use tokio::{
    sync::{Notify, SemaphorePermit, watch},
    time::{Instant, sleep, sleep_until},
};

use super::Shared;
use crate::{Error, Roots, Svid, authority::Request};

/// The wait after the first failure: short while there is no certificate, since connections wait.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const FIRST_RENEWAL_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(150);
/// How soon after a failure a new connection may cause another attempt.
const HURRIED_RETRY: Duration = Duration::from_secs(2);
/// Renewal never follows sooner, even if the CA signs for an absurdly short or past time.
const SHORTEST_REST: Duration = Duration::from_millis(500);
/// When the roots have changed, certificates are renewed within this time, and not all at once.
const SPREAD: Duration = Duration::from_secs(60);
/// Up to this part of a certificate's life, renewal comes before half of it: nodes that started
/// together shall not ask together.
const JITTER: f64 = 0.05;

/// Where a keeper leaves the certificate.
pub(super) struct Slot {
    svid: ArcSwapOption<Svid>,
    /// Somebody waits for a certificate.
    pub(super) hurry: Notify,
}

impl Slot {
    pub(super) fn new(svid: Option<Svid>) -> Self {
        Self {
            svid: ArcSwapOption::new(svid.map(Arc::new)),
            hurry: Notify::new(),
        }
    }

    pub(super) fn valid(&self) -> Option<Arc<Svid>> {
        self.latest().filter(|svid| !svid.is_expired())
    }

    pub(super) fn latest(&self) -> Option<Arc<Svid>> {
        self.svid.load_full()
    }
}

/// What those who wait are told after each attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) last_error: Option<Arc<Error>>,
}

/// Runs until the identity is forgotten.
pub(super) async fn keep(
    shared: Arc<Shared>,
    identity: SpiffeId,
    slot: Arc<Slot>,
    progress: watch::Sender<Progress>,
) {
    let mut adopted = slot.latest();
    loop {
        let (svid, age) = match adopted.take() {
            Some(svid) => {
                tracing::info!(%identity, serial = svid.serial(), "certificate taken over");
                let age = until_half_life(&svid, SystemTime::now(), rand::random());
                (svid, age)
            }
            None => {
                let svid = obtain(&shared, &identity, &slot, &progress).await;
                tracing::info!(%identity, serial = svid.serial(), "certificate obtained");
                let age = until_renewal(&svid, SystemTime::now(), rand::random());
                (Arc::new(svid), age)
            }
        };
        let renewal = Instant::now() + age;
        slot.svid.store(Some(svid.clone()));
        progress.send_replace(Progress::default());
        shared.changes.send_modify(|changes| *changes += 1);
        let why = rest(&shared, &svid, renewal).await;
        tracing::debug!(%identity, ?why, "certificate is renewed");
    }
}

/// Why a certificate is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Renewal {
    Age,
    /// Peers will not accept it any more.
    NotVouchedFor,
    /// The CA's roots have changed, so the CA may have as well.
    OtherRoots,
    /// The CA was not heard of for long.
    Silence,
}

/// Rests until the certificate is to be renewed, by its age at `age` at the latest.
async fn rest(shared: &Shared, svid: &Svid, age: Instant) -> Renewal {
    let roots = svid.trust().roots();
    let mut seen = svid.trust().version();
    let mut at = (age, Renewal::Age);
    loop {
        tokio::select! {
            () = sleep_until(at.0) => return at.1,
            () = sleep_until(shared.ask_at()) => {
                // Others may have heard of it since, or go first.
                if shared.ask_at() <= Instant::now() {
                    shared.hear();
                    return Renewal::Silence;
                }
            }
            version = svid.trust().changed(seen) => {
                seen = version;
                let jitter = |spread: Duration| Instant::now() + spread.mul_f64(rand::random());
                let same = |old: &Arc<Roots>, new| Arc::ptr_eq(old, new);
                let now = svid.trust().roots();
                if !svid.is_vouched_for() {
                    at = at.min((jitter(FIRST_RENEWAL_RETRY), Renewal::NotVouchedFor));
                } else if !roots.iter().zip(&now).any(|(old, new)| same(old, new)) {
                    at = at.min((jitter(SPREAD), Renewal::OtherRoots));
                }
            }
        }
    }
}

/// Asks until there is a certificate.
async fn obtain(
    shared: &Shared,
    identity: &SpiffeId,
    slot: &Slot,
    progress: &watch::Sender<Progress>,
) -> Svid {
    let mut retry = match slot.valid() {
        Some(_) => FIRST_RENEWAL_RETRY,
        None => FIRST_RETRY,
    };
    let mut hurried = false;
    loop {
        let turn = match hurried {
            false => turn(shared, slot).await,
            true => None,
        };
        hurried = turn.is_none();
        let attempted = attempt(shared, identity).await;
        drop(turn);
        let error = match attempted {
            Ok(svid) => return svid,
            Err(error) => error,
        };
        tracing::warn!(%identity, %error, retry = ?retry, "no certificate");
        progress.send_replace(Progress {
            last_error: Some(Arc::new(error)),
        });
        // ± 20 %, so that the nodes of a mesh do not ask a CA that came back all at once.
        let wait = retry.mul_f64(0.8 + 0.4 * rand::random::<f64>());
        let failed = Instant::now();
        let hurry = async {
            if !hurried {
                slot.hurry.notified().await;
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = hurry => sleep_until(failed + wait.min(HURRIED_RETRY)).await,
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// Waits for its turn; without one, a connection waits for the certificate, which cannot.
async fn turn<'a>(shared: &'a Shared, slot: &Slot) -> Option<SemaphorePermit<'a>> {
    tokio::select! {
        biased;
        () = slot.hurry.notified() => None,
        turn = shared.turns.acquire() => turn.ok(),
    }
}

async fn attempt(shared: &Shared, identity: &SpiffeId) -> Result<Svid, Error> {
    let request = Request::new(identity)?;
    let answer = shared.ca.sign(&request.pem, identity).await?;
    let svid = request.accept(identity, &answer, &shared.trust)?;
    shared.hear();
    Ok(svid)
}

/// How long to rest after a certificate was taken over, with a random number below 1.
///
/// Not half of what is left: with each process that takes it over, renewal would come later.
fn until_half_life(svid: &Svid, now: SystemTime, random: f64) -> Duration {
    let (begin, end) = (svid.not_before(), svid.not_after());
    let life = end.duration_since(begin).unwrap_or_default();
    let renewal = begin + life.mul_f64(0.5 - JITTER * random);
    let rest = renewal.duration_since(now).unwrap_or_default();
    rest.max(SHORTEST_REST)
}

/// How long to rest, with a random number below 1.
///
/// Half of what is left, not of the whole validity: CAs date certificates back for clocks that are
/// slow, and a short life would have begun with more than half of it behind.
fn until_renewal(svid: &Svid, now: SystemTime, random: f64) -> Duration {
    let left = svid.not_after().duration_since(now).unwrap_or_default();
    left.mul_f64(0.5 - JITTER * random).max(SHORTEST_REST)
}
