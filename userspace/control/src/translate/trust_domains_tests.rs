//! What sources say of trust domains, judged by what it does to a connection.

use super::*;

const ALIAS: Peer<'_> = ("old.example.com!a/x", "10.1.0.1", 80);
/// A ztunnel lets no such identity in.
const FOREIGN: Peer<'_> = ("evil!a/x", "10.1.0.1", 80);

/// The fields of a source that speak of trust domains. The mesh's own is `cluster.local`, with the
/// alias `old.example.com`.
const DOMAINS: &[Row<'_>] = &[
    (
        "trustDomains: [cluster.local]",
        &[A, ALIAS],
        &[FOREIGN, NOBODY],
    ),
    (
        "trustDomains: [old.example.com]",
        &[A, ALIAS],
        &[FOREIGN, NOBODY],
    ),
    (
        "trustDomains: ['cluster*']",
        &[A, ALIAS],
        &[FOREIGN, NOBODY],
    ),
    (
        "trustDomains: ['*.example.com']",
        &[A, ALIAS],
        &[FOREIGN, NOBODY],
    ),
    (
        "trustDomains: ['*.local', x]",
        &[A, ALIAS],
        &[FOREIGN, NOBODY],
    ),
    ("trustDomains: ['*']", &[A, ALIAS], &[NOBODY]),
    ("trustDomains: [other]", &[], &[A, ALIAS, NOBODY]),
    ("trustDomains: ['other*']", &[], &[A, ALIAS, NOBODY]),
    ("trustDomains: ['*.other']", &[], &[A, ALIAS, NOBODY]),
    (
        "trustDomains: ['*.other', cluster.local]",
        &[A, ALIAS],
        &[NOBODY],
    ),
    ("trustDomains: [cluster]", &[], &[A, ALIAS, NOBODY]),
    (
        "principals: ['*/sa/x'], trustDomains: ['*.local']",
        &[A, ALIAS],
        &[B, NOBODY],
    ),
    (
        "principals: [cluster.local/ns/a/sa/x], trustDomains: [old.example.com]",
        &[A, ALIAS],
        &[B, NOBODY],
    ),
    (
        "principals: ['*'], trustDomains: [other, '*.other']",
        &[],
        &[A, B, ALIAS, NOBODY],
    ),
    (
        "notPrincipals: ['*/sa/y'], trustDomains: [cluster.local]",
        &[A, ALIAS],
        &[B, NOBODY],
    ),
    (
        "namespaces: [a], trustDomains: [cluster.local]",
        &[A, ALIAS],
        &[B, NOBODY],
    ),
    (
        "serviceAccounts: [a/x], trustDomains: ['*.other']",
        &[],
        &[A, ALIAS, NOBODY],
    ),
    (
        "notTrustDomains: [cluster.local]",
        &[FOREIGN, NOBODY],
        &[A, ALIAS],
    ),
    (
        "notTrustDomains: [old.example.com]",
        &[FOREIGN, NOBODY],
        &[A, ALIAS],
    ),
    ("notTrustDomains: ['clu*']", &[FOREIGN, NOBODY], &[A, ALIAS]),
    (
        "notTrustDomains: ['*.com']",
        &[FOREIGN, NOBODY],
        &[A, ALIAS],
    ),
    ("notTrustDomains: ['*']", &[NOBODY], &[A, ALIAS, FOREIGN]),
    ("notTrustDomains: [other]", &[A, ALIAS, NOBODY], &[]),
    ("notTrustDomains: ['*.other']", &[A, ALIAS, NOBODY], &[]),
    (
        "notPrincipals: ['*/sa/x'], notTrustDomains: ['*.other']",
        &[B, NOBODY],
        &[A, ALIAS],
    ),
    (
        "principals: ['*/sa/x'], notTrustDomains: [other]",
        &[A, ALIAS],
        &[B, NOBODY],
    ),
    (
        "trustDomains: [cluster.local], notTrustDomains: [old.example.com]",
        &[],
        &[A, ALIAS, NOBODY],
    ),
];

#[test]
fn trust_domains_are_enforced() {
    for (source, matching, others) in DOMAINS {
        let rule = format!("{{from: [{{source: {{{source}}}}}]}}");
        let (allow, deny) = (with_rule("ALLOW", &rule), with_rule("DENY", &rule));
        assert!(findings(&allow).is_empty() && findings(&deny).is_empty());
        for peer in *matching {
            assert_eq!(judge(&allow, *peer), allowed(0), "{source}: {peer:?}");
            assert_eq!(judge(&deny, *peer), denied(0), "{source}: {peer:?}");
        }
        for peer in *others {
            assert_eq!(judge(&allow, *peer), NOT_ALLOWED, "{source}: {peer:?}");
            assert_eq!(judge(&deny, *peer), NOT_DENIED, "{source}: {peer:?}");
        }
    }
}
