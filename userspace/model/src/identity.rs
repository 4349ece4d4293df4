//! Workload identities as SPIFFE writes them.

use std::{fmt, str::FromStr, sync::Arc};

use crate::Name;

/// The root of trust that issued an identity, for example `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Name);

impl TrustDomain {
    /// The name without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same, with another copy of its name.
    pub(crate) fn shared(self, share: impl FnOnce(Name) -> Name) -> Self {
        Self(share(self.0))
    }
}

impl FromStr for TrustDomain {
    type Err = ParseSpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        segment(text, text).map(TrustDomain)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity: `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
///
/// No other SPIFFE path names a workload of a mesh; such URIs do not parse.
///
/// A copy is one pointer: each connection holds some.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<Parts>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: TrustDomain,
    namespace: Name,
    service_account: Name,
}

impl SpiffeId {
    /// The identity of a service account.
    ///
    /// # Errors
    /// When a part is empty or holds a character that a SPIFFE path segment may not.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseSpiffeIdError> {
        Ok(Self(Arc::new(Parts {
            trust_domain,
            namespace: segment(namespace, namespace)?,
            service_account: segment(service_account, service_account)?,
        })))
    }

    /// Who issued it.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The Kubernetes namespace of the service account.
    pub fn namespace(&self) -> &Name {
        &self.0.namespace
    }

    /// The name of the service account.
    pub fn service_account(&self) -> &Name {
        &self.0.service_account
    }

    /// The same namespace and service account in another trust domain.
    pub fn in_domain(&self, trust_domain: TrustDomain) -> Self {
        Self(Arc::new(Parts {
            trust_domain,
            ..Parts::clone(&self.0)
        }))
    }

    /// The form in which policies name a principal: the URI without its scheme.
    pub fn principal(&self) -> Principal<'_> {
        Principal(self)
    }
}

impl FromStr for SpiffeId {
    type Err = ParseSpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseSpiffeIdError(text.to_owned());
        let mut parts = text
            .strip_prefix("spiffe://")
            .ok_or_else(malformed)?
            .split('/');
        let mut next = || parts.next().ok_or_else(malformed);
        let (domain, ns, namespace, sa, account) = (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(malformed());
        }
        Ok(Self(Arc::new(Parts {
            trust_domain: TrustDomain(segment(domain, text)?),
            namespace: segment(namespace, text)?,
            service_account: segment(account, text)?,
        })))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("spiffe://")?;
        self.principal().fmt(f)
    }
}

/// Displays a [`SpiffeId`] without its scheme.
#[derive(Clone, Copy, Debug)]
pub struct Principal<'a>(&'a SpiffeId);

impl fmt::Display for Principal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts {
            trust_domain,
            namespace,
            service_account,
        } = &*self.0.0;
        // Piece by piece, which costs a fraction of a format: each line of the access log has two.
        for piece in [&*trust_domain.0, "/ns/", namespace, "/sa/", service_account] {
            f.write_str(piece)?;
        }
        Ok(())
    }
}

/// The text is not `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a workload identity (spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT)")]
pub struct ParseSpiffeIdError(String);

/// A SPIFFE path segment: letters, digits, `.`, `-`, `_` (SPIFFE-ID §2.2).
fn segment(part: &str, whole: &str) -> Result<Name, ParseSpiffeIdError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if part.is_empty() || part == "." || part == ".." || !part.chars().all(allowed) {
        return Err(ParseSpiffeIdError(whole.to_owned()));
    }
    Ok(part.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal().to_string(), "cluster.local/ns/shop/sa/web");
        assert_eq!(
            (&**id.namespace(), &**id.service_account()),
            ("shop", "web")
        );
    }

    #[test]
    fn only_the_exact_grammar_parses() {
        for bad in [
            "",
            "cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/shop",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns//sa/web",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local/sa/web/ns/shop",
            "spiffe://cluster.local/ns/shop/sa/web/x",
            "spiffe://cluster.local/ns/shop/sa/web?x",
            "spiffe://cluster.local/ns/../sa/web",
            "https://cluster.local/ns/shop/sa/web",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} parsed");
        }
    }
}
