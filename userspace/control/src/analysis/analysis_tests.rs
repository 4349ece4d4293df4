//! What is found when a mesh is seen as a whole: each row a configuration and its findings.

use sluice_objects::{Store, scan::FileText};

use super::*;
use crate::{conditions, translate::translate};

/// A namespace of the mesh with the pod `web`, which runs as `web`.
const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, nodeName: n1, containers: []}
status: {podIP: 10.0.0.1}
";

fn config() -> translate::Config {
    translate::Config {
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        cluster: "c".into(),
        network: "".into(),
        root_namespace: "istio-system".into(),
        cluster_domain: "cluster.local".into(),
    }
}

fn reload(store: &mut Store, text: String) -> Snapshot {
    store.reload([("f.yaml", FileText::Text(text).into())]);
    store.snapshot()
}

fn analyzed(snapshot: &Snapshot) -> Vec<Diagnostic> {
    let translation = translate(&snapshot.objects, &config());
    findings(snapshot, &translation, &config())
}

/// The findings about these documents beside [`SHOP`].
fn of(documents: &[&str]) -> Vec<Diagnostic> {
    let text = [&[SHOP], documents].concat().join("\n---\n");
    analyzed(&reload(&mut Store::default(), text))
}

/// A policy of `shop`.
fn policy(spec: &str) -> String {
    policy_of("shop", spec)
}

fn policy_of(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn peer(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: {name}, namespace: shop{metadata}}}\nspec: {{{spec}}}\n"
    )
}

/// Asserts one finding: its code, its field and words of its message.
#[track_caller]
fn assert_one(documents: &[&str], (code, field, words): (Code, &str, &str)) {
    let found = of(documents);
    assert_eq!(found.len(), 1, "{documents:#?}\n{found:#?}");
    assert_eq!((found[0].code, found[0].field.as_str()), (code, field));
    assert!(found[0].message.contains(words), "{}", found[0]);
}

#[test]
fn names_that_nothing_has_are_reported() {
    use Code::{InvalidPrincipal, UnknownNamespace, UnknownServiceAccount};
    let principal = |rest: &str| format!("principals: ['{rest}']");
    for (source, expected) in [
        (
            "namespaces: [shop, shpo]".to_owned(),
            Some((UnknownNamespace, "namespaces[1]", "shpo")),
        ),
        (
            "notNamespaces: [shpo]".into(),
            Some((UnknownNamespace, "notNamespaces[0]", "shpo")),
        ),
        (
            "namespaces: ['sh*', '*op', '*', default, istio-system]".into(),
            None,
        ),
        (
            "namespaces: ['x*']".into(),
            Some((UnknownNamespace, "namespaces[0]", "like this")),
        ),
        (
            "serviceAccounts: [web, shop/web, shop/default, default]".into(),
            None,
        ),
        (
            "serviceAccounts: [wob]".into(),
            Some((UnknownServiceAccount, "serviceAccounts[0]", "shop/wob")),
        ),
        (
            "notServiceAccounts: [shpo/web]".into(),
            Some((UnknownNamespace, "notServiceAccounts[0]", "shpo")),
        ),
        (principal("cluster.local/ns/shop/sa/web"), None),
        (principal("elsewhere/ns/a/sa/b"), None),
        (principal("*/sa/nobody"), None),
        (
            principal("cluster.local/ns/shop/sa/wob"),
            Some((UnknownServiceAccount, "principals[0]", "shop/wob")),
        ),
        (
            principal("cluster.local/ns/shpo/sa/web"),
            Some((UnknownNamespace, "principals[0]", "shpo")),
        ),
        (
            principal("web"),
            Some((InvalidPrincipal, "principals[0]", "\"web\"")),
        ),
    ] {
        let text = policy(&format!("rules: [{{from: [{{source: {{{source}}}}}]}}]"));
        match expected {
            None => assert_eq!(of(&[&text]), [], "{source}"),
            Some((code, field, words)) => {
                let field = format!("spec.rules[0].from[0].source.{field}");
                assert_one(&[&text], (code, &field, words));
            }
        }
    }
    let when = "rules: [{}, {when: [{key: source.namespace, notValues: [shpo]}]}]";
    let field = "spec.rules[1].when[0].notValues[0]";
    assert_one(&[&policy(when)], (UnknownNamespace, field, "shpo"));
    let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: api, namespace: shop}}";
    let by_object = policy("rules: [{from: [{source: {serviceAccounts: [api]}}]}]");
    assert_eq!(of(&[account, &by_object]), []);
}

#[test]
fn objects_of_no_namespace_are_reported() {
    let expected = (Code::UnknownNamespace, "metadata.namespace", "\"shpo\"");
    assert_one(&[&policy_of("shpo", "rules: [{}]")], expected);
    let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: a, namespace: shpo}}";
    assert_one(&[account], expected);
    assert_eq!(of(&[&policy_of("istio-system", "rules: [{}]")]), []);
}

#[test]
fn policies_that_reach_nothing_are_reported() {
    let selector = |app: &str| format!("selector: {{matchLabels: {{app: {app}}}}}, rules: [{{}}]");
    assert_eq!(of(&[&policy(&selector("web"))]), []);
    let nothing = (
        Code::SelectsNothing,
        "spec.selector",
        "no pod of namespace shop",
    );
    assert_one(&[&policy(&selector("wob"))], nothing);
    let nowhere = (Code::SelectsNothing, "spec.selector", "no pod of the mesh");
    assert_one(&[&policy_of("istio-system", &selector("wob"))], nowhere);
    assert_eq!(of(&[&policy_of("istio-system", &selector("web"))]), []);
    let strict = "selector: {matchLabels: {app: wob}}, mtls: {mode: STRICT}";
    assert_one(&[&peer("s", "", strict)], nothing);
    // A pod beside the mesh, in a namespace that is not part of it.
    let beside = SHOP
        .replace(
            "name: shop, labels: {istio.io/dataplane-mode: ambient}",
            "name: lab",
        )
        .replace("namespace: shop", "namespace: lab")
        .replace("10.0.0.1", "10.0.0.2");
    let outside = (Code::NotEnrolled, "spec.selector", "the pod lab/web");
    assert_one(&[&beside, &policy_of("lab", &selector("web"))], outside);
    let outside = (Code::NotEnrolled, "", "outside the mesh");
    assert_one(&[&beside, &policy_of("lab", "rules: [{}]")], outside);
}

#[test]
fn a_policy_of_which_no_rule_is_left_is_reported() {
    let codes = |spec: &str| -> Vec<_> {
        let found = of(&[&policy(spec)]);
        found.iter().map(|d| (d.code, d.field.clone())).collect()
    };
    let lost = |i: usize| {
        (
            Code::L7Field,
            format!("spec.rules[{i}].to[0].operation.paths"),
        )
    };
    let by_path = "{to: [{operation: {paths: [/]}}]}";
    let all = (Code::DeniesAll, "spec.rules".to_owned());
    assert_eq!(codes(&format!("rules: [{by_path}]")), [lost(0), all]);
    assert_eq!(codes(&format!("rules: [{{}}, {by_path}]")), [lost(1)]);
    let denies = codes(&format!("action: DENY, rules: [{by_path}]"));
    assert_eq!(
        denies.last(),
        Some(&(Code::NoEffect, "spec.rules".to_owned()))
    );
    assert_eq!(
        codes(""),
        [],
        "an ALLOW policy without rules is meant to deny all"
    );
}

#[test]
fn the_peer_authentication_that_counts_is_named() {
    let date = |year: u16| format!(", creationTimestamp: '{year}-01-01T00:00:00Z'");
    let strict = "mtls: {mode: STRICT}";
    let (old, new) = (
        peer("z", &date(2020), strict),
        peer("a", &date(2021), strict),
    );
    let words = "PeerAuthentication shop/z (f.yaml:12) is for the same workloads and counts, \
                 because it is older";
    assert_one(&[&old, &new], (Code::Conflicted, "", words));
    assert_one(&[&new, &old], (Code::Conflicted, "", "it is older"));
    let undated = peer("n", "", strict);
    let words = "shop/a (f.yaml:12) is for the same workloads and counts, because it has a creat";
    assert_one(&[&new, &undated], (Code::Conflicted, "", words));
    let by_name = peer("o", "", strict);
    assert_one(
        &[&undated, &by_name],
        (Code::Conflicted, "", "shop/n (f.yaml:12)"),
    );
    let own = "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}";
    let (a, b) = (peer("a", "", own), peer("b", "", own));
    let all = (
        Code::Conflicted,
        "spec.selector",
        "has no effect: PeerAuthentication shop/a",
    );
    assert_one(&[&a, &b], all);
    // A second pod that only the later one selects.
    let pod = SHOP.split("---\n").nth(1).unwrap();
    let other = pod
        .replace("name: web, ", "name: web2, ")
        .replace("app: web", "app: web, tier: x")
        .replace("10.0.0.1", "10.0.0.2");
    let narrow = peer("a", "", &own.replace("app: web", "tier: x"));
    let some = (
        Code::Conflicted,
        "spec.selector",
        "no effect on 1 of 2 pods, shop/web2",
    );
    assert_one(&[&other, &narrow, &b], some);
    assert_eq!(
        of(&[&own_and_namespace()]),
        [],
        "scopes of different width do not conflict"
    );
}

fn own_and_namespace() -> String {
    let own = "selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}";
    let namespace = peer("default", "", "mtls: {mode: STRICT}");
    format!("{}---\n{namespace}", peer("own", "", own))
}

#[test]
fn what_is_meant_is_only_mentioned() {
    let dry = policy("rules: [{}]").replace(
        "{name: p,",
        "{name: p, annotations: {istio.io/dry-run: 'true'},",
    );
    for (text, code) in [
        (dry, Code::DryRun),
        (
            peer("p", "", "mtls: {mode: DISABLE}"),
            Code::UnsupportedValue,
        ),
    ] {
        let found = of(&[&text]);
        let found: Vec<_> = found.iter().map(|d| (d.severity, d.code)).collect();
        assert_eq!(found, [(Severity::Info, code)], "{text}");
    }
}

#[test]
fn a_waypoint_that_nothing_passes_is_reported() {
    let service = |label: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop, \
             labels: {{istio.io/use-waypoint: {label}}}}}, \
             spec: {{clusterIP: 10.96.0.1, selector: {{app: web}}}}}}"
        )
    };
    let field = "metadata.labels[\"istio.io/use-waypoint\"]";
    assert_one(&[&service("wp")], (Code::IgnoredLabel, field, "\"wp\""));
    assert_eq!(of(&[&service("none")]), []);
}

/// The reason and message of each condition.
fn conditions_of(snapshot: &Snapshot) -> Vec<(String, String)> {
    let statuses = conditions::of(&snapshot.objects, &analyzed(snapshot));
    let conditions = statuses.iter().flat_map(|status| &status.conditions);
    conditions
        .map(|c| (format!("{:?} {:?}", c.status, c.reason), c.message.clone()))
        .collect()
}

#[track_caller]
fn assert_condition(snapshot: &Snapshot, reason: &str, words: &[&str]) {
    let all = conditions_of(snapshot);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert_eq!(all[0].0, reason, "{all:#?}");
    for words in words {
        assert!(all[0].1.contains(words), "{words:?} not in {all:#?}");
    }
}

#[test]
fn every_policy_has_a_condition() {
    let with = |text: &str| reload(&mut Store::default(), format!("{SHOP}---\n{text}"));
    assert_condition(
        &with(&policy("rules: [{}]")),
        "True Accepted",
        &["in force"],
    );
    let warned = "rules: [{from: [{source: {namespaces: [shpo]}}]}]";
    let words = [
        "in force; spec.rules[0].from[0].source.namespaces[0]: ",
        "\"shpo\"",
    ];
    assert_condition(&with(&policy(warned)), "True Accepted", &words);
    let l7 = "rules: [{}, {to: [{operation: {paths: [/]}}]}]";
    let words = ["spec.rules[1].to[0].operation.paths: ", "dropped"];
    assert_condition(&with(&policy(l7)), "False UnsupportedValue", &words);
    let custom = "action: CUSTOM, provider: {name: x}, rules: [{}]";
    let words = ["spec.action: "];
    assert_condition(&with(&policy(custom)), "False UnsupportedValue", &words);
    let invalid = policy("action: MAYBE");
    let words = ["spec.action: ", "no version of it is in force"];
    assert_condition(&with(&invalid), "False Invalid", &words);
    let broken = "kind: AuthorizationPolicy\nmetadata:\n  name: p\nspec: [\n";
    let words = ["not YAML", "no version of it is in force"];
    assert_condition(&with(broken), "False Invalid", &words);
}

#[test]
fn a_rejected_change_says_what_stays_in_force() {
    let mut store = Store::default();
    let good = format!("{SHOP}---\n{}", policy("rules: [{}]"));
    assert_condition(&reload(&mut store, good.clone()), "True Accepted", &[]);
    let words = [
        "spec.rule: unknown field",
        "the version read from f.yaml:11 before stays",
    ];
    let misspelt = reload(&mut store, good.replace("rules:", "rule:"));
    assert_condition(&misspelt, "False Invalid", &words);
    let unclosed = reload(&mut store, good.replace("[{}]}", "[{}]"));
    let words = ["not YAML", "the version read from f.yaml:11 before stays"];
    assert_condition(&unclosed, "False Invalid", &words);
    // Nobody can tell what else there is in the file.
    let nameless = reload(&mut store, format!("{good}---\n{{[\n"));
    let words = ["in force; part of the file cannot be read", "not YAML"];
    assert_condition(&nameless, "True Accepted", &words);
    let block = good.replace(
        "{name: p, namespace: shop}",
        "\n  name: p\n  namespace: shop",
    );
    let words = ["not YAML", "the version read from f.yaml:11 before stays"];
    let unclosed = reload(&mut store, block.replace("[{}]}", "[{}]"));
    assert_condition(&unclosed, "False Invalid", &words);
    assert_condition(&reload(&mut store, good), "True Accepted", &[]);
}

#[test]
fn of_a_policy_given_twice_each_has_a_condition() {
    let one = policy("rules: [{}]");
    let snapshot = reload(&mut Store::default(), format!("{SHOP}---\n{one}---\n{one}"));
    let all = conditions_of(&snapshot);
    assert_eq!(all.len(), 2, "{all:#?}");
    assert_eq!(all[0], ("True Accepted".to_owned(), "in force".to_owned()));
    assert_eq!(all[1].0, "False Invalid");
    assert!(all[1].1.contains("f.yaml:11 counts"), "{all:#?}");
}

#[test]
fn entries_are_seen_with_the_rest_of_the_mesh() {
    let machine = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                   metadata: {name: vm, namespace: shop}\n\
                   spec: {address: 192.0.2.1, serviceAccount: vm, labels: {app: vm}}\n";
    let entry = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: ext, namespace: {namespace}}}\n\
             spec: {{hosts: [db.example.com], addresses: [192.0.2.9], {spec}}}\n"
        )
    };
    let selecting = "resolution: STATIC, workloadSelector: {labels: {app: vm}}";
    // The account that only a machine has is one that a policy can name.
    let allowed = policy("rules: [{from: [{source: {serviceAccounts: [vm]}}]}]");
    assert_eq!(of(&[machine, &entry("shop", selecting), &allowed]), []);
    let elsewhere = entry("shpo", "resolution: NONE");
    let missing = (Code::UnknownNamespace, "metadata.namespace", "shpo");
    assert_one(&[&elsewhere], missing);
    let far = machine.replace("serviceAccount: vm", "network: far");
    let left_out = (Code::UnsupportedValue, "spec.network", "\"far\"");
    assert_one(&[&far], left_out);
    let twice = entry("shop", "resolution: NONE").replace("name: ext", "name: two");
    let twice = twice.replace("192.0.2.9", "192.0.2.8");
    let loses = (
        Code::DuplicateHost,
        "spec.hosts[0]",
        "ServiceEntry shop/ext",
    );
    assert_one(&[&entry("shop", "resolution: NONE"), &twice], loses);
}
