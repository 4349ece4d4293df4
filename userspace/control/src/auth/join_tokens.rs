//! Tokens that an operator gives to nodes, in a file.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use sluice_model::Name;
use subtle::ConstantTimeEq;

use super::Refusal;
use crate::Error;

/// The join tokens of all nodes, from a file of lines `NODE TOKEN [EXPIRES]`, the last an RFC 3339
/// time.
///
/// The file is read for every call, so that a token can be added or withdrawn at any time. Calls
/// are rare: one per connection of a ztunnel, and one per certificate.
pub struct JoinTokens {
    path: PathBuf,
    /// What the file said when it could be read last.
    last_good: Mutex<File>,
}

#[derive(Default)]
struct File {
    text: String,
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    node: Name,
    token: String,
    /// It counts before this time only.
    expires: Option<Timestamp>,
}

impl JoinTokens {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let text = fs::read_to_string(&path)
            .map_err(Error::file("read the join tokens in", path.clone()))?;
        let mut file = File::default();
        file.update(text, &path);
        let last_good = Mutex::new(file);
        Ok(Self { path, last_good })
    }

    /// The node that a token is for; `None` when it is no join token.
    ///
    /// # Errors
    /// When it is one that has expired.
    pub(super) fn node_of(&self, token: &str) -> Result<Option<Name>, Refusal> {
        self.at(token, Timestamp::now())
    }

    fn at(&self, token: &str, now: Timestamp) -> Result<Option<Name>, Refusal> {
        let mut file = self
            .last_good
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match fs::read_to_string(&self.path) {
            Ok(text) => file.update(text, &self.path),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%error, "cannot read the join tokens in {path}; the last ones count");
            }
        }
        let (mut valid, mut expired) = (None, None);
        for entry in &file.entries {
            // Every entry is compared, and in constant time, so that time tells nothing.
            if bool::from(entry.token.as_bytes().ct_eq(token.as_bytes())) {
                match entry.expires {
                    Some(time) if time <= now => expired = Some((entry.node.clone(), time)),
                    _ => valid = Some(entry.node.clone()),
                }
            }
        }
        match (valid, expired) {
            (None, Some((node, time))) => Err(Refusal(format!(
                "its join token, of node {node}, expired at {time}"
            ))),
            (valid, _) => Ok(valid),
        }
    }
}

impl File {
    fn update(&mut self, text: String, path: &Path) {
        if self.text != text {
            self.entries = parse(&text, path);
            self.text = text;
        }
    }
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the tokens.
        f.debug_struct("JoinTokens")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn parse(text: &str, path: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match entry(line) {
            Some(entry) => entries.push(entry),
            // The line may hold a token, so it is not repeated.
            None => tracing::warn!(
                "{}:{}: not `NODE TOKEN`, nor `NODE TOKEN EXPIRES` with a time such as \
                 2030-01-31T12:00:00Z; the line does not count",
                path.display(),
                number + 1
            ),
        }
    }
    entries
}

fn entry(line: &str) -> Option<Entry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (node, token, expires) = match words[..] {
        [node, token] => (node, token, None),
        [node, token, expires] => (node, token, Some(expires.parse().ok()?)),
        _ => return None,
    };
    Some(Entry {
        node: node.into(),
        token: token.to_owned(),
        expires,
    })
}

#[cfg(test)]
#[path = "join_tokens_tests.rs"]
mod tests;
