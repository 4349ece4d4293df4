//! Whom this machine asks for the addresses of host names.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

const FILE: &str = "/etc/resolv.conf";
const PORT: u16 = 53;

/// The nameservers in the system's configuration; none when it cannot be read.
pub fn of_system() -> Vec<SocketAddr> {
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let found = parse(&text);
    if found.is_empty() {
        tracing::warn!(
            "{FILE} names no nameserver: hosts of ServiceEntries with resolution DNS cannot be \
             reached; name one with --nameserver"
        );
    }
    found
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().map(str::split_whitespace);
    let addresses = lines.filter_map(|mut words| match words.next() {
        // An address with a zone, as of a link, cannot be dialled from here.
        Some("nameserver") => words.next()?.parse::<IpAddr>().ok(),
        _ => None,
    });
    addresses.map(|ip| SocketAddr::new(ip, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_found_among_other_lines() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n\
                    nameserver\tfd00::53 # second\nnameserver fe80::1%eth0\nnameserver\noptions a\n";
        let found: Vec<_> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fd00::53]:53"]);
    }
}
