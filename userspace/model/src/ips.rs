//! The addresses of a workload.

use std::{net::IpAddr, ops::Deref, slice};

/// A list of addresses. Nearly every workload has just one, so that takes no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ips(List);

#[derive(Clone, Debug, PartialEq, Eq)]
enum List {
    One(IpAddr),
    /// None, or several.
    Other(Box<[IpAddr]>),
}

const _: () = assert!(size_of::<Ips>() <= 24);

impl Deref for Ips {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            List::One(ip) => slice::from_ref(ip),
            List::Other(ips) => ips,
        }
    }
}

impl Default for Ips {
    fn default() -> Self {
        Self(List::Other(Box::default()))
    }
}

impl From<Box<[IpAddr]>> for Ips {
    fn from(ips: Box<[IpAddr]>) -> Self {
        match *ips {
            [ip] => Self(List::One(ip)),
            _ => Self(List::Other(ips)),
        }
    }
}

impl From<Vec<IpAddr>> for Ips {
    fn from(ips: Vec<IpAddr>) -> Self {
        ips.into_boxed_slice().into()
    }
}

impl<const N: usize> From<[IpAddr; N]> for Ips {
    fn from(ips: [IpAddr; N]) -> Self {
        Vec::from(ips).into()
    }
}

impl FromIterator<IpAddr> for Ips {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(ips: T) -> Self {
        ips.into_iter().collect::<Vec<_>>().into()
    }
}

impl<'a> IntoIterator for &'a Ips {
    type Item = &'a IpAddr;
    type IntoIter = slice::Iter<'a, IpAddr>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
