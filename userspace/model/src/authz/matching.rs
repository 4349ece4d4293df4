//! Whether a rule matches a connection.

use std::net::IpAddr;

use super::{Clause, Connection, Match, Rule, StringMatch, Term, Values};

/// A connection with the work done that all matches share.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) connection: &'a Connection<'a>,
    pub(super) source_ip: IpAddr,
    pub(super) destination_ip: IpAddr,
}

impl<'a> Subject<'a> {
    pub(super) fn of(connection: &'a Connection<'a>) -> Self {
        Self {
            connection,
            source_ip: connection.source_ip.to_canonical(),
            destination_ip: connection.destination.ip().to_canonical(),
        }
    }

    /// Whether a pattern matches the principal, or the same of an equivalent trust domain.
    fn principal_matches(&self, pattern: &StringMatch) -> bool {
        let Some(id) = self.connection.source_identity else {
            return false;
        };
        let matches = |domain: &str| {
            let (namespace, account) = (id.namespace(), id.service_account());
            pattern.matches_parts(&[domain, "/ns/", namespace, "/sa/", account])
        };
        let domain = id.trust_domain();
        if matches(domain.as_str()) {
            return true;
        }
        let equivalent = self.connection.equivalent;
        // A foreign domain is equivalent to none.
        equivalent.contains(domain) && equivalent.iter().any(|other| matches(other.as_str()))
    }
}

impl Rule {
    /// Whether a connection meets it: for those who want to tell why, and not to decide, since each
    /// rule is looked at by itself.
    pub fn is_met_by(&self, connection: &Connection<'_>) -> bool {
        self.matches(&Subject::of(connection))
    }

    pub(super) fn matches(&self, subject: &Subject<'_>) -> bool {
        self.clauses.iter().all(|clause| clause.holds(subject))
    }
}

impl Clause {
    /// As [`Rule::is_met_by`].
    pub fn is_met_by(&self, connection: &Connection<'_>) -> bool {
        self.holds(&Subject::of(connection))
    }

    fn holds(&self, subject: &Subject<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.matches(subject))
    }
}

impl Match {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        !self.terms.is_empty() && self.terms.iter().all(|term| term.matches(subject))
    }
}

impl Term {
    /// As [`Rule::is_met_by`].
    pub fn is_met_by(&self, connection: &Connection<'_>) -> bool {
        self.matches(&Subject::of(connection))
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.negated != self.values.contain(subject)
    }
}

impl Values {
    fn contain(&self, subject: &Subject<'_>) -> bool {
        let identity = subject.connection.source_identity;
        match self {
            Self::Namespaces(patterns) => {
                let namespace = identity.map_or("", |id| id.namespace());
                patterns.iter().any(|pattern| pattern.matches(namespace))
            }
            Self::ServiceAccounts(accounts) => identity.is_some_and(|id| {
                accounts.iter().any(|account| {
                    account.namespace == *id.namespace() && account.name == *id.service_account()
                })
            }),
            Self::Principals(patterns) => patterns
                .iter()
                .any(|pattern| subject.principal_matches(pattern)),
            Self::SourceIps(nets) => nets.iter().any(|net| net.contains(&subject.source_ip)),
            Self::DestinationIps(nets) => {
                nets.iter().any(|net| net.contains(&subject.destination_ip))
            }
            Self::DestinationPorts(ports) => ports.contains(&subject.connection.destination.port()),
        }
    }
}

impl StringMatch {
    /// Whether the pattern matches a whole text.
    pub fn matches(&self, text: &str) -> bool {
        self.matches_parts(&[text])
    }

    /// Compares with a text that is given in parts, so that nobody has to put it together.
    fn matches_parts(&self, parts: &[&str]) -> bool {
        match self {
            Self::Exact(text) => {
                text.len() == parts.iter().map(|part| part.len()).sum() && starts_with(parts, text)
            }
            Self::Prefix(text) => starts_with(parts, text),
            Self::Suffix(text) => ends_with(parts, text),
            Self::Presence => parts.iter().any(|part| !part.is_empty()),
        }
    }
}

fn starts_with(parts: &[&str], mut pattern: &str) -> bool {
    for part in parts {
        match pattern.strip_prefix(part) {
            Some(rest) => pattern = rest,
            None => return part.starts_with(pattern),
        }
    }
    pattern.is_empty()
}

fn ends_with(parts: &[&str], mut pattern: &str) -> bool {
    for part in parts.iter().rev() {
        match pattern.strip_suffix(part) {
            Some(rest) => pattern = rest,
            None => return part.ends_with(pattern),
        }
    }
    pattern.is_empty()
}
