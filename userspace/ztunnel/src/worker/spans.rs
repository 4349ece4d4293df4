//! The spans of connections: what they continue, and what they say.

use std::{fs::File, net::SocketAddr, os::fd::OwnedFd, time::SystemTime};

use anyhow::{Context as _, Result};
use sluice_hbone::Traceparent;
use sluice_model::{SpiffeId, authz::RuleId};
use sluice_telemetry::{
    access::Direction,
    metrics::Metrics,
    spans::{Config, Side, Span, Tracer, Value},
};

use super::{Shared, address::Authority};
use crate::link::{Settings, memory};

/// Starts the export, if there is a place for spans to go; `roots` is the memory of the certificates by
/// which that is known, if it must prove itself.
pub(super) fn start(
    settings: &Settings,
    roots: Vec<OwnedFd>,
    metrics: &Metrics,
) -> Result<Option<Tracer>> {
    let Some(traces) = &settings.traces else {
        return Ok(None);
    };
    let mut roots = roots.into_iter().map(|fd| memory::read(&File::from(fd)));
    let roots = roots
        .next()
        .transpose()
        .context("read the certificates of the receiver")?;
    let config = Config {
        endpoint: traces.endpoint.clone(),
        roots: roots.unwrap_or_default(),
        sampling: traces.sample,
        resource: vec![
            ("service.name", "ztunnel".to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            ("k8s.node.name", settings.node.clone()),
            ("k8s.cluster.name", settings.cluster.clone()),
        ],
    };
    Ok(Some(Tracer::start(config, metrics)?))
}

/// A connection's place in its trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    own: Traceparent,
    parent: Option<u64>,
}

impl Place {
    /// A new trace, or what the peer has begun.
    pub(super) fn of(shared: &Shared, peer: Option<Traceparent>) -> Self {
        match peer {
            Some(peer) => Self::below(peer),
            None => {
                let sampled = shared.tracer.as_ref().is_some_and(Tracer::samples);
                Self {
                    own: Traceparent::begin(sampled),
                    parent: None,
                }
            }
        }
    }

    pub(super) fn below(parent: Traceparent) -> Self {
        Self {
            own: parent.child(),
            parent: Some(parent.span),
        }
    }

    /// What the peer is told.
    pub(super) fn traceparent(self) -> Traceparent {
        self.own
    }

    /// The trace, if this connection's span is exported.
    pub(super) fn recorded(self, shared: &Shared) -> Option<String> {
        self.exporter(shared)
            .map(|_| format!("{:032x}", self.own.trace))
    }

    fn exporter(self, shared: &Shared) -> Option<&Tracer> {
        shared.tracer.as_ref().filter(|_| self.own.sampled)
    }
}

/// What a span says of one end of a connection.
pub(super) struct SpanEnd<'a> {
    pub(super) addr: SocketAddr,
    pub(super) workload: &'a str,
    pub(super) namespace: &'a str,
    pub(super) principal: Option<&'a SpiffeId>,
}

/// What a span says of a connection.
pub(super) struct Connection<'a> {
    pub(super) direction: Direction,
    pub(super) begun: SystemTime,
    pub(super) source: SpanEnd<'a>,
    pub(super) destination: SpanEnd<'a>,
    pub(super) service: &'a str,
    pub(super) hbone: Option<&'a Authority>,
    pub(super) path: Option<&'a str>,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) rule: Option<&'a RuleId>,
    /// Why it failed, in a word and in words.
    pub(super) failure: Option<(&'static str, &'a str)>,
}

/// Exports the span of a connection that has ended, if its trace is recorded.
pub(super) fn record(shared: &Shared, place: Place, connection: &Connection<'_>) {
    let Some(tracer) = place.exporter(shared) else {
        return;
    };
    let side = match connection.direction {
        Direction::Outbound => Side::Client,
        Direction::Inbound => Side::Server,
    };
    let mut span = Span {
        trace: place.own.trace,
        id: place.own.span,
        parent: place.parent,
        side,
        name: match (side, connection.hbone.is_some()) {
            (Side::Client, true) => "outbound tunnel",
            (Side::Client, false) => "outbound",
            (Side::Server, true) => "inbound tunnel",
            (Side::Server, false) => "inbound",
        },
        start: connection.begun,
        end: SystemTime::now(),
        attributes: vec![("network.transport", "tcp".into())],
        error: connection.failure.map(|(_, text)| text.to_owned()),
    };
    span.address(["client.address", "client.port"], connection.source.addr);
    span.address(
        ["network.peer.address", "network.peer.port"],
        match side {
            Side::Client => connection.destination.addr,
            Side::Server => connection.source.addr,
        },
    );
    let attributes = &mut span.attributes;
    match connection.hbone {
        Some(authority) => {
            attributes.push(("server.address", authority.to_string().into()));
            attributes.push(("network.protocol.name", "hbone".into()));
        }
        None => span.address(
            ["server.address", "server.port"],
            connection.destination.addr,
        ),
    }
    let attributes = &mut span.attributes;
    let principal = |end: &SpanEnd<'_>| end.principal.map(ToString::to_string).unwrap_or_default();
    let (source, destination) = (&connection.source, &connection.destination);
    attributes.extend(known([
        ("sluice.source.workload", source.workload),
        ("sluice.source.namespace", source.namespace),
        ("sluice.source.principal", &principal(source)),
        ("sluice.destination.workload", destination.workload),
        ("sluice.destination.namespace", destination.namespace),
        ("sluice.destination.principal", &principal(destination)),
        ("sluice.destination.service", connection.service),
    ]));
    attributes.extend([
        ("sluice.bytes_sent", connection.bytes_sent.into()),
        ("sluice.bytes_received", connection.bytes_received.into()),
    ]);
    if let Some(path) = connection.path {
        attributes.push(("sluice.path", path.into()));
    }
    if let Some(rule) = connection.rule {
        attributes.push(("sluice.policy", rule.policy.to_string().into()));
        attributes.push(("sluice.policy.rule", (rule.rule as u64).into()));
    }
    if let Some((cause, _)) = connection.failure {
        attributes.push(("error.type", cause.into()));
    }
    tracer.record(span);
}

/// Leaves out what is not known.
fn known<const N: usize>(
    texts: [(&'static str, &str); N],
) -> impl Iterator<Item = (&'static str, Value)> {
    let known = texts.into_iter().filter(|(_, text)| !text.is_empty());
    known.map(|(name, text)| (name, text.into()))
}
