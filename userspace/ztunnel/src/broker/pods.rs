//! The pods of this node that are, or are just leaving, the mesh.

mod repair;

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use sluice_kernel::{
    Dns, EnrolledPod, Events, Kernel, Outbound, PodSpec, SocketMapFds, TcpSockets,
};
use sluice_model::Name;
use sluice_objects::enrolment::Enrolment;

use super::{
    audit::Audit, egress::Egress, neighbours::Neighbours, netns::Netns, supply::Namespaces,
    worker::Worker,
};
use crate::{
    link::{self, PodId, PodInfo, message::Listener},
    one_line,
};

/// How long a pod that left the mesh still serves tunnels, for peers that have not yet heard.
const LINGER: Duration = Duration::from_secs(30);

/// Namespace and name of a pod.
type Key = (Name, Name);

/// Reconciles what should be enrolled with what is.
pub(super) struct Pods {
    kernel: Kernel,
    threads: usize,
    /// Whether DNS queries are captured, of pods that do not say otherwise.
    dns_capture: bool,
    namespaces: Namespaces,
    pods: BTreeMap<Key, PodRecord>,
    wanted: Vec<Enrolment>,
    /// What keeps which pod out; said once, and tried again with every tick.
    failures: BTreeMap<Key, String>,
    egress: Egress,
    /// Whether what the mesh does not know is not captured, of pods that do not opt out.
    bypass: bool,
    /// Whether connections go straight from pod to pod where they may, of pods that do not opt out.
    same_node: bool,
    neighbours: Neighbours,
    /// Says to operators what is enrolled: a line for each pod.
    report: PathBuf,
    audit: Audit,
    next_id: u32,
}

/// A pod in the mesh, or leaving it.
pub(super) struct PodRecord {
    pub(super) info: PodInfo,
    /// By thread.
    pub(super) listeners: Vec<Vec<(Listener, OwnedFd)>>,
    /// Where it may go, as the worker last said.
    pub(super) outbound: Outbound,
    pub(super) netns: Arc<Netns>,
    /// Whether it takes part in connections that go straight from pod to pod.
    same_node: bool,
    /// Whether what the mesh does not know need not be captured.
    bypass: bool,
    membership: Membership,
}

enum Membership {
    Enrolled(EnrolledPod),
    /// Withdrawn from the kernel at this moment.
    Leaving(Instant),
}

impl Pods {
    pub(super) fn new(kernel: Kernel, config: &super::Config) -> Result<Self> {
        Ok(Self {
            neighbours: Neighbours::new(&kernel)?,
            egress: Egress::new(&kernel)?,
            kernel,
            threads: config.threads,
            dns_capture: config.dns_capture,
            same_node: config.same_node,
            bypass: config.worker.bypass,
            namespaces: Namespaces::default(),
            pods: BTreeMap::new(),
            wanted: Vec::new(),
            failures: BTreeMap::new(),
            report: config.run_dir.join("pods"),
            audit: Audit::new(config),
            next_id: 1,
        })
    }

    pub(super) fn socket_maps(&self) -> Result<SocketMapFds> {
        Ok(self.kernel.socket_maps()?)
    }

    pub(super) fn tcp_sockets(&self) -> Result<TcpSockets> {
        Ok(self.kernel.tcp_sockets()?)
    }

    /// Whether the programs tell of each connection.
    pub(super) fn set_events(&mut self, events: Events) -> Result<(), sluice_kernel::Error> {
        self.kernel.set_events(events)
    }

    /// The kernel's counters of verdicts and of connections, to be read only.
    pub(super) fn counters(&self) -> Result<[OwnedFd; 2]> {
        Ok([self.kernel.counters()?, self.kernel.flow_counters()?])
    }

    /// Carries out what the worker says of where pods may go.
    pub(super) fn hear_of_egress(&mut self, news: link::Egress) {
        self.egress
            .hear(news, &mut self.kernel, self.pods.values_mut());
    }

    /// Carries out what the worker says of what may go straight from pod to pod.
    pub(super) fn hear_of_neighbours(&mut self, news: link::Neighbours) {
        self.neighbours
            .hear(news, &mut self.kernel, self.pods.values());
    }

    /// For a worker that starts: what may go straight from pod to pod.
    pub(super) fn inheritance(&self) -> Vec<link::ToWorker> {
        self.neighbours.inheritance()
    }

    /// The worker is gone: what it said stands until the next one has judged it, but not for long.
    pub(super) fn orphan(&mut self) {
        self.neighbours.orphan();
        self.egress.orphan();
    }

    /// For a worker that starts: how much was found that was not as it must be.
    pub(super) fn drift(&self) -> link::ToWorker {
        self.audit.message()
    }

    /// Brings what goes straight from pod to pod in step with the pods.
    fn settle_neighbours(&mut self) {
        self.neighbours.settle(&mut self.kernel, self.pods.values());
    }

    pub(super) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &PodRecord> {
        self.pods.values()
    }

    /// Makes the mesh hold exactly the wanted pods.
    pub(super) fn reconcile(&mut self, wanted: Vec<Enrolment>, worker: &Worker) {
        self.wanted = wanted;
        let keys: Vec<Key> = self.wanted.iter().map(key).collect();
        for (name, record) in &mut self.pods {
            if !keys.contains(name) {
                record.leave(&mut self.kernel);
            }
        }
        for pod in self.wanted.clone() {
            let failure = self.want(&pod, worker).err().map(|error| one_line(&error));
            self.note(&pod, failure);
        }
        self.failures.retain(|name, _| keys.contains(name));
        self.settle_neighbours();
        self.release_inherited();
        self.write_report();
    }

    /// Every pod that an earlier broker left and that belongs here has been enrolled by now.
    fn release_inherited(&mut self) {
        if let Err(error) = self.kernel.release_inherited() {
            tracing::error!(%error, "what an earlier broker left is still attached");
        }
    }

    /// Puts right what is not as it must be, lets go of pods that have left, tries again what failed,
    /// and follows changes of addresses.
    pub(super) fn tick(&mut self, worker: &Worker) {
        self.audit(worker);
        let gone: Vec<Key> = self
            .pods
            .iter()
            .filter(|(_, record)| record.has_left())
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.forget(&key, worker);
        }
        self.neighbours.tick(&mut self.kernel);
        self.egress.tick(&mut self.kernel);
        let wanted = std::mem::take(&mut self.wanted);
        self.reconcile(wanted, worker);
    }

    pub(super) fn withdraw_all(&mut self) {
        for record in self.pods.values_mut() {
            record.leave(&mut self.kernel);
        }
        self.settle_neighbours();
        self.release_inherited();
    }

    /// `NAMESPACE/NAME STATE`, where the state is `enrolled`, `leaving`, or `failed: WHY`.
    fn write_report(&mut self) {
        self.audit.write(self.kernel.expected(), self.pods.values());
        let mut text = String::new();
        for ((namespace, name), record) in &self.pods {
            let state = match record.membership {
                Membership::Enrolled(_) => "enrolled",
                Membership::Leaving(_) => "leaving",
            };
            text += &format!("{namespace}/{name} {state}\n");
        }
        for ((namespace, name), why) in &self.failures {
            text += &format!("{namespace}/{name} failed: {why}\n");
        }
        if fs::read_to_string(&self.report).is_ok_and(|before| before == text) {
            return;
        }
        let fresh = self.report.with_extension("new");
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &self.report));
        if let Err(error) = written {
            tracing::warn!(%error, file = %self.report.display(), "cannot report the pods");
        }
    }

    fn note(&mut self, pod: &Enrolment, failure: Option<String>) {
        let before = match &failure {
            Some(error) => self.failures.insert(key(pod), error.clone()),
            None => self.failures.remove(&key(pod)),
        };
        if let Some(error) = failure
            && before.as_ref() != Some(&error)
        {
            let pod = format!("{}/{}", pod.namespace, pod.name);
            tracing::error!(
                pod,
                error,
                "pod not enrolled; it is tried again every few seconds"
            );
        }
    }

    fn want(&mut self, pod: &Enrolment, worker: &Worker) -> Result<()> {
        let key = key(pod);
        let netns = Netns::open(&pod.netns)?;
        let (dns, same_node, bypass) = (self.dns(pod), self.same_node(pod), self.bypass(pod));
        if let Some(record) = self.pods.get_mut(&key) {
            if record.netns.cookie == netns.cookie
                && record.info.service_account == pod.service_account
            {
                (record.same_node, record.bypass) = (same_node, bypass);
                let outbound = self.egress.enforceable(record.outbound);
                return record.refresh(&mut self.kernel, outbound, dns);
            }
            // The same name, but another pod: nothing of the old one may serve the new one.
            self.forget(&key, worker);
        }
        let record = self.admit(pod, netns, worker)?;
        self.pods.insert(key, record);
        Ok(())
    }

    /// Without --dns-capture nothing listens for queries, so a pod can only opt out.
    fn dns(&self, pod: &Enrolment) -> Dns {
        if self.dns_capture && pod.dns_capture != Some(false) {
            Dns::Captured
        } else {
            Dns::Direct
        }
    }

    fn same_node(&self, pod: &Enrolment) -> bool {
        self.same_node && pod.same_node != Some(false)
    }

    fn bypass(&self, pod: &Enrolment) -> bool {
        self.bypass && pod.bypass != Some(false)
    }

    fn admit(&mut self, pod: &Enrolment, netns: Netns, worker: &Worker) -> Result<PodRecord> {
        let ips = netns.addresses()?;
        let dns_thread = self.next_id as usize % self.threads;
        let dns_thread = self.dns_capture.then_some(dns_thread);
        let listeners = netns.listeners(self.threads, dns_thread)?;
        let info = PodInfo {
            id: PodId(self.next_id),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            netns: netns.cookie,
            ips: routable(&ips),
        };
        let netns = Arc::new(netns);
        // The worker says where it may go when it has heard of it. Until then all is captured, or it
        // stays as restricted as it was under an earlier broker.
        let rules = (Outbound::Anywhere, self.dns(pod));
        let enrolled = enrol(&mut self.kernel, &netns, &ips, &listeners, rules)?;
        self.next_id += 1;
        self.namespaces.insert(info.id, netns.clone());
        tracing::info!(
            pod = format!("{}/{}", info.namespace, info.name),
            ?ips,
            "pod enrolled"
        );
        let record = PodRecord {
            info,
            listeners,
            outbound: enrolled.outbound(),
            netns,
            same_node: self.same_node(pod),
            bypass: self.bypass(pod),
            membership: Membership::Enrolled(enrolled),
        };
        // Connections captured before the worker hears of the pod wait in the listeners.
        worker.add_pod(&record);
        Ok(record)
    }

    fn forget(&mut self, key: &Key, worker: &Worker) {
        if let Some(mut record) = self.pods.remove(key) {
            record.leave(&mut self.kernel);
            self.namespaces.remove(record.info.id);
            worker.remove_pod(record.info.id);
        }
    }
}

impl PodRecord {
    /// Enrols a leaving pod again, or brings an enrolled one's addresses and settings up to date.
    fn refresh(&mut self, kernel: &mut Kernel, outbound: Outbound, dns: Dns) -> Result<()> {
        let ips = self.netns.addresses()?;
        let outbound = self.heeding(outbound);
        match &mut self.membership {
            Membership::Enrolled(enrolled) => {
                kernel.set_dns(enrolled, dns)?;
                kernel.set_outbound(enrolled, outbound)?;
                Ok(kernel.set_ips(enrolled, &ips)?)
            }
            Membership::Leaving(_) => {
                let enrolled = enrol(kernel, &self.netns, &ips, &self.listeners, (outbound, dns))?;
                self.membership = Membership::Enrolled(enrolled);
                tracing::info!(pod = self.name(), "pod enrolled again");
                Ok(())
            }
        }
    }

    /// Takes the pod out of the kernel's hands; established connections go on.
    fn leave(&mut self, kernel: &mut Kernel) {
        let leaving = Membership::Leaving(Instant::now());
        match std::mem::replace(&mut self.membership, leaving) {
            Membership::Enrolled(enrolled) => {
                kernel.withdraw(enrolled);
                tracing::info!(pod = self.name(), "pod withdrawn");
            }
            already => self.membership = already,
        }
    }

    /// Has the kernel let it go there and nowhere else, if it is in the kernel's hands.
    pub(super) fn enforce(
        &self,
        kernel: &mut Kernel,
        outbound: Outbound,
    ) -> Result<(), sluice_kernel::Error> {
        match &self.membership {
            Membership::Enrolled(enrolled) => kernel.set_outbound(enrolled, self.heeding(outbound)),
            Membership::Leaving(_) => Ok(()),
        }
    }

    /// The same within the pod's own setting.
    fn heeding(&self, outbound: Outbound) -> Outbound {
        match outbound {
            Outbound::Bypass if !self.bypass => Outbound::Anywhere,
            other => other,
        }
    }

    /// The pod, if connections may go straight to it and from it.
    pub(super) fn neighbour(&self) -> Option<&EnrolledPod> {
        let Membership::Enrolled(enrolled) = &self.membership else {
            return None;
        };
        // The worker judges by the addresses that it was told of.
        let ips: Vec<IpAddr> = enrolled.ips().collect();
        (self.same_node && routable(&ips) == self.info.ips).then_some(enrolled)
    }

    pub(super) fn is_enrolled(&self) -> bool {
        matches!(self.membership, Membership::Enrolled(_))
    }

    /// The listener that inbound plaintext is steered to.
    fn listener(&self) -> Result<BorrowedFd<'_>> {
        plaintext(&self.listeners)
    }

    fn has_left(&self) -> bool {
        matches!(self.membership, Membership::Leaving(since) if since.elapsed() > LINGER)
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.info.namespace, self.info.name)
    }
}

fn key(pod: &Enrolment) -> Key {
    (pod.namespace.clone(), pod.name.clone())
}

fn enrol(
    kernel: &mut Kernel,
    netns: &Netns,
    ips: &[IpAddr],
    listeners: &[Vec<(Listener, OwnedFd)>],
    (outbound, dns): (Outbound, Dns),
) -> Result<EnrolledPod> {
    let spec = PodSpec {
        netns: netns.as_fd(),
        cookie: netns.cookie,
        ips,
        listener: plaintext(listeners)?,
        outbound,
        dns,
    };
    Ok(kernel.enrol(&spec)?)
}

/// The listener that inbound plaintext is steered to, of all threads'.
fn plaintext(listeners: &[Vec<(Listener, OwnedFd)>]) -> Result<BorrowedFd<'_>> {
    let mut all = listeners.iter().flatten();
    let found = all.find(|(kind, _)| *kind == Listener::Plaintext);
    let (_, fd) = found.context("no thread has a listener for plaintext")?;
    Ok(fd.as_fd())
}

/// The addresses that name the pod to others.
fn routable(ips: &[IpAddr]) -> Vec<IpAddr> {
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    ips.iter().filter(|ip| !link_local(ip)).copied().collect()
}
