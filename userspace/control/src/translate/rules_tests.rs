//! Each row of an AuthorizationPolicy's rules, judged by what it does to a connection.

use std::sync::Arc;

use sluice_model::{
    SpiffeId,
    authz::{Applicable, Connection},
};

use super::*;

/// A connection: principal (`ns/sa`, or empty for none), source IP, destination port.
type Peer<'a> = (&'a str, &'a str, u16);

fn verdict(translation: &Translation, (principal, ip, port): Peer<'_>) -> bool {
    let identity: Option<SpiffeId> = principal.split_once('/').map(|(ns, sa)| {
        let (domain, ns) = ns.split_once('!').unwrap_or(("cluster.local", ns));
        format!("spiffe://{domain}/ns/{ns}/sa/{sa}")
            .parse()
            .unwrap()
    });
    let connection = Connection {
        source_identity: identity.as_ref(),
        source_ip: ip.parse().unwrap(),
        destination: format!("10.0.0.1:{port}").parse().unwrap(),
        equivalent: &[],
    };
    let policies = translation.policies.iter().filter(|p| &*p.key.name == "p");
    let set = policies.cloned().map(Arc::new).collect();
    let policies = Applicable::new([Some(Arc::new(set)), None, None]);
    policies.judge(&connection).decision.is_allowed()
}

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
        assert!(
            findings(&allow).is_empty() && findings(&deny).is_empty(),
            "{rule}"
        );
        for peer in *matching {
            assert!(verdict(&allow, *peer), "{rule} allows {peer:?}");
            assert!(!verdict(&deny, *peer), "{rule} denies {peer:?}");
        }
        for peer in *others {
            assert!(!verdict(&allow, *peer), "{rule} does not allow {peer:?}");
            assert!(verdict(&deny, *peer), "{rule} does not deny {peer:?}");
        }
    }
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
    (
        "{from: [{source: {namespaces: [a], trustDomains: ['*.local']}}]}",
        "from[0].source.trustDomains",
    ),
];

#[test]
fn what_a_ztunnel_cannot_see_makes_allow_stricter_and_deny_wider() {
    for (rule, field) in UNSEEN {
        let field = format!("spec.rules[0].{field}");
        let (allow, deny) = (with_rule("ALLOW", rule), with_rule("DENY", rule));
        for translation in [&allow, &deny] {
            assert_eq!(findings(translation), [(field.as_str(), 6)], "{rule}");
            assert_eq!(translation.diagnostics[0].severity, Severity::Warning);
        }
        assert!(
            !verdict(&allow, A) && !verdict(&allow, B),
            "{rule}: the rule is dropped"
        );
        assert!(
            !verdict(&deny, A) && verdict(&deny, B),
            "{rule}: only the field is dropped"
        );
    }
}

#[test]
fn a_deny_rule_of_which_nothing_is_left_denies_nothing() {
    for rule in [
        "{to: [{operation: {paths: [/admin]}}]}",
        "{when: [{key: 'request.headers[x]', values: [y]}]}",
        "{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [POST]}}]}",
    ] {
        let deny = with_rule("DENY", rule);
        assert!(verdict(&deny, A) && verdict(&deny, B), "{rule}");
        let messages: Vec<_> = deny
            .diagnostics
            .iter()
            .map(|d| d.message.as_str())
            .collect();
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[1].contains("no effect"), "{messages:?}");
        let allow = with_rule("ALLOW", rule);
        assert!(!verdict(&allow, A) && !verdict(&allow, B), "{rule}");
    }
    // Another operation of the same rule still counts.
    let rule = "{to: [{operation: {paths: [/admin]}}, {operation: {ports: ['80']}}]}";
    let deny = with_rule("DENY", rule);
    assert!(!verdict(&deny, A) && verdict(&deny, B));
}
