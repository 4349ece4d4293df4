//! TLS of a tunnel: rustls does the handshake and every change of keys, and we the records in
//! between, in place.
//!
//! What RFC 8446 asks of whoever does that is here: key updates of both sides, limits of what one
//! key may encrypt, alerts, tickets that are refused, and messages that span records.

mod cipher;
mod handshake;
mod record;

pub use handshake::Negotiated;
pub(crate) use handshake::{Established, accept, connect, invalid};
pub(crate) use record::{
    Content, HEADER, MAX_PLAINTEXT, MAX_RECORD, OVERHEAD, Opener, Sealer, TRAILER, length,
};

use std::io;

use rustls::{
    AlertDescription, Error, client::ClientConnectionData, kernel::KernelConnection,
    server::ServerConnectionData,
};

/// Handshake messages that come after the handshake (RFC 8446 §4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// The longest of them that we take, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// A whole key update message, which asks for one in return or does not (§4.6.3).
pub(crate) const fn key_update(request: bool) -> [u8; 5] {
    [KEY_UPDATE, 0, 0, 1, request as u8]
}

/// The alert that ends a connection in order (§6.1).
pub(crate) const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// Where the next keys come from.
pub(crate) enum Secrets {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Secrets {
    pub(crate) fn next_sealer(&mut self) -> Result<Sealer, Error> {
        let (secrets, suite) = match self {
            Self::Client(tls) => (tls.update_tx_secret()?, tls.negotiated_cipher_suite()),
            Self::Server(tls) => (tls.update_tx_secret()?, tls.negotiated_cipher_suite()),
        };
        Sealer::new(secrets, suite)
    }

    pub(crate) fn next_opener(&mut self) -> Result<Opener, Error> {
        let secrets = match self {
            Self::Client(tls) => tls.update_rx_secret()?,
            Self::Server(tls) => tls.update_rx_secret()?,
        };
        Opener::new(secrets)
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

/// What the peer wants by a handshake message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It goes on with new keys, and asks us to do so as well if `answer`.
    NewKeys { answer: bool },
    /// It offers to resume a session, which we never do.
    Ticket,
}

/// Handshake messages after the handshake, in records of any size.
#[derive(Debug, Default)]
pub(crate) struct Messages(Vec<u8>);

impl Messages {
    /// Whether a message has begun and not ended: nothing else may come in between (§5.1).
    pub(crate) fn is_within(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() || self.0.len() + bytes.len() > MAX_MESSAGE {
            return Err(Error::General(
                "a handshake message of an odd length".into(),
            ));
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole message.
    pub(crate) fn next(&mut self) -> Result<Option<Wish>, Error> {
        let [kind, a, b, c, rest @ ..] = &*self.0 else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let wish = match (*kind, body) {
            (KEY_UPDATE, [answer @ (0 | 1)]) => Wish::NewKeys {
                answer: *answer == 1,
            },
            (NEW_SESSION_TICKET, _) => Wish::Ticket,
            _ => return Err(Error::General("an unexpected handshake message".into())),
        };
        self.0.drain(..4 + length);
        // Keys change between records: what follows in the same one was not protected by the new
        // ones (§5.1).
        if matches!(wish, Wish::NewKeys { .. }) && self.is_within() {
            return Err(Error::General("a key update within a record".into()));
        }
        Ok(Some(wish))
    }
}

/// The alert that tells a peer what is wrong with its records; `None` when it was the peer who
/// complained (RFC 8446 §6.2).
pub(crate) fn complaint(error: &io::Error) -> Option<[u8; 2]> {
    const FATAL: u8 = 2;
    let alert = match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(_) => return None,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        _ => AlertDescription::UnexpectedMessage,
    };
    Some([FATAL, alert.into()])
}

/// What an alert means: `Ok` when it is the orderly end.
pub(crate) fn alert(bytes: &[u8]) -> Result<(), Error> {
    match bytes {
        [_, 0] => Ok(()),
        [_, description] => Err(Error::AlertReceived(AlertDescription::from(*description))),
        _ => Err(Error::General("a malformed alert".into())),
    }
}
