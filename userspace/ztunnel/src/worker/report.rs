//! What is told about a connection when it ends: one line in the access log, and metrics.

mod steps;

use std::{
    cell::Cell,
    fmt,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use sluice_hbone::{Baggage, Incoming, Meter};
use sluice_model::{
    Name, Service, SpiffeId, Workload,
    authz::{Applicable, Connection, DenyReason, Judgement, RuleId},
    route::Hop,
};
use sluice_telemetry::{
    access::{AccessLog, Direction, Peer},
    metrics::{
        self, ConnectionMetrics, Denial, Reporter, ResponseFlags, Security, ServiceLabels,
        TcpLabels,
    },
    trace::{Kind, Step},
};

use super::{Shared, failure::Failure, neighbours::Member, pods::Pod, trace};

pub(super) use steps::Ended;

/// The target of what policies have to say besides their decision, for log filters.
const POLICY: &str = "policy";
/// The path of connections in which the ztunnel has no part.
const KERNEL: &str = "kernel";

/// A connection from its accept to its end.
#[derive(Debug)]
pub(super) struct Report {
    shared: Arc<Shared>,
    direction: Direction,
    since: Instant,
    source: End,
    destination: End,
    hbone: Option<String>,
    service: ServiceLabels,
    security: Security,
    /// How it went, when not through the ztunnel.
    path: Option<&'static str>,
    /// The rule that decided.
    rule: Option<RuleId>,
    open: Option<ConnectionMetrics>,
    /// By which it is traced; 0 as long as nobody does.
    number: Cell<u64>,
    /// Counts the bytes while they flow.
    pub(super) meter: Rc<Meter>,
}

#[derive(Debug)]
struct End {
    addr: SocketAddr,
    labels: metrics::Peer,
    /// Metrics show its owner's name, the access log its own.
    workload: Option<Arc<Workload>>,
    /// The pod's name, before more is known.
    pod: Name,
}

impl End {
    fn unknown(addr: SocketAddr) -> Self {
        Self {
            addr,
            labels: metrics::Peer::default(),
            workload: None,
            pod: Name::default(),
        }
    }

    fn describe(&mut self, workload: &Arc<Workload>) {
        let principal = self.labels.principal.take();
        self.labels = metrics::Peer::new(workload, principal.as_ref());
        self.workload = Some(workload.clone());
    }

    fn access(&self) -> Peer<'_> {
        Peer {
            addr: self.addr,
            workload: Some(self.workload.as_ref().map_or(&self.pod, |w| w.name())),
            namespace: Some(&self.labels.namespace),
            cluster: Some(&self.labels.cluster),
            identity: self.labels.principal.as_ref(),
        }
    }
}

impl Report {
    fn new(shared: &Arc<Shared>, direction: Direction, src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            shared: shared.clone(),
            direction,
            since: Instant::now(),
            source: End::unknown(src),
            destination: End::unknown(dst),
            hbone: None,
            service: ServiceLabels::default(),
            security: Security::Unknown,
            path: None,
            rule: None,
            open: None,
            number: Cell::new(0),
            meter: Rc::default(),
        }
    }

    /// A captured connection of a pod.
    pub(super) fn outbound(
        shared: &Arc<Shared>,
        pod: &Pod,
        client: SocketAddr,
        dst: SocketAddr,
    ) -> Self {
        let mut report = Self::new(shared, Direction::Outbound, client, dst);
        report.source.pod = pod.info.name.clone();
        report.source.labels.namespace = pod.info.namespace.clone();
        report
    }

    /// A stream of a tunnel.
    pub(super) fn inbound(
        shared: &Arc<Shared>,
        pod: &Pod,
        incoming: &Incoming,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Self {
        let mut report = Self::new(shared, Direction::Inbound, peer, local);
        report.security = Security::MutualTls;
        report.source.labels.principal = Some(incoming.peer.identity().clone());
        report.destination.labels.principal = Some(pod.identity.clone());
        report.destination.pod = pod.info.name.clone();
        report.hbone = incoming.authority().map(ToString::to_string);
        report.claims(&incoming.baggage());
        if let Some(host) = incoming.forwarded().and_then(|forwarded| forwarded.host) {
            report.addressed(host.as_str().into());
        }
        report.came(pod, Some(&incoming.negotiated));
        report
    }

    /// An inbound connection without a tunnel.
    pub(super) fn plaintext(
        shared: &Arc<Shared>,
        pod: &Pod,
        peer: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        let mut report = Self::new(shared, Direction::Inbound, peer, destination);
        report.destination.pod = pod.info.name.clone();
        report.came(pod, None);
        report
    }

    /// A connection straight from pod to pod, of which the kernel tells.
    pub(super) fn straight(
        shared: &Arc<Shared>,
        direction: Direction,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Self {
        let mut report = Self::new(shared, direction, client, server);
        report.path = Some(KERNEL);
        report
    }

    /// A connection of a pod straight out of the mesh, likewise.
    pub(super) fn outside(
        shared: &Arc<Shared>,
        client: &Member,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Self {
        let mut report = Self::straight(shared, Direction::Outbound, from, to);
        report.source.pod = client.info.name.clone();
        report.source.labels.namespace = client.info.namespace.clone();
        report
    }

    /// Who is at its ends, as the kernel knows by their network namespaces, and the service that
    /// was dialled.
    pub(super) fn proven(&mut self, client: &Member, server: &Member, service: Option<&Service>) {
        for (end, member) in [(&mut self.source, client), (&mut self.destination, server)] {
            end.pod = member.info.name.clone();
            end.labels.namespace = member.info.namespace.clone();
            end.labels.principal = Some(member.identity.clone());
        }
        self.service = service.map(ServiceLabels::from).unwrap_or_default();
    }

    /// It took so long until now.
    pub(super) fn lasted(&mut self, duration: Duration) {
        self.since = Instant::now().checked_sub(duration).unwrap_or(self.since);
    }

    /// So many bytes went to the server, and from it.
    pub(super) fn carried(&self, to_server: u64, from_server: u64) {
        let (received, sent) = match self.direction {
            Direction::Outbound => (to_server, from_server),
            Direction::Inbound => (from_server, to_server),
        };
        self.meter.received.set(received);
        self.meter.sent.set(sent);
    }

    /// What a peer says of itself, until we know better.
    fn claims(&mut self, baggage: &Baggage) {
        let field = |key| baggage.get(key).unwrap_or_default().into();
        let labels = &mut self.source.labels;
        labels.cluster = field("k8s.cluster.name");
        labels.namespace = field("k8s.namespace.name");
        labels.canonical_service = field("service.name");
        labels.canonical_revision = field("service.version");
    }

    /// The service that the client called, by its host name.
    fn addressed(&mut self, hostname: Name) {
        let mesh = self.shared.mesh.load();
        let known = mesh.services().find(|service| service.hostname == hostname);
        self.service = match known {
            Some(service) => ServiceLabels::from(&**service),
            None => ServiceLabels {
                hostname,
                ..ServiceLabels::default()
            },
        };
    }

    /// The client is this workload, as far as its address says.
    pub(super) fn source(&mut self, workload: Option<&Arc<Workload>>) {
        if let Some(workload) = workload {
            self.source.describe(workload);
        }
    }

    pub(super) fn destination(&mut self, addr: SocketAddr, workload: &Arc<Workload>) {
        // The line keeps the tunnel's port where there was a tunnel (wire contract §12).
        if self.hbone.is_none() {
            self.destination.addr = addr;
        }
        self.destination.describe(workload);
    }

    /// The connection leaves without a tunnel.
    pub(super) fn plain(
        &mut self,
        to: SocketAddr,
        workload: Option<&Arc<Workload>>,
        service: Option<&Service>,
    ) {
        self.destination = End::unknown(to);
        self.hbone = None;
        self.security = Security::Unknown;
        if let Some(workload) = workload {
            self.destination.describe(workload);
        }
        self.service = service.map(ServiceLabels::from).unwrap_or_default();
        self.leaves("in plaintext");
    }

    /// The connection leaves through a tunnel.
    pub(super) fn hop(&mut self, hop: &Hop) {
        self.destination = End::unknown(hop.tunnel);
        self.destination.describe(&hop.workload);
        self.hbone = Some(hop.authority.to_string());
        self.service = hop
            .service
            .as_deref()
            .map(ServiceLabels::from)
            .unwrap_or_default();
        self.leaves("through a tunnel");
    }

    /// Mutual TLS with the destination stands.
    pub(super) fn peer(&mut self, source: &SpiffeId, destination: &SpiffeId) {
        self.security = Security::MutualTls;
        self.source.labels.principal = Some(source.clone());
        self.destination.labels.principal = Some(destination.clone());
    }

    /// Policies have decided, those in dry run and those that only take note among them.
    pub(super) fn judged(
        &mut self,
        policies: &Applicable,
        connection: &Connection<'_>,
        judgement: &Judgement,
    ) {
        let metrics = self.shared.metrics.policy();
        let Judgement { decision, dry_run } = judgement;
        self.rule = decision.rule().cloned();
        self.decided(decision);
        let to = connection.destination;
        if let Some(dry_run) = dry_run {
            metrics.dry_run(decision, dry_run);
            if dry_run.is_allowed() != decision.is_allowed() {
                tracing::event!(
                    target: POLICY, tracing::Level::INFO, src.addr = %self.source.addr, dst.addr = %to, dry_run = %dry_run,
                    enforced = %decision, "policies in dry run would decide otherwise"
                );
            }
        }
        policies.audit(connection, |rule| {
            metrics.audited(&rule);
            tracing::event!(
                target: POLICY, tracing::Level::INFO, src.addr = %self.source.addr, dst.addr = %to, policy = %rule.policy,
                policy_rule = rule.rule, "audit"
            );
        });
    }

    /// From here on bytes may flow.
    pub(super) fn opened(&mut self) {
        self.count();
        self.tell(None, || Step {
            step: Kind::Open,
            ..Step::default()
        });
    }

    fn count(&mut self) {
        let labels = TcpLabels {
            reporter: self.reporter(),
            source: self.source.labels.clone(),
            destination: self.destination.labels.clone(),
            service: self.service.clone(),
            security: self.security,
            flags: ResponseFlags::None,
        };
        self.open = Some(self.shared.metrics.tcp().open(labels));
    }

    fn reporter(&self) -> Reporter {
        match self.direction {
            Direction::Inbound => Reporter::Destination,
            Direction::Outbound => Reporter::Source,
        }
    }

    /// The connection has ended.
    pub(super) fn finish(mut self, failure: Option<Failure>) {
        if self.open.is_none() {
            // Also one that never came to carry a byte is counted.
            self.count();
        }
        let (from_client, to_client) = match self.direction {
            // Outbound, our TCP connection is the client's; inbound, the server's.
            Direction::Outbound => (self.meter.received.get(), self.meter.sent.get()),
            Direction::Inbound => (self.meter.sent.get(), self.meter.received.get()),
        };
        if let Some(open) = &mut self.open {
            open.received(from_client);
            open.sent(to_client);
            if let Some(failure) = &failure {
                open.failed(failure.flags);
            }
        }
        if let Some((denial, phase)) = failure.as_ref().and_then(|f| f.denial.as_ref()) {
            let policy = self.shared.metrics.policy();
            policy.denied(self.reporter(), denial, *phase);
            if let Denial::Policy(DenyReason::Rule(rule)) = denial {
                // What cut it, and not what had let it through.
                self.rule = Some(rule.clone());
            }
        }
        let hostname = &self.service.hostname;
        AccessLog {
            direction: self.direction,
            src: self.source.access(),
            dst: self.destination.access(),
            hbone_addr: self.hbone.as_ref().map(|addr| addr as &dyn fmt::Display),
            service: Some(hostname),
            path: self.path,
            bytes_sent: from_client,
            bytes_received: to_client,
            duration: self.since.elapsed(),
            rule: self.rule.as_ref(),
            error: failure
                .as_ref()
                .map(|failure| &failure.text as &dyn fmt::Display),
        }
        .emit();
        let connection = self.number.get();
        let ended = Ended {
            direction: self.direction,
            duration: self.since.elapsed(),
            source: self.source,
            destination: self.destination,
            hbone: self.hbone,
            service: self.service.hostname,
            path: self.path,
            rule: self.rule,
            sent: from_client,
            received: to_client,
            denied: failure
                .as_ref()
                .is_some_and(|failure| failure.denial.is_some()),
            error: failure.map(|failure| failure.text),
        };
        if self.shared.trace.is_heard() {
            self.shared.trace.tell(connection, None, ended.step());
        }
        trace::keep(trace::Past {
            at: SystemTime::now(),
            connection,
            ended,
        });
    }
}
