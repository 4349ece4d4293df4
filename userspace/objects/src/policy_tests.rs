//! Bad policies, with the place at which they are reported.

use super::*;

/// A policy whose spec is `spec`, indented by two; the spec begins on line 4.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: shop}}\nspec:\n{spec}"
    )
}

fn peer(spec: &str) -> String {
    policy(spec).replace("AuthorizationPolicy", "PeerAuthentication")
}

#[test]
fn authorization_policies_are_checked() {
    let name = "AuthorizationPolicy shop/p";
    let source = |field: &str| format!("  rules:\n  - from:\n    - source:\n        {field}\n");
    let when = |text: &str| format!("  rules:\n  - when:\n    - {text}\n");
    let rule = "spec.rules[0]";
    let rows: Vec<(String, u32, String, &str)> = vec![
        (
            "  action: Allow\n".into(),
            5,
            "spec.action".into(),
            "unknown variant",
        ),
        (
            "  action: CUSTOM\n".into(),
            4,
            "spec.provider".into(),
            "needs a provider",
        ),
        (
            "  provider: {name: x}\n".into(),
            5,
            "spec.provider".into(),
            "only the action CUSTOM",
        ),
        (
            "  rule: []\n".into(),
            5,
            "spec.rule".into(),
            "unknown field",
        ),
        (
            "  rules:\n  - form: []\n".into(),
            6,
            format!("{rule}.form"),
            "unknown field",
        ),
        (
            "  rules:\n  - from: []\n".into(),
            6,
            format!("{rule}.from"),
            "empty list",
        ),
        (
            "  rules:\n  - from:\n    - {}\n".into(),
            7,
            format!("{rule}.from[0].source"),
            "empty",
        ),
        (
            "  rules:\n  - to:\n    - operation: {}\n".into(),
            7,
            format!("{rule}.to[0].operation"),
            "empty",
        ),
        (
            source("principals: ['']"),
            8,
            format!("{rule}.from[0].source.principals[0]"),
            "empty",
        ),
        (
            source("principals: [ok, 'a*b']"),
            8,
            format!("{rule}.from[0].source.principals[1]"),
            "only at the beginning or at the end",
        ),
        (
            source("principals: ['*a*']"),
            8,
            format!("{rule}.from[0].source.principals[0]"),
            "'*'",
        ),
        (
            source("principals: ['spiffe://x/ns/a/sa/b']"),
            8,
            format!("{rule}.from[0].source.principals[0]"),
            "without spiffe://",
        ),
        (
            source("principals: []"),
            8,
            format!("{rule}.from[0].source.principals"),
            "empty list",
        ),
        (
            source("ipBlocks: [10.0.0.0/33]"),
            8,
            format!("{rule}.from[0].source.ipBlocks[0]"),
            "neither an IP address nor a CIDR",
        ),
        (
            source("principal: [x]"),
            8,
            format!("{rule}.from[0].source.principal"),
            "unknown field",
        ),
        (
            source("serviceAccounts: [a/b/c]"),
            8,
            format!("{rule}.from[0].source.serviceAccounts[0]"),
            "not a service account",
        ),
        (
            source("{serviceAccounts: [a], namespaces: [b]}"),
            8,
            format!("{rule}.from[0].source.serviceAccounts"),
            "cannot be combined",
        ),
        (
            "  rules:\n  - to:\n    - operation:\n        ports: ['0']\n".into(),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            "  rules:\n  - to:\n    - operation:\n        ports: [80]\n".into(),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "expected a string",
        ),
        (
            when("{key: source.ipp, values: [x]}"),
            7,
            format!("{rule}.when[0].key"),
            "not a known",
        ),
        (
            when("{key: source.ip, values: [x]}"),
            7,
            format!("{rule}.when[0].values[0]"),
            "neither",
        ),
        (
            when("{key: destination.port, notValues: ['99999']}"),
            7,
            format!("{rule}.when[0].notValues[0]"),
            "not a port",
        ),
        (
            when("{key: source.ip}"),
            7,
            format!("{rule}.when[0]"),
            "needs values",
        ),
        (
            "  selector: {matchLabels: {app: 'x*'}}\n".into(),
            5,
            "spec.selector.matchLabels[\"app\"]".into(),
            "exactly",
        ),
        (
            "  selector: {matchLabels: {app: x}}\n  targetRefs: [{kind: Service, name: a}]\n"
                .into(),
            5,
            "spec.selector".into(),
            "not both",
        ),
        (
            "  targetRefs:\n  - kind: Servise\n    name: a\n".into(),
            6,
            "spec.targetRefs[0].kind".into(),
            "unknown kind \"Servise\"",
        ),
        (
            "  targetRef: {group: core, kind: Service}\n".into(),
            5,
            "spec.targetRef.name".into(),
            "needs a name",
        ),
    ];
    for (spec, line, field, words) in rows {
        let text = policy(&spec);
        assert_findings(&text, &[(Error, line, name, &field, words)]);
        assert_eq!(read(&text).count(Kind::AuthorizationPolicy), 0);
    }
    for good in [
        "  {}\n".to_owned(),
        "  rules: [{}]\n".to_owned(),
        source(
            "{principals: ['*'], notNamespaces: ['a*', '*b', c], ipBlocks: ['::1', 10.1.2.3/8]}",
        ),
        when("{key: 'request.headers[x]', values: [y]}"),
        "  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}]\n".to_owned(),
    ] {
        assert_findings(&policy(&good), &[]);
        assert_eq!(
            read(&policy(&good)).count(Kind::AuthorizationPolicy),
            1,
            "{good}"
        );
    }
    let dry = policy("  {}\n").replace(
        "{name: p,",
        "{annotations: {istio.io/dry-run: 'no'}, name: p,",
    );
    let field = "metadata.annotations[\"istio.io/dry-run\"]";
    assert_findings(&dry, &[(Error, 3, name, field, "neither")]);
}

#[test]
fn peer_authentications_are_checked() {
    let name = "PeerAuthentication shop/p";
    for (spec, line, field, words) in [
        (
            "  mtls: {mode: strict}\n",
            5,
            "spec.mtls.mode",
            "unknown variant",
        ),
        (
            "  mtls: {modes: STRICT}\n",
            5,
            "spec.mtls.modes",
            "unknown field",
        ),
        (
            "  portLevelMtls: {8080: {mode: STRICT}}\n",
            5,
            "spec.portLevelMtls",
            "matchLabels",
        ),
        (
            "  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    0: {}\n",
            7,
            "spec.portLevelMtls.0",
            "not a port",
        ),
        (
            "  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    x: {}\n",
            7,
            "spec.portLevelMtls.x",
            "not a port",
        ),
        ("  targetRefs: []\n", 5, "spec.targetRefs", "unknown field"),
    ] {
        let field = field.replace(".0", "[\"0\"]").replace(".x", "[\"x\"]");
        assert_findings(&peer(spec), &[(Error, line, name, &field, words)]);
    }
    let good = "  selector: {matchLabels: {a: b}}\n  portLevelMtls: {8080: {mode: PERMISSIVE}}\n";
    assert_findings(&peer(good), &[]);
}
