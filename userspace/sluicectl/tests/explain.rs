//! `sluicectl explain` and the verbs that ask a mesh, as an operator sees them.

mod served;

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::{Value, json};
use served::served;
use sluice_telemetry::serve::{JSON, Reply, Router, parameter};
use tempfile::TempDir;

/// A client, a server that takes no plaintext on 8080, and a policy for it.
const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, annotations: {sluice.io/netns: /run/netns/web}}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata:
  name: catalog
  namespace: shop
  labels: {app: catalog}
  annotations: {sluice.io/netns: /run/netns/catalog}
spec: {nodeName: n1, serviceAccountName: catalog, containers: []}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: catalog}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules:
  - from: [{source: {serviceAccounts: [batch]}}]
  - to: [{operation: {ports: ['8080']}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

fn sluicectl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
    command.args(arguments).output().unwrap()
}

fn text(run: &Output) -> String {
    String::from_utf8(run.stdout.clone()).unwrap()
}

fn shop() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("shop.yaml"), SHOP).unwrap();
    dir
}

fn explain(source: &str, destination: &str, more: &[&str]) -> Output {
    let dir = shop();
    let dir = dir.path().to_str().unwrap();
    sluicectl(&[&["explain", source, destination, "--dir", dir], more].concat())
}

#[test]
fn a_directory_says_what_would_become_of_a_connection() {
    for (source, destination, code, words) in [
        (
            "shop/web",
            "catalog.shop:80",
            0,
            "ALLOWED: allowed by policy shop/readers, rule 1",
        ),
        ("shop/web", "shop/catalog:80", 0, "rule 1: matches"),
        (
            "shop/web",
            "shop/catalog:80",
            0,
            "wants source service account shop/batch: it is shop/web",
        ),
        (
            "shop/web",
            "pod/shop/catalog:9090",
            1,
            "DENIED: allow policies exist",
        ),
        (
            "shop/web",
            "pod/shop/catalog:9090",
            1,
            "wants port 8080: it is 9090",
        ),
        (
            "outside",
            "10.0.0.2:8080",
            1,
            "a PeerAuthentication demands mutual TLS",
        ),
        (
            "outside",
            "10.0.0.2:8080",
            1,
            "STRICT on port 8080, from PeerAuthentication shop/strict",
        ),
        (
            "outside",
            "10.0.0.2:8080",
            1,
            "DENY istio-system/istio_converted_static_strict, for the workload <- decides",
        ),
        (
            "shop/web",
            "nowhere.example.com:80",
            2,
            "UNKNOWN: the mesh knows no address",
        ),
    ] {
        let run = explain(source, destination, &[]);
        let said = text(&run);
        assert_eq!(run.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{words:?} not in {said}");
    }
    let wrong = sluicectl(&["explain", "web", "catalog:80"]);
    assert_eq!(wrong.status.code(), Some(2));
    let error = String::from_utf8(wrong.stderr).unwrap();
    assert!(error.contains("NAMESPACE/NAME"), "{error}");
}

/// What is to be said of many endpoints is said once, and the one that differs stands apart.
#[test]
fn many_endpoints_fit_on_a_screen() {
    let dir = shop();
    let pod = |number: usize, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: many-{number}\n  namespace: shop\n  \
             labels: {{app: catalog{more}}}\n  annotations: {{sluice.io/netns: /run/netns/many}}\n\
             spec: {{nodeName: n1, serviceAccountName: catalog, containers: []}}\n\
             status: {{podIP: 10.0.1.{number}}}\n---\n"
        )
    };
    let mut pods: String = (1..=200).map(|number| pod(number, "")).collect();
    pods += &pod(201, ", odd: one");
    pods += "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {name: odd, namespace: shop}\n\
             spec: {action: DENY, selector: {matchLabels: {odd: one}}, rules: [{}]}\n";
    fs::write(dir.path().join("many.yaml"), pods).unwrap();
    let dir = dir.path().to_str().unwrap();
    let ask = |more: &[&str]| {
        sluicectl(
            &[
                &["explain", "shop/web", "shop/catalog:80", "--dir", dir],
                more,
            ]
            .concat(),
        )
    };
    let run = ask(&[]);
    let said = text(&run);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.lines().count() < 40, "{said}");
    for words in [
        "likewise     200 others: shop/",
        ", and 195 more (-o json has all)",
        "to shop/many-201 at 10.0.1.201:8080",
        "DENIED: at 1 of 202 endpoints, shop/many-201 among them: ",
    ] {
        assert!(said.contains(words), "{words:?} not in {said}");
    }
    let all: Value = serde_json::from_str(&text(&ask(&["-o", "json"]))).unwrap();
    assert_eq!(all["ends"].as_array().map(Vec::len), Some(202));
}

#[test]
fn programs_get_the_same_in_json_and_yaml() {
    let run = explain("shop/web", "catalog.shop:80", &["-o", "json"]);
    let said: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(
        (&said["outcome"], &said["source"]),
        (&json!("allowed"), &json!("shop/web"))
    );
    let end = &said["ends"][0];
    assert_eq!(end["address"], "10.0.0.2:8080");
    assert_eq!(end["mtls"]["mode"], "STRICT");
    assert!(
        end["mtls"]["from"]
            .as_str()
            .unwrap()
            .ends_with("shop.yaml:35), for its namespace"),
        "{end}"
    );
    let yaml = text(&explain("shop/web", "catalog.shop:80", &["-o", "yaml"]));
    assert!(yaml.contains("outcome: allowed\n"), "{yaml}");
}

#[test]
fn what_is_left_out_of_the_answer_is_said() {
    let dir = shop();
    let broken = SHOP.replace("podIP: 10.0.0.1", "podIP: 10.0.0.300");
    fs::write(dir.path().join("shop.yaml"), broken).unwrap();
    let run = sluicectl(&[
        "explain",
        "shop/web",
        "catalog.shop:80",
        "--dir",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(run.status.code(), Some(2));
    assert!(
        text(&run).contains("no pod shop/web is known; of namespace shop, catalog are"),
        "{}",
        text(&run)
    );
    let warning = String::from_utf8(run.stderr).unwrap();
    assert!(
        warning.contains("1 error in") && warning.contains("sluicectl analyze"),
        "{warning}"
    );
}

#[test]
fn a_ztunnel_is_asked_and_the_control_plane_says_who_demands_mutual_tls() {
    let asked = explain("shop/web", "catalog.shop:80", &["-o", "json"]).stdout;
    let (_ztunnel, ztunnel) = served(Router::new().get("/explain", move |query| {
        let (source, destination) = (parameter(query, "source"), parameter(query, "destination"));
        assert_eq!(source.as_deref(), Some("fd00::1"));
        assert_eq!(destination.as_deref(), Some("[fd00::2]:80"));
        Reply::ok(JSON, asked.clone())
    }));
    let (_control, control) = served(Router::new().get("/config/mtls", |query| {
        assert_eq!(query, "pod=shop%2Fcatalog&port=8080");
        Reply::ok(JSON, r#"{"mode": "STRICT", "from": "somebody"}"#)
    }));
    let (ztunnel, control) = (ztunnel.to_string(), control.to_string());
    let run = sluicectl(&[
        "explain",
        "fd00::1",
        "[fd00::2]:80",
        "--ztunnel",
        &ztunnel,
        "--status",
        &control,
    ]);
    assert_eq!(run.status.code(), Some(0));
    assert!(
        text(&run).contains("STRICT on port 8080, from somebody"),
        "{}",
        text(&run)
    );
    // Without the control plane it is what the ztunnel knows.
    let run = sluicectl(&[
        "explain",
        "fd00::1",
        "[fd00::2]:80",
        "--ztunnel",
        &ztunnel,
        "--status",
        "127.0.0.1:9",
    ]);
    assert_eq!(run.status.code(), Some(0));
    let nobody = sluicectl(&[
        "explain",
        "shop/web",
        "shop/catalog:80",
        "--ztunnel",
        "127.0.0.1:9",
    ]);
    assert_eq!(nobody.status.code(), Some(2));
    let error = String::from_utf8(nobody.stderr).unwrap();
    assert!(
        error.contains("cannot ask the ztunnel at 127.0.0.1:9") && error.contains("--dir"),
        "{error}"
    );
}

#[test]
fn shells_complete_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let run = sluicectl(&["completion", shell]);
        assert!(run.status.success());
        for verb in ["analyze", "explain", "status", "dump", "rotate-root"] {
            assert!(text(&run).contains(verb), "{verb} for {shell}");
        }
    }
    let script = text(&sluicectl(&["completion", "bash"]));
    let complete = format!(
        "{script}\nCOMP_WORDS=(sluicectl ex); COMP_CWORD=1; _sluicectl sluicectl ex sluicectl\n\
         echo \"${{COMPREPLY[@]}}\""
    );
    let run = Command::new("bash")
        .args(["-c", &complete])
        .output()
        .unwrap();
    assert_eq!(text(&run).trim(), "explain");
}
