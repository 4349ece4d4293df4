use std::{io, rc::Rc, time::Duration};

use http::StatusCode;

use crate::{ErrorCode, Violation, tls};

/// Why a tunnel, or a stream in it, ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("the peer reset the stream: {0}")]
    Reset(ErrorCode),
    /// And has not looked at this stream.
    #[error("the peer leaves: {0}")]
    GoneAway(ErrorCode),
    #[error("the peer ended the tunnel: {0}")]
    Failed(ErrorCode),
    #[error("the peer closed the connection")]
    Closed,
    #[error("{0}")]
    Io(Rc<io::Error>),
    #[error("TLS with the peer: {}", tls_reason(.0))]
    Tls(Rc<io::Error>),
    #[error("the peer broke HTTP/2: {0}")]
    Violation(Violation),
    #[error("no HTTP/2 session with the peer within {0:?}")]
    NotBegun(Duration),
    #[error("the peer no longer answers")]
    Silent,
    /// By us, for what the peer said in it.
    #[error("reset: {0}")]
    GivenUp(ErrorCode),
    /// By us.
    #[error("ended")]
    Ended,
}

impl TunnelError {
    pub(crate) fn io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Tls(Rc::new(error)),
            _ => Self::Io(Rc::new(error)),
        }
    }

    pub(crate) fn tls(error: rustls::Error) -> Self {
        Self::Tls(Rc::new(tls::invalid(error)))
    }

    /// Whether the peer says that it has done nothing for a stream (RFC 9113 §8.7).
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Reset(ErrorCode::REFUSED_STREAM) | Self::GoneAway(_)
        )
    }
}

impl From<Violation> for TunnelError {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Why a stream to a peer could not be opened. Shared by all who waited for the same tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot connect to the peer: {0}")]
    Connect(Rc<io::Error>),
    #[error(
        "no answer from the peer within {0:?}; is its port 15008 blocked, by a NetworkPolicy for \
         example?"
    )]
    ConnectTimeout(Duration),
    #[error("TLS with the peer: {}", tls_reason(.0))]
    Tls(Rc<io::Error>),
    #[error("{0}")]
    Peer(Rc<sluice_identity::Error>),
    #[error("the peer began no HTTP/2 session: {0}")]
    Handshake(TunnelError),
    #[error("no HTTP/2 session with the peer within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("the tunnel broke: {0}")]
    Tunnel(TunnelError),
    /// The application may have been heard: its first bytes were sent beside the request.
    #[error("the tunnel broke: {0}")]
    Lost(TunnelError),
    #[error("the peer is there, but has not answered the request within {0:?}")]
    AnswerTimeout(Duration),
    #[error("http status: {}{}", .0.as_u16(), hint(*.0))]
    Refused(StatusCode),
    #[error("{0}")]
    Identity(Rc<str>),
}

impl OpenError {
    /// Whether the peer was refused because its certificate is revoked.
    pub fn is_revoked(&self) -> bool {
        matches!(self, Self::Tls(error) if sluice_identity::is_revoked(error))
    }

    /// A tunnel that broke before the peer said anything. In TLS 1.3 a client learns only then that
    /// its certificate was refused.
    pub(crate) fn not_begun(error: TunnelError) -> Self {
        match error {
            TunnelError::Tls(error) => Self::Tls(error),
            TunnelError::NotBegun(limit) => Self::HandshakeTimeout(limit),
            error => Self::Handshake(error),
        }
    }

    /// A tunnel that broke after the peer had said something, before it answered a request; and
    /// whether the application's first bytes went with that.
    pub(crate) fn broken(error: TunnelError, said: bool) -> Self {
        if said && !error.is_refusal() {
            return Self::Lost(error);
        }
        Self::Tunnel(error)
    }

    /// Whether the tunnel broke before the application can have been heard, so that another try is
    /// harmless.
    pub(crate) fn is_unheard(&self) -> bool {
        match self {
            Self::Tunnel(error) => {
                error.is_refusal()
                    || matches!(
                        error,
                        TunnelError::Failed(_) | TunnelError::Closed | TunnelError::Io(_)
                    )
            }
            _ => false,
        }
    }
}

/// Why TLS failed: in our own words, if it was we who refused the peer.
pub(crate) fn tls_reason(error: &io::Error) -> String {
    match sluice_identity::peer_error(error) {
        Some(refused) => refused.to_string(),
        None if sluice_identity::is_revoked(error) => "its certificate is revoked".to_owned(),
        None => error.to_string(),
    }
}

/// What a peer's answer means to an operator (wire contract §3).
fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => " (the peer did not understand the request)",
        401 => " (the peer's policy denies it)",
        503 => " (the peer cannot reach the workload, or does not know it)",
        _ => "",
    }
}
