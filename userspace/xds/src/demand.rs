//! What is asked for by name, when the control plane is not to tell of everything (wire contract §6,
//! on demand).
//!
//! Whoever needs something says so with [`Demand::want`] and waits; the client asks, and notes the
//! answers. A name stays asked for as long as somebody holds its [`Needed`], and a while longer.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sluice_model::{
    Mesh, Name, NetworkAddress, ServiceKey, Uid, mesh::Destination, service::GatewayDestination,
};
use sluice_proto::convert::names;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// How long it is believed that something does not exist before it is asked for again. A control
/// plane may tell when it comes to be, but not every one does.
const BELIEVED: Duration = Duration::from_secs(10);
/// How long that question is waited for, since there is an answer already.
pub(crate) const STALE_PATIENCE: Duration = Duration::from_secs(1);
/// How many names may be asked for at one time. A pod that dials every address there is would have
/// the control plane told of each.
const MAX_NAMES: usize = 65_536;

/// Something that can be asked for by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Whatever has this address.
    Address(NetworkAddress),
    Workload(Uid),
    Service(ServiceKey),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => f.write_str(&names::alias(address)),
            Self::Workload(uid) => uid.fmt(f),
            Self::Service(key) => key.fmt(f),
        }
    }
}

impl From<&GatewayDestination> for Key {
    fn from(destination: &GatewayDestination) -> Self {
        match destination {
            GatewayDestination::Hostname(key) => Self::Service(key.clone()),
            GatewayDestination::Address(address) => Self::Address(address.clone()),
        }
    }
}

/// What a key leads to.
enum Found {
    Workload(Uid),
    Service(ServiceKey),
}

impl Key {
    fn find(&self, mesh: &Mesh) -> Option<Found> {
        match self {
            Self::Address(address) => match mesh.destination(&address.network, address.ip) {
                Destination::Service(service) => Some(Found::Service(service.key())),
                Destination::Workload(workload) => Some(Found::Workload(workload.uid.clone())),
                Destination::Unknown => None,
            },
            Self::Workload(uid) => mesh.workload(uid).map(|_| Found::Workload(uid.clone())),
            Self::Service(key) => mesh.service(key).map(|_| Found::Service(key.clone())),
        }
    }

    pub(crate) fn is_in(&self, mesh: &Mesh) -> bool {
        self.find(mesh).is_some()
    }
}

/// Keeps what was asked for in the mesh, until it is dropped.
#[derive(Clone, Debug, Default)]
#[must_use = "what is not needed is forgotten after a while"]
pub struct Needed {
    _held: Option<Arc<()>>,
}

/// Why it is not known what a name stands for. It may be anything, so nobody goes there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    #[error("the control plane was asked for {0}, and has not answered within {1:?}")]
    Silent(String, Duration),
    #[error("the control plane answers for {0} with something that is elsewhere")]
    Elsewhere(String),
    #[error("{0} is not asked for, since {MAX_NAMES} names are already")]
    TooMany(String),
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is asked for. `stale`: it did not exist before.
    Pending {
        stale: bool,
    },
    Present,
    Absent(Instant),
}

#[derive(Debug)]
struct Entry {
    key: Key,
    answer: Answer,
    /// The stream that is open now has been told.
    sent: bool,
    /// It has been told before, so that it must be taken back to be told again.
    subscribed: bool,
    used: Instant,
    held: Arc<()>,
}

/// Everything that is asked for; shared by the client and those who ask.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// By the name that the control plane is asked for. Held for a look or a change, never longer.
    entries: Mutex<HashMap<Name, Entry>>,
    /// There are names that were not sent.
    unsent: Notify,
    /// Counts answers.
    answers: watch::Sender<u64>,
}

/// What is needed, and what is not any more.
#[derive(Debug, Default)]
pub(crate) struct Review {
    /// Names that were asked for, and are forgotten.
    pub(crate) forgotten: Vec<Name>,
    /// What of the mesh is needed.
    pub(crate) workloads: HashSet<Uid>,
    pub(crate) services: HashSet<ServiceKey>,
}

/// Names to ask for.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    pub(crate) names: Vec<Name>,
    /// Of these, the ones that this stream has asked for before. istiod answers a name when it is
    /// subscribed to, and says nothing when it is already; nor does it tell that an address has come to
    /// be somebody's, since it knows changes by resources' own names.
    pub(crate) again: Vec<Name>,
}

impl Demand {
    fn entries(&self) -> MutexGuard<'_, HashMap<Name, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that something is needed, and asks for it if that has to be done. `is_known`: the mesh
    /// has it. `connected`: there is somebody to ask.
    pub(crate) fn want(
        &self,
        key: &Key,
        is_known: bool,
        connected: bool,
    ) -> Result<Needed, Unanswered> {
        let name = Name::from(key.to_string());
        let now = Instant::now();
        let mut entries = self.entries();
        if !entries.contains_key(&name) && entries.len() >= MAX_NAMES {
            return Err(Unanswered::TooMany(name.to_string()));
        }
        let entry = entries.entry(name).or_insert_with(|| Entry {
            key: key.clone(),
            answer: Answer::Pending { stale: false },
            sent: false,
            subscribed: false,
            used: now,
            held: Arc::default(),
        });
        entry.used = now;
        let again = match entry.answer {
            Answer::Present if !is_known => Some(false),
            // Without a control plane, what was true last is all there is.
            Answer::Absent(since) if !is_known && connected && since.elapsed() >= BELIEVED => {
                Some(true)
            }
            _ => None,
        };
        if let Some(stale) = again {
            entry.answer = Answer::Pending { stale };
            entry.sent = false;
        }
        if !entry.sent {
            self.unsent.notify_one();
        }
        Ok(Needed {
            _held: Some(entry.held.clone()),
        })
    }

    pub(crate) fn answer(&self, key: &Key) -> Option<Answer> {
        let entries = self.entries();
        let entry = entries.get(key.to_string().as_str())?;
        Some(entry.answer)
    }

    /// Nobody has answered a question that was answered once: that holds for another while.
    pub(crate) fn believe(&self, key: &Key) {
        if let Some(entry) = self.entries().get_mut(key.to_string().as_str())
            && entry.answer == (Answer::Pending { stale: true })
        {
            entry.answer = Answer::Absent(Instant::now());
        }
    }

    pub(crate) fn answers(&self) -> watch::Receiver<u64> {
        self.answers.subscribe()
    }

    /// A new stream begins, and is told all of these: what the mesh does not have.
    pub(crate) fn begin(&self, mesh: &Mesh) -> Vec<Name> {
        let mut entries = self.entries();
        let missing = entries.iter_mut().filter_map(|(name, entry)| {
            entry.sent = true;
            let missing = !entry.key.is_in(mesh);
            // What is here is told by its own name, of which an address is none.
            entry.subscribed = missing || !matches!(entry.key, Key::Address(_));
            missing.then(|| name.clone())
        });
        missing.collect()
    }

    /// Waits for names that have to be sent, and returns them.
    pub(crate) async fn unsent(&self) -> Unsent {
        loop {
            let unsent = self.take_unsent();
            if !unsent.names.is_empty() {
                return unsent;
            }
            self.unsent.notified().await;
        }
    }

    fn take_unsent(&self) -> Unsent {
        let mut unsent = Unsent::default();
        let mut entries = self.entries();
        for (name, entry) in entries.iter_mut().filter(|(_, entry)| !entry.sent) {
            entry.sent = true;
            if std::mem::replace(&mut entry.subscribed, true) {
                unsent.again.push(name.clone());
            }
            unsent.names.push(name.clone());
        }
        unsent
    }

    /// Takes note of a response that has been applied, and wakes those who wait.
    pub(crate) fn answered<'a>(
        &self,
        present: impl Iterator<Item = &'a str>,
        absent: impl Iterator<Item = &'a str>,
        mesh: &Mesh,
    ) {
        let mut entries = self.entries();
        for name in absent {
            if let Some(entry) = entries.get_mut(name) {
                entry.answer = Answer::Absent(Instant::now());
            }
        }
        for name in present {
            if let Some(entry) = entries.get_mut(name) {
                entry.answer = Answer::Present;
            }
        }
        // Such as an address within a range, of which no resource has the name.
        for entry in entries.values_mut() {
            if matches!(entry.answer, Answer::Pending { .. }) && entry.key.is_in(mesh) {
                entry.answer = Answer::Present;
            }
        }
        drop(entries);
        self.answers.send_modify(|count| *count += 1);
    }

    /// Forgets the names that nobody has used for so long.
    pub(crate) fn forget(&self, unused: Duration, mesh: &Mesh) -> Review {
        let mut review = Review::default();
        let now = Instant::now();
        self.entries().retain(|name, entry| {
            if Arc::strong_count(&entry.held) > 1 {
                entry.used = now;
            }
            if now.duration_since(entry.used) >= unused {
                review.forgotten.push(name.clone());
                return false;
            }
            match entry.key.find(mesh) {
                Some(Found::Workload(uid)) => _ = review.workloads.insert(uid),
                Some(Found::Service(key)) => _ = review.services.insert(key),
                None => {}
            }
            true
        });
        // Whoever needs a service needs all that it may lead to.
        for workload in mesh.workloads() {
            let services = &mut workload.services.keys();
            if services.any(|key| review.services.contains(key)) {
                review.workloads.insert(workload.uid.clone());
            }
        }
        review
    }
}
