//! Where connections may go: annotations, Sidecars, and the mesh's own settings.

use super::*;
use crate::OutboundPolicy::{self, AllowAny, RegistryOnly};

const ANNOTATION: &str = "metadata.annotations[\"sluice.io/outbound-traffic-policy\"]";

/// A namespace and a pod in it, both with this value of the annotation.
fn annotated(value: &str) -> String {
    let annotations = format!("  annotations:\n    sluice.io/outbound-traffic-policy: {value}\n");
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n{annotations}---\n\
         apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n{annotations}\
         spec: {{containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

#[test]
fn annotations_of_namespaces_and_pods_are_read() {
    for (value, expected) in [("ALLOW_ANY", AllowAny), ("REGISTRY_ONLY", RegistryOnly)] {
        let text = annotated(value);
        assert_findings(&text, &[]);
        let objects = read(&text).objects;
        let namespace = objects.namespaces.values().next().unwrap();
        let pod = objects.pods.values().next().unwrap();
        assert_eq!(
            (namespace.outbound, pod.outbound),
            (Some(expected), Some(expected))
        );
    }
    let words = "\"Registry_Only\" is not a mode; modes are ALLOW_ANY and REGISTRY_ONLY";
    let pod_alone = annotated("Registry_Only").replacen("Registry_Only", "ALLOW_ANY", 1);
    assert_findings(
        &pod_alone,
        &[(Error, 14, "Pod shop/web", ANNOTATION, words)],
    );
    let namespace_alone = pod_alone.replace("Registry_Only", "-");
    let namespace_alone = namespace_alone.replace("ALLOW_ANY", "Registry_Only");
    let namespace_alone = namespace_alone.replace(": -\n", ": ALLOW_ANY\n");
    let snapshot = read(&namespace_alone);
    assert_eq!(snapshot.diagnostics[0].field, ANNOTATION);
    assert_eq!(snapshot.diagnostics[0].line, 6);
}

/// A Sidecar whose spec begins on line 5.
fn sidecar(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
         metadata: {{name: default, namespace: shop}}\nspec:\n{spec}"
    )
}

fn only_sidecar(text: &str) -> crate::Sidecar {
    let objects = read(text).objects;
    objects.sidecars.values().next().unwrap().value.clone()
}

#[test]
fn sidecars_say_where_workloads_may_go() {
    let mode = |mode: &str| sidecar(&format!("  outboundTrafficPolicy: {mode}\n"));
    let rows: [(String, Option<OutboundPolicy>); 4] = [
        (mode("{mode: REGISTRY_ONLY}"), Some(RegistryOnly)),
        (mode("{mode: ALLOW_ANY}"), Some(AllowAny)),
        (mode("{}"), Some(RegistryOnly)),
        (sidecar("  {}\n"), None),
    ];
    for (text, expected) in rows {
        assert_findings(&text, &[]);
        assert_eq!(only_sidecar(&text).outbound, expected, "{text}");
    }
    for version in ["v1beta1", "v1alpha3"] {
        let text = mode("{mode: ALLOW_ANY}").replace("io/v1", &format!("io/{version}"));
        assert_findings(&text, &[]);
    }
    let selected = only_sidecar(&sidecar("  workloadSelector: {labels: {app: web}}\n"));
    assert_eq!(selected.selector, [("app".into(), "web".into())].into());
}

#[test]
fn what_a_sidecar_says_to_sidecars_has_no_effect_and_is_said_so() {
    let name = "Sidecar shop/default";
    let text = sidecar(
        "  ingress: [{port: {number: 80}}]\n  egress: [{hosts: ['./*']}]\n  \
         outboundTrafficPolicy:\n    mode: REGISTRY_ONLY\n    egressProxy: {host: x}\n",
    );
    let no_effect = |line, field| (Warning, line, name, field, "no effect");
    assert_findings(
        &text,
        &[
            no_effect(5, "spec.ingress"),
            no_effect(6, "spec.egress"),
            no_effect(9, "spec.outboundTrafficPolicy.egressProxy"),
        ],
    );
    assert_eq!(only_sidecar(&text).outbound, Some(RegistryOnly));
    for (spec, field, words) in [
        (
            "  outboundTrafficPolicy: {mode: ANY}\n",
            "spec.outboundTrafficPolicy.mode",
            "not a mode",
        ),
        (
            "  workloadSelektor: {}\n",
            "spec.workloadSelektor",
            "unknown field",
        ),
    ] {
        assert_findings(&sidecar(spec), &[(Error, 5, name, field, words)]);
    }
}

/// The mesh's settings as a block of text that begins on line 6.
fn settings(text: &str) -> String {
    let block: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
         data:\n  mesh: |-\n{block}"
    )
}

const NAME: &str = "ConfigMap istio-system/istio";

#[test]
fn the_meshs_settings_are_read_out_of_their_text() {
    let text = settings(
        "outboundTrafficPolicy:\n  mode: REGISTRY_ONLY\ntrustDomain: cluster.local\n\
         rootNamespace: istio-system\ntrustDomainAliases:\n- old.example\n- older.example",
    );
    assert_findings(&text, &[]);
    let objects = read(&text).objects;
    let settings = objects.mesh_configs.values().next().unwrap();
    assert_eq!(settings.outbound, Some(RegistryOnly));
    let aliases = settings.trust_domain_aliases.iter();
    let aliases: Vec<&str> = aliases.map(sluice_model::TrustDomain::as_str).collect();
    assert_eq!(aliases, ["old.example", "older.example"]);
    assert_eq!(settings.trust_domain.as_deref(), Some("cluster.local"));
    assert_eq!(settings.root_namespace.as_deref(), Some("istio-system"));
}

#[test]
fn mistakes_within_the_text_are_found_at_their_line() {
    let rows = [
        (
            "accessLogFile: /dev/stdout\noutboundTrafficPolicy:\n  mode: NONE",
            8,
            "data.mesh.outboundTrafficPolicy.mode",
            "not a mode",
        ),
        (
            "outboundTrafficPolicy:\n  mod: ALLOW_ANY",
            7,
            "data.mesh.outboundTrafficPolicy.mod",
            "unknown field",
        ),
        (
            "trustDomainAliases:\n- good\n- not/good",
            8,
            "data.mesh.trustDomainAliases[1]",
            "not a trust domain",
        ),
        ("trustDomain: 5", 6, "data.mesh.trustDomain", "not a string"),
        ("a: 1\n}: 2\nc: 3", 7, "data.mesh", "not YAML"),
        ("- a", 6, "data.mesh", "no fields"),
    ];
    for (text, line, field, words) in rows {
        let snapshot = read(&settings(text));
        let errors = snapshot.diagnostics.iter().filter(|d| d.severity == Error);
        let [error] = errors.collect::<Vec<_>>()[..] else {
            panic!("not one error: {:#?}", lines(&snapshot));
        };
        assert_eq!((error.line, error.field.as_str()), (line, field), "{error}");
        assert!(error.message.contains(words), "{error}");
        assert_eq!(snapshot.count(Kind::ConfigMap), 0, "{text}");
    }
    let inline = settings("x").replace("|-\n    x\n", "'outboundTrafficPolicy: {mode: NONE}'\n");
    let field = "data.mesh.outboundTrafficPolicy.mode";
    assert_findings(&inline, &[(Error, 5, NAME, field, "not a mode")]);
    let without = settings("x").replace("mesh: |-\n    x", "meshNetworks: x");
    assert_findings(&without, &[(Error, 4, NAME, "data.mesh", "needs this key")]);
}

#[test]
fn one_line_tells_which_settings_are_not_read() {
    let text = settings("accessLogFile: /dev/stdout\ndefaultConfig: {}\ntrustDomain: a");
    let words = "not read: accessLogFile, defaultConfig";
    assert_findings(&text, &[(Info, 6, NAME, "data.mesh", words)]);
    assert_eq!(read(&text).count(Kind::ConfigMap), 1);
    let other = text.replace("name: istio,", "name: other,");
    let name = "ConfigMap istio-system/other";
    assert_findings(&other, &[(Info, 1, name, "", "not read")]);
}
