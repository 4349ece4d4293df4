//! What a rule wants that a connection has not, in words.

use std::{fmt::Display, net::IpAddr};

use sluice_model::authz::{Clause, Connection, Match, Rule, StringMatch, Term, Values};

/// Why a rule does not match: what each clause wants that is not so. Empty when it matches.
pub(crate) fn misses(rule: &Rule, connection: &Connection<'_>) -> Vec<String> {
    let unmet = rule
        .clauses
        .iter()
        .filter(|clause| !clause.is_met_by(connection));
    unmet
        .map(|clause| clause_miss(clause, connection))
        .collect()
}

fn clause_miss(clause: &Clause, connection: &Connection<'_>) -> String {
    let alternatives = clause.matches.iter();
    let alternatives: Vec<String> = alternatives
        .map(|one| match_miss(one, connection))
        .collect();
    alternatives.join("; or ")
}

fn match_miss(one: &Match, connection: &Connection<'_>) -> String {
    if one.terms().is_empty() {
        return "it asks for what cannot be known at L4, and so never matches".to_owned();
    }
    let unmet = one
        .terms()
        .iter()
        .filter(|term| !term.is_met_by(connection));
    let unmet: Vec<String> = unmet.map(|term| term_miss(term, connection)).collect();
    unmet.join(", and ")
}

fn term_miss(term: &Term, connection: &Connection<'_>) -> String {
    if let (true, Values::Principals(patterns), Some(identity)) =
        (term.negated, &term.values, connection.source_identity)
        && patterns.contains(&StringMatch::Presence)
    {
        return format!("is for those without a proven identity: the source is {identity}");
    }
    let wants = if term.negated {
        "wants any but"
    } else {
        "wants"
    };
    let identity = connection.source_identity;
    let unproven = "the source has proven no identity";
    let (attribute, wanted, is) = match &term.values {
        Values::Namespaces(patterns) => (
            "source namespace",
            list(patterns.iter().map(pattern)),
            identity.map_or(unproven.to_owned(), |id| {
                format!("it is {}", id.namespace())
            }),
        ),
        Values::ServiceAccounts(accounts) => (
            "source service account",
            list(
                accounts
                    .iter()
                    .map(|one| format!("{}/{}", one.namespace, one.name)),
            ),
            identity.map_or(unproven.to_owned(), |id| {
                format!("it is {}/{}", id.namespace(), id.service_account())
            }),
        ),
        Values::Principals(patterns) => (
            "principal",
            list(patterns.iter().map(pattern)),
            identity.map_or(unproven.to_owned(), |id| {
                let id = id.to_string();
                format!("it is {}", id.trim_start_matches("spiffe://"))
            }),
        ),
        Values::SourceIps(nets) => ("source address", list(nets), address(connection.source_ip)),
        Values::DestinationIps(nets) => (
            "destination address",
            list(nets),
            address(connection.destination.ip()),
        ),
        Values::DestinationPorts(ports) => (
            "port",
            list(ports),
            format!("it is {}", connection.destination.port()),
        ),
    };
    format!("{wants} {attribute} {wanted}: {is}")
}

fn address(ip: IpAddr) -> String {
    format!("it is {}", ip.to_canonical())
}

/// As it is written in a policy.
fn pattern(pattern: &StringMatch) -> String {
    match pattern {
        StringMatch::Exact(text) => text.to_string(),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Suffix(text) => format!("*{text}"),
        StringMatch::Presence => "*".to_owned(),
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(" or ")
}
