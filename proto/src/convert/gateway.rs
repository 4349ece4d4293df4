//! What workloads and services have in common: ports, addresses, gateways.

use ipnet::IpNet;
use sluice_model::{
    NetworkAddress, NetworkRange, ServiceKey,
    service::{GatewayAddress, GatewayDestination, Port},
};

use super::{At, InField, Problem, ip_bytes, port, raw_ip, required};
use crate::workload as wire;

impl From<&Port> for wire::Port {
    fn from(port: &Port) -> Self {
        Self {
            service_port: port.service_port.into(),
            target_port: port.target_port.into(),
            app_protocol: wire::AppProtocol::Unknown.into(),
        }
    }
}

impl From<&NetworkAddress> for wire::NetworkAddress {
    fn from(address: &NetworkAddress) -> Self {
        Self {
            network: address.network.to_string(),
            address: ip_bytes(address.ip),
            length: None,
        }
    }
}

impl From<&NetworkRange> for wire::NetworkAddress {
    fn from(range: &NetworkRange) -> Self {
        Self {
            network: range.network.to_string(),
            address: ip_bytes(range.range.addr()),
            length: Some(range.range.prefix_len().into()),
        }
    }
}

impl From<&GatewayAddress> for wire::GatewayAddress {
    fn from(gateway: &GatewayAddress) -> Self {
        use wire::gateway_address::Destination;
        Self {
            destination: Some(match &gateway.destination {
                GatewayDestination::Address(address) => Destination::Address(address.into()),
                GatewayDestination::Hostname(key) => {
                    Destination::Hostname(wire::NamespacedHostname {
                        namespace: key.namespace.to_string(),
                        hostname: key.hostname.to_string(),
                    })
                }
            }),
            hbone_mtls_port: gateway.hbone_port.into(),
        }
    }
}

/// A port pair. A target of 0 is resolved elsewhere.
pub(super) fn parse_port(from: &wire::Port) -> Result<Port, At> {
    Ok(Port {
        service_port: port(from.service_port).field("service_port")?,
        target_port: match from.target_port {
            0 => 0,
            target => port(target).field("target_port")?,
        },
    })
}

/// What the contract's one type of address can be.
pub(super) enum AddressOrRange {
    Address(NetworkAddress),
    Range(NetworkRange),
}

/// A single address, or a range when it has a shorter prefix.
pub(super) fn parse_address_or_range(
    from: &wire::NetworkAddress,
) -> Result<AddressOrRange, Problem> {
    let network = from.network.as_str().into();
    // The prefix counts the bits of the address as it was sent, mapped or not.
    let sent = raw_ip(&from.address)?;
    let bits = if sent.is_ipv4() { 32 } else { 128 };
    let Some(length) = from.length.filter(|length| *length != bits) else {
        return Ok(AddressOrRange::Address(NetworkAddress::new(network, sent)));
    };
    let too_long = || Problem::PrefixLength { ip: sent, length };
    let prefix = u8::try_from(length).map_err(|_| too_long())?;
    let range = IpNet::new(sent, prefix).map_err(|_| too_long())?;
    Ok(AddressOrRange::Range(NetworkRange::new(network, range)))
}

/// A single address, where a range means nothing.
fn parse_address(from: &wire::NetworkAddress) -> Result<NetworkAddress, Problem> {
    match parse_address_or_range(from)? {
        AddressOrRange::Address(address) => Ok(address),
        AddressOrRange::Range(NetworkRange { range, .. }) => Err(Problem::Range(range)),
    }
}

/// A waypoint, in the field of that name.
pub(super) fn parse_waypoint(
    from: Option<&wire::GatewayAddress>,
) -> Result<Option<GatewayAddress>, At> {
    from.map(parse_gateway)
        .transpose()
        .map_err(|at| at.within("waypoint"))
}

fn parse_gateway(from: &wire::GatewayAddress) -> Result<GatewayAddress, At> {
    use wire::gateway_address::Destination;
    let destination = match &from.destination {
        None => return Err(At::new("destination", Problem::Missing)),
        Some(Destination::Address(address)) => {
            GatewayDestination::Address(parse_address(address).field("address")?)
        }
        Some(Destination::Hostname(name)) => GatewayDestination::Hostname(ServiceKey {
            namespace: required(&name.namespace).field("hostname.namespace")?,
            hostname: required(&name.hostname).field("hostname.hostname")?,
        }),
    };
    Ok(GatewayAddress {
        destination,
        hbone_port: port(from.hbone_mtls_port).field("hbone_mtls_port")?,
    })
}
