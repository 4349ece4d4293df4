//! Why connections failed, more closely than Istio's flags tell it.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::Reporter;

/// Why a connection failed, or was ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The mesh is not known yet: neither the control plane nor a snapshot has told.
    MeshUnknown,
    /// The control plane does not know the pod.
    WorkloadUnknown,
    /// The control plane did not say what the destination is.
    DestinationUnanswered,
    /// The mesh does not know the destination, and the client may go nowhere else.
    NotInRegistry,
    /// The service has no endpoint that may be chosen.
    NoEndpoint,
    /// There is no way to the destination: a waypoint that is not known, no address, a loop.
    NoRoute,
    /// The destination does not answer, or refuses.
    Unreachable,
    /// The peer's tunnel port did not answer.
    TunnelTimeout,
    /// The peer's tunnel port refuses, or its host cannot be reached.
    TunnelUnreachable,
    /// TLS with the peer failed.
    Tls,
    /// The peer is not who it should be.
    PeerIdentity,
    /// The certificate of an end is revoked.
    Revoked,
    /// There is no certificate for the own end.
    NoCertificate,
    /// The peer began no HTTP/2 session.
    Http2,
    /// The peer accepted the tunnel and did not answer the request.
    AnswerTimeout,
    /// The peer's policy denies it.
    PeerDenied,
    /// The peer answered with another status than 200 and 401.
    PeerRefused,
    /// The tunnel broke.
    TunnelBroken,
    /// The request in the tunnel makes no sense here.
    BadRequest,
    /// The request names a service that is not the pod's.
    ServiceUnknown,
    /// The destination is a port of the proxy.
    OwnPort,
    /// An authorization policy, or the mode of mutual TLS, denies it.
    Policy,
    /// The peer's trust domain is not accepted.
    TrustDomain,
    /// It was established, and cut since something had changed.
    Cut,
    /// The application does not answer, or refuses.
    ApplicationUnreachable,
    /// It was reset while bytes flowed.
    Reset,
}

impl Cause {
    /// The label `cause`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MeshUnknown => "mesh_unknown",
            Self::WorkloadUnknown => "workload_unknown",
            Self::DestinationUnanswered => "destination_unanswered",
            Self::NotInRegistry => "not_in_registry",
            Self::NoEndpoint => "no_endpoint",
            Self::NoRoute => "no_route",
            Self::Unreachable => "unreachable",
            Self::TunnelTimeout => "tunnel_timeout",
            Self::TunnelUnreachable => "tunnel_unreachable",
            Self::Tls => "tls",
            Self::PeerIdentity => "peer_identity",
            Self::Revoked => "revoked",
            Self::NoCertificate => "no_certificate",
            Self::Http2 => "http2",
            Self::AnswerTimeout => "answer_timeout",
            Self::PeerDenied => "peer_denied",
            Self::PeerRefused => "peer_refused",
            Self::TunnelBroken => "tunnel_broken",
            Self::BadRequest => "bad_request",
            Self::ServiceUnknown => "service_unknown",
            Self::OwnPort => "own_port",
            Self::Policy => "policy",
            Self::TrustDomain => "trust_domain",
            Self::Cut => "cut",
            Self::ApplicationUnreachable => "application_unreachable",
            Self::Reset => "reset",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reporter: &'static str,
    cause: &'static str,
}

/// The counter of failed connections. Clones count into the same.
#[derive(Clone, Debug, Default)]
pub struct FailureMetrics(Family<Labels, Counter>);

impl FailureMetrics {
    /// Counts a connection that failed.
    pub fn failed(&self, reporter: Reporter, cause: Cause) {
        let labels = Labels {
            reporter: reporter.as_str(),
            cause: cause.as_str(),
        };
        self.0.get_or_create(&labels).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "sluice_failed_connections",
            "Connections that failed or were ended before their time, by cause",
            self.0.clone(),
        );
    }
}
