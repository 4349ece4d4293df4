//! Each kind of mistake that reading finds, and its code.

use super::*;

#[test]
fn every_kind_of_mistake_has_its_code() {
    let namespace = "apiVersion: v1\nkind: Namespace\n";
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let web = pod("web", "10.0.0.1");
    for (text, code) in [
        ("a: [\n".to_owned(), Code::InvalidYaml),
        ("kind: Pod\n".to_owned(), Code::NotAnObject),
        ("apiVersion: v1\nkind: Pood\n".to_owned(), Code::UnknownKind),
        (
            "apiVersion: v2\nkind: Pod\n".to_owned(),
            Code::UnknownVersion,
        ),
        (
            "apiVersion: v1\nkind: Secret\n".to_owned(),
            Code::UnusedKind,
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n".to_owned(),
            Code::UnsupportedKind,
        ),
        (
            format!("{namespace}metadata: {{name: a, nam: a}}\n"),
            Code::UnknownField,
        ),
        (
            format!("{namespace}metadata: {{name: A_B}}\n"),
            Code::InvalidValue,
        ),
        (
            format!("{namespace}metadata: {{name: a, labels: {{istio.io/dataplane-mode: on}}}}\n"),
            Code::IgnoredLabel,
        ),
        (policy("action: CUSTOM"), Code::MissingField),
        (policy("rules: [{from: []}]"), Code::InvalidValue),
        (policy("provider: {name: x}"), Code::ConflictingFields),
        (web.clone(), Code::UnknownNamespace),
        (format!("{SHOP}{web}---\n{web}"), Code::DuplicateObject),
        (
            format!("{SHOP}{web}---\n{}", pod("b", "10.0.0.1")),
            Code::SharedAddress,
        ),
        (SERVICE.to_owned(), Code::NoEndpoints),
        (
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\n\
             metadata: {name: a, namespace: shop}\nspec: {egress: []}\n"
                .to_owned(),
            Code::SidecarOnly,
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\n\
             data: {mesh: 'accessLogFile: x'}\n"
                .to_owned(),
            Code::UnusedSetting,
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n".to_owned(),
            Code::UnusedKind,
        ),
        (
            format!(
                "{SHOP}{web}---\n{}",
                SERVICE.replace("  clusterIP: 10.96.0.1\n", "")
            ),
            Code::NoAddress,
        ),
    ] {
        let snapshot = read(&text);
        let codes: Vec<_> = snapshot.diagnostics.iter().map(|d| d.code).collect();
        assert_eq!(codes, [code], "{text}\n{:#?}", lines(&snapshot));
    }
}
