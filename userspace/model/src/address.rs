//! Addresses, each meaning with its own type.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::Name;

/// The address that an application dialled, before capture rewrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

impl fmt::Display for OrigDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IP address within a network; the same address may exist in several networks of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network's name; empty in a mesh of one network.
    pub network: Name,
    /// The address, never an IPv4-mapped IPv6 address.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// An address in a network; an IPv4-mapped IPv6 address becomes the IPv4 address it stands for.
    pub fn new(network: Name, ip: IpAddr) -> Self {
        Self {
            network,
            ip: ip.to_canonical(),
        }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// A range of addresses within a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkRange {
    pub network: Name,
    /// Without host bits, and never IPv4-mapped.
    pub range: IpNet,
}

impl NetworkRange {
    /// A range in a network; bits behind the prefix are dropped, and a range of IPv4-mapped IPv6
    /// addresses becomes the IPv4 range it stands for.
    pub fn new(network: Name, range: IpNet) -> Self {
        /// The mapped prefix, ::ffff:0:0/96.
        const MAPPED_BITS: u8 = 96;
        let range = range.trunc();
        let length = range.prefix_len().checked_sub(MAPPED_BITS);
        let mapped = range.addr().is_ipv6() && range.addr().to_canonical().is_ipv4();
        let v4 = length
            .filter(|_| mapped)
            .and_then(|length| IpNet::new(range.addr().to_canonical(), length).ok());
        Self {
            network,
            range: v4.unwrap_or(range),
        }
    }
}

impl fmt::Display for NetworkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.range)
    }
}
