//! What came of a connection, and why.

use std::fmt;

use super::PolicyKey;

/// Names a rule of a policy; rules are counted from 0, as in the object's `spec.rules`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    pub policy: PolicyKey,
    pub rule: u32,
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {}, rule {}", self.policy, self.rule)
    }
}

/// The outcome for a connection, and what decided it.
///
/// Where several rules would decide alike, it is the first by scope (workload, namespace, mesh),
/// then by the policy's namespace and name, then by place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow(AllowReason),
    Deny(DenyReason),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The rule that decided, if one did.
    pub fn rule(&self) -> Option<&RuleId> {
        match self {
            Self::Allow(AllowReason::Rule(rule)) | Self::Deny(DenyReason::Rule(rule)) => Some(rule),
            Self::Allow(AllowReason::NoAllowPolicy) | Self::Deny(DenyReason::NoAllowMatched) => {
                None
            }
        }
    }
}

/// Why a connection passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowReason {
    /// No ALLOW policy applies to the workload.
    NoAllowPolicy,
    Rule(RuleId),
}

impl fmt::Display for AllowReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowPolicy => f.write_str("no allow policy applies"),
            Self::Rule(rule) => write!(f, "allowed by {rule}"),
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// ALLOW policies apply, and none of them matched.
    NoAllowMatched,
    Rule(RuleId),
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowMatched => {
                f.write_str("allow policies exist, but none allowed this connection")
            }
            Self::Rule(rule) if rule.policy.is_peer_authentication() => write!(
                f,
                "denied by {rule}: a PeerAuthentication demands mutual TLS, and this is plaintext"
            ),
            Self::Rule(rule) => write!(f, "denied by {rule}"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(reason) => reason.fmt(f),
            Self::Deny(reason) => reason.fmt(f),
        }
    }
}

/// A decision, and what would have been decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub decision: Decision,
    /// The decision if policies in dry run were in force; absent when none applies.
    pub dry_run: Option<Decision>,
}
