//! Socket addresses as the programs see them.

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form, as four words in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip(pub [u32; 4]);

/// The third word of an IPv4-mapped address (`::ffff:0:0`), in network order.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Ip {
    /// `127.0.0.1`
    pub const LOOPBACK4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1`
    pub const LOOPBACK6: Self = Self([0, 0, 0, 1_u32.to_be()]);

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// `127.0.0.0/8` or `::1`
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.equals(&Self::LOOPBACK6)
        }
    }

    /// `0.0.0.0` or `::`, which Linux takes for the local host when it is dialled.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[3] == 0 && (self.is_v4() || (self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0))
    }

    /// `fe80::/10`: means nothing without an interface, which a rewritten socket would lose.
    #[inline(always)]
    pub const fn is_link_local6(&self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }

    /// Equality that compiles to four word compares (a derived one calls `memcmp`, which the BPF
    /// target lacks).
    #[inline(always)]
    pub const fn equals(&self, other: &Self) -> bool {
        self.0[0] == other.0[0]
            && self.0[1] == other.0[1]
            && self.0[2] == other.0[2]
            && self.0[3] == other.0[3]
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr {
    pub ip: Ip,
    /// In host order, above 65535 never.
    pub port: u32,
}

impl Addr {
    /// Equality without `memcmp`, as for [`Ip`].
    #[inline(always)]
    pub const fn equals(&self, other: &Self) -> bool {
        self.ip.equals(&other.ip) && self.port == other.port
    }
}

const _: () = assert!(size_of::<Addr>() == 20);

mod net {
    use core::net::{IpAddr, Ipv6Addr, SocketAddr};

    use super::{Addr, Ip};

    impl From<IpAddr> for Ip {
        fn from(ip: IpAddr) -> Self {
            let octets = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let word = |i: usize| {
                u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]])
            };
            Self([word(0), word(4), word(8), word(12)])
        }
    }

    impl From<Ip> for IpAddr {
        /// IPv4-mapped addresses become the IPv4 addresses they stand for.
        fn from(ip: Ip) -> Self {
            let mut octets = [0; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip(ip.0) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            Self::V6(Ipv6Addr::from(octets)).to_canonical()
        }
    }

    impl From<SocketAddr> for Addr {
        fn from(addr: SocketAddr) -> Self {
            Self {
                ip: addr.ip().into(),
                port: u32::from(addr.port()),
            }
        }
    }

    impl From<Addr> for SocketAddr {
        fn from(addr: Addr) -> Self {
            // Only the low half is ever set.
            Self::new(addr.ip.into(), addr.port as u16)
        }
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn classes() {
        type Class = fn(&Ip) -> bool;
        let cases: [(&str, Class, bool); 19] = [
            ("127.0.0.1", Ip::is_loopback, true),
            ("127.255.0.9", Ip::is_loopback, true),
            ("126.0.0.1", Ip::is_loopback, false),
            ("::1", Ip::is_loopback, true),
            ("::2", Ip::is_loopback, false),
            ("::ffff:127.0.0.1", Ip::is_loopback, true),
            ("0.0.0.0", Ip::is_unspecified, true),
            ("::", Ip::is_unspecified, true),
            ("::1", Ip::is_unspecified, false),
            ("10.0.0.0", Ip::is_unspecified, false),
            ("1:2:3:4:5:6:0:0", Ip::is_unspecified, false),
            ("fe80::1", Ip::is_link_local6, true),
            ("febf::1", Ip::is_link_local6, true),
            ("fec0::1", Ip::is_link_local6, false),
            ("fd00::1", Ip::is_link_local6, false),
            ("10.0.0.1", Ip::is_link_local6, false),
            ("10.0.0.1", Ip::is_v4, true),
            ("::ffff:10.0.0.1", Ip::is_v4, true),
            ("fd00::1", Ip::is_v4, false),
        ];
        for (text, class, expected) in cases {
            assert_eq!(class(&ip(text)), expected, "{text}");
        }
    }

    #[test]
    fn socket_addresses_round_trip() {
        for text in ["10.1.2.3:80", "[fd00::5]:65535"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Addr::from(addr)), addr);
        }
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(
            SocketAddr::from(Addr::from(mapped)).to_string(),
            "10.1.2.3:80"
        );
    }
}
