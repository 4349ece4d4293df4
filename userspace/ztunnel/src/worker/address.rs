//! Addresses as every connection keeps some of them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

/// An address without what only IPv6 sockets of the link have: two thirds of a [`SocketAddr`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    ip: IpAddr,
    port: u16,
}

impl Address {
    pub(super) fn ip(self) -> IpAddr {
        self.ip
    }

    pub(super) fn port(self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self {
            ip: address.ip(),
            port: address.port(),
        }
    }
}

impl From<Address> for SocketAddr {
    fn from(Address { ip, port }: Address) -> Self {
        Self::new(ip, port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// Whom a stream of a tunnel is for, as its request says.
#[derive(Clone, Debug)]
pub(super) enum Authority {
    Address(Address),
    Host(Box<str>),
}

impl Authority {
    /// The application's port.
    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Address(address) => Some(address.port),
            Self::Host(host) => host.rsplit_once(':')?.1.parse().ok(),
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address.into())
    }
}

impl From<&http::uri::Authority> for Authority {
    fn from(authority: &http::uri::Authority) -> Self {
        let text = authority.as_str();
        let address = text.parse::<SocketAddr>();
        address.map_or_else(|_| Self::Host(text.into()), Self::from)
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(host) => f.write_str(host),
        }
    }
}
