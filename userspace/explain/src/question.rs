//! Questions as people put them.

use std::{fmt, net::IpAddr, str::FromStr};

/// Who would connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Pod {
        namespace: String,
        name: String,
    },
    Address(IpAddr),
    /// Somebody without a place in the mesh, at an address that does not matter.
    Outside,
}

/// To what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub target: Target,
    pub port: u16,
}

/// What would be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A service or a pod, whichever there is.
    Object {
        namespace: String,
        name: String,
    },
    Pod {
        namespace: String,
        name: String,
    },
    Service {
        namespace: String,
        name: String,
    },
    Host(String),
    Address(IpAddr),
}

/// Why a question is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    #[error("{0:?} is no source: give a pod as NAMESPACE/NAME, an address, or `outside`")]
    Source(String),
    #[error(
        "{0:?} is no destination: give NAMESPACE/NAME:PORT for a service or a pod, HOST:PORT, or \
         ADDRESS:PORT with an IPv6 address in brackets"
    )]
    Destination(String),
}

const POD: &str = "pod/";
const SERVICE: &str = "service/";

/// `NAMESPACE/NAME`, and nothing more.
fn object(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    let whole = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
    whole.then(|| (namespace.to_owned(), name.to_owned()))
}

impl FromStr for Source {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        if text == "outside" {
            return Ok(Self::Outside);
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address(ip.to_canonical()));
        }
        let prefixed = text.strip_prefix(POD).and_then(object);
        let (namespace, name) = prefixed
            .or_else(|| object(text))
            .ok_or_else(|| NotUnderstood::Source(text.to_owned()))?;
        Ok(Self::Pod { namespace, name })
    }
}

impl FromStr for Destination {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        let bad = || NotUnderstood::Destination(text.to_owned());
        let (target, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or_else(bad)?;
        Ok(Self {
            target: target_of(target).ok_or_else(bad)?,
            port,
        })
    }
}

fn target_of(text: &str) -> Option<Target> {
    let bare = text.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    if let Some(bare) = bare {
        let ip = bare.parse::<IpAddr>().ok()?;
        return Some(Target::Address(ip.to_canonical()));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        // Without brackets nobody can tell where an IPv6 address ends.
        return ip.is_ipv4().then_some(Target::Address(ip));
    }
    if let Some((namespace, name)) = text.strip_prefix(POD).and_then(object) {
        return Some(Target::Pod { namespace, name });
    }
    if let Some((namespace, name)) = text.strip_prefix(SERVICE).and_then(object) {
        return Some(Target::Service { namespace, name });
    }
    if let Some((namespace, name)) = object(text) {
        return Some(Target::Object { namespace, name });
    }
    let host = !text.is_empty() && !text.contains(['/', ':', ' ']);
    host.then(|| Target::Host(text.trim_end_matches('.').to_lowercase()))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Address(ip) => ip.fmt(f),
            Self::Outside => f.write_str("outside"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Pod { namespace, name } => write!(f, "{POD}{namespace}/{name}"),
            Self::Service { namespace, name } => write!(f, "{SERVICE}{namespace}/{name}"),
            Self::Host(host) => f.write_str(host),
            Self::Address(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

/// In the form in which it is read.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.target, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_written_as_it_was_read() {
        for text in ["shop/web", "10.0.0.1", "fd00::1", "outside"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for text in [
            "shop/web:80",
            "pod/shop/web:80",
            "service/shop/web:80",
            "web.shop:80",
            "10.0.0.1:443",
            "[fd00::1]:443",
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in ["", "web", "/web", "shop/", "a/b/c"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
        for text in [
            "shop/web",
            "shop/web:0",
            "shop/web:http",
            ":80",
            "fd00::1:80",
            "[fd00::1:80",
            "a/b/c:80",
            "shop/web:65536",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }
}
