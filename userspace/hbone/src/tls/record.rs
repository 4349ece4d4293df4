//! Records of TLS 1.3 (RFC 8446 §5), sealed and opened in place.

use std::fmt;

use rustls::{ConnectionTrafficSecrets, Error, SupportedCipherSuite};

use super::cipher::{Cipher, NONCE, TAG};

/// What precedes a record's bytes, and what follows them: the kind of its content and the tag.
pub(crate) const HEADER: usize = 5;
pub(crate) const TRAILER: usize = 1 + TAG;
pub(crate) const OVERHEAD: usize = HEADER + TRAILER;
/// What a record may hold, in bytes.
pub(crate) const MAX_PLAINTEXT: usize = 16 << 10;
/// A whole record at most, in bytes: senders may add padding (§5.2).
pub(crate) const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + 256;

/// What all records look like from outside: application data of TLS 1.2.
const APPLICATION_DATA: u8 = 23;
const LEGACY_VERSION: [u8; 2] = [3, 3];

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// A key of one direction, with the number of the next record.
struct Key {
    cipher: Cipher,
    iv: [u8; NONCE],
    sequence: u64,
}

impl Key {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (cipher, iv) = Cipher::new(&secrets)?;
        Ok(Self {
            cipher,
            iv,
            sequence,
        })
    }

    /// The nonce of the next record (§5.3). No key lives long enough for the numbers to run out.
    fn nonce(&mut self) -> [u8; NONCE] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        nonce
    }
}

/// Seals what we say.
pub(crate) struct Sealer {
    key: Key,
    /// How many records this key may still seal before it should be replaced.
    left: u64,
}

impl Sealer {
    pub(crate) fn new(
        secrets: (u64, ConnectionTrafficSecrets),
        suite: SupportedCipherSuite,
    ) -> Result<Self, Error> {
        let SupportedCipherSuite::Tls13(suite) = suite else {
            return Err(Error::General("not TLS 1.3".into()));
        };
        Ok(Self {
            key: Key::new(secrets)?,
            // Half of what its authors allow (§5.5).
            left: suite.common.confidentiality_limit / 2,
        })
    }

    /// Whether the key has sealed as much as it should.
    pub(crate) fn is_worn(&self) -> bool {
        self.left == 0
    }

    /// Seals a record, given with room for its header in front and its trailer behind.
    pub(crate) fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), Error> {
        let protected = (record.len() - HEADER) as u16;
        let (header, rest) = record.split_at_mut(HEADER);
        header[0] = APPLICATION_DATA;
        header[1..3].copy_from_slice(&LEGACY_VERSION);
        header[3..].copy_from_slice(&protected.to_be_bytes());
        let (inner, place) = rest.split_at_mut(rest.len() - TAG);
        inner[inner.len() - 1] = content as u8;
        let nonce = self.key.nonce();
        let tag = self.key.cipher.seal(nonce, header, inner)?;
        place.copy_from_slice(&tag);
        self.left = self.left.saturating_sub(1);
        Ok(())
    }
}

/// The length of the record that begins here, header and all; `None` when the header is not whole.
///
/// # Errors
/// When there begins none.
pub(crate) fn length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let [kind, major, minor, a, b, ..] = bytes else {
        return Ok(None);
    };
    let length = HEADER + usize::from(u16::from_be_bytes([*a, *b]));
    if *kind != APPLICATION_DATA || [*major, *minor] != LEGACY_VERSION {
        return Err(Error::General("no record of TLS 1.3".into()));
    }
    if !(OVERHEAD..=MAX_RECORD).contains(&length) {
        return Err(Error::PeerSentOversizedRecord);
    }
    Ok(Some(length))
}

/// Opens what the peer says.
pub(crate) struct Opener(Key);

impl Opener {
    pub(crate) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        Key::new(secrets).map(Self)
    }

    /// Opens a whole record, and says what it holds and how many bytes, which begin after the
    /// header.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(Content, usize), Error> {
        let (header, protected) = record.split_at_mut(HEADER);
        let nonce = self.0.nonce();
        let inner = self.0.cipher.open(nonce, header, protected)?;
        // Padding is zeros behind the kind (§5.4).
        let end = inner.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or_else(|| Error::General("a record without content".into()))?;
        if end > MAX_PLAINTEXT {
            return Err(Error::PeerSentOversizedRecord);
        }
        let content = match inner[end] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            _ => return Err(Error::General("a record of an unknown kind".into())),
        };
        Ok((content, end))
    }
}

/// Never the key.
impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("left", &self.left).finish()
    }
}

/// Never the key.
impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}
