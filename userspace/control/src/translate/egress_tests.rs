//! Where workloads may go, and which trust domains are one.

use sluice_model::workload::Egress::{self, Anywhere, Registry};

use super::*;

/// Which policy each scope sets, or nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    pod: &'static str,
    selector: &'static str,
    annotation: &'static str,
    namespace: &'static str,
    root: &'static str,
    mesh: &'static str,
}

fn sidecar(name: &str, namespace: &str, selector: &str, mode: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{workloadSelector: {{labels: {{{selector}}}}}, outboundTrafficPolicy: {{mode: {mode}}}}}"
    )
}

fn settings(text: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: '{text}'"
    )
}

fn annotation(mode: &str) -> String {
    match mode {
        "" => String::new(),
        mode => format!(", annotations: {{sluice.io/outbound-traffic-policy: {mode}}}"),
    }
}

fn egress(given: Given) -> Egress {
    let mut documents = vec![
        SHOP.replace(
            "name: shop",
            &format!("name: shop{}", annotation(given.annotation)),
        ),
        pod(
            &format!(", labels: {{app: web}}{}", annotation(given.pod)),
            "",
            "",
        ),
    ];
    for (name, namespace, selector, mode) in [
        ("own", "shop", "app: web", given.selector),
        ("all", "shop", "", given.namespace),
        ("all", "istio-system", "", given.root),
    ] {
        if !mode.is_empty() {
            documents.push(sidecar(name, namespace, selector, mode));
        }
    }
    if !given.mesh.is_empty() {
        documents.push(settings(&format!(
            "outboundTrafficPolicy: {{mode: {}}}",
            given.mesh
        )));
    }
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    only(of(&documents)).egress
}

#[test]
fn the_narrowest_scope_that_says_something_counts() {
    const ANY: &str = "ALLOW_ANY";
    const REGISTRY: &str = "REGISTRY_ONLY";
    assert_eq!(egress(Given::default()), Anywhere);
    type Set = fn(&mut Given, &'static str);
    // From the widest to the narrowest.
    let scopes: [Set; 6] = [
        |given, mode| given.mesh = mode,
        |given, mode| given.root = mode,
        |given, mode| given.namespace = mode,
        |given, mode| given.annotation = mode,
        |given, mode| given.selector = mode,
        |given, mode| given.pod = mode,
    ];
    for (i, narrow) in scopes.iter().enumerate() {
        for (wider, narrower, expected) in [
            ("", REGISTRY, Registry),
            ("", ANY, Anywhere),
            (ANY, REGISTRY, Registry),
            (REGISTRY, ANY, Anywhere),
        ] {
            let mut given = Given::default();
            scopes[..i].iter().for_each(|wide| wide(&mut given, wider));
            narrow(&mut given, narrower);
            assert_eq!(egress(given), expected, "{given:?}");
        }
    }
}

#[test]
fn others_sidecars_do_not_count() {
    let web = plain();
    for other in [
        sidecar("other", "elsewhere", "", "REGISTRY_ONLY"),
        sidecar("other", "elsewhere", "app: web", "REGISTRY_ONLY"),
        sidecar("other", "istio-system", "app: web", "REGISTRY_ONLY"),
        sidecar("other", "shop", "app: other", "REGISTRY_ONLY"),
    ] {
        assert_eq!(only(of(&[SHOP, &web, &other])).egress, Anywhere, "{other}");
    }
    let elsewhere = settings("outboundTrafficPolicy: {mode: REGISTRY_ONLY}")
        .replace("istio-system", "elsewhere");
    let translation = of(&[SHOP, &web, &elsewhere]);
    assert_eq!(
        findings(&translation),
        [("metadata.namespace", 3)].map(|(f, l)| (f, l + 8))
    );
    assert_eq!(only(translation).egress, Anywhere);
}

#[test]
fn of_two_sidecars_for_the_same_the_first_counts_and_the_other_is_reported() {
    let first = sidecar("a", "shop", "", "ALLOW_ANY");
    let second = sidecar("b", "shop", "", "REGISTRY_ONLY");
    let translation = of(&[&second, &first, SHOP, &plain()]);
    assert_eq!(findings(&translation), [("spec.workloadSelector", 4)]);
    assert_eq!(only(translation).egress, Anywhere);
    let dated = second.replace(
        "name: b",
        "creationTimestamp: '2026-01-01T00:00:00Z', name: b",
    );
    assert_eq!(only(of(&[&dated, &first, SHOP, &plain()])).egress, Registry);
}

fn domains(translation: &Translation) -> Vec<&str> {
    let domains = translation.workloads[0].equivalent_domains.iter();
    domains.map(TrustDomain::as_str).collect()
}

#[test]
fn aliases_of_the_trust_domain_are_told_to_every_workload() {
    let web = plain();
    let flag = "old.example.com";
    assert_eq!(domains(&of(&[SHOP, &web])), ["cluster.local", flag]);
    let aliases = settings("trustDomainAliases: [old.example, cluster.local, old.example]");
    let translation = of(&[SHOP, &web, &aliases]);
    let expected = ["cluster.local", flag, "old.example"];
    assert_eq!(domains(&translation), expected);
}

#[test]
fn settings_that_contradict_the_control_planes_own_are_reported() {
    let same = settings("{trustDomain: cluster.local, rootNamespace: istio-system}");
    assert!(findings(&of(&[&same])).is_empty());
    let other = settings("{trustDomain: example.org, rootNamespace: mesh}");
    let expected = [("data.mesh.trustDomain", 5), ("data.mesh.rootNamespace", 5)];
    assert_eq!(findings(&of(&[&other])), expected);
}
