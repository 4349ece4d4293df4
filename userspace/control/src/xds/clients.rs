//! Who is connected, and how far each client is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;
use sluice_telemetry::metrics::Gauge;

use super::Type;
use crate::auth::{Caller, Credential, Peer};

/// All connected clients.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Held only to note or copy a few words; never across an await.
    all: Arc<Mutex<Table>>,
    count: Gauge,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_id: BTreeMap<u64, Status>,
}

/// A connected client, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The node that it has proven to run on.
    pub node: String,
    pub address: Peer,
    pub credential: Credential,
    /// What it calls itself; empty until its first request.
    pub id: String,
    pub connected: Timestamp,
    /// By type URL.
    pub types: BTreeMap<&'static str, Progress>,
}

/// How far a client is with one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The last response.
    pub sent: Option<Mark>,
    /// The last one that was accepted as a whole, and when that was heard of.
    pub acknowledged: Option<Mark>,
    pub last_rejection: Option<Rejection>,
}

/// A response, and when something happened to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The version of the set that it was part of.
    pub version: String,
    pub nonce: String,
    pub at: Timestamp,
}

/// A response that a client rejected, in whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    #[serde(flatten)]
    pub response: Mark,
    pub message: String,
}

impl Clients {
    /// Keeps count in `count` too.
    pub fn new(count: Gauge) -> Self {
        Self {
            all: Arc::default(),
            count,
        }
    }

    /// Everyone who is connected now.
    pub fn statuses(&self) -> Vec<Status> {
        self.with(|table| table.by_id.values().cloned().collect())
    }

    pub(super) fn connect(&self, caller: &Caller) -> Client {
        let status = Status {
            node: caller.node.to_string(),
            address: caller.peer,
            credential: caller.credential,
            id: String::new(),
            connected: Timestamp::now(),
            types: BTreeMap::new(),
        };
        self.count.inc();
        let id = self.with(|table| {
            table.next += 1;
            table.by_id.insert(table.next, status);
            table.next
        });
        Client {
            id,
            clients: self.clone(),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Table) -> T) -> T {
        f(&mut self.all.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One client's entry; gone when this is dropped.
#[derive(Debug)]
pub struct Client {
    id: u64,
    clients: Clients,
}

impl Client {
    pub(super) fn named(&self, name: &str) {
        self.update(|status| status.id = name.to_owned());
    }

    pub(super) fn progress(&self, kind: Type, update: impl FnOnce(&mut Progress)) {
        self.update(|status| update(status.types.entry(kind.url()).or_default()));
    }

    fn update(&self, update: impl FnOnce(&mut Status)) {
        self.clients.with(|table| {
            if let Some(status) = table.by_id.get_mut(&self.id) {
                update(status);
            }
        });
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.with(|table| table.by_id.remove(&self.id));
        self.clients.count.dec();
    }
}
