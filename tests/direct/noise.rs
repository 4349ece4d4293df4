//! Bytes that look random and follow from a seed, so that both ends know what to expect.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

/// As much as keeps a stream busy for a while: a gigabyte, where the build is optimised.
pub(crate) const MUCH: u64 = if cfg!(debug_assertions) {
    64 << 20
} else {
    1 << 30
};

/// What one write carries at most.
const MAX_PIECE: u64 = 100_000;

/// A stream of bytes that follow from a seed.
pub(crate) struct Noise {
    seed: u64,
    position: u64,
}

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let skip = usize::try_from(self.position % 8).unwrap();
            let word = mix(self.seed ^ mix(self.position / 8)).to_le_bytes();
            let part = &word[skip..word.len().min(skip + rest.len())];
            rest[..part.len()].copy_from_slice(part);
            self.position += part.len() as u64;
            rest = &mut rest[part.len()..];
        }
    }

    /// Writes in pieces of all sizes, with pauses.
    pub(crate) async fn send(&mut self, to: &mut (impl AsyncWrite + Unpin), bytes: u64) {
        let mut dice = Dice(self.seed);
        let mut left = bytes;
        while left > 0 {
            let most = if dice.one_in(4) { 10 } else { MAX_PIECE };
            let piece = (1 + dice.below(most)).min(left);
            let mut buffer = vec![0; usize::try_from(piece).unwrap()];
            self.fill(&mut buffer);
            to.write_all(&buffer).await.unwrap();
            left -= piece;
            dice.pause().await;
        }
    }

    /// Reads until the end, and panics when anything but these bytes arrives.
    pub(crate) async fn expect_all(&mut self, from: &mut (impl AsyncRead + Unpin), bytes: u64) {
        self.expect(from, bytes).await;
        let more = from.read(&mut [0; 1]).await.unwrap();
        assert_eq!(more, 0, "more than {bytes} bytes arrived");
    }

    /// Reads some bytes, and panics when others arrive.
    pub(crate) async fn expect(&mut self, from: &mut (impl AsyncRead + Unpin), bytes: u64) {
        let mut dice = Dice(!self.seed);
        let mut left = bytes;
        let (mut got, mut wanted) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(got.len());
            let read = from.read(&mut got[..most]).await.unwrap();
            assert_ne!(read, 0, "an end after {} of {bytes} bytes", bytes - left);
            let position = self.position;
            self.fill(&mut wanted[..read]);
            assert!(
                got[..read] == wanted[..read],
                "wrong bytes in {position}..{}",
                position + read as u64
            );
            left -= read as u64;
            dice.pause().await;
        }
    }
}

/// Sends some noise to its end while other noise must arrive, to its end.
pub(crate) async fn converse(tcp: &mut TcpStream, said: (Noise, u64), heard: (Noise, u64)) {
    let (mut from, mut to) = tcp.split();
    let ((mut said, to_say), (mut heard, to_hear)) = (said, heard);
    let saying = async {
        said.send(&mut to, to_say).await;
        to.shutdown().await.unwrap();
    };
    tokio::join!(heard.expect_all(&mut from, to_hear), saying);
}

/// Chance that repeats.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % limit
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    /// Lets others go first, now and then for a while.
    pub(crate) async fn pause(&mut self) {
        if self.one_in(8) {
            tokio::task::yield_now().await;
        }
        if self.one_in(256) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// SplitMix64: cheap, and every bit of the input matters.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
