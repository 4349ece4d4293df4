//! What policies did to connections: refused, cut, would have decided, took note of.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use sluice_model::authz::{Decision, DenyReason, PolicyKey, RuleId};

use super::Reporter;

/// How many policies have series of their own; all others share those of `other`.
const MAX_POLICIES: usize = 1000;

/// The counters of policies. Clones count into the same.
#[derive(Clone, Debug, Default)]
pub struct PolicyMetrics {
    denials: Family<DenialLabels, Counter>,
    revocations: Family<RevocationLabels, Counter>,
    dry_runs: Family<DryRunLabels, Counter>,
    audits: Family<AuditLabels, Counter>,
    /// The policies that have series of their own.
    policies: Arc<Mutex<HashSet<PolicyKey>>>,
}

/// Why a connection was refused or cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    Policy(DenyReason),
    /// The peer's trust domain is not accepted.
    TrustDomain,
    /// One end is not any more who it was when the connection was made.
    IdentityChanged,
    /// The peer's certificate is revoked.
    Revoked,
    /// No trust anchor vouches for the peer any more.
    TrustAnchors,
    /// The mesh does not know the destination, and the client may go nowhere else.
    NotInRegistry,
}

impl Denial {
    /// The label `reason`.
    fn reason(&self) -> &'static str {
        match self {
            Self::Policy(DenyReason::NoAllowMatched) => "no_allow_matched",
            Self::Policy(DenyReason::Rule(rule)) if rule.policy.is_peer_authentication() => {
                "mutual_tls_required"
            }
            Self::Policy(DenyReason::Rule(_)) => "deny_policy",
            Self::TrustDomain => "trust_domain",
            Self::IdentityChanged => "identity_changed",
            Self::Revoked => "revoked",
            Self::TrustAnchors => "trust_anchors",
            Self::NotInRegistry => "not_in_registry",
        }
    }

    fn rule(&self) -> Option<&RuleId> {
        match self {
            Self::Policy(DenyReason::Rule(rule)) => Some(rule),
            _ => None,
        }
    }
}

/// When a connection was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Before it carried a byte.
    New,
    /// It was cut, since something had changed.
    Established,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DenialLabels {
    reporter: &'static str,
    reason: &'static str,
    connection: &'static str,
    /// `NAMESPACE/NAME`; empty where no one policy decided.
    policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RevocationLabels {
    reporter: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DryRunLabels {
    /// What was decided.
    enforced: &'static str,
    /// What would have been.
    dry_run: &'static str,
    policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuditLabels {
    policy: String,
}

impl PolicyMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "sluice_denied_connections",
            "Connections that were refused, or cut when policy had changed, by reason",
            self.denials.clone(),
        );
        registry.register(
            "istio_crl_policy_rejections",
            "Connections that were refused or cut because the peer's certificate is revoked",
            self.revocations.clone(),
        );
        registry.register(
            "sluice_dry_run_decisions",
            "What policies in dry run would have decided, beside what was decided",
            self.dry_runs.clone(),
        );
        registry.register(
            "sluice_audited_connections",
            "Connections that an AUDIT policy matched",
            self.audits.clone(),
        );
    }

    /// Counts a connection that was refused or cut.
    pub fn denied(&self, reporter: Reporter, denial: &Denial, phase: Phase) {
        let labels = DenialLabels {
            reporter: reporter.as_str(),
            reason: denial.reason(),
            connection: match phase {
                Phase::New => "new",
                Phase::Established => "established",
            },
            policy: self.policy(denial.rule()),
        };
        self.denials.get_or_create(&labels).inc();
        if *denial == Denial::Revoked {
            let reporter = reporter.as_str();
            let labels = RevocationLabels { reporter };
            self.revocations.get_or_create(&labels).inc();
        }
    }

    /// Counts a connection that policies in dry run apply to.
    pub fn dry_run(&self, enforced: &Decision, dry_run: &Decision) {
        let outcome = |decision: &Decision| match decision {
            Decision::Allow(_) => "allow",
            Decision::Deny(_) => "deny",
        };
        let labels = DryRunLabels {
            enforced: outcome(enforced),
            dry_run: outcome(dry_run),
            policy: self.policy(dry_run.rule()),
        };
        self.dry_runs.get_or_create(&labels).inc();
    }

    /// Counts a connection that a rule of an AUDIT policy matched.
    pub fn audited(&self, rule: &RuleId) {
        let policy = self.policy(Some(rule));
        self.audits.get_or_create(&AuditLabels { policy }).inc();
    }

    fn policy(&self, rule: Option<&RuleId>) -> String {
        let Some(RuleId { policy, .. }) = rule else {
            return String::new();
        };
        let mut known = self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(policy) {
            return policy.to_string();
        }
        if known.len() >= MAX_POLICIES {
            return "other".to_owned();
        }
        known.insert(policy.clone());
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = PolicyMetrics::default();
        let rule = |i: usize| RuleId {
            policy: PolicyKey {
                namespace: "shop".into(),
                name: format!("p{i}").into(),
            },
            rule: 0,
        };
        for i in 0..2 * MAX_POLICIES {
            metrics.audited(&rule(i));
        }
        let count = |policy: &str| {
            let policy = policy.to_owned();
            metrics.audits.get_or_create(&AuditLabels { policy }).get()
        };
        assert_eq!((count("shop/p0"), count("other")), (1, MAX_POLICIES as u64));
        metrics.audited(&rule(0));
        assert_eq!(count("shop/p0"), 2);
    }
}
