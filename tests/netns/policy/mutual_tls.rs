//! PeerAuthentication: who may come without a certificate.

use super::{ALL, IN_MESH, Row, check_all};

const STRICT: &str = "denied by policy istio-system/istio_converted_static_strict, rule 0";

/// A PeerAuthentication named `default`.
macro_rules! peers {
    ($namespace:literal, $($spec:literal),+ $(,)?) => {
        concat!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n",
            "metadata: {name: default, namespace: ", $namespace, "}\nspec:\n",
            $("  ", $spec, "\n"),+
        )
    };
}

#[test]
fn modes_of_mutual_tls_keep_plaintext_out() {
    check_all(&[
        Row {
            what: "PERMISSIVE is the default",
            policies: &[],
            served: ALL,
            reason: "",
        },
        Row {
            what: "STRICT for the mesh",
            policies: &[peers!("istio-system", "mtls: {mode: STRICT}")],
            served: IN_MESH,
            reason: STRICT,
        },
        Row {
            what: "PERMISSIVE for a namespace of a STRICT mesh",
            policies: &[
                peers!("istio-system", "mtls: {mode: STRICT}"),
                peers!("shop", "mtls: {mode: PERMISSIVE}"),
            ],
            served: ALL,
            reason: "",
        },
        Row {
            what: "STRICT for a namespace",
            policies: &[peers!("shop", "mtls: {mode: STRICT}")],
            served: IN_MESH,
            reason: STRICT,
        },
        Row {
            what: "STRICT for another namespace",
            policies: &[peers!("other", "mtls: {mode: STRICT}")],
            served: ALL,
            reason: "",
        },
        Row {
            what: "STRICT for a workload",
            policies: &[peers!(
                "shop",
                "selector: {matchLabels: {app: catalog}}",
                "mtls: {mode: STRICT}",
            )],
            served: IN_MESH,
            reason: STRICT,
        },
        Row {
            what: "PERMISSIVE for a port of a STRICT workload",
            policies: &[peers!(
                "shop",
                "selector: {matchLabels: {app: catalog}}",
                "mtls: {mode: STRICT}",
                "portLevelMtls: {'81': {mode: PERMISSIVE}}",
            )],
            served: "web:80 web:81 batch:80 batch:81 old:81",
            reason: "denied by policy shop/converted_peer_authentication_default, rule 0",
        },
        Row {
            what: "STRICT for a port of a PERMISSIVE workload",
            policies: &[peers!(
                "shop",
                "selector: {matchLabels: {app: catalog}}",
                "mtls: {mode: PERMISSIVE}",
                "portLevelMtls: {'81': {mode: STRICT}}",
            )],
            served: "web:80 web:81 batch:80 batch:81 old:80",
            reason: "denied by policy shop/converted_peer_authentication_default, rule 0",
        },
        Row {
            what: "and open again",
            policies: &[],
            served: ALL,
            reason: "",
        },
    ]);
}
