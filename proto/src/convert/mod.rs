//! Wire ↔ model, both ways: `TryFrom` from the wire, which checks everything once, and `From` to it.
//!
//! What the wire can say and the model does not know (extensions of others, application protocols, fields of
//! a newer contract) is left out. What would change a verdict or a destination if it were left out
//! is an error.

mod extension;
mod gateway;
pub mod names;
mod policy;
mod service;
mod workload;

use std::{fmt, net::IpAddr};

use sluice_model::{Name, Update, Workload, identity::ParseSpiffeIdError};

use crate::workload as wire;

/// A message that breaks the contract. Its sender, the control plane, is at fault.
///
/// Displays as `workload cluster//Pod/shop/web: addresses[0]: 5 bytes is not an IP address`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource}: {field}: {problem}")]
pub struct Error {
    /// The kind and name of the message.
    pub resource: String,
    /// The path of the field within it.
    pub field: String,
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("missing")]
    Missing,
    #[error("{0} bytes is not an IP address")]
    IpLength(usize),
    #[error("/{length} is longer than the address {ip}")]
    PrefixLength { ip: IpAddr, length: u32 },
    #[error("the range {0} cannot be used here, only a single address")]
    Range(ipnet::IpNet),
    #[error("{0} is not a port (1 to 65535)")]
    Port(u32),
    #[error("{0} is not a value of the contract")]
    Enum(i32),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("the extension {0} is not what its name says")]
    Extension(&'static str),
    #[error("{0:?} is not NAMESPACE/NAME")]
    Namespaced(String),
    #[error(transparent)]
    Identity(#[from] ParseSpiffeIdError),
}

/// A problem and where it is, before the resource is known.
struct At {
    field: String,
    problem: Problem,
}

impl At {
    fn new(field: impl fmt::Display, problem: impl Into<Problem>) -> Self {
        Self {
            field: field.to_string(),
            problem: problem.into(),
        }
    }

    fn within(self, outer: impl fmt::Display) -> Self {
        Self {
            field: format!("{outer}.{}", self.field),
            problem: self.problem,
        }
    }

    fn of(self, resource: String) -> Error {
        Error {
            resource,
            field: self.field,
            problem: self.problem,
        }
    }
}

/// Adds the field's name to a problem.
trait InField<T> {
    fn field(self, field: impl fmt::Display) -> Result<T, At>;
}

impl<T, P: Into<Problem>> InField<T> for Result<T, P> {
    fn field(self, field: impl fmt::Display) -> Result<T, At> {
        self.map_err(|problem| At::new(field, problem))
    }
}

/// Parses a repeated field; the error names the element.
fn each<I: IntoIterator, U>(
    field: &str,
    items: I,
    parse: impl Fn(I::Item) -> Result<U, Problem>,
) -> Result<Vec<U>, At> {
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| parse(item).field(format_args!("{field}[{i}]")))
        .collect()
}

/// Parses a repeated field of messages; the error names the element and its field.
fn each_message<I: IntoIterator, U>(
    field: &str,
    items: I,
    parse: impl Fn(I::Item) -> Result<U, At>,
) -> Result<Vec<U>, At> {
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| parse(item).map_err(|at| at.within(format_args!("{field}[{i}]"))))
        .collect()
}

fn required(text: &str) -> Result<Name, Problem> {
    if text.is_empty() {
        return Err(Problem::Missing);
    }
    Ok(text.into())
}

/// An address, canonical: an IPv4-mapped IPv6 address is the IPv4 address that it stands for.
fn ip(bytes: &[u8]) -> Result<IpAddr, Problem> {
    raw_ip(bytes).map(|ip| ip.to_canonical())
}

fn raw_ip(bytes: &[u8]) -> Result<IpAddr, Problem> {
    match *bytes {
        [a, b, c, d] => Ok(IpAddr::from([a, b, c, d])),
        _ => <[u8; 16]>::try_from(bytes)
            .map(IpAddr::from)
            .map_err(|_| Problem::IpLength(bytes.len())),
    }
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn port(value: u32) -> Result<u16, Problem> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Problem::Port(value)),
    }
}

/// A number that the contract's enum must know.
fn known<E: TryFrom<i32>>(value: i32) -> Result<E, Problem> {
    E::try_from(value).map_err(|_| Problem::Enum(value))
}

impl TryFrom<wire::Address> for Update {
    type Error = Error;

    fn try_from(address: wire::Address) -> Result<Self, Error> {
        match address.r#type {
            Some(wire::address::Type::Workload(workload)) => {
                Workload::try_from(workload).map(Self::from)
            }
            Some(wire::address::Type::Service(service)) => service.try_into().map(Self::Service),
            None => Err(At::new("type", Problem::Missing).of("address".to_owned())),
        }
    }
}

impl From<wire::Workload> for wire::Address {
    fn from(workload: wire::Workload) -> Self {
        Self {
            r#type: Some(wire::address::Type::Workload(workload)),
        }
    }
}

impl From<wire::Service> for wire::Address {
    fn from(service: wire::Service) -> Self {
        Self {
            r#type: Some(wire::address::Type::Service(service)),
        }
    }
}
