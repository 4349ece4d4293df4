//! The Huffman code of header strings (RFC 7541 B).
//!
//! The code is canonical: among codes of one length, larger symbols have larger codes. So the
//! lengths say all.

use std::sync::LazyLock;

/// How many bits the code of each byte has.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
/// The longest code, that of the end of a string among others, in bits.
const LONGEST: usize = 30;

/// The codes of one length.
#[derive(Clone, Copy, Default)]
struct Group {
    /// The smallest code.
    first: u32,
    /// How many there are.
    count: u32,
    /// Where their bytes begin among all, ordered by code.
    offset: usize,
}

struct Codes {
    groups: [Group; LONGEST + 1],
    bytes: [u8; 256],
}

static CODES: LazyLock<Codes> = LazyLock::new(|| {
    let mut codes = Codes {
        groups: [Group::default(); LONGEST + 1],
        bytes: [0; 256],
    };
    let (mut code, mut offset) = (0, 0);
    for (length, group) in codes.groups.iter_mut().enumerate().skip(1) {
        code <<= 1;
        *group = Group {
            first: code,
            count: 0,
            offset,
        };
        for (byte, bits) in LENGTHS.iter().enumerate() {
            if usize::from(*bits) == length {
                codes.bytes[offset] = byte as u8;
                (code, offset, group.count) = (code + 1, offset + 1, group.count + 1);
            }
        }
    }
    codes
});

/// The string, or `None` when it breaks the code: it holds the end of a string, or its last bits are
/// not the beginning of that.
pub(super) fn decode(input: &[u8]) -> Option<Vec<u8>> {
    let codes = &*CODES;
    let mut output = Vec::with_capacity(input.len() * 2);
    let (mut code, mut length) = (0_u32, 0);
    for byte in input {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let group = codes.groups.get(length)?;
            let place = code.wrapping_sub(group.first);
            if place < group.count {
                output.push(codes.bytes[group.offset + place as usize]);
                (code, length) = (0, 0);
            }
        }
    }
    // What is left fills the last byte, with ones (§5.2).
    (length < 8 && code == (1 << length) - 1).then_some(output)
}
