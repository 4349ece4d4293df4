//! Each row of PeerAuthentication, judged by what happens to a connection without an identity.

use sluice_model::{
    Mesh, Update,
    authz::{AllowReason, Connection, Decision, DenyReason, RuleId},
};

use super::*;

fn peer(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{{spec}}}"
    )
}

fn mode(mode: &str) -> String {
    format!("mtls: {{mode: {mode}}}")
}

/// A workload's own PeerAuthentication, with modes of ports.
fn own(mtls: &str, ports: &str) -> String {
    let spec = format!("selector: {{matchLabels: {{app: web}}}}, {mtls}portLevelMtls: {{{ports}}}");
    peer("own", "shop", &spec)
}

/// Whether plaintext reaches `web` on ports 80 and 81.
fn plaintext(documents: &[String]) -> (bool, bool) {
    let [first, second] = judged(documents);
    (first.is_allowed(), second.is_allowed())
}

/// What becomes of plaintext to `web` on ports 80 and 81.
fn judged(documents: &[String]) -> [Decision; 2] {
    let web = plain();
    let mut all = vec![AMBIENT, &web];
    all.extend(documents.iter().map(String::as_str));
    let translation = of(&all);
    let uid = translation.workloads[0].uid.clone();
    let policies = translation.policies.into_iter().map(Update::Policy);
    let workloads = translation.workloads.into_iter().map(Update::from);
    let mesh: Mesh = policies.chain(workloads).collect();
    let policies = mesh.policies_of(&uid).unwrap();
    let judge = |destination: &str, identity| {
        let connection = Connection {
            source_identity: identity,
            source_ip: "10.9.9.9".parse().unwrap(),
            destination: destination.parse().unwrap(),
            equivalent: &[],
        };
        policies.judge(&connection).decision
    };
    let known = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    for destination in ["10.0.0.1:80", "10.0.0.1:81"] {
        let decision = judge(destination, Some(&known));
        assert!(decision.is_allowed(), "an identity always passes");
    }
    let decisions = [judge("10.0.0.1:80", None), judge("10.0.0.1:81", None)];
    // Whoever asks is told the same, and what says so.
    let objects = objects(&all);
    let pod = objects.pods.values().next().unwrap();
    for (port, decision) in [80, 81].into_iter().zip(&decisions) {
        let told = mtls(&objects, &config(), pod, port);
        assert_eq!(
            told.strict,
            !decision.is_allowed(),
            "{told} says otherwise on {port}"
        );
        assert!(!told.strict || told.from.is_some(), "{documents:#?}");
    }
    decisions
}

#[test]
fn the_narrowest_scope_that_says_something_counts() {
    let mesh = |m: &str| peer("default", "istio-system", &mode(m));
    let namespace = |m: &str| peer("default", "shop", &mode(m));
    let workload = |m: &str| own(&format!("{}, ", mode(m)), "");
    let (open, closed) = ((true, true), (false, false));
    for (documents, expected) in [
        (vec![], open),
        (vec![mesh("STRICT")], closed),
        (vec![mesh("PERMISSIVE")], open),
        (vec![mesh("UNSET")], open),
        (vec![mesh("STRICT"), namespace("UNSET")], closed),
        (vec![mesh("STRICT"), namespace("PERMISSIVE")], open),
        (vec![mesh("STRICT"), namespace("DISABLE")], open),
        (vec![namespace("STRICT")], closed),
        (vec![mesh("PERMISSIVE"), namespace("STRICT")], closed),
        (vec![namespace("STRICT"), workload("UNSET")], closed),
        (vec![namespace("STRICT"), workload("PERMISSIVE")], open),
        (vec![namespace("STRICT"), workload("DISABLE")], open),
        (vec![workload("STRICT")], closed),
        (vec![peer("default", "elsewhere", &mode("STRICT"))], open),
    ] {
        assert_eq!(plaintext(&documents), expected, "{documents:#?}");
    }
}

#[test]
fn ports_are_exceptions() {
    let strict = peer("default", "shop", &mode("STRICT"));
    for (inherited, mtls, ports, expected) in [
        (
            false,
            "mtls: {mode: STRICT}, ",
            "80: {mode: PERMISSIVE}",
            (true, false),
        ),
        (
            false,
            "mtls: {mode: STRICT}, ",
            "80: {mode: DISABLE}",
            (true, false),
        ),
        (
            false,
            "mtls: {mode: STRICT}, ",
            "80: {mode: STRICT}",
            (false, false),
        ),
        (
            false,
            "mtls: {mode: STRICT}, ",
            "80: {mode: UNSET}",
            (false, false),
        ),
        (
            false,
            "mtls: {mode: STRICT}, ",
            "80: {mode: PERMISSIVE}, 81: {mode: DISABLE}",
            (true, true),
        ),
        (
            false,
            "mtls: {mode: PERMISSIVE}, ",
            "80: {mode: STRICT}",
            (false, true),
        ),
        (
            false,
            "mtls: {mode: DISABLE}, ",
            "80: {mode: STRICT}",
            (false, true),
        ),
        (
            false,
            "mtls: {mode: PERMISSIVE}, ",
            "80: {mode: DISABLE}",
            (true, true),
        ),
        (false, "", "80: {mode: STRICT}", (false, true)),
        (
            false,
            "",
            "80: {mode: STRICT}, 81: {mode: STRICT}",
            (false, false),
        ),
        (true, "", "80: {mode: STRICT}", (false, false)),
        (true, "", "80: {mode: PERMISSIVE}", (true, false)),
        (true, "", "80: {mode: DISABLE}", (false, false)),
        (
            true,
            "mtls: {mode: PERMISSIVE}, ",
            "80: {mode: STRICT}",
            (false, true),
        ),
    ] {
        let mut documents = vec![own(mtls, ports)];
        documents.extend(inherited.then(|| strict.clone()));
        assert_eq!(plaintext(&documents), expected, "{documents:#?}");
    }
}

#[test]
fn the_policies_have_the_names_that_others_know() {
    let web = plain();
    let strict = peer("default", "shop", &mode("STRICT"));
    let translation = of(&[AMBIENT, &web, &strict]);
    let names =
        |policies: &[PolicyKey]| policies.iter().map(ToString::to_string).collect::<Vec<_>>();
    let listed = names(&translation.workloads[0].policies);
    assert_eq!(listed, ["istio-system/istio_converted_static_strict"]);
    let ported = own("mtls: {mode: STRICT}, ", "80: {mode: PERMISSIVE}");
    let translation = of(&[AMBIENT, &web, &strict, &ported]);
    let listed = names(&translation.workloads[0].policies);
    assert_eq!(
        listed,
        ["shop/converted_peer_authentication_own"],
        "it replaces the static one"
    );
    let all: Vec<_> = translation
        .policies
        .iter()
        .map(|p| (p.scope, p.action))
        .collect();
    assert_eq!(all, [(Scope::Workload, Action::Deny); 2]);
}

#[test]
fn the_oldest_of_a_scope_counts() {
    let dated = |name: &str, year: u16, m: &str| {
        peer(name, "shop", &mode(m)).replace(
            "namespace",
            &format!("creationTimestamp: '{year}-01-01T00:00:00Z', namespace"),
        )
    };
    let (old, new) = (dated("z", 2020, "STRICT"), dated("a", 2021, "PERMISSIVE"));
    assert_eq!(plaintext(&[old.clone(), new.clone()]), (false, false));
    let undated = peer("b", "shop", &mode("PERMISSIVE"));
    assert_eq!(
        plaintext(&[undated.clone(), old]),
        (false, false),
        "without a date, last"
    );
    let another = peer("c", "shop", &mode("STRICT"));
    assert_eq!(plaintext(&[another, undated]), (true, true), "then by name");
}

#[test]
fn a_selector_in_the_root_namespace_is_reported() {
    let spec = "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}";
    let translation = of(&[AMBIENT, &plain(), &peer("p", "istio-system", spec)]);
    assert_eq!(findings(&translation), [("spec.selector", 12)]);
    assert!(translation.workloads[0].policies.is_empty());
}

const MODES: [&str; 5] = ["", "UNSET", "STRICT", "PERMISSIVE", "DISABLE"];

/// Modes of the mesh, the namespace, the workload and its ports 80 and 81; empty for what is not
/// said at all.
#[derive(Clone, Copy, Debug)]
struct Said {
    mesh: &'static str,
    namespace: &'static str,
    workload: &'static str,
    ports: [&'static str; 2],
}

impl Said {
    fn documents(&self) -> Vec<String> {
        let mut documents = Vec::new();
        if !self.mesh.is_empty() {
            documents.push(peer("default", "istio-system", &mode(self.mesh)));
        }
        if !self.namespace.is_empty() {
            documents.push(peer("default", "shop", &mode(self.namespace)));
        }
        let ports = [80, 81].into_iter().zip(self.ports);
        let ports = ports.filter(|(_, mode)| !mode.is_empty());
        let ports: Vec<_> = ports.map(|(p, m)| format!("{p}: {{mode: {m}}}")).collect();
        let mtls = match self.workload {
            "" => String::new(),
            said => format!("{}, ", mode(said)),
        };
        documents.push(own(&mtls, &ports.join(", ")));
        documents
    }

    /// What the contract (§15) says of plaintext to a port.
    fn expected(&self, port: usize) -> Decision {
        let wider = (self.mesh, self.namespace);
        let inherited = matches!(wider, (_, "STRICT") | ("STRICT", "" | "UNSET"));
        let unset = matches!(self.workload, "" | "UNSET");
        let strict = self.workload == "STRICT" || (unset && inherited);
        let lifted = |mode: &str| match mode {
            "PERMISSIVE" => strict,
            "DISABLE" => self.workload == "STRICT",
            _ => false,
        };
        let denied = |policy: &str, rule: u32| {
            let (namespace, name) = policy.split_once('/').unwrap();
            Decision::Deny(DenyReason::Rule(RuleId {
                policy: PolicyKey {
                    namespace: namespace.into(),
                    name: name.into(),
                },
                rule,
            }))
        };
        let converted = "shop/converted_peer_authentication_own";
        let any_lifted = self.ports.iter().any(|mode| lifted(mode));
        match (strict, any_lifted) {
            (true, false) => denied("istio-system/istio_converted_static_strict", 0),
            (true, true) if !lifted(self.ports[port]) => denied(converted, 0),
            (false, _) if self.ports[port] == "STRICT" => {
                // Each such port has a rule of its own.
                let before = self.ports[..port].iter().filter(|mode| **mode == "STRICT");
                denied(converted, before.count() as u32)
            }
            _ => Decision::Allow(AllowReason::NoAllowPolicy),
        }
    }
}

#[test]
fn every_combination_of_modes_does_what_the_contract_says() {
    for mesh in MODES {
        for namespace in MODES {
            for workload in MODES {
                for first in MODES {
                    for second in ["", "STRICT", "PERMISSIVE", "DISABLE"] {
                        let said = Said {
                            mesh,
                            namespace,
                            workload,
                            ports: [first, second],
                        };
                        let expected = [said.expected(0), said.expected(1)];
                        assert_eq!(judged(&said.documents()), expected, "{said:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_oldest_of_a_mesh_and_of_a_workload_counts() {
    let dated = |name: &str, namespace: &str, year: u16, spec: &str| {
        let metadata = format!("creationTimestamp: '{year}-01-01T00:00:00Z', namespace");
        peer(name, namespace, spec).replace("namespace", &metadata)
    };
    let mesh = |name: &str, year, m: &str| dated(name, "istio-system", year, &mode(m));
    let documents = [mesh("b", 2021, "PERMISSIVE"), mesh("c", 2020, "STRICT")];
    assert_eq!(plaintext(&documents), (false, false));
    let documents = [mesh("b", 2020, "PERMISSIVE"), mesh("c", 2020, "STRICT")];
    assert_eq!(plaintext(&documents), (true, true), "by name");
    let workload = |name: &str, year, m: &str| {
        let spec = format!("selector: {{matchLabels: {{app: web}}}}, {}", mode(m));
        dated(name, "shop", year, &spec)
    };
    let documents = [
        workload("a", 2021, "STRICT"),
        workload("b", 2020, "PERMISSIVE"),
    ];
    assert_eq!(plaintext(&documents), (true, true));
    let documents = [
        workload("a", 2020, "STRICT"),
        workload("b", 2020, "PERMISSIVE"),
    ];
    assert_eq!(plaintext(&documents), (false, false), "by name");
}
