//! Header compression (RFC 7541).
//!
//! Peers may use all of it, so all of it is decoded. What we send are literals that no table
//! remembers: the headers of two tunnelled connections have little in common, and an encoder
//! without state has nothing to get out of step.

mod huffman;
mod table;

use table::Table;

/// The dynamic table that a peer may use, in bytes as RFC 7541 §4.1 reckons; what every peer assumes
/// until it is told otherwise (RFC 9113 §6.5.2).
const TABLE_SIZE: usize = 4096;
/// What a field costs beyond its bytes (RFC 7541 §4.1, RFC 9113 §6.5.2).
pub(crate) const OVERHEAD: usize = 32;

/// What is wrong with a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    #[error("a header block ends in the middle of a field")]
    Truncated,
    #[error("a number in a header block is too large")]
    Number,
    #[error("a header field refers to an entry that the table does not have")]
    Index,
    #[error("a string in a header block breaks the Huffman code")]
    Huffman,
    #[error("a header block makes its table larger than allowed")]
    TableSize,
    #[error("a header block holds more than anybody needs")]
    TooLong,
}

/// Decodes the header blocks of one direction of a connection, in their order.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self {
            table: Table::new(TABLE_SIZE),
        }
    }

    /// Calls `field` for each name and value of a whole block. They may cost `most` bytes: a byte
    /// of a block may stand for a field as large as the table.
    ///
    /// # Errors
    /// After which the connection cannot go on (RFC 9113 §4.3).
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        most: usize,
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let mut input = Input(block);
        let mut begun = false;
        let mut left = most;
        let mut field = |name: &[u8], value: &[u8]| {
            let cost = name.len() + value.len() + OVERHEAD;
            left = left.checked_sub(cost).ok_or(HpackError::TooLong)?;
            field(name, value);
            Ok(())
        };
        while let Some(first) = input.peek() {
            if first & 0x80 != 0 {
                let index = input.number(7)?;
                let (name, value) = self.table.get(index).ok_or(HpackError::Index)?;
                field(name, value)?;
            } else if first & 0xe0 == 0x20 {
                let size = input.number(5)?;
                // Only at the beginning of a block (§4.2).
                if size > TABLE_SIZE || begun {
                    return Err(HpackError::TableSize);
                }
                self.table.resize(size);
                continue;
            } else {
                let remembered = first & 0x40 != 0;
                let index = input.number(if remembered { 6 } else { 4 })?;
                let name = if index == 0 {
                    input.string()?
                } else {
                    let (name, _) = self.table.get(index).ok_or(HpackError::Index)?;
                    name.to_vec().into()
                };
                let value = input.string()?;
                field(&name, &value)?;
                if remembered {
                    self.table.insert(&name, &value);
                }
            }
            begun = true;
        }
        Ok(())
    }
}

/// What is left of a block.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, HpackError> {
        let (first, rest) = self.0.split_first().ok_or(HpackError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number whose first byte has so many bits for it (§5.1).
    fn number(&mut self, bits: u32) -> Result<usize, HpackError> {
        let most = (1_usize << bits) - 1;
        let mut number = usize::from(self.byte()?) & most;
        if number < most {
            return Ok(number);
        }
        // Four more bytes say more than any length that we would take.
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(HpackError::Number)
    }

    /// A string (§5.2).
    fn string(&mut self) -> Result<std::borrow::Cow<'a, [u8]>, HpackError> {
        let compressed = self.peek().ok_or(HpackError::Truncated)? & 0x80 != 0;
        let length = self.number(7)?;
        let (string, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(HpackError::Truncated)?;
        self.0 = rest;
        if compressed {
            return Ok(huffman::decode(string).ok_or(HpackError::Huffman)?.into());
        }
        Ok(string.into())
    }
}

/// The name of a field: by its place in the static table (RFC 7541 A), or written out.
pub(crate) enum Name<'a> {
    Static(u8),
    Text(&'a str),
}

impl Name<'static> {
    pub(crate) const AUTHORITY: Self = Self::Static(1);
    pub(crate) const METHOD: Self = Self::Static(2);
    const STATUS: Self = Self::Static(8);
}

/// Appends a field to a block, as a literal that no table remembers (§6.2.2).
pub(crate) fn encode(block: &mut Vec<u8>, name: Name<'_>, value: &[u8]) {
    match name {
        // Fewer than the 15 that would need a second byte.
        Name::Static(index) => block.push(index),
        Name::Text(name) => {
            block.push(0);
            encode_string(block, name.as_bytes());
        }
    }
    encode_string(block, value);
}

/// Appends a status, which for some is a byte (§6.1).
pub(crate) fn encode_status(block: &mut Vec<u8>, status: http::StatusCode) {
    let place = match status.as_u16() {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => return encode(block, Name::STATUS, status.as_str().as_bytes()),
    };
    block.push(0x80 | place);
}

fn encode_string(block: &mut Vec<u8>, string: &[u8]) {
    const MOST: usize = 0x7f;
    if string.len() < MOST {
        block.push(string.len() as u8);
    } else {
        block.push(MOST as u8);
        let mut rest = string.len() - MOST;
        while rest >= 0x80 {
            block.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(string);
}

#[cfg(test)]
#[path = "hpack/hpack_tests.rs"]
mod tests;
