//! The rules of one AuthorizationPolicy, without what only a proxy of L7 can see.
//!
//! With such a field an ALLOW rule is dropped as a whole, so that it never allows more than it
//! says. Of a DENY or AUDIT rule only the field is dropped, so that it denies or reports more, or
//! nothing where nothing else was said (wire contract §14). Each is reported.
//!
//! A rule that is dropped leaves one in its place that never matches: the number of a rule in a
//! verdict is its place in `spec.rules`.

use sluice_model::{
    Name,
    authz::{Action, Clause, Match, Rule, ServiceAccountMatch, Term, Values},
};
use sluice_objects::{
    AuthorizationPolicy, Code, Diagnostic, Located, Severity,
    kinds::{self, AccountName, Attribute, Condition, Operation, Source},
};

use super::{super::Config, trust_domains::TrustDomains};

/// Translates rules, and collects what is lost.
pub(super) struct Translator<'a> {
    policy: &'a Located<AuthorizationPolicy>,
    action: Action,
    trust_domains: TrustDomains<'a>,
    findings: Vec<Diagnostic>,
}

impl<'a> Translator<'a> {
    pub(super) fn new(
        policy: &'a Located<AuthorizationPolicy>,
        action: Action,
        config: &'a Config,
    ) -> Self {
        Self {
            policy,
            action,
            trust_domains: TrustDomains::of(config),
            findings: Vec::new(),
        }
    }

    pub(super) fn into_findings(self) -> Vec<Diagnostic> {
        self.findings
    }

    /// The rule, or in its place one that never matches.
    pub(super) fn rule(&mut self, i: usize, rule: &kinds::Rule) -> Rule {
        let field = format!("spec.rules[{i}]");
        let before = self.findings.len();
        let clauses = self.clauses(&field, rule);
        let lost_something = self.findings.len() > before;
        if lost_something && self.action == Action::Allow {
            return Rule::never();
        }
        let dead = |clause: &Clause| clause.matches.iter().all(|m| m.terms().is_empty());
        if let Some((part, _)) = clauses.iter().find(|(_, clause)| dead(clause)) {
            let message =
                format!("this rule has no effect: a ztunnel can see nothing of its {part}");
            self.warning(Code::NoEffect, &field, &message);
            return Rule::never();
        }
        clauses.into_iter().map(|(_, clause)| clause).collect()
    }

    /// Each clause, and which part of the rule it is.
    fn clauses(&mut self, field: &str, rule: &kinds::Rule) -> Vec<(String, Clause)> {
        let mut clauses = Vec::new();
        if !rule.to.is_empty() {
            let operations = rule.to.iter().enumerate();
            let matches =
                operations.map(|(j, to)| self.operation(&format!("{field}.to[{j}].operation"), to));
            clauses.push(("to".to_owned(), Clause::from_iter(matches)));
        }
        if !rule.from.is_empty() {
            let sources = rule.from.iter().enumerate();
            let matches =
                sources.map(|(j, from)| self.source(&format!("{field}.from[{j}].source"), from));
            clauses.push(("from".to_owned(), Clause::from_iter(matches)));
        }
        for (j, when) in rule.when.iter().enumerate() {
            let part = format!("when[{j}]");
            let only = self.condition(&format!("{field}.{part}.key"), when);
            clauses.push((part, Clause::from(only)));
        }
        clauses
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
        let rest: Match = both(Values::DestinationPorts, ports, not_ports).into();
        let unseen = [
            ("hosts", hosts.is_empty()),
            ("notHosts", not_hosts.is_empty()),
            ("methods", methods.is_empty()),
            ("notMethods", not_methods.is_empty()),
            ("paths", paths.is_empty()),
            ("notPaths", not_paths.is_empty()),
        ];
        self.unseen(field, &unseen, &rest);
        rest
    }

    fn source(&mut self, field: &str, source: &Source) -> Match {
        let accounts = self.accounts(&source.service_accounts);
        let not_accounts = self.accounts(&source.not_service_accounts);
        let rest: Match = [
            self.trust_domains.terms(source),
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
        .collect();
        let unseen = [
            ("requestPrincipals", source.request_principals.is_empty()),
            (
                "notRequestPrincipals",
                source.not_request_principals.is_empty(),
            ),
            ("remoteIpBlocks", source.remote_ip_blocks.is_empty()),
            ("notRemoteIpBlocks", source.not_remote_ip_blocks.is_empty()),
        ];
        self.unseen(field, &unseen, &rest);
        rest
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
                self.lost(field, &condition.key, &Match::default());
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

    /// Reports the fields that are not empty, and that only a waypoint sees.
    fn unseen(&mut self, field: &str, fields: &[(&str, bool)], rest: &Match) {
        for (name, _) in fields.iter().filter(|(_, empty)| !empty) {
            self.lost(&format!("{field}.{name}"), name, rest);
        }
    }

    /// Reports what only a waypoint sees, and what that does to the rule: `rest` is what a ztunnel
    /// sees of the source, the operation or the condition that it is part of.
    fn lost(&mut self, field: &str, name: &str, rest: &Match) {
        let nothing_left = rest.terms().is_empty();
        let consequence = match (self.action, nothing_left) {
            (Action::Allow, _) => "the whole rule is dropped, and allows nothing",
            (Action::Deny, false) => "the field is dropped, and more is denied than it says",
            (Action::Deny, true) => "nothing else is said here, and less is denied than it says",
            (Action::Audit, false) => "the field is dropped, and more is reported than it says",
            (Action::Audit, true) => "nothing else is said here, and less is reported than it says",
        };
        let message = format!("{name} is seen only by a waypoint: {consequence}");
        self.warning(Code::L7Field, field, &message);
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
