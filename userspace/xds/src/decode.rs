//! The stream of responses, taken apart while it arrives.
//!
//! A control plane may send all of a mesh in one response. Kept until it is whole, that response
//! would be most of this process's memory, and taken apart at once it would fill the heap with small
//! pieces between which the mesh then grows. So each resource is handed out as soon as its last byte
//! is here, and only the bytes of one that is not yet whole are held.

use bytes::{Buf as _, Bytes, BytesMut};

/// The largest response, in bytes (wire contract §6).
const MAX_MESSAGE: usize = 200 << 20;
/// The largest resource, in bytes. A larger one is refused alone.
const MAX_RESOURCE: usize = 16 << 20;
/// The largest of all other fields that are read, in bytes: names, nonces, type URLs.
const MAX_TEXT: usize = 64 << 10;
/// The most resources of a response, present and removed: those without a byte take memory as well.
const MAX_RESOURCES: usize = 4 << 20;
/// A buffer that has grown beyond this for a large resource is given back.
const KEPT_BUFFER: usize = 64 << 10;

/// What comes before a message: a flag for compression, and its length.
const PREFIX: usize = 5;
/// The longest number.
const MAX_VARINT: usize = 10;

/// Fields of `DeltaDiscoveryResponse` (`envoy/service/discovery/v3/discovery.proto`).
const RESOURCES: u32 = 2;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED_RESOURCES: u32 = 6;

/// What a response says beside its resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    pub(crate) removed: Vec<String>,
}

/// A part of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The bytes of a `Resource`.
    Resource(Bytes),
    /// A resource of so many bytes, which is too much: it has been skipped.
    TooLarge(usize),
    /// The response is whole.
    End(Envelope),
}

/// Why what arrives is no stream of responses. The control plane, or what is between, is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a message is compressed, which was not asked for")]
    Compressed,
    #[error("a message begins with {0}, which is no flag of gRPC")]
    Flag(u8),
    #[error("a message of {0} bytes; at most {MAX_MESSAGE} are read")]
    MessageTooLarge(usize),
    #[error("a message has more than {MAX_RESOURCES} resources")]
    TooManyResources,
    #[error("field {field} of a message has {length} bytes; at most {MAX_TEXT} are read")]
    FieldTooLarge { field: u32, length: usize },
    #[error("field {0} of a message is longer than the message")]
    CutOff(u32),
    #[error("a message is no DeltaDiscoveryResponse")]
    Protobuf,
    #[error("the stream ended within a message")]
    Incomplete,
}

/// Takes responses apart, whatever pieces they arrive in.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    state: State,
    envelope: Envelope,
    /// How many resources this response has had so far.
    resources: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Before a message.
    #[default]
    Prefix,
    /// Before a field, with so many bytes of the message left.
    Field { left: usize },
    /// In a field that is handed out whole.
    Whole {
        field: u32,
        length: usize,
        left: usize,
    },
    /// In a field that is passed over.
    Skip {
        length: usize,
        left: usize,
        then: Skipped,
    },
}

#[derive(Clone, Copy, Debug)]
enum Skipped {
    Unknown,
    Resource(usize),
}

/// How a value is laid out.
#[derive(Clone, Copy)]
enum Layout {
    Varint,
    Fixed(usize),
    Delimited,
}

impl Decoder {
    /// Takes what has arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next part, or `None` when more must arrive first.
    pub(crate) fn next(&mut self) -> Result<Option<Part>, Malformed> {
        loop {
            let (next, part) = match self.step()? {
                Some(step) => step,
                None => return Ok(None),
            };
            self.state = next;
            if part.is_some() {
                return Ok(part);
            }
        }
    }

    /// That the stream ended here.
    pub(crate) fn finish(&self) -> Result<(), Malformed> {
        match self.state {
            State::Prefix if self.buffer.is_empty() => Ok(()),
            _ => Err(Malformed::Incomplete),
        }
    }

    /// The state after this one, and what was handed out between; `None` when more must arrive.
    fn step(&mut self) -> Result<Option<(State, Option<Part>)>, Malformed> {
        match self.state {
            State::Prefix => {
                if self.buffer.capacity() > KEPT_BUFFER && self.buffer.len() <= KEPT_BUFFER {
                    self.buffer = BytesMut::from(&*self.buffer);
                }
                if self.buffer.len() < PREFIX {
                    return Ok(None);
                }
                let left = length(self.buffer.get_u8(), self.buffer.get_u32())?;
                Ok(Some((State::Field { left }, None)))
            }
            State::Field { left: 0 } => {
                self.resources = 0;
                let envelope = std::mem::take(&mut self.envelope);
                Ok(Some((State::Prefix, Some(Part::End(envelope)))))
            }
            State::Field { left } => Ok(self.field(left)?.map(|next| (next, None))),
            State::Whole { length, .. } if self.buffer.len() < length => {
                // Room for the rest at once, since the length is known and bounded.
                self.buffer.reserve(length - self.buffer.len());
                Ok(None)
            }
            State::Whole {
                field,
                length,
                left,
            } => {
                let value = self.buffer.split_to(length).freeze();
                let part = self.take(field, value)?;
                Ok(Some((State::Field { left }, part)))
            }
            State::Skip {
                length: 0,
                left,
                then,
            } => {
                let part = match then {
                    Skipped::Unknown => None,
                    Skipped::Resource(length) => Some(Part::TooLarge(length)),
                };
                Ok(Some((State::Field { left }, part)))
            }
            State::Skip { length, left, then } => {
                let here = self.buffer.len().min(length);
                if here == 0 {
                    return Ok(None);
                }
                self.buffer.advance(here);
                let length = length - here;
                Ok(Some((State::Skip { length, left, then }, None)))
            }
        }
    }

    /// Reads what a field begins with; `None` when more must arrive.
    fn field(&mut self, left: usize) -> Result<Option<State>, Malformed> {
        let here = &self.buffer[..self.buffer.len().min(left)];
        let whole = here.len() == left;
        let Some((key, key_length)) = varint(here, whole)? else {
            return Ok(None);
        };
        let (field, layout) = split(key)?;
        let rest = &here[key_length..];
        let (prefix, length) = match layout {
            Layout::Fixed(length) => (0, length),
            Layout::Varint => match varint(rest, whole)? {
                Some((_, length)) => (0, length),
                None => return Ok(None),
            },
            Layout::Delimited => match varint(rest, whole)? {
                Some((length, prefix)) => (prefix, usize::try_from(length).unwrap_or(usize::MAX)),
                None => return Ok(None),
            },
        };
        let left = left - key_length - prefix;
        let left = left.checked_sub(length).ok_or(Malformed::CutOff(field))?;
        self.buffer.advance(key_length + prefix);
        let skip = |then| State::Skip { length, left, then };
        let whole = State::Whole {
            field,
            length,
            left,
        };
        match (field, layout) {
            (RESOURCES | REMOVED_RESOURCES, Layout::Delimited)
                if self.resources == MAX_RESOURCES =>
            {
                Err(Malformed::TooManyResources)
            }
            (RESOURCES, Layout::Delimited) if length > MAX_RESOURCE => {
                self.resources += 1;
                Ok(Some(skip(Skipped::Resource(length))))
            }
            (RESOURCES, Layout::Delimited) => {
                self.resources += 1;
                Ok(Some(whole))
            }
            (TYPE_URL | NONCE | REMOVED_RESOURCES, Layout::Delimited) => {
                if length > MAX_TEXT {
                    return Err(Malformed::FieldTooLarge { field, length });
                }
                self.resources += usize::from(field == REMOVED_RESOURCES);
                Ok(Some(whole))
            }
            (RESOURCES | TYPE_URL | NONCE | REMOVED_RESOURCES, _) => Err(Malformed::Protobuf),
            _ => Ok(Some(skip(Skipped::Unknown))),
        }
    }

    fn take(&mut self, field: u32, value: Bytes) -> Result<Option<Part>, Malformed> {
        if field == RESOURCES {
            return Ok(Some(Part::Resource(value)));
        }
        let text = std::str::from_utf8(&value).map_err(|_| Malformed::Protobuf)?;
        let text = text.to_owned();
        match field {
            TYPE_URL => self.envelope.type_url = text,
            NONCE => self.envelope.nonce = text,
            _ => self.envelope.removed.push(text),
        }
        Ok(None)
    }
}

/// The length of a message, from its prefix.
fn length(flag: u8, length: u32) -> Result<usize, Malformed> {
    match flag {
        0 => {}
        1 => return Err(Malformed::Compressed),
        other => return Err(Malformed::Flag(other)),
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(Malformed::MessageTooLarge(length));
    }
    Ok(length)
}

/// A field's number and layout, from its key.
fn split(key: u64) -> Result<(u32, Layout), Malformed> {
    let field = u32::try_from(key >> 3).map_err(|_| Malformed::Protobuf)?;
    let layout = match key & 7 {
        0 => Layout::Varint,
        1 => Layout::Fixed(8),
        2 => Layout::Delimited,
        5 => Layout::Fixed(4),
        // Groups, which this contract never had, and what is nothing at all.
        _ => return Err(Malformed::Protobuf),
    };
    if field == 0 {
        return Err(Malformed::Protobuf);
    }
    Ok((field, layout))
}

/// The number that bytes begin with, and how many it takes. `None` when it may go on in bytes that
/// have not arrived; `whole` says that there are none.
fn varint(bytes: &[u8], whole: bool) -> Result<Option<(u64, usize)>, Malformed> {
    let last = bytes
        .iter()
        .take(MAX_VARINT)
        .position(|byte| byte & 0x80 == 0);
    let Some(last) = last else {
        return match whole || bytes.len() >= MAX_VARINT {
            true => Err(Malformed::Protobuf),
            false => Ok(None),
        };
    };
    let mut bytes = &bytes[..=last];
    let value = prost::encoding::decode_varint(&mut bytes).map_err(|_| Malformed::Protobuf)?;
    Ok(Some((value, last + 1)))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
