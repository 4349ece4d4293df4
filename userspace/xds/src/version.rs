//! The version of a resource, small.

use std::fmt;

/// A version, as the control plane gave it. There is one for each workload of the mesh, so that of
/// the usual form takes no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Sixteen hexadecimal digits in lower case, such as a hash is written.
    Hash(u64),
    Text(Box<str>),
}

const _: () = assert!(size_of::<Version>() == 16);

/// The digits of [`Version::Hash`].
const DIGITS: usize = 16;

impl Version {
    /// Of what is here, and of no version that the control plane would know.
    pub(crate) fn none() -> Self {
        Self::Text(Box::default())
    }
}

impl From<String> for Version {
    fn from(text: String) -> Self {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match u64::from_str_radix(&text, 16) {
            Ok(hash) if text.len() == DIGITS && text.bytes().all(is_digit) => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "{hash:0DIGITS$x}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn every_version_is_given_back_as_it_came() {
        for text in [
            "",
            "v1",
            "0000000000000000",
            "00000000deadbeef",
            "ffffffffffffffff",
            "FFFFFFFFFFFFFFFF",
            "+fffffffffffffff",
            "fffffffffffffffff",
            "abcdef",
            "2026-01-01T00:00:00Z/17",
        ] {
            assert_eq!(Version::from(text.to_owned()).to_string(), text);
        }
    }
}
