//! Bad input of every kind, with the place at which it is reported.

use super::*;

#[test]
fn a_diagnostic_reads_as_one_line() {
    let text = SERVICE.replace("port: 80\n", "port: 70000\n");
    assert_eq!(
        lines(&read(&text)),
        [
            "f.yaml:8: Service shop/web: spec.ports[0].port: 70000 is not a port; ports are 1 to 65535 [InvalidValue]"
        ]
    );
}

#[test]
fn broken_documents_are_named() {
    assert_findings("a: [\n", &[(Error, 2, "", "", "not YAML")]);
    assert_findings("- a\n", &[(Error, 1, "", "", "no fields")]);
    assert_findings("kind: Pod\n", &[(Error, 1, "", "apiVersion", "needs it")]);
    assert_findings(
        "apiVersion: v1\nkind: 5\n",
        &[(Error, 2, "", "kind", "needs it")],
    );
    assert_findings(
        "apiVersion: v1\nkind: Pod\nmetadata: {}\n",
        &[(Error, 3, "", "metadata.name", "needs a name")],
    );
    assert_findings(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: Shop_1\n",
        &[(
            Error,
            4,
            "Namespace Shop_1",
            "metadata.name",
            "is not a name",
        )],
    );
}

#[test]
fn kinds_that_are_not_read_are_told_from_mistakes() {
    let object = |api_version: &str, kind: &str| {
        format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x, namespace: n}}\n")
    };
    for (api_version, kind, severity, line, field) in [
        ("apps/v1", "Deployment", Info, 1, ""),
        ("v1", "ConfigMap", Info, 1, ""),
        ("serving.knative.dev/v1", "Service", Info, 1, ""),
        (
            "security.istio.io/v1",
            "RequestAuthentication",
            Warning,
            1,
            "",
        ),
        ("networking.istio.io/v1", "VirtualService", Warning, 1, ""),
        ("gateway.networking.k8s.io/v1", "HTTPRoute", Warning, 1, ""),
        ("networking.k8s.io/v1", "NetworkPolicy", Info, 1, ""),
        (
            "security.istio.io/v1",
            "AuthorisationPolicy",
            Error,
            2,
            "kind",
        ),
        (
            "security.istio.io/v2",
            "AuthorizationPolicy",
            Error,
            1,
            "apiVersion",
        ),
        ("v1", "AuthorizationPolicy", Error, 1, "apiVersion"),
        ("v1", "Pood", Error, 2, "kind"),
        ("v2", "Pod", Error, 1, "apiVersion"),
        (
            "discovery.k8s.io/v1beta1",
            "EndpointSlice",
            Error,
            1,
            "apiVersion",
        ),
    ] {
        let name = format!("{kind} n/x");
        assert_findings(
            &object(api_version, kind),
            &[(severity, line, &name, field, kind)],
        );
    }
}

#[test]
fn pods_are_checked() {
    let name = "Pod shop/web";
    let good = format!("{SHOP}{}", pod("web", "10.0.0.1"));
    assert_findings(&good, &[]);
    for (from, to, line, field, words) in [
        (
            "status:\n  podIP: 10.0.0.1\n",
            "",
            3,
            "status.podIP",
            "needs an address",
        ),
        (
            "podIP: 10.0.0.1",
            "phase: Pending",
            12,
            "status.podIP",
            "needs an address",
        ),
        (
            "10.0.0.1",
            "10.0.0.300",
            13,
            "status.podIP",
            "not an IP address",
        ),
        (
            "10.0.0.1",
            "127.0.0.1",
            13,
            "status.podIP",
            "cannot be the address",
        ),
        ("podIP:", "podIp:", 13, "status.podIp", "unknown field"),
        (
            "podIP: 10.0.0.1",
            "podIP: 7",
            13,
            "status.podIP",
            "expected a string",
        ),
        (
            "  podIP: 10.0.0.1",
            "  podIPs:\n  - ip: x",
            14,
            "status.podIPs[0].ip",
            "not an IP",
        ),
        (
            "namespace: shop",
            "namespace: shep",
            7,
            "metadata.namespace",
            "does not exist",
        ),
        (
            "name: main",
            "name: main\n    ports: [{containerPort: 0}]",
            12,
            "spec.containers[0].ports[0].containerPort",
            "0 is not a port",
        ),
        (
            "  containers:",
            "  serviceAccountName: a/b\n  containers:",
            10,
            "spec.serviceAccountName",
            "not a name",
        ),
        (
            "  containers:",
            "  hostnetwork: true\n  containers:",
            10,
            "spec.hostnetwork",
            "unknown",
        ),
        (
            "labels: {app: web}",
            "annotations: {sluice.io/netns: run/x}",
            8,
            "metadata.annotations[\"sluice.io/netns\"]",
            "absolute",
        ),
        (
            "podIP: 10.0.0.1",
            "phase: Runing\n  podIP: 10.0.0.1",
            13,
            "status.phase",
            "Runing",
        ),
    ] {
        let text = good
            .replace(from, to)
            .replace("shop}}\n---\n", "shop}}\n\n---\n");
        assert_ne!(text, good);
        let line = if line == 3 { 4 } else { line + 1 };
        let name = if to.contains("shep") {
            "Pod shep/web"
        } else {
            name
        };
        assert_findings(&text, &[(Error, line, name, field, words)]);
        assert_eq!(read(&text).count(Kind::Pod), 0, "{text}");
    }
    let done = good.replace("podIP: 10.0.0.1", "phase: Succeeded");
    assert_findings(&done, &[]);
    let mode = good.replace("{app: web}", "{istio.io/dataplane-mode: Ambient}");
    let field = "metadata.labels[\"istio.io/dataplane-mode\"]";
    assert_findings(&mode, &[(Warning, 8, name, field, "no effect")]);
}

#[test]
fn services_are_checked() {
    let name = "Service shop/web";
    let good = format!("{SHOP}{}---\n{SERVICE}", pod("web", "10.0.0.1"));
    assert_findings(&good, &[]);
    for (from, to, line, field, words) in [
        (
            "port: 80\n",
            "port: 0\n",
            22,
            "spec.ports[0].port",
            "0 is not a port",
        ),
        (
            "port: 80\n",
            "port: 70000\n",
            22,
            "spec.ports[0].port",
            "70000 is not a port",
        ),
        (
            "port: 80\n",
            "port: http\n",
            22,
            "spec.ports[0].port",
            "expected i32",
        ),
        (
            "targetPort: 8080",
            "targetPort: '8080'",
            23,
            "spec.ports[0].targetPort",
            "neither a",
        ),
        (
            "targetPort: 8080",
            "targetPort: 0",
            23,
            "spec.ports[0].targetPort",
            "not a port",
        ),
        (
            "targetPort: 8080",
            "targetport: 1",
            23,
            "spec.ports[0].targetport",
            "unknown",
        ),
        (
            "targetPort: 8080",
            "protocol: tcp",
            23,
            "spec.ports[0].protocol",
            "not a protocol",
        ),
        (
            "10.96.0.1",
            "10.96.0",
            19,
            "spec.clusterIP",
            "not an IP address",
        ),
        (
            "targetPort: 8080",
            "targetPort: 8080\n  - port: 80",
            24,
            "spec.ports[1].port",
            "twice",
        ),
        (
            "  clusterIP",
            "  type: Foo\n  clusterIP",
            19,
            "spec.type",
            "not a type",
        ),
        (
            "  clusterIP",
            "  internalTrafficPolicy: local\n  clusterIP",
            19,
            "spec.internalTrafficPolicy",
            "neither",
        ),
    ] {
        let text = good.replace(from, to);
        assert_ne!(text, good);
        assert_findings(&text, &[(Error, line, name, field, words)]);
        assert_eq!(read(&text).count(Kind::Service), 0, "{text}");
    }
    let nothing = good.replace("selector: {app: web}", "selector: {app: wob}");
    assert_findings(
        &nothing,
        &[(Warning, 20, name, "spec.selector", "selects nothing")],
    );
    assert_eq!(
        read(&nothing).count(Kind::Service),
        1,
        "it is applied all the same"
    );
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
                 endpoints:\n- addresses: [10.0.0.9]\nports:\n- port: 81\n";
    assert_findings(&format!("{nothing}{slice}"), &[]);
    for (from, to, line, field) in [
        ("10.0.0.9", "fd00::1", 30, "endpoints[0].addresses[0]"),
        ("10.0.0.9", "x", 30, "endpoints[0].addresses[0]"),
        ("[10.0.0.9]", "[]", 30, "endpoints[0].addresses"),
        ("81", "0", 32, "ports[0].port"),
        ("IPv4", "ipv4", 27, "addressType"),
    ] {
        let text = format!("{good}{}", slice.replace(from, to));
        assert_findings(&text, &[(Error, line, "EndpointSlice shop/s", field, "")]);
    }
}

#[test]
fn lists_hold_objects_with_their_own_fields() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  \
                metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    \
                name: b\n    label: {}\n";
    assert_findings(
        text,
        &[(Error, 11, "Namespace b", "metadata.label", "unknown field")],
    );
    assert_eq!(read(text).count(Kind::Namespace), 1);
    let json = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}"#;
    assert_eq!(read(json).count(Kind::Namespace), 1);
}

#[test]
fn an_address_of_two_objects_is_reported() {
    let both = |b: &str| format!("{SHOP}{}---\n{}", pod("a", "10.0.0.1"), b);
    let taken = "10.0.0.1 is the address of Pod shop/a too (f.yaml:3)";
    let expected = [(Warning, 25, "Pod shop/b", "status.podIP", taken)];
    assert_findings(&both(&pod("b", "10.0.0.1")), &expected);
    let host = pod("b", "10.0.0.1").replace("spec:\n", "spec:\n  hostNetwork: true\n");
    assert_findings(&both(&host), &[]);
    let done = pod("b", "10.0.0.1").replace("status:\n", "status:\n  phase: Failed\n");
    assert_findings(&both(&done), &[]);
    let service = SERVICE
        .replace("10.96.0.1", "10.0.0.1")
        .replace("app: web", "app: a");
    let expected = [(Warning, 19, "Service shop/web", "spec.clusterIP", taken)];
    assert_findings(&both(&service), &expected);
}
