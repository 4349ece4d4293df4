//! What workloads and services have in common: ports, addresses, gateways.

use sluice_model::{
    NetworkAddress, ServiceKey,
    service::{GatewayAddress, GatewayDestination, Port},
};

use super::{At, InField, Problem, ip, ip_bytes, port, raw_ip, required};
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

/// A single address. The contract also allows a range, which the model has no use for yet.
pub(super) fn parse_address(from: &wire::NetworkAddress) -> Result<NetworkAddress, Problem> {
    // The prefix counts the bits of the address as it was sent, mapped or not.
    let address = raw_ip(&from.address)?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    match from.length {
        Some(length) if length > bits => {
            return Err(Problem::PrefixLength {
                ip: address,
                length,
            });
        }
        Some(length) if length < bits => {
            return Err(Problem::Range {
                ip: address,
                length,
            });
        }
        _ => {}
    }
    let ip = ip(&from.address)?;
    Ok(NetworkAddress::new(from.network.as_str().into(), ip))
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
