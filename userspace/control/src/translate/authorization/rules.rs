//! The rules of one AuthorizationPolicy, without what only a proxy of L7 can see.
//!
//! Such fields make ALLOW stricter, because the whole rule is dropped, and DENY wider, because
//! only the field is dropped. Either is reported.

use sluice_model::{
    Name,
    authz::{Action, Clause, Match, Rule, ServiceAccountMatch, StringMatch, Term, Values},
};
use sluice_objects::{
    AuthorizationPolicy, Code, Diagnostic, Located, Severity,
    kinds::{self, AccountName, Attribute, Condition, Operation, Source},
};

/// Translates rules, and collects what is lost.
pub(super) struct Translator<'a> {
    policy: &'a Located<AuthorizationPolicy>,
    action: Action,
    findings: Vec<Diagnostic>,
}

impl<'a> Translator<'a> {
    pub(super) fn new(policy: &'a Located<AuthorizationPolicy>, action: Action) -> Self {
        Self {
            policy,
            action,
            findings: Vec::new(),
        }
    }

    pub(super) fn into_findings(self) -> Vec<Diagnostic> {
        self.findings
    }

    /// `None` when the rule is dropped.
    pub(super) fn rule(&mut self, i: usize, rule: &kinds::Rule) -> Option<Rule> {
        let field = format!("spec.rules[{i}]");
        let before = self.findings.len();
        let mut clauses = Vec::new();
        if !rule.to.is_empty() {
            let operations = rule.to.iter().enumerate();
            let matches =
                operations.map(|(j, to)| self.operation(&format!("{field}.to[{j}].operation"), to));
            clauses.push(Clause::from_iter(matches));
        }
        if !rule.from.is_empty() {
            let sources = rule.from.iter().enumerate();
            let matches =
                sources.map(|(j, from)| self.source(&format!("{field}.from[{j}].source"), from));
            clauses.push(Clause::from_iter(matches));
        }
        for (j, when) in rule.when.iter().enumerate() {
            let only = self.condition(&format!("{field}.when[{j}].key"), when);
            clauses.push(Clause::from(only));
        }
        let lost_something = self.findings.len() > before;
        if lost_something && self.action == Action::Allow {
            return None;
        }
        let dead = |clause: &Clause| clause.matches.iter().all(|m| *m == Match::default());
        if clauses.iter().any(dead) {
            let message = "this rule has no effect: nothing is left of it that a ztunnel can see";
            self.warning(Code::NoEffect, &field, message);
            return None;
        }
        Some(Rule::from_iter(clauses))
    }

    fn operation(&mut self, field: &str, operation: &Operation) -> Match {
        let Operation {
            hosts,
            not_hosts,
            ports,
            not_ports,
            methods,
            not_methods,
            paths,
            not_paths,
        } = operation;
        for (name, values) in [
            ("hosts", hosts),
            ("notHosts", not_hosts),
            ("methods", methods),
            ("notMethods", not_methods),
            ("paths", paths),
            ("notPaths", not_paths),
        ] {
            self.unseen_unless(values.is_empty(), field, name);
        }
        both(Values::DestinationPorts, ports, not_ports)
            .into_iter()
            .collect()
    }

    fn source(&mut self, field: &str, source: &Source) -> Match {
        for (name, empty) in [
            ("requestPrincipals", source.request_principals.is_empty()),
            (
                "notRequestPrincipals",
                source.not_request_principals.is_empty(),
            ),
            ("remoteIpBlocks", source.remote_ip_blocks.is_empty()),
            ("notRemoteIpBlocks", source.not_remote_ip_blocks.is_empty()),
        ] {
            self.unseen_unless(empty, field, name);
        }
        let mut principals = source.principals.clone();
        let mut not_principals = source.not_principals.clone();
        self.trust_domains(field, source, &mut principals, &mut not_principals);
        let accounts = self.accounts(&source.service_accounts);
        let not_accounts = self.accounts(&source.not_service_accounts);
        [
            both(Values::Principals, &principals, &not_principals),
            both(
                Values::Namespaces,
                &source.namespaces,
                &source.not_namespaces,
            ),
            both(Values::ServiceAccounts, &accounts, &not_accounts),
            both(Values::SourceIps, &source.ip_blocks, &source.not_ip_blocks),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// A trust domain is how a principal begins.
    fn trust_domains(
        &mut self,
        field: &str,
        source: &Source,
        principals: &mut Vec<StringMatch>,
        not_principals: &mut Vec<StringMatch>,
    ) {
        let as_principals = |domains: &[StringMatch]| -> Option<Vec<StringMatch>> {
            domains.iter().map(principals_of).collect()
        };
        match as_principals(&source.trust_domains) {
            // Two lists for the same text, of which both must match, do not fit into one.
            Some(domains) if domains.is_empty() || source.principals.is_empty() => {
                principals.extend(domains);
            }
            _ => {
                let message = "not enforced together with principals, or with a leading '*'";
                self.lost(
                    Code::UnsupportedValue,
                    &format!("{field}.trustDomains"),
                    message,
                );
            }
        }
        match as_principals(&source.not_trust_domains) {
            Some(domains) => not_principals.extend(domains),
            None => {
                let message = "not enforced with a leading '*'";
                self.lost(
                    Code::UnsupportedValue,
                    &format!("{field}.notTrustDomains"),
                    message,
                );
            }
        }
    }

    fn condition(&mut self, field: &str, condition: &Condition) -> Match {
        let terms = match &condition.attribute {
            Attribute::SourceIp(t) => both(Values::SourceIps, &t.values, &t.not_values),
            Attribute::SourceNamespace(t) => both(Values::Namespaces, &t.values, &t.not_values),
            Attribute::SourcePrincipal(t) => both(Values::Principals, &t.values, &t.not_values),
            Attribute::SourceServiceAccount(t) => {
                let (is, is_not) = (self.accounts(&t.values), self.accounts(&t.not_values));
                both(Values::ServiceAccounts, &is, &is_not)
            }
            Attribute::DestinationIp(t) => both(Values::DestinationIps, &t.values, &t.not_values),
            Attribute::DestinationPort(t) => {
                both(Values::DestinationPorts, &t.values, &t.not_values)
            }
            Attribute::L7(_) => {
                let message = format!("{} is seen only by a waypoint", condition.key);
                self.lost(Code::L7Field, field, &message);
                return Match::default();
            }
        };
        Match::from(terms)
    }

    fn accounts(&self, names: &[AccountName]) -> Vec<ServiceAccountMatch> {
        let own: &Name = &self.policy.namespace;
        let account = |name: &AccountName| ServiceAccountMatch {
            namespace: name.namespace.as_ref().unwrap_or(own).clone(),
            name: name.name.clone(),
        };
        names.iter().map(account).collect()
    }

    fn unseen_unless(&mut self, empty: bool, field: &str, name: &str) {
        if !empty {
            self.lost(
                Code::L7Field,
                &format!("{field}.{name}"),
                "is seen only by a waypoint",
            );
        }
    }

    fn lost(&mut self, code: Code, field: &str, why: &str) {
        let consequence = match self.action {
            Action::Allow => "the whole rule is dropped, and allows nothing",
            Action::Deny => "the field is dropped, and more is denied than it says",
            Action::Audit => "the field is dropped, and more is reported than it says",
        };
        self.warning(code, field, &format!("{why}: {consequence}"));
    }

    fn warning(&mut self, code: Code, field: &str, message: &str) {
        let finding = self
            .policy
            .origin
            .diagnostic(Severity::Warning, code, field, message);
        self.findings.push(finding);
    }
}

/// What an attribute must be, and what it must not.
fn both<T: Clone>(values: fn(Box<[T]>) -> Values, is: &[T], is_not: &[T]) -> [Term; 2] {
    [
        Term::any_of(values(is.into())),
        Term::none_of(values(is_not.into())),
    ]
}

/// The principals of a trust domain; `None` when no one pattern covers them.
fn principals_of(domain: &StringMatch) -> Option<StringMatch> {
    match domain {
        StringMatch::Exact(domain) => Some(StringMatch::Prefix(format!("{domain}/").into())),
        // No '/' can stand in a trust domain, so a longer match cannot reach beyond it.
        StringMatch::Prefix(start) => Some(StringMatch::Prefix(start.clone())),
        StringMatch::Presence => Some(StringMatch::Presence),
        StringMatch::Suffix(_) => None,
    }
}
