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
    let ports =
        |port: &str| format!("  rules:\n  - to:\n    - operation:\n        ports: ['{port}']\n");
    let rule = "spec.rules[0]";
    let neighbour = policy("  {}\n").replace("name: p", "name: q");
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
            source("{notPrincipals: ['*/sa/*']}"),
            8,
            format!("{rule}.from[0].source.notPrincipals[0]"),
            "only once",
        ),
        (
            source("namespaces: ['']"),
            8,
            format!("{rule}.from[0].source.namespaces[0]"),
            "empty",
        ),
        (
            source("namespaces: [a, 'b*c']"),
            8,
            format!("{rule}.from[0].source.namespaces[1]"),
            "only at the beginning",
        ),
        (
            source("notIpBlocks: [10.0.0.256]"),
            8,
            format!("{rule}.from[0].source.notIpBlocks[0]"),
            "neither an IP address nor a CIDR",
        ),
        (
            source("ipBlocks: ['10.0.0.0/8/8']"),
            8,
            format!("{rule}.from[0].source.ipBlocks[0]"),
            "neither an IP address nor a CIDR",
        ),
        (
            source("remoteIpBlocks: ['fd00::/129']"),
            8,
            format!("{rule}.from[0].source.remoteIpBlocks[0]"),
            "neither an IP address nor a CIDR",
        ),
        (
            source("serviceAccounts: ['*']"),
            8,
            format!("{rule}.from[0].source.serviceAccounts[0]"),
            "not a service account",
        ),
        (
            source("{serviceAccounts: [a], principals: [b]}"),
            8,
            format!("{rule}.from[0].source.serviceAccounts"),
            "cannot be combined",
        ),
        (
            source("{notServiceAccounts: [a], notPrincipals: [b]}"),
            8,
            format!("{rule}.from[0].source.notServiceAccounts"),
            "cannot be combined",
        ),
        (
            source("trustDomains: [cluster.local/ns/a]"),
            8,
            format!("{rule}.from[0].source.trustDomains[0]"),
            "not a trust domain",
        ),
        (
            source("trustDomains: ['spiffe://cluster.local']"),
            8,
            format!("{rule}.from[0].source.trustDomains[0]"),
            "not a trust domain",
        ),
        (
            source("notTrustDomains: ['a*b']"),
            8,
            format!("{rule}.from[0].source.notTrustDomains[0]"),
            "only at the beginning",
        ),
        (
            source("notTrustDomains: ['']"),
            8,
            format!("{rule}.from[0].source.notTrustDomains[0]"),
            "empty",
        ),
        (
            ports("65536"),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            ports("80-90"),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            ports("http"),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            ports(""),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            ports("-1"),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            ports("+80"),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            ports(" 80"),
            8,
            format!("{rule}.to[0].operation.ports[0]"),
            "not a port",
        ),
        (
            when("{key: source.ip, values: []}"),
            7,
            format!("{rule}.when[0]"),
            "needs values",
        ),
        (
            when("{key: source.ip, values: [], notValues: []}"),
            7,
            format!("{rule}.when[0]"),
            "needs values",
        ),
        (
            when("{key: '', values: [x]}"),
            7,
            format!("{rule}.when[0].key"),
            "not a known",
        ),
        (
            when("{key: 'request.headers[]', values: [x]}"),
            7,
            format!("{rule}.when[0].key"),
            "not a known",
        ),
        (
            when("{key: request.header, values: [x]}"),
            7,
            format!("{rule}.when[0].key"),
            "not a known",
        ),
        (
            when("{key: destination.port, values: ['0']}"),
            7,
            format!("{rule}.when[0].values[0]"),
            "not a port",
        ),
        (
            when("{key: source.principal, values: ['']}"),
            7,
            format!("{rule}.when[0].values[0]"),
            "empty",
        ),
        (
            when("{key: source.principal, notValues: ['a*b']}"),
            7,
            format!("{rule}.when[0].notValues[0]"),
            "only at the beginning",
        ),
        (
            when("{key: destination.ip, notValues: [x]}"),
            7,
            format!("{rule}.when[0].notValues[0]"),
            "neither",
        ),
        (
            when("{key: source.serviceAccount, values: [A]}"),
            7,
            format!("{rule}.when[0].values[0]"),
            "not a service account",
        ),
        (
            when("{key: source.ip, value: [x]}"),
            7,
            format!("{rule}.when[0].value"),
            "unknown field",
        ),
        (
            "  action: ''\n".into(),
            5,
            "spec.action".into(),
            "unknown variant",
        ),
        (
            "  selector: {matchExpressions: []}\n".into(),
            5,
            "spec.selector.matchExpressions".into(),
            "unknown field",
        ),
        (
            "  selector: {matchLabels: {app: x}}\n  targetRef: {kind: Service, name: a}\n".into(),
            5,
            "spec.selector".into(),
            "not both",
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
        let both = read(&format!("{text}\n---\n{neighbour}"));
        let applied: Vec<_> = both.objects.authorization_policies.keys().collect();
        assert_eq!(applied, [&("shop".into(), "q".into())], "{text}");
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
    let dry_run = |value: &str| {
        let metadata = format!("{{annotations: {{istio.io/dry-run: '{value}'}}, name: p,");
        policy("  {}\n").replace("{name: p,", &metadata)
    };
    let field = "metadata.annotations[\"istio.io/dry-run\"]";
    for value in ["no", "yes", "-1", "", "2", "tRUE", " true"] {
        assert_findings(&dry_run(value), &[(Error, 3, name, field, "neither")]);
    }
    for (value, expected) in [("true", true), ("True", true), ("1", true), ("f", false)] {
        let snapshot = read(&dry_run(value));
        let policy = snapshot.objects.authorization_policies.values().next();
        assert_eq!(policy.unwrap().dry_run, expected, "{value}");
    }
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
        (
            "  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    65536: {}\n",
            7,
            "spec.portLevelMtls.65536",
            "not a port",
        ),
        (
            "  selector: {matchLabels: {a: b}}\n  portLevelMtls: {80: {mode: Strict}}\n",
            6,
            "spec.portLevelMtls.80.mode",
            "unknown variant",
        ),
        (
            "  selector: {matchLabels: {a: '*'}}\n",
            5,
            "spec.selector.matchLabels.a",
            "exactly",
        ),
    ] {
        let mut field = field.to_owned();
        for key in ["0", "x", "65536", "a"] {
            if let Some(parent) = field.strip_suffix(&format!(".{key}")) {
                field = format!("{parent}[\"{key}\"]");
            }
        }
        assert_findings(&peer(spec), &[(Error, line, name, &field, words)]);
    }
    let good = "  selector: {matchLabels: {a: b}}\n  portLevelMtls: {8080: {mode: PERMISSIVE}}\n";
    assert_findings(&peer(good), &[]);
}
