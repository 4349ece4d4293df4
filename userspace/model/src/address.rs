//! Addresses, each meaning with its own type.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

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
