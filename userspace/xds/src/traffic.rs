//! What has passed between client and control plane, for metrics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{Error, store::Kind};

/// Why a stream ended, by the names that Istio's ztunnel gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// It could not be opened.
    ConnectionError,
    /// It broke, or what came was no stream of responses.
    Error,
    /// It was given up for another address.
    Reconnect,
    /// The control plane ended it in order.
    Complete,
}

impl Termination {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::ConnectionError,
        Self::Error,
        Self::Reconnect,
        Self::Complete,
    ];

    /// Its name, as metrics show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }

    pub(crate) fn of(ended: &Result<(), Error>, was_open: bool) -> Self {
        match ended {
            Ok(()) => Self::Complete,
            Err(Error::Silent(_)) => Self::Reconnect,
            Err(_) if !was_open => Self::ConnectionError,
            Err(_) => Self::Error,
        }
    }
}

/// Responses of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Responses {
    pub type_url: &'static str,
    pub messages: u64,
    /// Of the resources in them.
    pub bytes: u64,
    pub rejected_resources: u64,
}

/// Counts what passes. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    /// By [`Kind`].
    messages: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    rejected: [AtomicU64; 2],
    /// By [`Termination`].
    terminations: [AtomicU64; 4],
    /// Seconds since 1970; 0 before the first.
    last_response: AtomicU64,
}

impl Traffic {
    pub(crate) fn received(&self, kind: Kind, bytes: u64) {
        self.0.messages[kind as usize].fetch_add(1, Relaxed);
        self.0.bytes[kind as usize].fetch_add(bytes, Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        self.0.last_response.store(now, Relaxed);
    }

    pub(crate) fn rejected(&self, kind: Kind, resources: usize) {
        self.0.rejected[kind as usize].fetch_add(resources as u64, Relaxed);
    }

    pub(crate) fn ended(&self, why: Termination) {
        self.0.terminations[why as usize].fetch_add(1, Relaxed);
    }

    /// What has come, by type.
    pub fn responses(&self) -> [Responses; 2] {
        Kind::ALL.map(|kind| Responses {
            type_url: kind.type_url(),
            messages: self.0.messages[kind as usize].load(Relaxed),
            bytes: self.0.bytes[kind as usize].load(Relaxed),
            rejected_resources: self.0.rejected[kind as usize].load(Relaxed),
        })
    }

    /// How many streams ended for this reason.
    pub fn terminations(&self, why: Termination) -> u64 {
        self.0.terminations[why as usize].load(Relaxed)
    }

    /// When the last response came, in seconds since 1970.
    pub fn last_response(&self) -> Option<u64> {
        Some(self.0.last_response.load(Relaxed)).filter(|at| *at != 0)
    }
}
