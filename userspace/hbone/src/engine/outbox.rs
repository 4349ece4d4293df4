//! What a tunnel is about to say: frames, gathered into records that are sealed in place and leave
//! in few writes.

use std::{
    array,
    io::{self, IoSliceMut, Read as _, Write as _},
    net::TcpStream,
    ops::{Deref, DerefMut},
    rc::Rc,
};

use rustls::Error;

use crate::{
    frame::{HEAD, Head, kind},
    tls::{Content, HEADER, MAX_PLAINTEXT, OVERHEAD, Sealer, TRAILER},
};

/// Records that one buffer has room for: fewer cost system calls, and more leave the CPU's cache.
const RECORDS: usize = 16;
/// Kept free for what must always find room: an alert, a change of keys.
const RESERVE: usize = 64;
/// The length of a buffer, in bytes.
const BUFFER: usize = RECORDS * (OVERHEAD + MAX_PLAINTEXT) + RESERVE;
/// A record with less room than this is closed before an application is read, in bytes.
const LEAST: usize = 1 << 10;
/// What a frame of an application's bytes holds at most: with its head, it fills a record.
const PIECE: usize = MAX_PLAINTEXT - HEAD;
/// What one stream says before it is another one's turn, in bytes: a buffer full of whole records. A
/// byte more would travel alone.
pub(super) const TURN: usize = RECORDS * PIECE;

/// Buffers for tunnels that have something to say; idle tunnels have none.
#[derive(Debug, Default)]
pub(super) struct Spare {
    buffers: Vec<Box<[u8]>>,
    /// Held by every buffer that is lent.
    lent: Rc<()>,
    /// Whether any was asked for since [`Self::rest`].
    asked: bool,
}

/// A buffer that a tunnel has for as long as it has something to say.
#[derive(Debug)]
struct Loan {
    bytes: Box<[u8]>,
    _lent: Rc<()>,
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Spare {
    /// How many buffers are kept.
    const KEPT: usize = 4;
    /// How many are lent before tunnels give theirs back at once, rather than at the end of a pass.
    const LENT: usize = 8;

    fn take(&mut self) -> Loan {
        self.asked = true;
        let spare = self.buffers.pop();
        Loan {
            bytes: spare.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()),
            _lent: self.lent.clone(),
        }
    }

    fn put(&mut self, buffer: Loan) {
        if self.buffers.len() < Self::KEPT {
            self.buffers.push(buffer.bytes);
        }
    }

    /// Whether so many are lent that what is to be said should leave at once: many tunnels may have a
    /// word to say in the same pass.
    pub(super) fn is_stretched(&self) -> bool {
        Rc::strong_count(&self.lent) > Self::LENT
    }

    /// Called now and then: what nobody has asked for meanwhile is not kept.
    pub(super) fn rest(&mut self) {
        if !std::mem::take(&mut self.asked) {
            self.buffers = Vec::new();
        }
    }
}

#[derive(Debug)]
pub(super) struct Outbox {
    buffer: Option<Loan>,
    /// What has left.
    sent: usize,
    /// What is sealed: here begins the record that is being filled.
    sealed: usize,
    /// Behind its last byte.
    filled: usize,
    /// Behind the last change of keys in the buffer.
    key_update: usize,
    /// Frames that found no room, and come next.
    late: Vec<u8>,
    /// Whether the socket took less than it was given the last time.
    blocked: bool,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            buffer: None,
            sent: 0,
            sealed: 0,
            filled: HEADER,
            key_update: 0,
            late: Vec::new(),
            blocked: false,
        }
    }

    /// Whether the socket must become writable before anything leaves.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether a change of keys has not left, or not all of it.
    pub(super) fn holds_key_update(&self) -> bool {
        self.sent < self.key_update
    }

    /// What was sealed last is a change of keys.
    pub(super) fn note_key_update(&mut self) {
        self.key_update = self.sealed;
    }

    /// Bytes of frames that found no room.
    pub(super) fn late(&self) -> usize {
        self.late.len()
    }

    /// The socket may take more.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Appends a frame.
    pub(super) fn push(
        &mut self,
        head: &[u8],
        payload: &[u8],
        sealer: &mut Sealer,
        spare: &mut Spare,
    ) -> Result<(), Error> {
        if !self.late.is_empty() {
            self.late.extend_from_slice(head);
            self.late.extend_from_slice(payload);
            return Ok(());
        }
        let rest = self.fill(head, sealer, spare)?;
        self.late.extend_from_slice(&head[head.len() - rest..]);
        let rest = match rest {
            0 => self.fill(payload, sealer, spare)?,
            _ => payload.len(),
        };
        self.late
            .extend_from_slice(&payload[payload.len() - rest..]);
        Ok(())
    }

    /// Copies bytes into records, as far as there is room, and says how many found none.
    fn fill(
        &mut self,
        mut bytes: &[u8],
        sealer: &mut Sealer,
        spare: &mut Spare,
    ) -> Result<usize, Error> {
        while !bytes.is_empty() {
            if self.room() == 0 {
                self.seal(sealer)?;
                if self.room() == 0 {
                    break;
                }
            }
            let here = bytes.len().min(self.room());
            let buffer = self.buffer.get_or_insert_with(|| spare.take());
            buffer[self.filled..self.filled + here].copy_from_slice(&bytes[..here]);
            self.filled += here;
            bytes = &bytes[here..];
        }
        Ok(bytes.len())
    }

    /// What the record that is being filled has room for.
    fn room(&self) -> usize {
        let end = (self.sealed + HEADER + MAX_PLAINTEXT).min(BUFFER - RESERVE - TRAILER);
        end.saturating_sub(self.filled)
    }

    /// Reads from an application into DATA frames of a stream, `limit` bytes at most, and as many
    /// as fit into one record unless `more`. Says how many came, and how many could have: `None`
    /// when there is no room until this is flushed.
    pub(super) fn receive(
        &mut self,
        mut from: &TcpStream,
        stream: u32,
        limit: usize,
        more: bool,
        sealer: &mut Sealer,
        spare: &mut Spare,
    ) -> io::Result<Option<(usize, usize)>> {
        let least = HEAD + limit.min(LEAST);
        if self.room() < least {
            self.seal(sealer).map_err(crate::tls::invalid)?;
        }
        let room = self.room();
        if !self.late.is_empty() || room < least {
            return Ok(None);
        }
        let buffer = self.buffer.get_or_insert_with(|| spare.take());
        let mut slots: [IoSliceMut<'_>; RECORDS] = array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut count, mut left) = (1, limit);
        let (_, rest) = buffer.split_at_mut(self.filled + HEAD);
        let (first, mut rest) = rest.split_at_mut((room - HEAD).min(left));
        let first_length = first.len();
        left -= first_length;
        slots[0] = IoSliceMut::new(first);
        // The places of the next records' bytes, as if this one were filled.
        while more && left > 0 && count < RECORDS {
            let gap = TRAILER + HEADER + HEAD;
            let length = PIECE.min(left);
            if rest.len() < gap + length + TRAILER + RESERVE {
                break;
            }
            let (slot, next) = rest[gap..].split_at_mut(length);
            slots[count] = IoSliceMut::new(slot);
            (rest, left, count) = (next, left - length, count + 1);
        }
        let read = if count == 1 {
            from.read(&mut slots[0])?
        } else {
            from.read_vectored(&mut slots[..count])?
        };
        let mut rest = read;
        let mut length = first_length;
        while rest > 0 {
            let here = rest.min(length);
            let head = Head::new(kind::DATA, 0, stream, here).encode();
            let buffer = self.buffer.get_or_insert_with(|| spare.take());
            buffer[self.filled..self.filled + HEAD].copy_from_slice(&head);
            self.filled += HEAD + here;
            rest -= here;
            length = PIECE;
            if rest > 0 {
                self.seal(sealer).map_err(crate::tls::invalid)?;
            }
        }
        Ok(Some((read, limit - left)))
    }

    /// Says in a DATA frame of a stream what an application has said already, `limit` bytes at most,
    /// and does not take it from there. Says how many bytes these are, which may be none.
    pub(super) fn look_at(
        &mut self,
        from: &TcpStream,
        stream: u32,
        limit: usize,
        spare: &mut Spare,
    ) -> io::Result<usize> {
        let limit = limit.min(self.room().saturating_sub(HEAD));
        if !self.late.is_empty() || limit == 0 {
            return Ok(0);
        }
        let buffer = self.buffer.get_or_insert_with(|| spare.take());
        let (head, bytes) = buffer[self.filled..].split_at_mut(HEAD);
        let seen = from.peek(&mut bytes[..limit])?;
        if seen > 0 {
            head.copy_from_slice(&Head::new(kind::DATA, 0, stream, seen).encode());
            self.filled += HEAD + seen;
        }
        Ok(seen)
    }

    /// Seals the record that is being filled, if there is anything in it.
    fn seal(&mut self, sealer: &mut Sealer) -> Result<(), Error> {
        self.seal_as(Content::Data, sealer)
    }

    fn seal_as(&mut self, content: Content, sealer: &mut Sealer) -> Result<(), Error> {
        if let Some(buffer) = &mut self.buffer
            && self.filled > self.sealed + HEADER
        {
            let end = self.filled + TRAILER;
            sealer.seal(&mut buffer[self.sealed..end], content)?;
            self.sealed = end;
            self.filled = end + HEADER;
        }
        Ok(())
    }

    /// Appends a record that holds no data, behind all that is in records so far.
    pub(super) fn push_record(
        &mut self,
        content: Content,
        bytes: &[u8],
        sealer: &mut Sealer,
        spare: &mut Spare,
    ) -> Result<(), Error> {
        self.seal(sealer)?;
        if BUFFER - self.sealed < OVERHEAD + bytes.len() {
            return Err(Error::General("no room for a record".into()));
        }
        let buffer = self.buffer.get_or_insert_with(|| spare.take());
        buffer[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        self.seal_as(content, sealer)
    }

    /// Writes what the socket takes.
    pub(super) fn flush(
        &mut self,
        mut to: &TcpStream,
        sealer: &mut Sealer,
        spare: &mut Spare,
    ) -> io::Result<()> {
        loop {
            self.seal(sealer).map_err(crate::tls::invalid)?;
            let Some(buffer) = &self.buffer else {
                return Ok(());
            };
            if self.blocked {
                return Ok(());
            }
            match to.write(&buffer[self.sent..self.sealed]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.sent < self.sealed {
                // A socket that took only a part has no room for more.
                self.blocked = true;
                return Ok(());
            }
            (self.sent, self.sealed, self.filled) = (0, 0, HEADER);
            self.key_update = 0;
            if let Some(buffer) = self.buffer.take() {
                spare.put(buffer);
            }
            let mut late = std::mem::take(&mut self.late);
            let rest = self
                .fill(&late, sealer, spare)
                .map_err(crate::tls::invalid)?;
            late.drain(..late.len() - rest);
            if !late.is_empty() {
                // Otherwise what was needed once would be held for ever.
                self.late = late;
            }
        }
    }
}
