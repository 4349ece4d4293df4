//! Each row of an AuthorizationPolicy's rules, judged by what it does to a connection.

use std::sync::Arc;

use sluice_model::{
    SpiffeId,
    authz::{AllowReason, Applicable, Connection, Decision, DenyReason, RuleId},
};

use super::*;

/// A connection: principal (`ns/sa`, or empty for none), source IP, destination port. The trust
/// domain is `cluster.local`, unless it stands before a `!`.
type Peer<'a> = (&'a str, &'a str, u16);

/// What the policy `p` does to a connection.
fn judge(translation: &Translation, peer: Peer<'_>) -> Decision {
    consider(translation, peer, |policies, connection| {
        policies.judge(connection).decision
    })
}

/// The rules of the policy `p` that report a connection.
fn audit(translation: &Translation, peer: Peer<'_>) -> Vec<RuleId> {
    let mut reported = Vec::new();
    consider(translation, peer, |policies, connection| {
        policies.audit(connection, |rule| reported.push(rule));
    });
    reported
}

fn consider<T>(
    translation: &Translation,
    (principal, ip, port): Peer<'_>,
    look: impl FnOnce(&Applicable, &Connection<'_>) -> T,
) -> T {
    let identity: Option<SpiffeId> = principal.split_once('/').map(|(ns, sa)| {
        let (domain, ns) = ns.split_once('!').unwrap_or(("cluster.local", ns));
        format!("spiffe://{domain}/ns/{ns}/sa/{sa}")
            .parse()
            .unwrap()
    });
    let Config {
        trust_domain,
        trust_domain_aliases,
        ..
    } = config();
    let connection = Connection {
        source_identity: identity.as_ref(),
        source_ip: ip.parse().unwrap(),
        destination: format!("10.0.0.1:{port}").parse().unwrap(),
        equivalent: &[vec![trust_domain], trust_domain_aliases].concat(),
    };
    let policies = translation.policies.iter().filter(|p| &*p.key.name == "p");
    // As a ztunnel has it.
    let received = policies.map(|policy| {
        let message = sluice_proto::security::Authorization::from(policy);
        Arc::new(Policy::try_from(message).unwrap())
    });
    let set = received.collect();
    look(
        &Applicable::new([Some(Arc::new(set)), None, None]),
        &connection,
    )
}

fn rule_id(rule: u32) -> RuleId {
    let policy = PolicyKey {
        namespace: "shop".into(),
        name: "p".into(),
    };
    RuleId { policy, rule }
}

fn allowed(rule: u32) -> Decision {
    Decision::Allow(AllowReason::Rule(rule_id(rule)))
}

fn denied(rule: u32) -> Decision {
    Decision::Deny(DenyReason::Rule(rule_id(rule)))
}

/// No rule of an ALLOW policy matched.
const NOT_ALLOWED: Decision = Decision::Deny(DenyReason::NoAllowMatched);
/// No rule of a DENY policy matched.
const NOT_DENIED: Decision = Decision::Allow(AllowReason::NoAllowPolicy);

fn with_rule(action: &str, rule: &str) -> Translation {
    let spec = format!("action: {action}, rules: [{rule}]");
    of(&[SHOP, &authorization("shop", &spec)])
}

/// A rule's text, and connections that it does and does not match.
type Row<'a> = (&'a str, &'a [Peer<'a>], &'a [Peer<'a>]);

const A: Peer<'_> = ("a/x", "10.1.0.1", 80);
const B: Peer<'_> = ("b/y", "10.2.0.1", 81);
const NOBODY: Peer<'_> = ("", "10.1.0.1", 80);

const ROWS: &[Row<'_>] = &[
    ("{}", &[A, B, NOBODY], &[]),
    (
        "{from: [{source: {principals: [cluster.local/ns/a/sa/x]}}]}",
        &[A],
        &[B, NOBODY],
    ),
    (
        "{from: [{source: {principals: ['*']}}]}",
        &[A, B],
        &[NOBODY],
    ),
    (
        "{from: [{source: {principals: ['*/sa/x']}}]}",
        &[A],
        &[B, NOBODY],
    ),
    (
        "{from: [{source: {principals: ['cluster.local/ns/b*']}}]}",
        &[B],
        &[A, NOBODY],
    ),
    (
        "{from: [{source: {notPrincipals: ['*']}}]}",
        &[NOBODY],
        &[A, B],
    ),
    (
        "{from: [{source: {notPrincipals: [cluster.local/ns/a/sa/x]}}]}",
        &[B, NOBODY],
        &[A],
    ),
    ("{from: [{source: {namespaces: [a]}}]}", &[A], &[B, NOBODY]),
    (
        "{from: [{source: {notNamespaces: [a]}}]}",
        &[B, NOBODY],
        &[A],
    ),
    (
        "{from: [{source: {serviceAccounts: [a/x]}}]}",
        &[A],
        &[B, NOBODY],
    ),
    (
        "{from: [{source: {serviceAccounts: [x]}}]}",
        &[("shop/x", "10.1.0.1", 80)],
        &[A, B],
    ),
    (
        "{from: [{source: {notServiceAccounts: [a/x]}}]}",
        &[B, NOBODY],
        &[A],
    ),
    (
        "{from: [{source: {ipBlocks: [10.1.0.0/16]}}]}",
        &[A, NOBODY],
        &[B],
    ),
    (
        "{from: [{source: {ipBlocks: ['::ffff:10.2.0.0/112']}}]}",
        &[B],
        &[A],
    ),
    (
        "{from: [{source: {notIpBlocks: [10.1.0.1]}}]}",
        &[B],
        &[A, NOBODY],
    ),
    (
        "{from: [{source: {trustDomains: [cluster.local]}}]}",
        &[A, B],
        &[("evil!a/x", "10.1.0.1", 80), NOBODY],
    ),
    (
        "{from: [{source: {notTrustDomains: [cluster.local]}}]}",
        &[("evil!a/x", "10.1.0.1", 80), NOBODY],
        &[A],
    ),
    (
        "{from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}]}",
        &[A, B],
        &[NOBODY],
    ),
    (
        "{from: [{source: {namespaces: [a], ipBlocks: [10.2.0.1]}}]}",
        &[],
        &[A, B],
    ),
    ("{to: [{operation: {ports: ['80']}}]}", &[A, NOBODY], &[B]),
    ("{to: [{operation: {notPorts: ['80']}}]}", &[B], &[A]),
    (
        "{from: [{source: {namespaces: [a, b]}}], to: [{operation: {ports: ['81']}}]}",
        &[B],
        &[A],
    ),
    (
        "{when: [{key: source.ip, values: [10.1.0.0/24]}]}",
        &[A],
        &[B],
    ),
    (
        "{when: [{key: source.ip, notValues: [10.1.0.0/24]}]}",
        &[B],
        &[A],
    ),
    (
        "{when: [{key: source.namespace, values: ['a*']}]}",
        &[A],
        &[B],
    ),
    (
        "{when: [{key: source.principal, notValues: ['*/x']}]}",
        &[B, NOBODY],
        &[A],
    ),
    (
        "{when: [{key: source.serviceAccount, values: [b/y]}]}",
        &[B],
        &[A],
    ),
    (
        "{when: [{key: destination.ip, values: [10.0.0.1]}]}",
        &[A, B],
        &[],
    ),
    (
        "{when: [{key: destination.ip, notValues: [10.0.0.0/8]}]}",
        &[],
        &[A, B],
    ),
    (
        "{when: [{key: destination.port, values: ['80']}]}",
        &[A],
        &[B],
    ),
    (
        "{when: [{key: destination.port, values: ['80']}, {key: source.namespace, values: [b]}]}",
        &[],
        &[A, B],
    ),
];

#[test]
fn rules_match_what_they_say() {
    for (rule, matching, others) in ROWS {
        let (allow, deny) = (with_rule("ALLOW", rule), with_rule("DENY", rule));
        let report = with_rule("AUDIT", rule);
        for translation in [&allow, &deny, &report] {
            assert!(findings(translation).is_empty(), "{rule}");
        }
        for peer in *matching {
            assert_eq!(judge(&allow, *peer), allowed(0), "{rule} allows {peer:?}");
            assert_eq!(judge(&deny, *peer), denied(0), "{rule} denies {peer:?}");
            assert_eq!(
                audit(&report, *peer),
                [rule_id(0)],
                "{rule} reports {peer:?}"
            );
        }
        for peer in *others {
            assert_eq!(
                judge(&allow, *peer),
                NOT_ALLOWED,
                "{rule} does not allow {peer:?}"
            );
            assert_eq!(
                judge(&deny, *peer),
                NOT_DENIED,
                "{rule} does not deny {peer:?}"
            );
            assert!(
                audit(&report, *peer).is_empty(),
                "{rule} does not report {peer:?}"
            );
        }
    }
}

#[test]
fn rules_are_counted_as_in_the_object() {
    let unseen = "{to: [{operation: {paths: [/admin]}}]}";
    let partly = "{from: [{source: {namespaces: [a]}}], to: [{operation: {paths: [/]}}]}";
    let seen = "{from: [{source: {namespaces: [a]}}]}";
    for first in [unseen, partly] {
        let rules = [first, seen].join(", ");
        assert_eq!(judge(&with_rule("ALLOW", &rules), A), allowed(1), "{first}");
        assert_eq!(judge(&with_rule("ALLOW", &rules), B), NOT_ALLOWED);
        assert_eq!(judge(&with_rule("DENY", &rules), A), denied(1), "{first}");
        assert_eq!(judge(&with_rule("DENY", &rules), B), NOT_DENIED);
        assert_eq!(audit(&with_rule("AUDIT", &rules), A), [rule_id(1)]);
        assert!(audit(&with_rule("AUDIT", &rules), B).is_empty());
    }
    let rules = [seen, unseen, "{to: [{operation: {ports: ['81']}}]}"].join(", ");
    assert_eq!(judge(&with_rule("DENY", &rules), B), denied(2));
}

/// What only a waypoint sees, beside something that a ztunnel sees (`namespaces: [a]`, port 80).
const UNSEEN: &[(&str, &str)] = &[
    (
        "{from: [{source: {namespaces: [a], requestPrincipals: ['*']}}]}",
        "from[0].source.requestPrincipals",
    ),
    (
        "{from: [{source: {namespaces: [a], notRequestPrincipals: ['*']}}]}",
        "from[0].source.notRequestPrincipals",
    ),
    (
        "{from: [{source: {namespaces: [a], remoteIpBlocks: [1.2.3.4]}}]}",
        "from[0].source.remoteIpBlocks",
    ),
    (
        "{from: [{source: {namespaces: [a], notRemoteIpBlocks: [1.2.3.4]}}]}",
        "from[0].source.notRemoteIpBlocks",
    ),
    (
        "{to: [{operation: {ports: ['80'], hosts: [x]}}]}",
        "to[0].operation.hosts",
    ),
    (
        "{to: [{operation: {ports: ['80'], notHosts: [x]}}]}",
        "to[0].operation.notHosts",
    ),
    (
        "{to: [{operation: {ports: ['80'], methods: [GET]}}]}",
        "to[0].operation.methods",
    ),
    (
        "{to: [{operation: {ports: ['80'], notMethods: [GET]}}]}",
        "to[0].operation.notMethods",
    ),
    (
        "{to: [{operation: {ports: ['80'], paths: [/]}}]}",
        "to[0].operation.paths",
    ),
    (
        "{to: [{operation: {ports: ['80'], notPaths: [/]}}]}",
        "to[0].operation.notPaths",
    ),
];

#[test]
fn what_a_ztunnel_cannot_see_makes_allow_stricter_and_deny_wider() {
    for (rule, field) in UNSEEN {
        let field = format!("spec.rules[0].{field}");
        let (allow, deny) = (with_rule("ALLOW", rule), with_rule("DENY", rule));
        let report = with_rule("AUDIT", rule);
        for (translation, consequence) in [
            (&allow, "allows nothing"),
            (&deny, "more is denied"),
            (&report, "more is reported"),
        ] {
            assert_eq!(findings(translation), [(field.as_str(), 6)], "{rule}");
            let found = &translation.diagnostics[0];
            assert_eq!(found.severity, Severity::Warning);
            assert!(found.message.contains(consequence), "{}", found.message);
        }
        for peer in [A, B] {
            assert_eq!(
                judge(&allow, peer),
                NOT_ALLOWED,
                "{rule}: the rule is dropped"
            );
        }
        assert_eq!(
            judge(&deny, A),
            denied(0),
            "{rule}: only the field is dropped"
        );
        assert_eq!(judge(&deny, B), NOT_DENIED, "{rule}");
        assert_eq!(audit(&report, A), [rule_id(0)], "{rule}");
        assert!(audit(&report, B).is_empty(), "{rule}");
    }
}

/// Attributes of `when` that only a waypoint sees.
const UNSEEN_KEYS: &[&str] = &[
    "connection.sni",
    "remote.ip",
    "request.headers[x-user]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[iss]",
    "request.auth.claims[a][b]",
];

#[test]
fn a_condition_that_a_ztunnel_cannot_see_is_never_met() {
    for key in UNSEEN_KEYS {
        for values in ["values", "notValues"] {
            let when = format!("when: [{{key: '{key}', {values}: [v]}}]");
            let rule = format!("{{from: [{{source: {{namespaces: [a]}}}}], {when}}}");
            let (allow, deny) = (with_rule("ALLOW", &rule), with_rule("DENY", &rule));
            let report = with_rule("AUDIT", &rule);
            for peer in [A, B, NOBODY] {
                assert_eq!(judge(&allow, peer), NOT_ALLOWED, "{rule}");
                assert_eq!(judge(&deny, peer), NOT_DENIED, "{rule}");
                assert!(audit(&report, peer).is_empty(), "{rule}");
            }
            let lost = ("spec.rules[0].when[0].key", 6);
            assert_eq!(findings(&allow), [lost], "{rule}");
            for translation in [&deny, &report] {
                assert_eq!(
                    findings(translation),
                    [lost, ("spec.rules[0]", 6)],
                    "{rule}"
                );
                let [lost, dead] = &translation.diagnostics[..] else {
                    panic!("{:?}", translation.diagnostics);
                };
                assert!(lost.message.starts_with(key), "{}", lost.message);
                assert!(dead.message.contains("no effect"), "{}", dead.message);
                assert!(dead.message.contains("when[0]"), "{}", dead.message);
            }
        }
    }
}

#[test]
fn a_deny_rule_of_which_nothing_is_left_denies_nothing() {
    for rule in [
        "{to: [{operation: {paths: [/admin]}}]}",
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [POST]}}]}",
    ] {
        let deny = with_rule("DENY", rule);
        for peer in [A, B, NOBODY] {
            assert_eq!(judge(&deny, peer), NOT_DENIED, "{rule}");
        }
        let messages: Vec<_> = deny
            .diagnostics
            .iter()
            .map(|d| d.message.as_str())
            .collect();
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[0].contains("less is denied"), "{messages:?}");
        assert!(messages[1].contains("no effect"), "{messages:?}");
        let allow = with_rule("ALLOW", rule);
        assert_eq!(
            (judge(&allow, A), judge(&allow, B)),
            (NOT_ALLOWED, NOT_ALLOWED)
        );
    }
    // Another operation of the same rule still counts.
    let rule = "{to: [{operation: {paths: [/admin]}}, {operation: {ports: ['80']}}]}";
    let deny = with_rule("DENY", rule);
    assert_eq!((judge(&deny, A), judge(&deny, B)), (denied(0), NOT_DENIED));
    assert_eq!(
        findings(&deny),
        [("spec.rules[0].to[0].operation.paths", 6)]
    );
    assert!(deny.diagnostics[0].message.contains("less is denied"));
}

#[path = "trust_domains_tests.rs"]
mod trust_domains;
