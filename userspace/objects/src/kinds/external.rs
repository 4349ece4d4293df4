//! What is reached and is no pod: a machine, or a service of somebody else.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;
use sluice_model::{Name, workload::Locality};

use super::{Labels, labels};
use crate::{Code, report::Report};

/// One instance of something that is no pod: the spec of a WorkloadEntry, or an endpoint in a
/// ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    pub address: ExternalAddress,
    /// Its own numbers for the ports of a service, by name.
    pub ports: BTreeMap<Name, u16>,
    pub labels: Labels,
    /// Empty when it is the mesh's own.
    pub network: Name,
    pub locality: Locality,
    pub weight: u32,
    pub service_account: Option<Name>,
}

impl External {
    /// A host of that name, of which nothing else is known.
    pub fn host(name: Name) -> Self {
        Self {
            address: ExternalAddress::Hostname(name),
            ..Self::nowhere()
        }
    }

    pub(super) fn nowhere() -> Self {
        Self {
            address: ExternalAddress::None,
            ports: BTreeMap::new(),
            labels: Labels::new(),
            network: Name::default(),
            locality: Locality::default(),
            weight: 1,
            service_account: None,
        }
    }
}

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalAddress {
    Ip(IpAddr),
    /// To be resolved.
    Hostname(Name),
    /// Nowhere that a connection could be made to; it has been reported.
    None,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawExternal {
    #[serde(default)]
    address: String,
    #[serde(default)]
    ports: Option<BTreeMap<String, i32>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    network: Option<String>,
    #[serde(default)]
    locality: Option<String>,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    service_account: Option<String>,
}

/// Reads what stands at `field`.
pub(super) fn external(field: &str, raw: RawExternal, report: &mut Report<'_>) -> External {
    let mut ports = BTreeMap::new();
    for (name, number) in raw.ports.unwrap_or_default() {
        let number = report.port(format!("{field}.ports[\"{name}\"]"), number);
        ports.extend(number.map(|number| (name.as_str().into(), number)));
    }
    let account = raw.service_account.filter(|account| !account.is_empty());
    External {
        address: address(&format!("{field}.address"), &raw.address, report),
        ports,
        labels: labels(raw.labels),
        network: raw.network.unwrap_or_default().into(),
        locality: locality(&raw.locality.unwrap_or_default()),
        // 0 is how the API says that nothing is given.
        weight: raw.weight.unwrap_or_default().max(1),
        service_account: account
            .map(|account| report.dns_name(format!("{field}.serviceAccount"), &account)),
    }
}

fn address(field: &str, text: &str, report: &mut Report<'_>) -> ExternalAddress {
    if text.is_empty() {
        let message = "without an address nothing can connect to it";
        report.warning(Code::NoEndpoints, field, message);
        return ExternalAddress::None;
    }
    if text.starts_with("unix://") {
        let message = "a Unix socket is on one node, and a ztunnel does not dial it";
        report.warning(Code::UnsupportedValue, field, message);
        return ExternalAddress::None;
    }
    if text.parse::<IpAddr>().is_ok() {
        let ip = report.address(field, text);
        return ip.map_or(ExternalAddress::None, ExternalAddress::Ip);
    }
    // What is made of digits and dots was meant as an address.
    if text.contains(':') || text.ends_with(|last: char| last.is_ascii_digit()) {
        let message = format!("{text:?} is neither an IP address nor a host name");
        report.error(Code::InvalidValue, field, message);
        return ExternalAddress::None;
    }
    ExternalAddress::Hostname(report.dns_name(field, text))
}

/// `REGION/ZONE/SUBZONE`, of which the last may be missing.
fn locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(Name::from);
    let mut part = || parts.next().unwrap_or_default();
    Locality {
        region: part(),
        zone: part(),
        subzone: part(),
    }
}
