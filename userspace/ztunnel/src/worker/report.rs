//! What is told about a connection when it ends: one line in the access log, and metrics.

mod ends;
mod steps;

use std::{
    cell::Cell,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use sluice_hbone::{Incoming, Meter};
use sluice_model::{
    Name, Service, SpiffeId, Workload,
    authz::{Applicable, Connection, DenyReason, Judgement, RuleId},
    route::Hop,
};
use sluice_telemetry::{
    access::{AccessLog, Direction},
    metrics::{ConnectionMetrics, Denial, Opening, Reporter, ResponseFlags, Security, TcpLabels},
    trace::{Kind, Step},
};

use super::{
    Shared,
    address::Authority,
    failure::Failure,
    neighbours::Member,
    pods::Pod,
    spans::{self, Place},
    trace,
};

use ends::{Addressed, End};
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
    hbone: Option<Authority>,
    service: Addressed,
    security: Security,
    /// It went past the ztunnel.
    straight: bool,
    /// The rule that decided.
    rule: Option<Box<RuleId>>,
    /// Its place in a trace that is recorded.
    place: Option<Box<Place>>,
    counted: Counted,
    /// By which it is traced; 0 as long as nobody does.
    number: Cell<u64>,
}

/// Each connection under way holds one, and most of them idle.
const _: () = assert!(size_of::<Report>() <= 256);

/// As what it is counted among those under way.
#[derive(Debug)]
enum Counted {
    Opening(#[expect(dead_code, reason = "it counts until it is dropped")] Opening),
    Open(ConnectionMetrics),
}

impl Report {
    fn new(shared: &Arc<Shared>, direction: Direction, src: SocketAddr, dst: SocketAddr) -> Self {
        Self {
            counted: Counted::Opening(shared.metrics.tcp().begin(reporter(direction))),
            shared: shared.clone(),
            direction,
            since: Instant::now(),
            source: End::unknown(src),
            destination: End::unknown(dst),
            hbone: None,
            service: Addressed::Nothing,
            security: Security::Unknown,
            straight: false,
            rule: None,
            place: None,
            number: Cell::new(0),
        }
    }

    /// It is a part of a trace.
    pub(super) fn traced(&mut self, place: Place) {
        self.place = place.recorded(&self.shared).map(|_| Box::new(place));
    }

    /// A captured connection of a pod.
    pub(super) fn outbound(
        shared: &Arc<Shared>,
        pod: &Pod,
        client: SocketAddr,
        dst: SocketAddr,
    ) -> Self {
        let mut report = Self::new(shared, Direction::Outbound, client, dst);
        report.source.is_pod(&pod.info);
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
        report.source.principal = Some(incoming.peer.identity().clone());
        report.destination.principal = Some(pod.identity.clone());
        report.destination.is_called(pod.info.name.clone());
        report.hbone = incoming.authority().map(Authority::from);
        report.traced(Place::of(shared, incoming.trace()));
        let mesh = shared.mesh.load();
        match mesh.workload_at(&shared.network, peer.ip()) {
            Some(workload) => report.source.describe(workload),
            None => report.source.claims(&incoming.baggage()),
        }
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
        report.traced(Place::of(shared, None));
        report.destination.is_called(pod.info.name.clone());
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
        report.straight = true;
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
        report.source.is_pod(&client.info);
        report
    }

    /// Who is at its ends, as the kernel knows by their network namespaces, and the service that
    /// was dialled.
    pub(super) fn proven(
        &mut self,
        client: &Member,
        server: &Member,
        service: Option<&Arc<Service>>,
    ) {
        for (end, member) in [(&mut self.source, client), (&mut self.destination, server)] {
            end.is_pod(&member.info);
            end.principal = Some(member.identity.clone());
        }
        self.service = service.into();
    }

    /// It took so long until now.
    pub(super) fn lasted(&mut self, duration: Duration) {
        self.since = Instant::now().checked_sub(duration).unwrap_or(self.since);
    }

    /// So many bytes went to the server until now, and from it.
    pub(super) fn carried(&mut self, to_server: u64, from_server: u64) {
        self.open().carried(to_server, from_server);
    }

    /// As [`Self::carried`].
    pub(super) fn metered(&mut self, meter: &Meter) {
        let (to_server, from_server) = bytes(self.direction, meter);
        self.carried(to_server, from_server);
    }

    /// The service that the client called, by its host name.
    fn addressed(&mut self, hostname: Name) {
        let mesh = self.shared.mesh.load();
        let known = mesh.services().find(|service| service.hostname == hostname);
        self.service = match known {
            Some(service) => Addressed::Service(service.clone()),
            None => Addressed::Host(hostname),
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
            self.destination.addr = addr.into();
        }
        self.destination.describe(workload);
    }

    /// The connection leaves without a tunnel.
    pub(super) fn plain(
        &mut self,
        to: SocketAddr,
        workload: Option<&Arc<Workload>>,
        service: Option<&Arc<Service>>,
    ) {
        self.destination = End::unknown(to);
        self.hbone = None;
        self.security = Security::Unknown;
        if let Some(workload) = workload {
            self.destination.describe(workload);
        }
        self.service = service.into();
        self.leaves("in plaintext");
    }

    /// The connection leaves through a tunnel.
    pub(super) fn hop(&mut self, hop: &Hop) {
        self.destination = End::unknown(hop.tunnel);
        self.destination.describe(&hop.workload);
        self.hbone = Some(hop.authority.into());
        self.service = hop.service.as_ref().into();
        self.leaves("through a tunnel");
    }

    /// Mutual TLS with the destination stands.
    pub(super) fn peer(&mut self, source: &SpiffeId, destination: &SpiffeId) {
        self.security = Security::MutualTls;
        self.source.principal = Some(source.clone());
        self.destination.principal = Some(destination.clone());
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
        self.rule = decision.rule().cloned().map(Box::new);
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
        self.open();
        self.tell(None, || Step {
            step: Kind::Open,
            ..Step::default()
        });
        if AccessLog::is_opening_told() {
            let trace = self.trace();
            let service = self.service.hostname();
            let line = self.line(&service, None, trace.as_deref(), (0, 0));
            line.opened();
        }
    }

    /// Counts it as opened, unless it is.
    fn open(&mut self) -> &mut ConnectionMetrics {
        if let Counted::Opening(_) = self.counted {
            let labels = TcpLabels {
                reporter: self.reporter(),
                source: self.source.labels(),
                destination: self.destination.labels(),
                service: self.service.labels(),
                security: self.security,
                flags: ResponseFlags::None,
            };
            self.counted = Counted::Open(self.shared.metrics.tcp().open(labels));
        }
        let Counted::Open(open) = &mut self.counted else {
            unreachable!("it has just been opened")
        };
        open
    }

    fn reporter(&self) -> Reporter {
        reporter(self.direction)
    }

    /// The trace that the connection is recorded in.
    fn trace(&self) -> Option<String> {
        self.place.as_ref()?.recorded(&self.shared)
    }

    /// The connection has ended.
    pub(super) fn finish(mut self, failure: Option<Failure>) {
        // Also one that never came to carry a byte is counted.
        let bytes = self.open().counted();
        if let Some(failure) = &failure {
            self.count_failure(failure);
        }
        let trace = self.trace();
        let error = failure.as_ref().map(|failure| failure.text.as_str());
        let service = self.service.hostname();
        let line = self.line(&service, error.as_ref(), trace.as_deref(), bytes);
        if self.shared.access_log.admits(&line) {
            line.emit();
        }
        self.record(failure.as_ref(), bytes);
        self.remember(failure, bytes);
    }

    /// Keeps it for whoever traces later, and tells who traces now.
    fn remember(self, failure: Option<Failure>, (sent, received): (u64, u64)) {
        let (connection, path) = (self.number.get(), self.path());
        let ended = Ended {
            direction: self.direction,
            duration: self.since.elapsed(),
            source: self.source,
            destination: self.destination,
            hbone: self.hbone,
            service: self.service.hostname(),
            path,
            rule: self.rule,
            sent,
            received,
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

    fn count_failure(&mut self, failure: &Failure) {
        let metrics = &self.shared.metrics;
        metrics.failures().failed(self.reporter(), failure.cause);
        if let Some((denial, phase)) = &failure.denial {
            metrics.policy().denied(self.reporter(), denial, *phase);
            if let Denial::Policy(DenyReason::Rule(rule)) = denial {
                // What cut it, and not what had let it through.
                self.rule = Some(Box::new(rule.clone()));
            }
        }
        self.open().failed(failure.flags);
    }

    /// What the access log says.
    fn line<'a>(
        &'a self,
        service: &'a str,
        error: Option<&'a &'a str>,
        trace: Option<&'a str>,
        (bytes_sent, bytes_received): (u64, u64),
    ) -> AccessLog<'a> {
        AccessLog {
            direction: self.direction,
            src: self.source.access(),
            dst: self.destination.access(),
            port: self.port(),
            hbone_addr: self.hbone.as_ref().map(|addr| addr as &dyn fmt::Display),
            service: Some(service),
            path: self.path(),
            bytes_sent,
            bytes_received,
            duration: self.since.elapsed(),
            rule: self.rule.as_deref(),
            trace,
            error: error.map(|error| error as &dyn fmt::Display),
        }
    }

    /// The application's port.
    fn port(&self) -> u16 {
        let asked = self.hbone.as_ref().and_then(Authority::port);
        asked.unwrap_or(self.destination.addr.port())
    }

    /// How it went, when not through the ztunnel.
    fn path(&self) -> Option<&'static str> {
        self.straight.then_some(KERNEL)
    }

    /// Exports the connection's span, if its trace is recorded.
    fn record(&self, failure: Option<&Failure>, (bytes_sent, bytes_received): (u64, u64)) {
        let Some(place) = &self.place else { return };
        let now = SystemTime::now();
        let connection = spans::Connection {
            direction: self.direction,
            begun: now.checked_sub(self.since.elapsed()).unwrap_or(now),
            source: self.source.span(),
            destination: self.destination.span(),
            service: &self.service.hostname(),
            hbone: self.hbone.as_ref(),
            path: self.path(),
            bytes_sent,
            bytes_received,
            rule: self.rule.as_deref(),
            failure: failure.map(|failure| (failure.cause.as_str(), failure.text.as_str())),
        };
        spans::record(&self.shared, **place, &connection);
    }
}

/// What a connection that passes in this direction has carried: from its client, and to it.
pub(super) fn bytes(direction: Direction, meter: &Meter) -> (u64, u64) {
    let (received, sent) = (meter.received.get(), meter.sent.get());
    match direction {
        // Outbound, our TCP connection is the client's; inbound, the server's.
        Direction::Outbound => (received, sent),
        Direction::Inbound => (sent, received),
    }
}

/// Who counts a connection that passes in this direction.
fn reporter(direction: Direction) -> Reporter {
    match direction {
        Direction::Inbound => Reporter::Destination,
        Direction::Outbound => Reporter::Source,
    }
}
