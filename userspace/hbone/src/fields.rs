//! The fields of a header block, and what they make: a request or an answer (RFC 9113 §8.3, §8.5).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE},
    uri::Authority,
};

use crate::{hpack::OVERHEAD, limits};

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) authority: Option<Authority>,
    pub(crate) headers: HeaderMap,
}

/// What a server answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// Why a block makes neither: its stream is reset, and the others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    Fields,
    TooLarge,
}

/// The fields of a block, as they come.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    method: Option<Method>,
    authority: Option<Authority>,
    status: Option<StatusCode>,
    scheme: bool,
    path: bool,
    headers: HeaderMap,
    size: usize,
    malformed: bool,
}

impl Fields {
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) {
        self.size += name.len() + value.len() + OVERHEAD;
        if self.size <= limits::MAX_HEADER_LIST as usize && self.take(name, value).is_none() {
            self.malformed = true;
        }
    }

    /// `None` when the field is not allowed.
    fn take(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        // Each of these once, and before the others.
        let first = self.headers.is_empty();
        match name {
            b":method" => once(&mut self.method, first, Method::from_bytes(value).ok()?),
            b":authority" => once(&mut self.authority, first, Authority::try_from(value).ok()?),
            b":status" => once(&mut self.status, first, StatusCode::from_bytes(value).ok()?),
            b":scheme" => flag(&mut self.scheme, first),
            b":path" => flag(&mut self.path, first),
            _ => {
                // Lower case is demanded (§8.2.1), and what begins with a colon is none.
                let name = HeaderName::from_lowercase(name).ok()?;
                if is_of_connection(&name) || (name == TE && value != b"trailers") {
                    return None;
                }
                self.headers
                    .append(name, HeaderValue::from_bytes(value).ok()?);
                Some(())
            }
        }
    }

    /// Whether these are of a request, however malformed.
    pub(crate) fn asks(&self) -> bool {
        self.method.is_some()
    }

    fn checked(self) -> Result<Self, Malformed> {
        if self.size > limits::MAX_HEADER_LIST as usize {
            return Err(Malformed::TooLarge);
        }
        if self.malformed {
            return Err(Malformed::Fields);
        }
        Ok(self)
    }

    pub(crate) fn request(self) -> Result<Request, Malformed> {
        let fields = self.checked()?;
        let method = fields.method.ok_or(Malformed::Fields)?;
        // Only a CONNECT goes without these, and it may not have them (§8.5).
        let addressed = method != Method::CONNECT;
        let complete = [fields.scheme, fields.path] == [addressed; 2]
            && (addressed || fields.authority.is_some());
        if fields.status.is_some() || !complete {
            return Err(Malformed::Fields);
        }
        Ok(Request {
            method,
            authority: fields.authority,
            headers: fields.headers,
        })
    }

    pub(crate) fn answer(self) -> Result<Answer, Malformed> {
        let fields = self.checked()?;
        let asks = fields.method.is_some() || fields.authority.is_some();
        if asks || fields.scheme || fields.path {
            return Err(Malformed::Fields);
        }
        Ok(Answer {
            status: fields.status.ok_or(Malformed::Fields)?,
            headers: fields.headers,
        })
    }

    /// What follows the last byte of a stream, and means nothing to us.
    pub(crate) fn trailers(self) -> Result<(), Malformed> {
        let fields = self.checked()?;
        let pseudo = fields.method.is_some() || fields.authority.is_some();
        if pseudo || fields.status.is_some() || fields.scheme || fields.path {
            return Err(Malformed::Fields);
        }
        Ok(())
    }
}

/// Fields of HTTP/1.1's connections, which have no place here (§8.2.2).
fn is_of_connection(name: &HeaderName) -> bool {
    [CONNECTION, TRANSFER_ENCODING, UPGRADE].contains(name)
        || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

fn once<T>(place: &mut Option<T>, first: bool, value: T) -> Option<()> {
    (first && place.replace(value).is_none()).then_some(())
}

fn flag(place: &mut bool, first: bool) -> Option<()> {
    (first && !std::mem::replace(place, true)).then_some(())
}
