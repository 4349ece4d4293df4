//! Bytes on their way to an application.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::tcp::WriteHalf;

/// Frames with fewer bytes than this are put together.
const SMALL: usize = 4 << 10;
/// How many pieces one write takes at most.
const SLICES: usize = 64;

/// Bytes that the application has not taken yet.
///
/// However small the frames that brought them, they take memory in proportion to their number, and
/// leave in few writes.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Bytes>,
    /// Comes after the chunks.
    tail: BytesMut,
    bytes: usize,
}

impl Queue {
    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let alone = self.bytes == 0;
        self.bytes += data.len();
        // A lone frame is probably written before the next one comes.
        if data.len() < SMALL && !alone {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
        self.chunks.push_back(data);
    }

    /// Writes what the socket takes at once.
    pub(crate) fn try_write(&mut self, tcp: &WriteHalf<'_>) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = self.chunks_vectored(&mut slices);
        let written = tcp.try_write_vectored(&slices[..filled])?;
        self.advance(written);
        Ok(written)
    }
}

impl Buf for Queue {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        match self.chunks.front() {
            Some(chunk) => chunk,
            None => &self.tail,
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&*self.tail);
        let chunks = self.chunks.iter().map(|chunk| &**chunk).chain(tail);
        let mut filled = 0;
        for (slice, chunk) in slices.iter_mut().zip(chunks) {
            *slice = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(chunk) = self.chunks.front_mut() {
            if count < chunk.len() {
                return chunk.advance(count);
            }
            count -= chunk.len();
            self.chunks.pop_front();
        }
        self.tail.advance(count);
        if self.tail.is_empty() {
            // An idle connection holds no memory.
            self.tail = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that the queue holds, taken in steps of this many bytes.
    fn take(queue: &mut Queue, step: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while queue.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = queue.chunks_vectored(&mut slices);
            assert_eq!(&*slices[0], queue.chunk());
            let shown: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
            let step = step.min(shown.len());
            taken.extend(&shown[..step]);
            queue.advance(step);
        }
        taken
    }

    #[test]
    fn what_goes_in_comes_out_in_order() {
        for step in [1, 3, 4095, 4096, 100_000] {
            let (mut queue, mut all) = (Queue::default(), Vec::new());
            let sizes = [1, 0, 1, 5000, 1, 2, 4096, 4095, 10_000, 7];
            for (size, byte) in sizes.into_iter().zip(0..) {
                queue.push(vec![byte; size].into());
                all.extend(vec![byte; size]);
            }
            assert_eq!(queue.remaining(), all.len());
            assert!(take(&mut queue, step) == all, "in steps of {step}");
            queue.push(Bytes::from_static(b"again"));
            assert_eq!(take(&mut queue, 2), b"again");
        }
    }

    #[test]
    fn small_pieces_are_put_together() {
        let mut queue = Queue::default();
        for _ in 0..100_000 {
            queue.push(Bytes::from_static(b"x"));
        }
        let mut slices = [IoSlice::new(&[]); 8];
        assert_eq!(queue.chunks_vectored(&mut slices), 2);
    }
}
