//! AES-GCM with a key, by whichever of two libraries is faster on this processor.
//!
//! AWS-LC uses the wide instructions for AES (VAES) in registers of 512 bits, and not in those of 256,
//! as many processors have them that lack the wider ones (AMD Zen 3, Intel's smaller cores). There, ring
//! takes a little more than half the time. Both seal the same bytes.

use std::sync::LazyLock;

use rustls::{ConnectionTrafficSecrets, Error};

/// Of the tag that proves a record, in bytes.
pub(super) const TAG: usize = 16;
/// Of a nonce, in bytes.
pub(super) const NONCE: usize = 12;

/// A cipher with a key.
pub(super) enum Cipher {
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    /// It holds all that it derives from the key in itself.
    Ring(Box<ring::aead::LessSafeKey>),
}

/// Whether ring is the faster one here.
static RING_IS_FASTER: LazyLock<bool> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("vaes")
        && std::arch::is_x86_feature_detected!("vpclmulqdq")
        && std::arch::is_x86_feature_detected!("avx2")
        && !std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
});

impl Cipher {
    /// With the initial nonce that belongs to the key.
    pub(super) fn new(secrets: &ConnectionTrafficSecrets) -> Result<(Self, [u8; NONCE]), Error> {
        let (bits, key, nonce) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Bits::Fewer, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Bits::More, key, iv),
            // The mesh knows no others.
            _ => return Err(Error::General("a cipher that is not known".into())),
        };
        let new = if *RING_IS_FASTER {
            Self::ring
        } else {
            Self::aws_lc
        };
        let cipher = new(bits, key.as_ref());
        let cipher = cipher.ok_or_else(|| Error::General("a key of the wrong length".into()))?;
        let nonce = nonce.as_ref().try_into();
        let nonce = nonce.map_err(|_| Error::General("a nonce of the wrong length".into()))?;
        Ok((cipher, nonce))
    }

    /// Unless the key is of another length.
    fn aws_lc(bits: Bits, key: &[u8]) -> Option<Self> {
        use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey};
        let algorithm = match bits {
            Bits::Fewer => &AES_128_GCM,
            Bits::More => &AES_256_GCM,
        };
        let key = UnboundKey::new(algorithm, key).ok()?;
        Some(Self::AwsLc(LessSafeKey::new(key)))
    }

    /// Likewise.
    fn ring(bits: Bits, key: &[u8]) -> Option<Self> {
        use ring::aead::{AES_128_GCM, AES_256_GCM, LessSafeKey, UnboundKey};
        let algorithm = match bits {
            Bits::Fewer => &AES_128_GCM,
            Bits::More => &AES_256_GCM,
        };
        let key = UnboundKey::new(algorithm, key).ok()?;
        Some(Self::Ring(Box::new(LessSafeKey::new(key))))
    }

    /// Encrypts in place, and returns the tag of it and of what is said in clear. A nonce must not be
    /// given twice.
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE],
        clear: &[u8],
        secret: &mut [u8],
    ) -> Result<[u8; TAG], Error> {
        let tag = match self {
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(clear), secret);
                tag.map(|tag| tag.as_ref().try_into()).ok()
            }
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(clear), secret);
                tag.map(|tag| tag.as_ref().try_into()).ok()
            }
        };
        tag.and_then(Result::ok).ok_or(Error::EncryptError)
    }

    /// Decrypts in place what ends in its tag, and returns it without.
    pub(super) fn open<'r>(
        &self,
        nonce: [u8; NONCE],
        clear: &[u8],
        secret: &'r mut [u8],
    ) -> Result<&'r mut [u8], Error> {
        let opened = match self {
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(clear), secret).ok()
            }
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(clear), secret).ok()
            }
        };
        opened.ok_or(Error::DecryptError)
    }
}

/// How long a key is.
#[derive(Clone, Copy)]
enum Bits {
    /// 128 bits.
    Fewer,
    /// 256 bits.
    More,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAR: [u8; 5] = [23, 3, 3, 1, 2];
    const FIRST: [u8; NONCE] = [9; NONCE];
    const KEYS: [(Bits, &[u8]); 2] = [(Bits::Fewer, &[7; 16]), (Bits::More, &[7; 32])];

    #[test]
    fn what_one_library_seals_the_other_opens() {
        for (bits, key) in KEYS {
            let aws_lc = Cipher::aws_lc(bits, key).unwrap();
            let ring = Cipher::ring(bits, key).unwrap();
            for length in (0..100).chain([255, 256, 1000, 4096, 16_384, 16_385]) {
                let text: Vec<u8> = (0..length).map(|at| at as u8).collect();
                for (sealing, opening) in [(&aws_lc, &ring), (&ring, &aws_lc)] {
                    let mut record = text.clone();
                    let tag = sealing.seal(FIRST, &CLEAR, &mut record).unwrap();
                    assert!(
                        length < 16 || record != text,
                        "{length} bytes are not sealed"
                    );
                    record.extend(tag);
                    let opened = opening.open(FIRST, &CLEAR, &mut record).unwrap();
                    assert_eq!(opened, text);
                }
            }
        }
    }

    #[test]
    fn neither_opens_what_was_changed() {
        for (bits, key) in KEYS {
            for new in [Cipher::aws_lc, Cipher::ring] {
                assert!(new(bits, &key[1..]).is_none());
                let cipher = new(bits, key).unwrap();
                let mut record = b"what is said".to_vec();
                let tag = cipher.seal(FIRST, &CLEAR, &mut record).unwrap();
                record.extend(tag);
                for place in 0..record.len() {
                    let mut changed = record.clone();
                    changed[place] ^= 1;
                    cipher.open(FIRST, &CLEAR, &mut changed).unwrap_err();
                }
                let (mut other, mut clear) = (FIRST, CLEAR);
                (other[0], clear[0]) = (!other[0], !clear[0]);
                cipher.open(other, &CLEAR, &mut record.clone()).unwrap_err();
                cipher.open(FIRST, &clear, &mut record.clone()).unwrap_err();
                cipher
                    .open(FIRST, &CLEAR, &mut record[..TAG - 1])
                    .unwrap_err();
            }
        }
    }
}
