//! The access log: one line for each connection that ended.

mod filter;

use std::{fmt, net::SocketAddr, time::Duration};

pub use filter::{Filter, Lines};

use sluice_model::{SpiffeId, authz::RuleId};

/// The target of access log events, for log filters.
pub const TARGET: &str = "access";

/// Which side of the mesh a connection passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// One end of a connection. What is not known, or empty, is left out of the line.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub addr: SocketAddr,
    pub workload: Option<&'a str>,
    pub namespace: Option<&'a str>,
    pub cluster: Option<&'a str>,
    /// Only one that is proven: by mutual TLS, or, on the path `kernel`, by the network namespace.
    pub identity: Option<&'a SpiffeId>,
}

impl Peer<'_> {
    /// An end of which only the address is known.
    pub fn unknown(addr: SocketAddr) -> Self {
        Self {
            addr,
            workload: None,
            namespace: None,
            cluster: None,
            identity: None,
        }
    }
}

/// A connection that ended, or failed.
#[derive(Clone, Copy)]
pub struct AccessLog<'a> {
    pub direction: Direction,
    pub src: Peer<'a>,
    pub dst: Peer<'a>,
    /// The application's port, which a tunnel's address does not show.
    pub port: u16,
    /// The authority asked for through the tunnel.
    pub hbone_addr: Option<&'a dyn fmt::Display>,
    /// The host name of the service that was addressed.
    pub service: Option<&'a str>,
    /// How it went, when no ztunnel carried it.
    pub path: Option<&'a str>,
    /// From the client to the server, in bytes.
    pub bytes_sent: u64,
    /// From the server to the client, in bytes.
    pub bytes_received: u64,
    pub duration: Duration,
    /// The rule of an authorization policy that allowed or denied it, if one did.
    pub rule: Option<&'a RuleId>,
    /// The trace that it is a span of, if that is recorded.
    pub trace: Option<&'a str>,
    /// Why it failed; absent when it did not.
    pub error: Option<&'a dyn fmt::Display>,
}

impl fmt::Debug for AccessLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessLog")
            .field("direction", &self.direction)
            .field("src", &self.src)
            .field("dst", &self.dst)
            .field("error", &self.error.map(ToString::to_string))
            .finish_non_exhaustive()
    }
}

/// The level and the message of an event are part of its static metadata, so each needs one of its own.
macro_rules! event {
    ($level:expr, $log:expr, $message:literal, $($more:tt)*) => {{
        let log: &AccessLog<'_> = $log;
        if tracing::enabled!(target: TARGET, $level) {
            let identity = |peer: &Peer<'_>| peer.identity.map(ToString::to_string);
            let (src_identity, dst_identity) = (identity(&log.src), identity(&log.dst));
            tracing::event!(
                target: TARGET,
                $level,
                src.addr = %log.src.addr,
                src.workload = known(log.src.workload),
                src.namespace = known(log.src.namespace),
                src.identity = src_identity.as_deref(),
                src.cluster = known(log.src.cluster),
                dst.addr = %log.dst.addr,
                dst.hbone_addr = log.hbone_addr.map(tracing::field::display),
                dst.service = known(log.service),
                dst.workload = known(log.dst.workload),
                dst.namespace = known(log.dst.namespace),
                dst.identity = dst_identity.as_deref(),
                dst.cluster = known(log.dst.cluster),
                direction = log.direction.as_str(),
                path = log.path,
                $($more)*
                $message
            );
        }
    }};
}

macro_rules! complete {
    ($level:expr, $log:expr) => {
        event!(
            $level,
            $log,
            "connection complete",
            bytes_sent = $log.bytes_sent,
            bytes_recv = $log.bytes_received,
            duration = format!("{}ms", $log.duration.as_millis()),
            policy = $log.rule.map(|rule| rule.policy.to_string()),
            policy_rule = $log.rule.map(|rule| rule.rule),
            trace_id = $log.trace,
            error = $log.error.map(|error| error.to_string()),
        )
    };
}

impl AccessLog<'_> {
    /// Writes the line: as information when the connection went well, as an error otherwise.
    pub fn emit(&self) {
        match self.error {
            None => complete!(tracing::Level::INFO, self),
            Some(_) => complete!(tracing::Level::ERROR, self),
        }
    }

    /// Says that the connection may carry bytes from now on, for who debugs.
    pub fn opened(&self) {
        event!(tracing::Level::DEBUG, self, "connection opened",);
    }

    /// Whether [`Self::opened`] would write a line.
    pub fn is_opening_told() -> bool {
        tracing::enabled!(target: TARGET, tracing::Level::DEBUG)
    }
}

fn known(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}
