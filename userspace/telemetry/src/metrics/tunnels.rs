//! Tunnels: how many there are, and what came of the attempts to make more.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::access::Direction;

/// Why a tunnel did not come to be, or ended with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelFailure {
    /// TCP: nobody answered. Only who dials sees this.
    ConnectTimeout,
    /// TCP: refused, or no way. Only who dials sees this.
    Connect,
    /// There is no certificate for the own end.
    NoCertificate,
    Tls,
    /// The peer is not who it should be.
    PeerIdentity,
    Revoked,
    /// The handshakes took too long.
    Timeout,
    Http2,
    /// The peer no longer answered.
    Silent,
    /// It was cut since something had changed.
    Cut,
}

impl TunnelFailure {
    fn as_str(self) -> &'static str {
        match self {
            Self::ConnectTimeout => "connect_timeout",
            Self::Connect => "connect",
            Self::NoCertificate => "no_certificate",
            Self::Tls => "tls",
            Self::PeerIdentity => "peer_identity",
            Self::Revoked => "revoked",
            Self::Timeout => "timeout",
            Self::Http2 => "http2",
            Self::Silent => "silent",
            Self::Cut => "cut",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    direction: &'static str,
    cause: &'static str,
}

/// The metrics of tunnels. Clones count into the same.
#[derive(Clone, Debug, Default)]
pub struct TunnelMetrics {
    open: Family<Way, Gauge>,
    established: Family<Way, Counter>,
    failures: Family<Failed, Counter>,
}

impl TunnelMetrics {
    /// Counts a tunnel that has been made, and as open until the guard is dropped.
    pub fn open(&self, direction: Direction) -> OpenTunnel {
        let way = Way {
            direction: direction.as_str(),
        };
        self.established.get_or_create(&way).inc();
        let open = Gauge::clone(&self.open.get_or_create(&way));
        open.inc();
        OpenTunnel(open)
    }

    /// Counts a tunnel that did not come to be, or ended with an error.
    pub fn failed(&self, direction: Direction, cause: TunnelFailure) {
        let labels = Failed {
            direction: direction.as_str(),
            cause: cause.as_str(),
        };
        self.failures.get_or_create(&labels).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "sluice_tunnels",
            "Tunnels that are open; outbound, those of the pool",
            self.open.clone(),
        );
        registry.register(
            "sluice_tunnels_established",
            "Tunnels whose handshakes went well",
            self.established.clone(),
        );
        registry.register(
            "sluice_tunnel_failures",
            "Tunnels that did not come to be, or ended with an error, by cause",
            self.failures.clone(),
        );
    }
}

/// A tunnel that counts as open.
#[must_use = "the tunnel counts as open until this is dropped"]
#[derive(Debug)]
pub struct OpenTunnel(Gauge);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.dec();
    }
}
