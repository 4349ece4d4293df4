//! AuthorizationPolicy: sources, ports and scopes.

use std::net::SocketAddr;

use anyhow::ensure;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::Connection;
use sluice_tests::scenario::scenario;

use super::{ALL, IN_MESH, PORTS, Row, Stage, check_all};

const NOT_ALLOWED: &str = "allow policies exist, but none allowed this connection";

#[test]
fn sources_and_ports_decide() {
    check_all(&[
        Row {
            what: "without policies everybody is served",
            policies: &[],
            served: ALL,
            reason: "",
        },
        Row {
            what: "ALLOW by principal",
            policies: &[authorization!(
                "shop",
                "action: ALLOW",
                "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
            )],
            served: "web:80 web:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW by the beginning of a principal",
            policies: &[authorization!(
                "shop",
                "rules: [{from: [{source: {principals: ['cluster.local/ns/other/*']}}]}]",
            )],
            served: "batch:80 batch:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW every principal, but none without one",
            policies: &[authorization!(
                "shop",
                "rules: [{from: [{source: {principals: ['*']}}]}]",
            )],
            served: IN_MESH,
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW by namespace",
            policies: &[authorization!(
                "shop",
                "rules: [{from: [{source: {namespaces: [other]}}]}]",
            )],
            served: "batch:80 batch:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW by service account, of the policy's namespace or of another",
            policies: &[authorization!(
                "shop",
                "rules:",
                "- from: [{source: {serviceAccounts: [web, other/nobody]}}]",
                "- from: [{source: {serviceAccounts: [batch]}}]",
            )],
            served: "web:80 web:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW by port",
            policies: &[authorization!(
                "shop",
                "rules: [{to: [{operation: {ports: ['80']}}]}]",
            )],
            served: "web:80 batch:80 old:80",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW by address, with a tunnel or without",
            policies: &[authorization!(
                "shop",
                "rules: [{from: [{source: {ipBlocks: ['$web', '$old']}}]}]",
            )],
            served: "web:80 web:81 old:80 old:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW by principal and port together",
            policies: &[authorization!(
                "shop",
                "rules:",
                "- from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]",
                "  to: [{operation: {ports: ['81']}}]",
            )],
            served: "web:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "ALLOW with a condition",
            policies: &[authorization!(
                "shop",
                "rules: [{when: [{key: destination.port, notValues: ['80']}]}]",
            )],
            served: "web:81 batch:81 old:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "DENY by principal",
            policies: &[authorization!(
                "shop",
                "action: DENY",
                "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
            )],
            served: "batch:80 batch:81 old:80 old:81",
            reason: "denied by policy shop/test, rule 0",
        },
        Row {
            what: "DENY by everything but a namespace, which counts those without one",
            policies: &[authorization!(
                "shop",
                "action: DENY",
                "rules: [{from: [{source: {notNamespaces: [other]}}]}]",
            )],
            served: "batch:80 batch:81",
            reason: "denied by policy shop/test, rule 0",
        },
        Row {
            what: "DENY by port, in the second rule",
            policies: &[authorization!(
                "shop",
                "action: DENY",
                "rules:",
                "- from: [{source: {principals: [cluster.local/ns/none/sa/nobody]}}]",
                "- to: [{operation: {ports: ['81']}}]",
            )],
            served: "web:80 batch:80 old:80",
            reason: "denied by policy shop/test, rule 1",
        },
        Row {
            what: "DENY by address",
            policies: &[authorization!(
                "shop",
                "action: DENY",
                "rules: [{from: [{source: {ipBlocks: ['$batch', '$old']}}]}]",
            )],
            served: "web:80 web:81",
            reason: "denied by policy shop/test, rule 0",
        },
        Row {
            what: "once they are gone, everybody is served again",
            policies: &[],
            served: ALL,
            reason: "",
        },
    ]);
}

#[test]
fn scopes_decide_whom_a_policy_is_for() {
    check_all(&[
        Row {
            what: "an empty policy closes its namespace",
            policies: &[authorization!("shop", "{}")],
            served: "",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "and no other one",
            policies: &[authorization!("other", "{}")],
            served: ALL,
            reason: "",
        },
        Row {
            what: "one in the root namespace closes the mesh",
            policies: &[authorization!("istio-system", "{}")],
            served: "",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "a selector that fits",
            policies: &[authorization!(
                "shop",
                "selector: {matchLabels: {app: catalog}}",
                "action: DENY",
                "rules: [{to: [{operation: {ports: ['80']}}]}]",
            )],
            served: "web:81 batch:81 old:81",
            reason: "denied by policy shop/test, rule 0",
        },
        Row {
            what: "a selector that does not",
            policies: &[authorization!(
                "shop",
                "selector: {matchLabels: {app: web}}",
                "action: DENY",
                "rules: [{to: [{operation: {ports: ['80']}}]}]",
            )],
            served: ALL,
            reason: "",
        },
        Row {
            what: "a selector in the root namespace",
            policies: &[authorization!(
                "istio-system",
                "selector: {matchLabels: {app: catalog}}",
                "action: DENY",
                "rules: [{from: [{source: {namespaces: [other]}}]}]",
            )],
            served: "web:80 web:81 old:80 old:81",
            reason: "denied by policy istio-system/test, rule 0",
        },
        Row {
            what: "any ALLOW is enough, of whatever scope",
            policies: &[
                authorization!(
                    "istio-system",
                    "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
                ),
                authorization!("shop", "rules: [{to: [{operation: {ports: ['81']}}]}]"),
            ],
            served: "web:80 web:81 batch:81 old:81",
            reason: NOT_ALLOWED,
        },
        Row {
            what: "and any DENY is stronger",
            policies: &[
                authorization!(
                    "istio-system",
                    "action: DENY",
                    "rules: [{from: [{source: {notPrincipals: ['*']}}]}]",
                ),
                authorization!("shop", "rules: [{}]"),
            ],
            served: IN_MESH,
            reason: "denied by policy istio-system/test, rule 0",
        },
    ]);
}

/// A policy holds for the next connection, whatever pooled tunnel it takes.
#[test]
fn a_policy_takes_effect_without_any_restart() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let [web, _, old] = &stage.clients;
        let address = SocketAddr::new(stage.server.v4().into(), PORTS[0]);
        let workers = [s.mesh.ztunnel("a").worker()?, s.mesh.ztunnel("b").worker()?];
        // Keeps the tunnel in use through all that follows.
        let mut long = Connection::open(web, &format!("{}:81", stage.server.v4()))?;
        long.line()?;
        long.exchange("hello")?;
        let deny = authorization!(
            "shop",
            "action: DENY",
            "rules: [{to: [{operation: {ports: ['80']}}]}]",
        );
        for round in 0..5 {
            for (policies, wanted) in [(&[deny][..], Outcome::Reset), (&[], Outcome::Served)] {
                stage.apply(policies)?;
                for client in [web, old] {
                    let outcome = attempt(client, address)?;
                    ensure!(
                        outcome == wanted,
                        "round {round}, {}: {outcome:?}",
                        client.name()
                    );
                }
            }
        }
        long.exchange("still here")?;
        let now = [s.mesh.ztunnel("a").worker()?, s.mesh.ztunnel("b").worker()?];
        ensure!(now == workers, "a worker was replaced");
        Ok(())
    });
}
