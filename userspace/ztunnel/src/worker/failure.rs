//! Why a connection failed, as it is told and counted.

use std::{fmt, net::SocketAddr};

use sluice_hbone::{CarryError, OpenError};
use sluice_identity::Distrust;
use sluice_model::{admission::Refusal as Unasked, route};
use sluice_telemetry::metrics::{Denial, Phase, ResponseFlags};

use crate::link::message::Ending;

use super::{admission::Refusal, flows::Cut, inbound, outbound};

/// Why a connection failed, in words and as a flag.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) text: String,
    pub(super) flags: ResponseFlags,
    /// Who was refused or cut is counted by this.
    pub(super) denial: Option<(Denial, Phase)>,
}

impl Failure {
    fn new(error: &impl fmt::Display, flags: ResponseFlags) -> Self {
        Self {
            text: error.to_string(),
            flags,
            denial: None,
        }
    }

    /// Somebody was refused, or cut.
    fn denied(error: &impl fmt::Display, denial: Denial, phase: Phase) -> Self {
        Self {
            text: error.to_string(),
            flags: ResponseFlags::Denied,
            denial: Some((denial, phase)),
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
            Cut::NotStraight(_) => return Self::new(cut, ResponseFlags::Connect),
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
            (Ending::NotConnected, _) => Self::new(
                &format_args!("connect to {server}: refused, or no answer"),
                ResponseFlags::Connect,
            ),
            (_, Some(cut)) => Self::cut(cut),
            (_, None) => Self::new(&"the connection was reset", ResponseFlags::Connect),
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
            _ => Self::new(refusal, ResponseFlags::Connect),
        }
    }
}

impl From<outbound::Error> for Failure {
    fn from(error: outbound::Error) -> Self {
        let flags = match &error {
            outbound::Error::Open(_, open) if open.is_revoked() => {
                return Self::revoked(&error, Phase::New);
            }
            outbound::Error::Open(_, open) => match open {
                OpenError::ConnectTimeout(_) => ResponseFlags::NetworkPolicy,
                OpenError::Tls(_) | OpenError::Peer(_) => ResponseFlags::TlsFailure,
                OpenError::Handshake(_) | OpenError::HandshakeTimeout(_) => {
                    ResponseFlags::H2HandshakeFailure
                }
                OpenError::Identity(_) => ResponseFlags::Identity,
                OpenError::Connect(_)
                | OpenError::Tunnel(_)
                | OpenError::AnswerTimeout(_)
                | OpenError::Refused(_) => ResponseFlags::Connect,
            },
            outbound::Error::Cut(cut) => return Self::cut(cut),
            outbound::Error::Refused(route::Refusal::NotInRegistry(..)) => {
                return Self::denied(&error, Denial::NotInRegistry, Phase::New);
            }
            _ => ResponseFlags::Connect,
        };
        Self::new(&error, flags)
    }
}

impl From<inbound::Error> for Failure {
    fn from(error: inbound::Error) -> Self {
        match &error {
            inbound::Error::Refused(refusal) => Self::refusal(refusal),
            _ => Self::new(&error, ResponseFlags::Connect),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::refusal(&refusal)
    }
}

impl From<CarryError> for Failure {
    fn from(error: CarryError) -> Self {
        Self::new(&error, ResponseFlags::Connect)
    }
}

impl From<Box<Cut>> for Failure {
    fn from(cut: Box<Cut>) -> Self {
        Self::cut(&cut)
    }
}
