//! The tables that header fields refer to (RFC 7541 §2.3).

use std::collections::VecDeque;

use super::OVERHEAD;

/// Appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
/// A field, name first.
#[derive(Debug)]
struct Entry {
    bytes: Box<[u8]>,
    name: usize,
}

/// Both tables, of which one remembers fields that a peer has sent.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest first.
    dynamic: VecDeque<Entry>,
    size: usize,
    capacity: usize,
}

impl Table {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            dynamic: VecDeque::new(),
            size: 0,
            capacity,
        }
    }

    /// The field at a place, from 1 on.
    pub(super) fn get(&self, place: usize) -> Option<(&[u8], &[u8])> {
        let place = place.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(place) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.dynamic.get(place - STATIC.len())?;
        Some(entry.bytes.split_at(entry.name))
    }

    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let bytes = [name, value].concat().into_boxed_slice();
        let cost = bytes.len() + OVERHEAD;
        // One that is too large for the whole table empties it (§4.4).
        self.evict(self.capacity.saturating_sub(cost));
        if cost <= self.capacity {
            self.size += cost;
            let name = name.len();
            self.dynamic.push_front(Entry { bytes, name });
        }
    }

    pub(super) fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.evict(capacity);
    }

    /// Forgets the oldest fields until the others take no more than this.
    fn evict(&mut self, most: usize) {
        while self.size > most
            && let Some(oldest) = self.dynamic.pop_back()
        {
            self.size -= oldest.bytes.len() + OVERHEAD;
        }
    }
}
