//! Who calls: each node proves itself by its join token.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use sluice_model::Name;
use subtle::ConstantTimeEq;
use tonic::{Request, Status};

use crate::Error;

/// A caller that has proven itself.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The node on which it runs.
    pub node: Name,
    pub address: Option<SocketAddr>,
}

/// The join tokens of all nodes, from a file of lines `NODE TOKEN`.
///
/// The file is read for every call, so that a token can be added or withdrawn at any time. Calls
/// are rare: one per connection of a ztunnel, and one per certificate.
pub struct JoinTokens {
    path: PathBuf,
    /// What the file said when it could be read last.
    last_good: Mutex<Vec<Entry>>,
}

#[derive(Clone)]
struct Entry {
    node: Name,
    token: String,
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
        let last_good = Mutex::new(parse(&text, &path));
        Ok(Self { path, last_good })
    }

    /// The caller of a request.
    ///
    /// # Errors
    /// `Unauthenticated`, which tells the caller nothing; the log says who it was and why.
    pub fn authenticate<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let address = request.remote_addr();
        let header = request.metadata().get("authorization");
        let token = match header.map(|header| header.to_str()) {
            None => return Err(refuse(address, "it sent no authorization header")),
            Some(Err(_)) => return Err(refuse(address, "its authorization header is not ASCII")),
            Some(Ok(header)) => bearer(header),
        };
        let Some(token) = token else {
            return Err(refuse(
                address,
                "its authorization header holds no bearer token",
            ));
        };
        match self.node_of(token) {
            Some(node) => Ok(Caller { node, address }),
            None => Err(refuse(address, "its token is not a join token")),
        }
    }

    fn node_of(&self, token: &str) -> Option<Name> {
        let mut entries = self
            .last_good
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match fs::read_to_string(&self.path) {
            Ok(text) => *entries = parse(&text, &self.path),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%error, "cannot read the join tokens in {path}; the last ones count");
            }
        }
        let mut found = None;
        for entry in entries.iter() {
            // Every entry is compared, and in constant time, so that time tells nothing.
            if bool::from(entry.token.as_bytes().ct_eq(token.as_bytes())) {
                found = Some(entry.node.clone());
            }
        }
        found
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

/// The credentials of an `Authorization: Bearer TOKEN` header (RFC 6750 §2.1).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Refuses a call: the caller learns nothing, the log everything.
pub(crate) fn refuse(address: Option<SocketAddr>, why: &str) -> Status {
    let peer = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
    tracing::warn!(peer, "call refused: {why}");
    Status::unauthenticated("authentication failure")
}

fn parse(text: &str, path: &std::path::Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(node), Some(token), None) => entries.push(Entry {
                node: node.into(),
                token: token.to_owned(),
            }),
            _ => tracing::warn!("{}:{}: not `NODE TOKEN`", path.display(), number + 1),
        }
    }
    entries
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
