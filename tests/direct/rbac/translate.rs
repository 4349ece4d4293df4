//! Our policies as configuration of Envoy's network RBAC filter.
//!
//! Written from the definition of a policy and the documentation of the filter, not from our
//! engine. Where Istio translates for Envoy, this follows it, with one exception: Istio finds a
//! namespace by `.*/ns/NAME/.*`, which a namespace called `ns` can deceive; here the whole URI is
//! described.
//!
//! The filter keeps apart where a connection comes from (principals) and where it goes
//! (permissions), and knows no alternatives between the two. A clause that has such alternatives is
//! multiplied out into several of Envoy's policies.

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use sluice_model::authz::{Action, Clause, Match, Policy, Rule, StringMatch, Term, Values};

use crate::envoy::{extension, typed};

/// The filters that stand for these policies.
pub(crate) fn filters(policies: &[Arc<Policy>]) -> Vec<Value> {
    let of = |action| -> Vec<&Policy> {
        // What is in dry run, or only audits, does not decide, and is not for Envoy.
        let decides = |policy: &&Arc<Policy>| policy.action == action && !policy.dry_run;
        policies.iter().filter(decides).map(|p| &**p).collect()
    };
    let (deny, allow) = (of(Action::Deny), of(Action::Allow));
    let mut filters = vec![rbac("DENY", &deny)];
    // With an ALLOW policy, even one without rules, what none of them matches is refused; this
    // filter does so too when it has no policies.
    if !allow.is_empty() {
        filters.push(rbac("ALLOW", &allow));
    }
    filters
}

fn rbac(action: &str, policies: &[&Policy]) -> Value {
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    // They need names, and are evaluated in no order that matters.
    let policies: Map<String, Value> = rules
        .flat_map(Conjunction::of_rule)
        .enumerate()
        .map(|(i, one)| (i.to_string(), one.policy()))
        .collect();
    let config = json!({
        "stat_prefix": "oracle.",
        "rules": { "action": action, "policies": policies },
    });
    let config = typed("envoy.extensions.filters.network.rbac.v3.RBAC", config);
    extension("envoy.filters.network.rbac", config)
}

/// Which of Envoy's two vocabularies a condition is said in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Principal,
    Permission,
}

impl Side {
    fn of(values: &Values) -> Self {
        match values {
            Values::Namespaces(_)
            | Values::ServiceAccounts(_)
            | Values::Principals(_)
            | Values::SourceIps(_) => Self::Principal,
            Values::DestinationIps(_) | Values::DestinationPorts(_) => Self::Permission,
        }
    }

    fn all(self, conditions: Vec<Value>) -> Value {
        match self {
            _ if conditions.is_empty() => json!({ "any": true }),
            Self::Principal => json!({ "and_ids": { "ids": conditions } }),
            Self::Permission => json!({ "and_rules": { "rules": conditions } }),
        }
    }

    fn any(self, conditions: Vec<Value>) -> Value {
        match self {
            Self::Principal => json!({ "or_ids": { "ids": conditions } }),
            Self::Permission => json!({ "or_rules": { "rules": conditions } }),
        }
    }

    fn not(self, condition: Value) -> Value {
        match self {
            Self::Principal => json!({ "not_id": condition }),
            Self::Permission => json!({ "not_rule": condition }),
        }
    }
}

/// Conditions that must all hold.
#[derive(Clone, Default)]
struct Conjunction {
    principals: Vec<Value>,
    permissions: Vec<Value>,
}

impl Conjunction {
    fn of_rule(rule: &Rule) -> Vec<Self> {
        let clauses = rule.clauses.iter().filter(|c| !c.matches.is_empty());
        clauses.fold(vec![Self::default()], |so_far, clause| {
            let alternatives = Self::of_clause(clause);
            let with_each = |one: &Self| alternatives.iter().map(|other| one.and(other)).collect();
            so_far.iter().flat_map::<Vec<_>, _>(with_each).collect()
        })
    }

    /// One that has all alternatives where they are all of one side, else one for each.
    fn of_clause(clause: &Clause) -> Vec<Self> {
        let all: Vec<Self> = clause.matches.iter().map(Self::of_match).collect();
        let mut one = Self::default();
        if all.iter().all(|one| one.permissions.is_empty()) {
            let each = all
                .into_iter()
                .map(|one| Side::Principal.all(one.principals));
            one.principals.push(Side::Principal.any(each.collect()));
        } else if all.iter().all(|one| one.principals.is_empty()) {
            let each = all
                .into_iter()
                .map(|one| Side::Permission.all(one.permissions));
            one.permissions.push(Side::Permission.any(each.collect()));
        } else {
            return all;
        }
        vec![one]
    }

    fn of_match(one: &Match) -> Self {
        let mut all = Self::default();
        if one.terms().is_empty() {
            // Never holds.
            let nobody = Side::Principal.not(json!({ "any": true }));
            all.principals.push(nobody);
        }
        for term in one.terms() {
            match Side::of(&term.values) {
                Side::Principal => all.principals.push(condition(term)),
                Side::Permission => all.permissions.push(condition(term)),
            }
        }
        all
    }

    fn and(&self, other: &Self) -> Self {
        Self {
            principals: [&self.principals[..], &other.principals].concat(),
            permissions: [&self.permissions[..], &other.permissions].concat(),
        }
    }

    fn policy(self) -> Value {
        json!({
            "principals": [Side::Principal.all(self.principals)],
            "permissions": [Side::Permission.all(self.permissions)],
        })
    }
}

fn condition(term: &Term) -> Value {
    let each = match &term.values {
        Values::Namespaces(list) => list.iter().map(namespace).collect(),
        Values::ServiceAccounts(list) => list
            .iter()
            .map(|account| uri(&quoted(&account.namespace), &quoted(&account.name)))
            .collect(),
        Values::Principals(list) => list.iter().map(principal).collect(),
        // That of the PROXY header; with `direct_remote_ip` it would be this machine's.
        Values::SourceIps(list) => list.iter().map(|net| range("remote_ip", net)).collect(),
        Values::DestinationIps(list) => list
            .iter()
            .map(|net| range("destination_ip", net))
            .collect(),
        Values::DestinationPorts(list) => list
            .iter()
            .map(|port| json!({ "destination_port": port }))
            .collect(),
    };
    let side = Side::of(&term.values);
    let any = side.any(each);
    if term.negated { side.not(any) } else { any }
}

fn principal(pattern: &StringMatch) -> Value {
    let name = match pattern {
        StringMatch::Exact(text) => json!({ "exact": format!("spiffe://{text}") }),
        StringMatch::Prefix(text) => json!({ "prefix": format!("spiffe://{text}") }),
        // Not Envoy's suffix, which could end in the scheme.
        StringMatch::Suffix(text) => regex(&format!("spiffe://.*{}", quoted(text))),
        StringMatch::Presence => return json!({ "authenticated": {} }),
    };
    json!({ "authenticated": { "principal_name": name } })
}

fn namespace(pattern: &StringMatch) -> Value {
    let namespace = match pattern {
        StringMatch::Exact(text) => quoted(text),
        StringMatch::Prefix(text) => format!("{}{ANYTHING}", quoted(text)),
        StringMatch::Suffix(text) => format!("{ANYTHING}{}", quoted(text)),
        StringMatch::Presence => SOMETHING.to_owned(),
    };
    uri(&namespace, SOMETHING)
}

/// Regular expressions for a segment of a SPIFFE ID.
const SOMETHING: &str = "[^/]+";
const ANYTHING: &str = "[^/]*";

/// An identity of any trust domain. It is absent, and so never matches, without mutual TLS.
fn uri(namespace: &str, account: &str) -> Value {
    let name = regex(&format!("spiffe://{SOMETHING}/ns/{namespace}/sa/{account}"));
    json!({ "authenticated": { "principal_name": name } })
}

/// Envoy takes them for descriptions of the whole text.
fn regex(text: &str) -> Value {
    json!({ "safe_regex": { "regex": text } })
}

fn quoted(text: &str) -> String {
    format!(r"\Q{text}\E")
}

fn range(what: &str, net: &IpNet) -> Value {
    json!({ what: { "address_prefix": net.addr(), "prefix_len": net.prefix_len() } })
}
