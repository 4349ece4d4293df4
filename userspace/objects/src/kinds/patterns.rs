//! The values that Istio's policies hold as strings, parsed.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, de::Error as _};
use sluice_model::{Name, authz::StringMatch};

use crate::report::is_dns_name;

/// Reads a list that may be absent, but not empty: to leave a list out means "any", and an empty
/// one would mean the same by accident.
pub(super) fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    match Option::<Vec<T>>::deserialize(deserializer)? {
        Some(list) if list.is_empty() => Err(D::Error::custom(
            "an empty list; leave the field out to mean any",
        )),
        list => Ok(list.unwrap_or_default()),
    }
}

/// Reads a list whose items are written as strings.
pub(super) fn parsed<'de, D, P: Parsed>(deserializer: D) -> Result<Vec<P::Value>, D::Error>
where
    D: Deserializer<'de>,
{
    let items: Vec<Item<P>> = list(deserializer)?;
    Ok(items.into_iter().map(|item| item.0).collect())
}

/// How a string is parsed, and into what.
pub(super) trait Parsed {
    type Value;

    fn parse(text: &str) -> Result<Self::Value, String>;
}

struct Item<P: Parsed>(P::Value);

impl<'de, P: Parsed> Deserialize<'de> for Item<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        P::parse(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A name with an optional `*` at one end.
pub(super) struct Pattern;

impl Parsed for Pattern {
    type Value = StringMatch;

    fn parse(text: &str) -> Result<StringMatch, String> {
        let parsed = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text.is_empty() => return Err("an empty value matches nothing".into()),
            (Some(""), _) => return Ok(StringMatch::Presence),
            (Some(rest), None) => StringMatch::Suffix(rest.into()),
            (None, Some(rest)) => StringMatch::Prefix(rest.into()),
            (None, None) => StringMatch::Exact(text.into()),
            (Some(_), Some(_)) => return Err(only_one_wildcard(text)),
        };
        let (StringMatch::Suffix(rest) | StringMatch::Prefix(rest) | StringMatch::Exact(rest)) =
            &parsed
        else {
            return Ok(parsed);
        };
        if rest.contains('*') {
            return Err(only_one_wildcard(text));
        }
        Ok(parsed)
    }
}

fn only_one_wildcard(text: &str) -> String {
    format!("{text:?}: a '*' may stand only at the beginning or at the end, and only once")
}

/// A principal, `TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, with an optional `*` at one end.
pub(super) struct PrincipalPattern;

impl Parsed for PrincipalPattern {
    type Value = StringMatch;

    fn parse(text: &str) -> Result<StringMatch, String> {
        if let Some(rest) = text.strip_prefix("spiffe://") {
            return Err(format!(
                "a principal is written without spiffe://: {rest:?}"
            ));
        }
        Pattern::parse(text)
    }
}

/// A trust domain, with an optional `*` at one end.
pub(super) struct TrustDomainPattern;

impl Parsed for TrustDomainPattern {
    type Value = StringMatch;

    fn parse(text: &str) -> Result<StringMatch, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_*".contains(c);
        if !text.chars().all(allowed) {
            return Err(format!(
                "{text:?} is not a trust domain; write it as in cluster.local, without spiffe:// \
                 and without a path"
            ));
        }
        Pattern::parse(text)
    }
}

/// An address or a CIDR block.
pub(super) struct IpBlock;

impl Parsed for IpBlock {
    type Value = IpNet;

    fn parse(text: &str) -> Result<IpNet, String> {
        let net = match text.parse::<IpAddr>() {
            Ok(ip) => IpNet::from(ip),
            Err(_) => text
                .parse::<IpNet>()
                .map_err(|_| format!("{text:?} is neither an IP address nor a CIDR block"))?,
        };
        Ok(canonical(net).trunc())
    }
}

/// Addresses are compared in canonical form, so an IPv4-mapped block is the IPv4 block.
fn canonical(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let (IpAddr::V4(ip), Some(prefix)) = (
        net.addr().to_canonical(),
        net.prefix_len().checked_sub(MAPPED_BITS),
    ) else {
        return net;
    };
    match net {
        IpNet::V6(_) => Ipv4Net::new(ip, prefix).map_or(net, IpNet::V4),
        IpNet::V4(_) => net,
    }
}

/// A port.
pub(super) struct Port;

impl Parsed for Port {
    type Value = u16;

    fn parse(text: &str) -> Result<u16, String> {
        let digits = text.bytes().all(|c| c.is_ascii_digit());
        let port = text.parse::<u16>().ok();
        let port = port.filter(|port| digits && *port > 0);
        port.ok_or_else(|| format!("{text:?} is not a port; ports are 1 to 65535"))
    }
}

/// A service account as a policy names it: `NAMESPACE/NAME`, or `NAME` for the policy's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountName {
    pub namespace: Option<Name>,
    pub name: Name,
}

impl Parsed for AccountName {
    type Value = Self;

    fn parse(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if !is_dns_name(name) || !namespace.is_none_or(is_dns_name) {
            return Err(format!(
                "{text:?} is not a service account; write NAMESPACE/NAME or NAME"
            ));
        }
        Ok(Self {
            namespace: namespace.map(Name::from),
            name: name.into(),
        })
    }
}
