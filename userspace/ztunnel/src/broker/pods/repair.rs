//! Whether the kernel, and the pods' listeners, are as enrolment left them; and what is done if not.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use sluice_kernel::verify::{Check, Holdings};
use socket2::SockRef;

use super::{Key, Membership, PodRecord, Pods};
use crate::{
    broker::{audit, worker::Worker},
    link::{PodId, message::Listener},
    one_line,
};

impl Pods {
    /// Looks for what somebody has changed in the kernel behind our back, and puts it right.
    pub(super) fn audit(&mut self, worker: &Worker) {
        let mut news = audit::News::default();
        for finding in self.kernel.drift() {
            let cookie = finding.subject.pod();
            let record = cookie.and_then(|cookie| enrolled(&self.pods, cookie));
            let what = audit::describe(record, &finding);
            let healed = match record.map(PodRecord::listener).transpose() {
                Ok(listener) => {
                    let holdings = record.zip(listener).map(|(record, listener)| Holdings {
                        netns: record.netns.as_fd(),
                        listener,
                    });
                    self.kernel
                        .heal(&finding.subject, holdings)
                        .map_err(Into::into)
                }
                Err(error) => Err(error),
            };
            news.add(finding.subject.check(), what, healed);
        }
        let keys: Vec<Key> = self.pods.keys().cloned().collect();
        for key in keys {
            if let Err(error) = self.audit_sockets(&key, worker, &mut news) {
                tracing::warn!(
                    error = one_line(&error),
                    "a pod's sockets cannot be looked at"
                );
            }
        }
        for ((namespace, name), why) in &self.failures {
            news.is_out(format!("{namespace}/{name}: {why}"));
        }
        if self.audit.note(news) {
            worker.tell(&self.audit.message());
        }
    }

    /// Whether a pod's listeners listen, and the kernel knows where to steer what comes.
    fn audit_sockets(&mut self, key: &Key, worker: &Worker, news: &mut audit::News) -> Result<()> {
        let Some(record) = self.pods.get(key) else {
            return Ok(());
        };
        let Membership::Enrolled(enrolled) = &record.membership else {
            return Ok(());
        };
        if let Some(kind) = record.dead_listener()? {
            let what = format!(
                "{}: the listener for {kind:?} listens no more",
                record.name()
            );
            news.add(Check::Listener, what, self.reopen(key, worker));
            return Ok(());
        }
        let what = || format!("{}: its place among the listeners is empty", record.name());
        match self.kernel.refill_slot(enrolled, record.listener()?) {
            Ok(false) => {}
            Ok(true) => news.add(Check::Slot, what(), Ok(())),
            Err(error) => news.add(Check::Slot, what(), Err(error.into())),
        }
        Ok(())
    }

    /// Gives a pod new listeners, and stays enrolled: to the worker it is another pod.
    fn reopen(&mut self, key: &Key, worker: &Worker) -> Result<()> {
        let dns_thread = self.next_id as usize % self.threads;
        let dns_thread = self.dns_capture.then_some(dns_thread);
        let record = self.pods.get_mut(key).context("the pod has left")?;
        // The new ones share their ports with the old ones that still listen.
        record.listeners = record.netns.listeners(self.threads, dns_thread)?;
        worker.remove_pod(record.info.id);
        self.namespaces.remove(record.info.id);
        record.info.id = PodId(self.next_id);
        self.next_id += 1;
        self.namespaces.insert(record.info.id, record.netns.clone());
        worker.add_pod(record);
        match &record.membership {
            Membership::Enrolled(enrolled) => {
                Ok(self.kernel.set_listener(enrolled, record.listener()?)?)
            }
            Membership::Leaving(_) => Ok(()),
        }
    }
}

impl PodRecord {
    /// A listener that somebody has closed from outside, as `ss --kill` does.
    fn dead_listener(&self) -> Result<Option<Listener>> {
        let by_tcp = |kind: &Listener| *kind != Listener::Dns;
        for (kind, fd) in self
            .listeners
            .iter()
            .flatten()
            .filter(|(kind, _)| by_tcp(kind))
        {
            if !SockRef::from(fd).is_listener()? {
                return Ok(Some(*kind));
            }
        }
        Ok(None)
    }
}

/// The pod in this network namespace, if it is enrolled.
fn enrolled(pods: &BTreeMap<Key, PodRecord>, cookie: u64) -> Option<&PodRecord> {
    let mut records = pods.values();
    records.find(|record| record.netns.cookie == cookie && record.is_enrolled())
}
