//! Keeps a valid certificate for each identity in use.

mod keeper;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use sluice_model::SpiffeId;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::{Instant, timeout},
};

use crate::{CertificateAuthority, Description, Error, Roots, Svid, SvidParts, Trust, describe};
use keeper::{Progress, Slot};

/// Hands out certificates, and has them renewed at half their life, or earlier when the CA's roots
/// have changed. Clones are handles to the same.
///
/// A key is made when an identity is first asked for, and a new one with each renewal. While the CA
/// fails, the certificate at hand is kept until it expires.
#[derive(Clone)]
pub struct Manager {
    shared: Arc<Shared>,
    entries: Arc<Entries>,
    runtime: Handle,
}

/// How a manager behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// After this long without an answer of the CA, one certificate is renewed for no other reason
    /// than to hear of changed roots: renewals by age may be half a day apart.
    pub ask_at_least: Duration,
    /// How many certificates are asked for at a time that no connection waits for.
    pub unhurried: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ask_at_least: Duration::from_secs(15 * 60),
            unhurried: 4,
        }
    }
}

/// What the keepers of all identities share.
struct Shared {
    ca: Arc<dyn CertificateAuthority>,
    /// With the roots of the CA's latest answer.
    trust: Trust,
    ask_at_least: Duration,
    /// When the CA was last asked for the roots' sake, or answered.
    heard: Mutex<Instant>,
    /// Those who ask without hurry take turns.
    turns: Semaphore,
    /// Of another process, until somebody asks for these identities.
    adopted: Mutex<HashMap<SpiffeId, Svid>>,
    /// Grows when a certificate comes or goes.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Entries {
    /// Read by the data path.
    current: ArcSwap<HashMap<SpiffeId, Arc<Entry>>>,
    /// Held by whoever replaces `current`, never across an await.
    writing: Mutex<()>,
}

struct Entry {
    slot: Arc<Slot>,
    progress: watch::Receiver<Progress>,
    keeper: AbortHandle,
}

/// Ends the keeper with the last handle to the entry; those who still wait are told.
impl Drop for Entry {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// An identity's certificate, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateStatus {
    pub identity: SpiffeId,
    pub state: CertificateState,
    /// The times and serial number (hexadecimal) of the certificate, if there ever was one.
    pub not_before: Option<SystemTime>,
    pub not_after: Option<SystemTime>,
    pub serial: Option<String>,
    /// The certificate, then its intermediates.
    pub chain: Vec<Description>,
    /// Why the last attempt failed, unless the latest went well.
    pub last_error: Option<String>,
}

/// Whether a certificate can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertificateState {
    /// Asked for, not there yet.
    Requested,
    Valid,
    /// The CA failed for too long.
    Expired,
}

impl Manager {
    /// A manager whose requests run on `runtime`, whichever runtime asks.
    pub fn new(ca: impl CertificateAuthority, config: Config, runtime: Handle) -> Self {
        Self {
            shared: Arc::new(Shared {
                ca: Arc::new(ca),
                trust: Trust::default(),
                ask_at_least: config.ask_at_least,
                heard: Mutex::new(Instant::now()),
                turns: Semaphore::new(config.unhurried),
                adopted: Mutex::default(),
                changes: watch::Sender::default(),
            }),
            entries: Arc::default(),
            runtime,
        }
    }

    /// The certificate of an identity, if it is at hand and valid. Never waits.
    pub fn cached(&self, identity: &SpiffeId) -> Option<Arc<Svid>> {
        self.entries.current.load().get(identity)?.slot.valid()
    }

    /// The certificate of an identity, asked for if need be. All who ask meanwhile share the
    /// request.
    ///
    /// # Errors
    /// When there is none after `patience`, with the CA's last failure; or when the identity is
    /// forgotten meanwhile.
    pub async fn certificate(
        &self,
        identity: &SpiffeId,
        patience: Duration,
    ) -> Result<Arc<Svid>, Error> {
        if let Some(svid) = self.cached(identity) {
            return Ok(svid);
        }
        let (slot, mut progress) = self.watch(identity);
        slot.hurry.notify_one();
        let arrival = async {
            loop {
                if let Some(svid) = slot.valid() {
                    return Ok(svid);
                }
                if progress.changed().await.is_err() {
                    return Err(Error::Forgotten(identity.clone()));
                }
            }
        };
        let outcome = timeout(patience, arrival).await;
        outcome.unwrap_or_else(|_| {
            Err(Error::NoCertificate {
                identity: identity.clone(),
                waited: patience,
                source: progress.borrow().last_error.clone(),
            })
        })
    }

    /// What all identities believe: the roots of the CA's latest answer, and the revocation lists
    /// that somebody puts in force here.
    pub fn trust(&self) -> &Trust {
        &self.shared.trust
    }

    /// Has a certificate ready before the first connection asks for it.
    pub fn prefetch(&self, identity: &SpiffeId) {
        self.watch(identity);
    }

    /// Gives an identity up: its key is dropped, and it is not renewed any more.
    pub fn forget(&self, identity: &SpiffeId) {
        self.entries.update(|entries| entries.remove(identity));
        self.shared.changes.send_modify(|changes| *changes += 1);
    }

    /// Takes over a certificate that another process has obtained, as if it had been obtained here.
    /// Before its identity is first asked for; until then it is only put aside.
    ///
    /// # Errors
    /// When the parts do not belong together. One that has expired is left out without an error.
    pub fn adopt(&self, parts: SvidParts) -> Result<(), Error> {
        let roots = Roots::new(parts.roots)?;
        let trust = self.shared.trust.clone();
        let svid = Svid::new(parts.identity, parts.chain, &parts.key, trust)?;
        self.shared.trust.replace(roots);
        if !svid.is_expired() {
            let adopted = &self.shared.adopted;
            let mut adopted = adopted.lock().unwrap_or_else(PoisonError::into_inner);
            adopted.insert(svid.identity().clone(), svid);
        }
        Ok(())
    }

    /// The valid certificates of all identities in use, with their keys.
    pub fn export(&self) -> Vec<SvidParts> {
        let entries = self.entries.current.load();
        let valid = entries.values().filter_map(|entry| entry.slot.valid());
        valid.map(|svid| svid.parts()).collect()
    }

    /// Changes when [`Manager::export`] does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// All identities in use, in order.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let entries = self.entries.current.load();
        let mut status: Vec<_> = entries.iter().map(|(id, e)| e.status(id)).collect();
        status.sort_by(|a, b| a.identity.cmp(&b.identity));
        status
    }

    fn watch(&self, identity: &SpiffeId) -> (Arc<Slot>, watch::Receiver<Progress>) {
        let known = |entry: &Arc<Entry>| (entry.slot.clone(), entry.progress.clone());
        if let Some(entry) = self.entries.current.load().get(identity) {
            return known(entry);
        }
        self.entries.update(|entries| {
            let start = || Arc::new(self.start(identity.clone()));
            known(entries.entry(identity.clone()).or_insert_with(start))
        })
    }

    fn start(&self, identity: SpiffeId) -> Entry {
        let adopted = &self.shared.adopted;
        let mut adopted = adopted.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = Arc::new(Slot::new(adopted.remove(&identity)));
        drop(adopted);
        let (sender, progress) = watch::channel(Progress::default());
        let keeper = keeper::keep(self.shared.clone(), identity, slot.clone(), sender);
        Entry {
            slot,
            progress,
            keeper: self.runtime.spawn(keeper).abort_handle(),
        }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.status()).finish()
    }
}

impl Entries {
    fn update<T>(&self, f: impl FnOnce(&mut HashMap<SpiffeId, Arc<Entry>>) -> T) -> T {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.current.load());
        let result = f(&mut entries);
        self.current.store(Arc::new(entries));
        result
    }
}

impl Entry {
    fn status(&self, identity: &SpiffeId) -> CertificateStatus {
        let svid = self.slot.latest();
        CertificateStatus {
            identity: identity.clone(),
            state: match &svid {
                None => CertificateState::Requested,
                Some(svid) if svid.is_expired() => CertificateState::Expired,
                Some(_) => CertificateState::Valid,
            },
            not_before: svid.as_ref().map(|svid| svid.not_before()),
            not_after: svid.as_ref().map(|svid| svid.not_after()),
            serial: svid.as_ref().map(|svid| svid.serial().to_owned()),
            // They have been read when they came.
            chain: svid
                .iter()
                .flat_map(|svid| svid.chain())
                .filter_map(|one| describe(one).ok())
                .collect(),
            last_error: self
                .progress
                .borrow()
                .last_error
                .as_ref()
                .map(ToString::to_string),
        }
    }
}

impl Shared {
    /// When the roots should be asked for.
    fn ask_at(&self) -> Instant {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) + self.ask_at_least
    }

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}
