//! What has become of checks of the kernel's state: told in the log, to the worker for its metrics, and
//! in a file for whoever verifies it from outside.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::PathBuf,
    time::SystemTime,
};

use anyhow::Result;
use sluice_kernel::{
    ports,
    verify::{Check, Drift, Expected, Finding, Ledger, LedgerPod},
};

use super::{Config, pods::PodRecord};
use crate::{
    link::{
        ToWorker,
        message::{Deviation, Listener},
    },
    one_line,
};

/// How many findings are remembered.
const REMEMBERED: usize = 64;

/// What one round of checks has found.
#[derive(Debug, Default)]
pub(super) struct News {
    drifts: Vec<Drift>,
    /// Pods that ought to be in the mesh and are not, and why.
    out: Vec<String>,
}

impl News {
    /// Something was not as it must be.
    pub(super) fn add(&mut self, check: Check, what: String, healed: Result<()>) {
        let failure = healed.err().map(|error| one_line(&error));
        match &failure {
            None => {
                tracing::error!(%check, what, "somebody has changed the kernel's state; healed")
            }
            Some(error) => tracing::error!(
                %check, what, error,
                "somebody has changed the kernel's state, and it cannot be healed"
            ),
        }
        self.drifts.push(Drift {
            at: now(),
            check,
            what,
            failure,
        });
    }

    /// A pod cannot be enrolled, as is said elsewhere.
    pub(super) fn is_out(&mut self, what: String) {
        self.out.push(what);
    }

    fn count(&self, check: Check) -> usize {
        let found = self.drifts.iter().filter(|drift| drift.check == check);
        let out = if check == Check::Enrolment {
            self.out.len()
        } else {
            0
        };
        found.count() + out
    }

    fn healed(&self, check: Check) -> usize {
        let healed = |drift: &&Drift| drift.check == check && drift.failure.is_none();
        self.drifts.iter().filter(healed).count()
    }
}

/// What was looked at, with the pod's name and what is wrong.
pub(super) fn describe(pod: Option<&PodRecord>, finding: &Finding) -> String {
    let pod = pod.map_or_else(String::new, |pod| format!("{}: ", pod.name()));
    let drift = finding.drift.as_deref().unwrap_or("as it must be");
    format!("{pod}{}: {drift}", finding.what)
}

/// What was found so far.
pub(super) struct Audit {
    node: String,
    config_dir: PathBuf,
    admin: std::net::SocketAddr,
    file: PathBuf,
    /// What the file says.
    written: Option<Ledger>,
    counts: BTreeMap<Check, Deviation>,
    recent: VecDeque<Drift>,
}

impl Audit {
    pub(super) fn new(config: &Config) -> Self {
        let none = |check| Deviation {
            check,
            found: 0,
            healed: 0,
        };
        Self {
            node: config.node.clone(),
            config_dir: config.config_dir.clone(),
            admin: config.worker.admin,
            file: config.run_dir.join(Ledger::FILE),
            written: None,
            counts: Check::ALL.map(|check| (check, none(check))).into(),
            recent: VecDeque::new(),
        }
    }

    /// Takes note of a round; true when the worker is to be told.
    pub(super) fn note(&mut self, news: News) -> bool {
        let mut changed = false;
        for (check, deviation) in &mut self.counts {
            let before = *deviation;
            deviation.found = news.count(*check).try_into().unwrap_or(u32::MAX);
            deviation.healed += news.healed(*check) as u64;
            changed |= *deviation != before;
        }
        self.recent.extend(news.drifts);
        let excess = self.recent.len().saturating_sub(REMEMBERED);
        self.recent.drain(..excess);
        changed
    }

    pub(super) fn message(&self) -> ToWorker {
        ToWorker::Drift(self.counts.values().copied().collect())
    }

    /// Writes what must be so, if that has changed.
    pub(super) fn write<'p>(
        &mut self,
        expected: &Expected,
        pods: impl Iterator<Item = &'p PodRecord>,
    ) {
        let pods = pods.filter(|pod| pod.is_enrolled());
        let ledger = Ledger {
            node: self.node.clone(),
            config_dir: self.config_dir.clone(),
            admin: self.admin,
            pods: pods.map(ledger_pod).collect(),
            expected: expected.clone(),
            drifts: self.recent.iter().cloned().collect(),
        };
        if self.written.as_ref() == Some(&ledger) && self.file.exists() {
            return;
        }
        let fresh = self.file.with_extension("new");
        let written = serde_json::to_vec_pretty(&ledger)
            .map_err(anyhow::Error::from)
            .and_then(|text| Ok(fs::write(&fresh, text)?))
            .and_then(|()| Ok(fs::rename(&fresh, &self.file)?));
        match written {
            Ok(()) => self.written = Some(ledger),
            Err(error) => tracing::warn!(
                error = one_line(&error), file = %self.file.display(),
                "cannot say what must be so; `sluicectl trace verify` cannot see it"
            ),
        }
    }
}

fn ledger_pod(pod: &PodRecord) -> LedgerPod {
    let mut ports: Vec<u16> = pod
        .listeners
        .iter()
        .flatten()
        .filter_map(|(kind, _)| port(*kind))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    LedgerPod {
        namespace: pod.info.namespace.to_string(),
        name: pod.info.name.to_string(),
        cookie: pod.netns.cookie,
        netns: pod.netns.path.clone(),
        ports,
    }
}

/// Where such a listener listens by TCP.
fn port(kind: Listener) -> Option<u16> {
    match kind {
        Listener::Outbound => Some(ports::OUTBOUND),
        Listener::Plaintext => Some(ports::INBOUND_PLAINTEXT),
        Listener::Hbone => Some(ports::HBONE),
        Listener::DnsByTcp => Some(ports::DNS),
        Listener::Dns => None,
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
