//! The version of a resource, small.

use std::{collections::HashMap, fmt};

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

/// The versions of things that have places: small numbers, most of which are in use.
#[derive(Debug, Default)]
pub(crate) struct Versions {
    /// By place; [`ELSEWHERE`] where it is no hash.
    hashes: Vec<u64>,
    /// The others, but for those that are empty.
    texts: HashMap<usize, Box<str>>,
}

/// A hash that is kept as a text, like all versions that are none.
const ELSEWHERE: u64 = 0;

impl Versions {
    pub(crate) fn note(&mut self, place: usize, version: Version) {
        if self.hashes.len() <= place {
            // By an eighth: twice as many would be a lot, where there are many.
            self.hashes
                .reserve_exact(place + 1 - self.hashes.len() + place / 8);
            self.hashes.resize(place + 1, ELSEWHERE);
        }
        self.hashes[place] = match version {
            Version::Hash(hash) if hash != ELSEWHERE => {
                self.texts.remove(&place);
                hash
            }
            other => {
                let text = other.to_string();
                match text.is_empty() {
                    true => self.texts.remove(&place),
                    false => self.texts.insert(place, text.into()),
                };
                ELSEWHERE
            }
        };
    }

    /// What was noted for a place, or [`Version::none`]; `None` behind the last place.
    pub(crate) fn get(&self, place: usize) -> Option<Version> {
        Some(match *self.hashes.get(place)? {
            ELSEWHERE => match self.texts.get(&place) {
                Some(text) => text.to_string().into(),
                None => Version::none(),
            },
            hash => Version::Hash(hash),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Version, Versions};

    #[test]
    fn each_place_has_the_version_that_was_noted_last() {
        let mut versions = Versions::default();
        let noted = [
            "v1",
            "00000000deadbeef",
            "0000000000000000",
            "",
            "ffffffffffffffff",
        ];
        for round in 0..noted.len() {
            for place in 0..200 {
                let text = noted[(place + round) % noted.len()];
                versions.note(place, text.to_owned().into());
                let got = versions.get(place).map(|version| version.to_string());
                assert_eq!(got.as_deref(), Some(text));
            }
        }
        assert_eq!(versions.get(200), None);
        versions.note(1000, "v2".to_owned().into());
        assert_eq!(versions.get(999), Some(Version::none()));
        assert_eq!(versions.get(1001), None);
    }

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
