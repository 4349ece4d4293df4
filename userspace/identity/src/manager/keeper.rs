//! The task that keeps one identity's certificate current.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use sluice_model::SpiffeId;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use super::Shared;
use crate::{Error, Svid, authority::Request};

/// The wait after the first failure: short while there is no certificate, since connections wait.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const FIRST_RENEWAL_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(150);
/// How soon after a failure a new connection may cause another attempt.
const HURRIED_RETRY: Duration = Duration::from_secs(2);
/// Renewal never follows sooner, even if the CA signs for an absurdly short or past time.
const SHORTEST_REST: Duration = Duration::from_millis(500);
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
        let (svid, rest) = match adopted.take() {
            Some(svid) => {
                tracing::info!(%identity, serial = svid.serial(), "certificate taken over");
                let rest = until_half_life(&svid, SystemTime::now(), rand::random());
                (svid, rest)
            }
            None => {
                let svid = obtain(&shared, &identity, &slot, &progress).await;
                tracing::info!(%identity, serial = svid.serial(), "certificate obtained");
                let rest = until_renewal(&svid, SystemTime::now(), rand::random());
                (Arc::new(svid), rest)
            }
        };
        slot.svid.store(Some(svid));
        progress.send_replace(Progress::default());
        shared.changes.send_modify(|changes| *changes += 1);
        sleep(rest).await;
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
    loop {
        let error = match attempt(shared, identity).await {
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
        tokio::select! {
            () = sleep(wait) => {}
            () = slot.hurry.notified() => sleep_until(failed + wait.min(HURRIED_RETRY)).await,
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
}

async fn attempt(shared: &Shared, identity: &SpiffeId) -> Result<Svid, Error> {
    let request = Request::new(identity)?;
    let answer = shared.ca.sign(&request.pem, identity).await?;
    request.accept(identity, &answer, |roots| shared.trust(roots))
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
