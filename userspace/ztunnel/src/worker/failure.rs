//! Why a connection failed, as it is told and counted.

use std::{fmt, net::SocketAddr};

use http::StatusCode;
use sluice_hbone::{CarryError, OpenError};
use sluice_identity::Distrust;
use sluice_model::{admission::Refusal as Unasked, route};
use sluice_telemetry::metrics::{Cause, Denial, Phase, ResponseFlags, TunnelFailure};

use crate::link::message::Ending;

use super::{admission::Refusal, flows::Cut, inbound, outbound};

/// Why a connection failed, in words and as a flag.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) text: String,
    pub(super) flags: ResponseFlags,
    pub(super) cause: Cause,
    /// Who was refused or cut is counted by this.
    pub(super) denial: Option<(Denial, Phase)>,
}

impl Failure {
    fn new(error: &impl fmt::Display, flags: ResponseFlags, cause: Cause) -> Self {
        Self {
            text: error.to_string(),
            flags,
            cause,
            denial: None,
        }
    }

    /// The destination cannot be reached, or refuses.
    fn connect(error: &impl fmt::Display, cause: Cause) -> Self {
        Self::new(error, ResponseFlags::Connect, cause)
    }

    /// Somebody was refused, or cut.
    fn denied(error: &impl fmt::Display, denial: Denial, phase: Phase) -> Self {
        let cause = match (phase, &denial) {
            (Phase::Established, _) => Cause::Cut,
            (Phase::New, Denial::TrustDomain) => Cause::TrustDomain,
            (Phase::New, Denial::Revoked) => Cause::Revoked,
            (Phase::New, Denial::NotInRegistry) => Cause::NotInRegistry,
            (Phase::New, _) => Cause::Policy,
        };
        Self {
            denial: Some((denial, phase)),
            ..Self::new(error, ResponseFlags::Denied, cause)
        }
    }

    fn cut(cut: &Cut) -> Self {
        let denial = match cut {
            Cut::Denied(reason) => Denial::Policy(reason.clone()),
            Cut::Untrusted(_) => Denial::TrustDomain,
            Cut::OwnIdentity(_) | Cut::PeerIdentity(_) => Denial::IdentityChanged,
            Cut::Distrusted(Distrust::Revoked(..)) => {
                return Self::revoked(cut, Phase::Established);
            }
            Cut::Distrusted(Distrust::Unvouched(_)) => Denial::TrustAnchors,
            Cut::NotInRegistry(_) => Denial::NotInRegistry,
            Cut::NotStraight(_) | Cut::Stopped => return Self::connect(cut, Cause::Cut),
        };
        Self::denied(cut, denial, Phase::Established)
    }

    fn revoked(error: &impl fmt::Display, phase: Phase) -> Self {
        Self {
            flags: ResponseFlags::CertificateRevoked,
            ..Self::denied(error, Denial::Revoked, phase)
        }
    }

    /// A connection that went straight from pod to pod was not orderly.
    pub(super) fn straight(server: SocketAddr, how: Ending, cut: Option<&Cut>) -> Self {
        match (how, cut) {
            (Ending::NotConnected, _) => Self::connect(
                &format_args!(
                    "connect to {server}: refused, or no answer; does the application listen there?"
                ),
                Cause::Unreachable,
            ),
            (_, Some(cut)) => Self::cut(cut),
            (_, None) => {
                Self::connect(&"the connection was reset by one of its ends", Cause::Reset)
            }
        }
    }

    fn refusal(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Denied(reason) => {
                Self::denied(refusal, Denial::Policy(reason.clone()), Phase::New)
            }
            Refusal::Unasked(Unasked::Untrusted(_)) => {
                Self::denied(refusal, Denial::TrustDomain, Phase::New)
            }
            Refusal::Cut(cut) => Self::cut(cut),
            Refusal::NotSynced => Self::connect(refusal, Cause::MeshUnknown),
            Refusal::UnknownWorkload => Self::connect(refusal, Cause::WorkloadUnknown),
            Refusal::Unasked(Unasked::IllegalPort(_)) => Self::connect(refusal, Cause::OwnPort),
            Refusal::Connect(..) => Self::connect(refusal, Cause::ApplicationUnreachable),
        }
    }
}

impl From<outbound::Error> for Failure {
    fn from(error: outbound::Error) -> Self {
        use outbound::Error;
        use route::Refusal;
        let cause = match &error {
            Error::Open(_, open) if open.is_revoked() => return Self::revoked(&error, Phase::New),
            Error::Open(_, open) => {
                let (flags, cause) = unopened(open);
                return Self::new(&error, flags, cause);
            }
            Error::Cut(cut) => return Self::cut(cut),
            Error::Refused(Refusal::NotInRegistry(..)) => {
                return Self::denied(&error, Denial::NotInRegistry, Phase::New);
            }
            Error::Refused(Refusal::NoEndpoint(..)) => Cause::NoEndpoint,
            Error::Refused(_) | Error::Resolve(..) => Cause::NoRoute,
            Error::NotSynced => Cause::MeshUnknown,
            Error::UnknownWorkload => Cause::WorkloadUnknown,
            Error::UnknownDestination(_) => Cause::DestinationUnanswered,
            Error::Connect(..) => Cause::Unreachable,
        };
        Self::connect(&error, cause)
    }
}

/// Why there is no stream in a tunnel to the peer.
fn unopened(error: &OpenError) -> (ResponseFlags, Cause) {
    match error {
        OpenError::ConnectTimeout(_) => (ResponseFlags::NetworkPolicy, Cause::TunnelTimeout),
        OpenError::Tls(_) => (ResponseFlags::TlsFailure, Cause::Tls),
        OpenError::Peer(_) => (ResponseFlags::TlsFailure, Cause::PeerIdentity),
        OpenError::Handshake(_) | OpenError::HandshakeTimeout(_) => {
            (ResponseFlags::H2HandshakeFailure, Cause::Http2)
        }
        OpenError::Identity(_) => (ResponseFlags::Identity, Cause::NoCertificate),
        OpenError::Connect(_) => (ResponseFlags::Connect, Cause::TunnelUnreachable),
        OpenError::Tunnel(_) | OpenError::Lost(_) => (ResponseFlags::Connect, Cause::TunnelBroken),
        OpenError::AnswerTimeout(_) => (ResponseFlags::Connect, Cause::AnswerTimeout),
        OpenError::Refused(StatusCode::UNAUTHORIZED) => (ResponseFlags::Connect, Cause::PeerDenied),
        OpenError::Refused(_) => (ResponseFlags::Connect, Cause::PeerRefused),
    }
}

/// The same for the whole tunnel, of which one stream's fate is not a part.
pub(super) fn unestablished(error: &OpenError) -> TunnelFailure {
    match error {
        error if error.is_revoked() => TunnelFailure::Revoked,
        OpenError::ConnectTimeout(_) => TunnelFailure::ConnectTimeout,
        OpenError::Connect(_) => TunnelFailure::Connect,
        OpenError::Tls(_) => TunnelFailure::Tls,
        OpenError::Peer(_) => TunnelFailure::PeerIdentity,
        OpenError::HandshakeTimeout(_) => TunnelFailure::Timeout,
        OpenError::Identity(_) => TunnelFailure::NoCertificate,
        OpenError::Handshake(_)
        | OpenError::Tunnel(_)
        | OpenError::Lost(_)
        | OpenError::AnswerTimeout(_)
        | OpenError::Refused(_) => TunnelFailure::Http2,
    }
}

impl From<inbound::Error> for Failure {
    fn from(error: inbound::Error) -> Self {
        use inbound::Error;
        let cause = match &error {
            Error::Refused(refusal) => return Self::refusal(refusal),
            Error::NotConnect | Error::BadAuthority(_) | Error::NotHere(..) => Cause::BadRequest,
            Error::UnknownHost(_) | Error::UnknownService(_) => Cause::ServiceUnknown,
            Error::Tunnel(_) => Cause::TunnelBroken,
        };
        Self::connect(&error, cause)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::refusal(&refusal)
    }
}

impl From<CarryError> for Failure {
    fn from(error: CarryError) -> Self {
        let cause = match &error {
            CarryError::Application(_) | CarryError::Peer(_) => Cause::Reset,
            CarryError::Tunnel(_) => Cause::TunnelBroken,
        };
        Self::connect(&error, cause)
    }
}

impl From<Box<Cut>> for Failure {
    fn from(cut: Box<Cut>) -> Self {
        Self::cut(&cut)
    }
}
