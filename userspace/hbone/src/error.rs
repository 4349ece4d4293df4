use std::{io, rc::Rc};

use http::StatusCode;

/// Why a stream to a peer could not be opened. Shared by all who waited for the same tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot connect to the peer: {0}")]
    Connect(Rc<io::Error>),
    #[error(
        "no answer from the peer within {0:?}; is its port 15008 blocked, by a NetworkPolicy for \
         example?"
    )]
    ConnectTimeout(std::time::Duration),
    #[error("TLS with the peer: {}", tls_reason(.0))]
    Tls(Rc<io::Error>),
    #[error("{0}")]
    Peer(Rc<sluice_identity::Error>),
    #[error("the peer began no HTTP/2 session: {0}")]
    Handshake(Rc<h2::Error>),
    #[error("no HTTP/2 session with the peer within {0:?}")]
    HandshakeTimeout(std::time::Duration),
    #[error("the tunnel broke: {0}")]
    Tunnel(Rc<h2::Error>),
    #[error("the peer is there, but has not answered the request within {0:?}")]
    AnswerTimeout(std::time::Duration),
    #[error("http status: {}{}", .0.as_u16(), hint(*.0))]
    Refused(StatusCode),
    #[error("the request cannot be written: {0}")]
    Request(Rc<http::Error>),
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
    pub(crate) fn not_begun(error: h2::Error) -> Self {
        match error.get_io() {
            // What TLS complains of; h2 passes on no more than its kind and text.
            Some(io) if io.kind() == io::ErrorKind::InvalidData => {
                Self::Tls(Rc::new(io::Error::new(io.kind(), io.to_string())))
            }
            _ => Self::Handshake(Rc::new(error)),
        }
    }

    /// Whether the tunnel broke before the peer can have seen the request, so that another try is
    /// harmless.
    pub(crate) fn is_unseen(&self) -> bool {
        match self {
            Self::Tunnel(error) => {
                error.reason() == Some(h2::Reason::REFUSED_STREAM)
                    || error.is_go_away()
                    || error.is_io()
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
