use crate::{Snapshot, Store, scan::FileText};

use super::*;

fn read(text: String) -> Snapshot {
    let mut store = Store::default();
    store.reload([("f.yaml", FileText::Text(text).into())]);
    assert_eq!(&*store.snapshot().diagnostics, []);
    store.snapshot()
}

/// One pod; `namespace` and `labels` are the labels of both, `rest` is more of the pod.
fn objects(namespace: &str, labels: &str, rest: &str) -> Snapshot {
    read(format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{namespace}}}}}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {{{labels}}}
  annotations: {{sluice.io/netns: /run/netns/web}}
{rest}"
    ))
}

const AMBIENT: &str = "istio.io/dataplane-mode: ambient";
const NONE: &str = "istio.io/dataplane-mode: none";
const RUNNING: &str = "spec: {nodeName: n1, containers: [], serviceAccountName: sa}
status: {podIP: 10.0.0.1}";

#[test]
fn the_pods_label_counts_before_the_namespaces() {
    for (namespace, pod, enrolled) in [
        ("", "", false),
        (AMBIENT, "", true),
        (AMBIENT, NONE, false),
        (AMBIENT, AMBIENT, true),
        (NONE, "", false),
        (NONE, AMBIENT, true),
        ("", AMBIENT, true),
        ("", NONE, false),
    ] {
        let snapshot = objects(namespace, pod, RUNNING);
        let (enrolments, diagnostics) = pods_to_enrol(&snapshot.objects, "n1");
        assert_eq!(
            enrolments.len(),
            usize::from(enrolled),
            "{namespace:?} {pod:?}"
        );
        assert!(diagnostics.is_empty());
        let pod = snapshot.objects.pods.values().next().unwrap();
        let namespace = snapshot.objects.namespace(&pod.namespace);
        assert_eq!(is_enrolled(pod, namespace), enrolled);
    }
}

#[test]
fn an_enrolment_says_what_the_node_needs() {
    let snapshot = objects(AMBIENT, "", RUNNING);
    let expected = Enrolment {
        namespace: "shop".into(),
        name: "web".into(),
        service_account: "sa".into(),
        netns: "/run/netns/web".into(),
        dns_capture: None,
        same_node: None,
        bypass: None,
    };
    assert_eq!(pods_to_enrol(&snapshot.objects, "n1").0, [expected]);
    assert_eq!(
        pods_to_enrol(&snapshot.objects, "n2").0,
        [],
        "another node's pod"
    );
}

#[test]
fn some_pods_are_never_enrolled() {
    let host = RUNNING.replace("nodeName", "hostNetwork: true, nodeName");
    let snapshot = objects(AMBIENT, "", &host);
    let (enrolments, diagnostics) = pods_to_enrol(&snapshot.objects, "n1");
    let pod = snapshot.objects.pods.values().next().unwrap();
    assert!(!is_enrolled(
        pod,
        snapshot.objects.namespace(&pod.namespace)
    ));
    assert!(enrolments.is_empty());
    assert_eq!(
        (diagnostics[0].field.as_str(), diagnostics[0].line),
        ("spec.hostNetwork", 10)
    );
    for phase in ["Succeeded", "Failed"] {
        let done = RUNNING.replace("podIP", &format!("phase: {phase}, podIP"));
        let snapshot = objects(AMBIENT, "", &done);
        assert_eq!(
            pods_to_enrol(&snapshot.objects, "n1"),
            (vec![], vec![]),
            "{phase}"
        );
    }
}

#[test]
fn a_missing_network_namespace_is_named() {
    let snapshot = objects(AMBIENT, "", RUNNING);
    let mut objects = (*snapshot.objects).clone();
    let pod = objects.pods.values_mut().next().unwrap();
    std::sync::Arc::make_mut(pod).value.netns = None;
    let (enrolments, diagnostics) = pods_to_enrol(&objects, "n1");
    assert!(enrolments.is_empty());
    let text = diagnostics[0].to_string();
    let place = "f.yaml:9: Pod shop/web: metadata.annotations[\"sluice.io/netns\"]: ";
    assert!(text.starts_with(place), "{text}");
}

#[test]
fn a_pod_says_whether_its_dns_queries_are_captured() {
    let text = |value: &str| {
        format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: shop}}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  \
             labels: {{{AMBIENT}}}\n  annotations:\n    sluice.io/netns: /run/netns/web\n    \
             ambient.istio.io/dns-capture: {value}\n{RUNNING}"
        )
    };
    for (value, expected) in [("\"true\"", Some(true)), ("\"false\"", Some(false))] {
        let snapshot = read(text(value));
        let (enrolments, _) = pods_to_enrol(&snapshot.objects, "n1");
        assert_eq!(enrolments[0].dns_capture, expected);
    }
    let mut store = Store::default();
    store.reload([("f.yaml", FileText::Text(text("\"no\"")).into())]);
    let snapshot = store.snapshot();
    let [finding] = &snapshot.diagnostics[..] else {
        panic!("{:?}", snapshot.diagnostics);
    };
    assert_eq!((finding.severity, finding.line), (Severity::Error, 11));
    let field = "metadata.annotations[\"ambient.istio.io/dns-capture\"]";
    assert_eq!(finding.field, field);
    assert_eq!(finding.message, "\"no\" is neither \"true\" nor \"false\"");
}

#[test]
fn a_pod_or_else_its_namespace_says_whether_connections_go_straight() {
    let text = |namespace: &str, pod: &str| {
        let annotation = |value: &str| match value {
            "" => String::new(),
            value => format!("sluice.io/same-node: '{value}'\n    sluice.io/bypass: '{value}'"),
        };
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  \
             annotations:\n    {}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  \
             labels: {{{AMBIENT}}}\n  annotations:\n    sluice.io/netns: /run/netns/web\n    \
             {}\n{RUNNING}",
            annotation(namespace),
            annotation(pod)
        )
    };
    for (namespace, pod, expected) in [
        ("", "", None),
        ("false", "", Some(false)),
        ("false", "true", Some(true)),
        ("", "false", Some(false)),
    ] {
        let snapshot = read(text(namespace, pod));
        let (enrolments, _) = pods_to_enrol(&snapshot.objects, "n1");
        assert_eq!(enrolments[0].same_node, expected, "{namespace} {pod}");
        assert_eq!(enrolments[0].bypass, expected, "{namespace} {pod}");
    }
}
