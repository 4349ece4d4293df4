//! Trust domains, which ztunnels do not compare, as the beginnings of principals, which they do.
//!
//! Nobody gets in but with an identity of the mesh's own trust domain or of one of its aliases, and
//! in principals all of these count as one (see [`sluice_model::authz::Connection::equivalent`]).
//! So what a policy says of trust domains is true of every identity that can come, or of none.

use sluice_model::{
    TrustDomain,
    authz::{StringMatch, Term, Values},
};
use sluice_objects::kinds::Source;

use super::super::Config;

/// Every trust domain whose identities get in.
pub(super) struct TrustDomains<'a>(Vec<&'a TrustDomain>);

impl<'a> TrustDomains<'a> {
    pub(super) fn of(config: &'a Config) -> Self {
        let own = std::iter::once(&config.trust_domain);
        Self(own.chain(&config.trust_domain_aliases).collect())
    }

    /// What the principals and the trust domains of a source say together.
    pub(super) fn terms(&self, source: &Source) -> [Term; 2] {
        let mut is = source.principals.clone();
        let mut is_not = source.not_principals.clone();
        is_not.extend(self.principals(&source.not_trust_domains));
        let domains = &source.trust_domains;
        if is.is_empty() {
            is = self.principals(domains);
        } else if !domains.is_empty() && !domains.iter().any(|pattern| self.holds(pattern)) {
            // Both must match, and the domains match nobody. There is room for one list only.
            is_not = vec![StringMatch::Presence];
        }
        [
            Term::any_of(Values::Principals(is.into())),
            Term::none_of(Values::Principals(is_not.into())),
        ]
    }

    /// Patterns for the principals of these trust domains.
    fn principals(&self, domains: &[StringMatch]) -> Vec<StringMatch> {
        let of_domain = |domain: &str| StringMatch::Prefix(format!("{domain}/").into());
        let mut principals = Vec::new();
        for pattern in domains {
            match pattern {
                StringMatch::Exact(domain) => principals.push(of_domain(domain)),
                // A trust domain has no '/', so a longer match cannot reach beyond it.
                StringMatch::Prefix(_) | StringMatch::Presence => principals.push(pattern.clone()),
                StringMatch::Suffix(end) if !self.holds(pattern) => {
                    // Stands for nobody: no trust domain has a '*' in it.
                    principals.push(of_domain(&format!("*{end}")));
                }
                StringMatch::Suffix(_) => {
                    let known = self.0.iter().filter(|domain| matches(pattern, domain));
                    principals.extend(known.map(|domain| of_domain(domain.as_str())));
                }
            }
        }
        principals
    }

    /// Whether a pattern matches one of them.
    fn holds(&self, pattern: &StringMatch) -> bool {
        self.0.iter().any(|domain| matches(pattern, domain))
    }
}

fn matches(pattern: &StringMatch, domain: &TrustDomain) -> bool {
    let domain = domain.as_str();
    match pattern {
        StringMatch::Exact(text) => domain == &**text,
        StringMatch::Prefix(start) => domain.starts_with(&**start),
        StringMatch::Suffix(end) => domain.ends_with(&**end),
        StringMatch::Presence => true,
    }
}
