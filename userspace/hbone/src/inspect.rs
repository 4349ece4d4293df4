//! The innermost parts, for tests and `benches`. No promise is made of them.

use rustls::{
    ConnectionTrafficSecrets, SupportedCipherSuite,
    crypto::{
        aws_lc_rs::cipher_suite,
        cipher::{AeadKey, Iv},
    },
};

use crate::{
    Engine,
    frame::{Event, MAX_STREAM, Parser, Payload, Violation},
    hpack::Decoder,
    limits,
    tls::{Content, Messages, Opener, Sealer, Wish},
};

/// What a record takes beyond its bytes: so much in front of them, and so much behind.
pub const IN_FRONT: usize = crate::tls::HEADER;
pub const BEHIND: usize = crate::tls::TRAILER;

/// A frame: its kind, flags and stream, and its payload. DATA comes without padding.
pub type Frame = (u8, u8, u32, Vec<u8>);

/// The frames of what one side says, which comes in pieces; and whether it broke the protocol.
pub fn frames(preface: bool, pieces: &[&[u8]]) -> (Vec<Frame>, Option<Violation>) {
    let mut parser = Parser::new(preface);
    let mut frames: Vec<Frame> = Vec::new();
    let mut open = false;
    for piece in pieces {
        let mut at = 0;
        loop {
            match parser.next(piece, &mut at) {
                Ok(Some(Event::Data {
                    stream, bytes, end, ..
                })) => {
                    if !open {
                        frames.push((0, 0, stream, Vec::new()));
                    }
                    open = true;
                    if let Some((_, flags, _, data)) = frames.last_mut() {
                        data.extend_from_slice(&piece[bytes]);
                        *flags |= u8::from(end);
                    }
                    continue;
                }
                Ok(Some(Event::Frame(head, payload))) => {
                    let payload = match payload {
                        Payload::Given(place) => piece[place].to_vec(),
                        Payload::Held => parser.take_held(),
                    };
                    assert_eq!(payload.len(), head.length);
                    frames.push((head.kind, head.flags, head.stream, payload));
                    open = false;
                }
                Ok(None) => break,
                Err(violation) => return (frames, Some(violation)),
            }
        }
    }
    (frames, None)
}

/// What a peer asks for by handshake messages after the handshake, which come in records of these
/// bytes: new keys, where `Some`, of us as well if true, or, by a ticket, nothing; until one breaks
/// the protocol.
pub fn messages(records: &[&[u8]]) -> (Vec<Option<bool>>, Option<rustls::Error>) {
    let mut messages = Messages::default();
    let mut wishes = Vec::new();
    for record in records {
        let mut take = || {
            messages.push(record)?;
            while let Some(wish) = messages.next()? {
                wishes.push(match wish {
                    Wish::NewKeys { answer } => Some(answer),
                    Wish::Ticket => None,
                });
            }
            Ok(())
        };
        if let Err(error) = take() {
            return (wishes, Some(error));
        }
    }
    (wishes, None)
}

/// The fields of header blocks, until one breaks the protocol.
pub fn headers(blocks: &[Vec<u8>]) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut decoder = Decoder::new();
    let mut lists = Vec::new();
    for block in blocks {
        let mut fields = Vec::new();
        let decoded = decoder.decode(block, limits::MAX_BLOCK, |name, value| {
            fields.push((name.to_vec(), value.to_vec()));
        });
        lists.push(fields);
        if decoded.is_err() {
            break;
        }
    }
    lists
}

/// An engine whose tunnels, as clients, have numbers for so many streams only.
///
/// # Errors
/// When the kernel has no descriptor left for it.
pub fn engine_with_streams(left: u32) -> std::io::Result<Engine> {
    Engine::start_at(MAX_STREAM - 2 * (left - 1))
}

/// Seals records in place, and opens them in the same order.
#[derive(Debug)]
pub struct Records {
    sealer: Sealer,
    opener: Opener,
}

impl Records {
    /// With a key that anybody may know.
    ///
    /// # Errors
    /// When there is no such cipher.
    pub fn new() -> Result<Self, rustls::Error> {
        let suite: SupportedCipherSuite = cipher_suite::TLS13_AES_256_GCM_SHA384;
        let secrets = || {
            let key = AeadKey::from([1; 32]);
            let iv = Iv::from([2; 12]);
            (0, ConnectionTrafficSecrets::Aes256Gcm { key, iv })
        };
        Ok(Self {
            sealer: Sealer::new(secrets(), suite)?,
            opener: Opener::new(secrets())?,
        })
    }

    /// # Errors
    /// When the cipher does.
    pub fn seal(&mut self, record: &mut [u8]) -> Result<(), rustls::Error> {
        self.sealer.seal(record, Content::Data)
    }

    /// How many bytes there were.
    ///
    /// # Errors
    /// When it is not the next one that was sealed.
    pub fn open(&mut self, record: &mut [u8]) -> Result<usize, rustls::Error> {
        self.opener.open(record).map(|(_, bytes)| bytes)
    }
}
