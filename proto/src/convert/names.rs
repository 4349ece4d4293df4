//! The names under which resources travel.
//!
//! A workload travels under its uid, a service and a policy as `NAMESPACE/NAME`, which is how their
//! keys display.

use sluice_model::{NetworkAddress, ServiceKey, authz::PolicyKey};

use super::Problem;

/// The service that a resource name stands for; `None` for the name of something else.
pub fn parse_service(name: &str) -> Option<ServiceKey> {
    split(name).map(|(namespace, hostname)| ServiceKey {
        namespace: namespace.into(),
        hostname: hostname.into(),
    })
}

/// The policy that a resource name stands for; `None` for the name of something else.
pub fn parse_policy(name: &str) -> Option<PolicyKey> {
    split(name).map(|(namespace, name)| PolicyKey {
        namespace: namespace.into(),
        name: name.into(),
    })
}

/// The alias under which whatever has this address can be asked for, `NETWORK/IP`.
pub fn alias(address: &NetworkAddress) -> String {
    address.to_string()
}

fn split(name: &str) -> Option<(&str, &str)> {
    name.split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .filter(|(_, name)| !name.contains('/'))
}

pub(super) fn service(name: &str) -> Result<ServiceKey, Problem> {
    parse_service(name).ok_or_else(|| Problem::Namespaced(name.to_owned()))
}

pub(super) fn policy(name: &str) -> Result<PolicyKey, Problem> {
    parse_policy(name).ok_or_else(|| Problem::Namespaced(name.to_owned()))
}
