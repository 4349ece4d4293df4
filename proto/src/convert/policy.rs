//! Authorization policies.
//!
//! A matcher that is not understood fails the policy: left out, it would widen an ALLOW or narrow
//! a DENY.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use sluice_model::authz::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch, Term,
    Values,
};

use super::extension;
use super::{
    At, Error, InField, Problem, each, each_message, ip_bytes, known, port, raw_ip, required,
};
use crate::{
    extension as own,
    security::{self as wire, string_match::MatchType},
};

impl TryFrom<wire::Authorization> for Policy {
    type Error = Error;

    fn try_from(from: wire::Authorization) -> Result<Self, Error> {
        parse(&from).map_err(|at| at.of(format!("policy {}/{}", from.namespace, from.name)))
    }
}

fn parse(from: &wire::Authorization) -> Result<Policy, At> {
    let scope = match known(from.scope).field("scope")? {
        wire::Scope::Global => Scope::Global,
        wire::Scope::Namespace => Scope::Namespace,
        wire::Scope::WorkloadSelector => Scope::Workload,
    };
    let audit: Option<own::Audit> = extension::find(&from.extensions).field("extensions")?;
    let action = match (audit, known(from.action).field("action")?) {
        (Some(own::Audit {}), _) => Action::Audit,
        (None, wire::Action::Allow) => Action::Allow,
        (None, wire::Action::Deny) => Action::Deny,
    };
    let clause = |clause: &wire::Clause| {
        let matches = each_message("matches", &clause.matches, parse_match)?;
        Ok(Clause::from_iter(matches))
    };
    let rule = |rule: &wire::Rule| {
        let clauses = each_message("clauses", &rule.clauses, clause)?;
        Ok(Rule::from_iter(clauses))
    };
    Ok(Policy {
        key: PolicyKey {
            namespace: required(&from.namespace).field("namespace")?,
            name: required(&from.name).field("name")?,
        },
        scope,
        action,
        rules: each_message("rules", &from.rules, rule)?.into(),
        // A policy that only reports is in dry run for those who do not know how to report.
        dry_run: from.dry_run && action != Action::Audit,
    })
}

fn parse_match(from: &wire::Match) -> Result<Match, At> {
    let text = parse_string;
    let account = parse_account;
    let range = parse_range;
    // Port 0 is no port of a connection, but a harmless thing to say.
    let port = |value: &u32| if *value == 0 { Ok(0) } else { port(*value) };
    let namespaces = |list: Vec<_>| Values::Namespaces(list.into());
    let accounts = |list: Vec<_>| Values::ServiceAccounts(list.into());
    let principals = |list: Vec<_>| Values::Principals(list.into());
    let sources = |list: Vec<_>| Values::SourceIps(list.into());
    let destinations = |list: Vec<_>| Values::DestinationIps(list.into());
    let ports = |list: Vec<_>| Values::DestinationPorts(list.into());
    let (is, is_not) = (Term::any_of, Term::none_of);
    Ok(Match::from([
        is(namespaces(each("namespaces", &from.namespaces, text)?)),
        is_not(namespaces(each(
            "not_namespaces",
            &from.not_namespaces,
            text,
        )?)),
        is(accounts(each(
            "service_accounts",
            &from.service_accounts,
            account,
        )?)),
        is_not(accounts(each(
            "not_service_accounts",
            &from.not_service_accounts,
            account,
        )?)),
        is(principals(each("principals", &from.principals, text)?)),
        is_not(principals(each(
            "not_principals",
            &from.not_principals,
            text,
        )?)),
        is(sources(each("source_ips", &from.source_ips, range)?)),
        is_not(sources(each(
            "not_source_ips",
            &from.not_source_ips,
            range,
        )?)),
        is(destinations(each(
            "destination_ips",
            &from.destination_ips,
            range,
        )?)),
        is_not(destinations(each(
            "not_destination_ips",
            &from.not_destination_ips,
            range,
        )?)),
        is(ports(each(
            "destination_ports",
            &from.destination_ports,
            port,
        )?)),
        is_not(ports(each(
            "not_destination_ports",
            &from.not_destination_ports,
            port,
        )?)),
    ]))
}

fn parse_string(from: &wire::StringMatch) -> Result<StringMatch, Problem> {
    Ok(match from.match_type.as_ref().ok_or(Problem::Missing)? {
        MatchType::Exact(text) => StringMatch::Exact(text.as_str().into()),
        MatchType::Prefix(text) => StringMatch::Prefix(text.as_str().into()),
        MatchType::Suffix(text) => StringMatch::Suffix(text.as_str().into()),
        MatchType::Presence(()) => StringMatch::Presence,
    })
}

fn parse_account(from: &wire::ServiceAccountMatch) -> Result<ServiceAccountMatch, Problem> {
    Ok(ServiceAccountMatch {
        namespace: required(&from.namespace)?,
        name: required(&from.service_account)?,
    })
}

/// A range of canonical addresses: one of IPv4-mapped addresses is the IPv4 range it stands for,
/// since connections are compared by their canonical addresses.
fn parse_range(from: &wire::Address) -> Result<IpNet, Problem> {
    /// The mapped prefix, ::ffff:0:0/96.
    const MAPPED_BITS: u8 = 96;
    let ip = raw_ip(&from.address)?;
    let too_long = || Problem::PrefixLength {
        ip,
        length: from.length,
    };
    let length = u8::try_from(from.length).map_err(|_| too_long())?;
    if let (IpAddr::V6(_), IpAddr::V4(v4)) = (ip, ip.to_canonical())
        && let Some(length) = length.checked_sub(MAPPED_BITS)
    {
        return Ipv4Net::new(v4, length)
            .map(IpNet::V4)
            .map_err(|_| too_long());
    }
    IpNet::new(ip, length).map_err(|_| too_long())
}

impl From<&Policy> for wire::Authorization {
    fn from(policy: &Policy) -> Self {
        let scope = match policy.scope {
            Scope::Global => wire::Scope::Global,
            Scope::Namespace => wire::Scope::Namespace,
            Scope::Workload => wire::Scope::WorkloadSelector,
        };
        let audits = policy.action == Action::Audit;
        let action = match policy.action {
            Action::Allow | Action::Audit => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
        };
        let clause = |clause: &Clause| wire::Clause {
            matches: clause.matches.iter().map(Into::into).collect(),
        };
        let rule = |rule: &Rule| wire::Rule {
            clauses: rule.clauses.iter().map(clause).collect(),
        };
        Self {
            name: policy.key.name.to_string(),
            namespace: policy.key.namespace.to_string(),
            scope: scope.into(),
            action: action.into(),
            rules: policy.rules.iter().map(rule).collect(),
            dry_run: policy.dry_run || audits,
            extensions: audits
                .then(|| extension::extension(&own::Audit {}))
                .into_iter()
                .collect(),
        }
    }
}

impl From<&Match> for wire::Match {
    fn from(from: &Match) -> Self {
        let mut to = Self::default();
        for Term { values, negated } in from.terms() {
            match (values, negated) {
                (Values::Namespaces(list), false) => to.namespaces = all(list, string),
                (Values::Namespaces(list), true) => to.not_namespaces = all(list, string),
                (Values::ServiceAccounts(list), false) => to.service_accounts = all(list, account),
                (Values::ServiceAccounts(list), true) => {
                    to.not_service_accounts = all(list, account);
                }
                (Values::Principals(list), false) => to.principals = all(list, string),
                (Values::Principals(list), true) => to.not_principals = all(list, string),
                (Values::SourceIps(list), false) => to.source_ips = all(list, range),
                (Values::SourceIps(list), true) => to.not_source_ips = all(list, range),
                (Values::DestinationIps(list), false) => to.destination_ips = all(list, range),
                (Values::DestinationIps(list), true) => to.not_destination_ips = all(list, range),
                (Values::DestinationPorts(list), false) => to.destination_ports = all(list, number),
                (Values::DestinationPorts(list), true) => {
                    to.not_destination_ports = all(list, number);
                }
            }
        }
        to
    }
}

fn number(port: &u16) -> u32 {
    (*port).into()
}

fn all<T, U>(items: &[T], convert: impl Fn(&T) -> U) -> Vec<U> {
    items.iter().map(convert).collect()
}

fn string(from: &StringMatch) -> wire::StringMatch {
    wire::StringMatch {
        match_type: Some(match from {
            StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
            StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
            StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
            StringMatch::Presence => MatchType::Presence(()),
        }),
    }
}

fn account(from: &ServiceAccountMatch) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: from.namespace.to_string(),
        service_account: from.name.to_string(),
    }
}

fn range(from: &IpNet) -> wire::Address {
    wire::Address {
        address: ip_bytes(from.addr()),
        length: from.prefix_len().into(),
    }
}
