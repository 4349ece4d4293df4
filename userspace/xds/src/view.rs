//! The snapshot, as everybody but the client sees it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use sluice_model::Mesh;
use tokio::sync::watch;

use crate::{
    Key, Needed, Unanswered,
    demand::{Answer, Demand, STALE_PATIENCE},
};

/// How the client is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Grows with each change of the mesh.
    pub version: u64,
    /// The control plane has said all that it knew at first: workloads, services and policies; or
    /// a snapshot of such a time is in force.
    /// Before, policies may be missing, and nothing may be let through on that account.
    pub synced: bool,
    /// When the snapshot was taken that is in force, in whole or in part, because the control plane
    /// has not answered yet.
    pub snapshot: Option<SystemTime>,
    /// A stream is open now.
    pub connected: bool,
}

impl Status {
    /// The control plane itself has said all that it knew at first.
    pub fn is_live(&self) -> bool {
        self.synced && self.snapshot.is_none()
    }
}

/// A handle to the current mesh. Clones see the same.
#[derive(Clone, Debug)]
pub struct View {
    mesh: Arc<ArcSwap<Mesh>>,
    status: watch::Receiver<Status>,
    /// Where the mesh is known in parts, those that were asked for.
    demand: Option<Arc<Demand>>,
}

impl View {
    pub(crate) fn new(
        mesh: Arc<ArcSwap<Mesh>>,
        status: watch::Receiver<Status>,
        demand: Option<Arc<Demand>>,
    ) -> Self {
        Self {
            mesh,
            status,
            demand,
        }
    }

    /// Makes the mesh know what a key stands for, if there is such a thing: asks for it, and waits
    /// for the answer. A mesh that is known whole needs neither.
    ///
    /// # Errors
    /// When it is not known what the key stands for, and so neither that it stands for nothing.
    pub async fn learn(&self, key: &Key, patience: Duration) -> Result<Needed, Unanswered> {
        let needed = self.want(key)?;
        let Some(demand) = &self.demand else {
            return Ok(needed);
        };
        let mut answers = demand.answers();
        let stale = demand.answer(key) == Some(Answer::Pending { stale: true });
        let patience = if stale { STALE_PATIENCE } else { patience };
        let answered = async {
            loop {
                answers.borrow_and_update();
                let answer = demand.answer(key);
                if key.is_in(&self.mesh.load()) {
                    return Ok(());
                }
                match answer {
                    Some(Answer::Absent(_)) => return Ok(()),
                    Some(Answer::Present) => return Err(Unanswered::Elsewhere(key.to_string())),
                    Some(Answer::Pending { .. }) | None => {}
                }
                if answers.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        // Boxed: most who ask have nobody to wait for, or know already.
        match Box::pin(tokio::time::timeout(patience, answered)).await {
            Ok(answered) => answered?,
            Err(_) if stale => demand.believe(key),
            Err(_) => return Err(Unanswered::Silent(key.to_string(), patience)),
        }
        Ok(needed)
    }

    /// As [`View::learn`], without waiting.
    ///
    /// # Errors
    /// When too much is asked for already.
    pub fn want(&self, key: &Key) -> Result<Needed, Unanswered> {
        let Some(demand) = &self.demand else {
            return Ok(Needed::default());
        };
        demand.want(key, key.is_in(&self.mesh.load()), self.status().connected)
    }

    /// The mesh of this moment, for a short look; hold it no longer than that.
    pub fn load(&self) -> Guard<Arc<Mesh>> {
        self.mesh.load()
    }

    /// The mesh of this moment, to keep.
    pub fn snapshot(&self) -> Arc<Mesh> {
        self.mesh.load_full()
    }

    pub fn status(&self) -> Status {
        *self.status.borrow()
    }

    pub fn is_synced(&self) -> bool {
        self.status().synced
    }

    /// Waits for [`Status::synced`]; forever if the client has been dropped before.
    pub async fn synced(&self) {
        self.wait_for(|status| status.synced).await;
    }

    /// Waits for [`Status::is_live`]; forever if the client has been dropped before.
    pub async fn live(&self) {
        self.wait_for(Status::is_live).await;
    }

    async fn wait_for(&self, condition: impl FnMut(&Status) -> bool) {
        let mut status = self.status.clone();
        if status.wait_for(condition).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the mesh is of another version than `seen`, and returns that one; forever if
    /// the client has been dropped.
    pub async fn changed(&self, seen: u64) -> u64 {
        let mut status = self.status.clone();
        let changed = status.wait_for(|status| status.version != seen).await;
        match changed.map(|status| status.version) {
            Ok(version) => version,
            Err(_) => std::future::pending().await,
        }
    }
}
