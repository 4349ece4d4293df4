//! `sluicectl analyze` as its user sees it: what it prints, and how it exits.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations: {sluice.io/netns: /run/netns/web}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status: {podIP: 10.0.0.1}
";

/// A policy with an L7 field, on line 10: a warning, and nothing worse.
const BY_METHOD: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: read
  namespace: shop
spec:
  rules:
  - from: [{source: {serviceAccounts: [web]}}]
  - to:
    - operation: {methods: [GET]}
";

/// A policy with a misspelt field on line 7.
const MISSPELT: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: typo
  namespace: shop
spec:
  rulez: []
";

/// A directory of these files.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn sluicectl() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sluicectl"))
}

/// Runs `sluicectl analyze` in a directory.
fn analyze(dir: &Path, arguments: &[&str]) -> Output {
    sluicectl()
        .arg("analyze")
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs over files; asserts the exit status and the lines that are printed.
#[track_caller]
fn assert_lines(files: &[(&str, &str)], arguments: &[&str], status: i32, expected: &[&str]) {
    let dir = directory(files);
    let output = analyze(dir.path(), &[&["--dir", "."], arguments].concat());
    let text = stdout(&output);
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(stderr(&output), "");
}

const L7_FIELD: &str = "./p.yaml:10: warning: AuthorizationPolicy shop/read: \
    spec.rules[1].to[0].operation.methods: methods is seen only by a waypoint: the whole rule is dropped, \
    and allows nothing [L7Field]";
const UNKNOWN_FIELD: &str = "./q.yaml:7: error: AuthorizationPolicy shop/typo: spec.rulez: \
    unknown field [UnknownField]";

#[test]
fn a_clean_directory_is_a_success() {
    let summary = "0 errors, 0 warnings, 0 info; 2 objects valid in 1 file";
    assert_lines(&[("shop.yaml", SHOP)], &[], 0, &[summary]);
}

#[test]
fn findings_are_lines_as_compilers_write_them() {
    let files = [
        ("shop.yaml", SHOP),
        ("p.yaml", BY_METHOD),
        ("q.yaml", MISSPELT),
    ];
    let summary = "1 error, 1 warning, 0 info; 3 objects valid in 3 files";
    assert_lines(&files, &[], 1, &[L7_FIELD, UNKNOWN_FIELD, summary]);
}

#[test]
fn warnings_fail_only_when_asked_to() {
    let files = [("shop.yaml", SHOP), ("p.yaml", BY_METHOD)];
    let lines = [
        L7_FIELD,
        "0 errors, 1 warning, 0 info; 3 objects valid in 2 files",
    ];
    assert_lines(&files, &[], 0, &lines);
    assert_lines(&files, &["--fail-on", "error"], 0, &lines);
    assert_lines(&files, &["--fail-on", "warning"], 1, &lines);
    let secret = "{apiVersion: v1, kind: Secret, metadata: {name: s}}";
    let files = [("shop.yaml", SHOP), ("secret.yaml", secret)];
    let lines = [
        "./secret.yaml:1: info: Secret default/s: v1 Secret is not a kind that Sluice reads \
         [UnusedKind]",
        "0 errors, 0 warnings, 1 info; 2 objects valid in 2 files",
    ];
    assert_lines(&files, &["--fail-on", "warning"], 0, &lines);
}

#[test]
fn json_holds_the_same_findings() {
    let dir = directory(&[
        ("shop.yaml", SHOP),
        ("p.yaml", BY_METHOD),
        ("q.yaml", MISSPELT),
    ]);
    let path = dir.path().to_str().unwrap();
    let output = analyze(Path::new("/"), &["--dir", path, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 2);
    let expected = serde_json::json!({
        "severity": "error",
        "code": "UnknownField",
        "file": format!("{path}/q.yaml"),
        "line": 7,
        "object": "AuthorizationPolicy shop/typo",
        "field": "spec.rulez",
        "message": "unknown field",
    });
    assert_eq!(found[1], expected);
    let yaml = stdout(&analyze(Path::new("/"), &["--dir", path, "-o", "yaml"]));
    for line in [
        "  code: UnknownField\n",
        "  line: 7\n",
        "  field: spec.rulez\n",
    ] {
        assert!(yaml.contains(line), "{line:?} not in {yaml}");
    }
    let clean = directory(&[("shop.yaml", SHOP)]);
    let output = analyze(clean.path(), &["--dir", ".", "--output", "json"]);
    assert_eq!(
        (stdout(&output).as_str(), output.status.code()),
        ("[]\n", Some(0))
    );
}

#[test]
fn what_cannot_be_read_is_a_finding() {
    for (name, text, expected) in [
        (
            "x.yaml",
            &b"a: \xe9"[..],
            "./x.yaml: error: not UTF-8 text [UnreadableFile]",
        ),
        ("x.json", b"{", "./x.json:"),
        (
            "x.yml",
            b"- a\n",
            "./x.yml:1: error: not an object: it has no fields [NotAnObject]",
        ),
        (
            "x.txt",
            b"a",
            ".: error: no file below it is named *.yaml, *.yml or *.json [NoObjects]",
        ),
        (
            "x.yaml",
            b"# nothing\n",
            ".: error: no object in it [NoObjects]",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        let output = analyze(dir.path(), &["--dir", "."]);
        let text = stdout(&output);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(output.status.code(), Some(1), "{text}");
    }
}

#[test]
fn an_object_given_twice_names_the_one_that_counts() {
    let expected = [
        "./b.yaml:3: error: Namespace shop: metadata.name: given twice: ./a.yaml:1 counts, this \
         one does not [DuplicateObject]",
        "./b.yaml:9: error: Pod shop/web: metadata.name: given twice: ./a.yaml:5 counts, this one \
         does not [DuplicateObject]",
        "2 errors, 0 warnings, 0 info; 2 objects valid in 2 files",
    ];
    let moved = SHOP.replace("  name: web", "  # moved\n  name: web");
    assert_lines(&[("a.yaml", SHOP), ("b.yaml", &moved)], &[], 1, &expected);
}

#[test]
fn a_pod_that_its_node_cannot_enrol_is_found() {
    let pod = SHOP.replace("  annotations: {sluice.io/netns: /run/netns/web}\n", "");
    let dir = directory(&[("shop.yaml", &pod)]);
    let output = analyze(dir.path(), &["--dir", "."]);
    let text = stdout(&output);
    assert!(
        text.contains(": error: Pod shop/web: metadata.annotations"),
        "{text}"
    );
    assert!(text.contains("[CannotEnrol]"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn files_and_the_standard_input_are_read_too() {
    let dir = directory(&[("shop.yaml", SHOP)]);
    let mut child = sluicectl()
        .args(["analyze", "shop.yaml", "-"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(MISSPELT.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let expected = "<stdin>:7: error: AuthorizationPolicy shop/typo: spec.rulez: unknown field \
                    [UnknownField]\n1 error, 0 warnings, 0 info; 2 objects valid in 2 files\n";
    assert_eq!(stdout(&output), expected);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_settings_are_those_of_the_control_plane() {
    let global = BY_METHOD
        .replace("namespace: shop", "namespace: mesh-root")
        .replace("[web]", "[shop/web]")
        .replace("  - to:\n    - operation: {methods: [GET]}\n", "");
    let files = [("shop.yaml", SHOP), ("p.yaml", global.as_str())];
    let clean = "0 errors, 0 warnings, 0 info; 3 objects valid in 2 files";
    assert_lines(&files, &["--root-namespace", "mesh-root"], 0, &[clean]);
    let lines = [
        "./p.yaml:5: warning: AuthorizationPolicy mesh-root/read: metadata.namespace: the \
         namespace \"mesh-root\" does not exist [UnknownNamespace]",
        "0 errors, 1 warning, 0 info; 3 objects valid in 2 files",
    ];
    assert_lines(&files, &[], 0, &lines);
}

#[test]
fn what_cannot_run_exits_with_2() {
    let dir = directory(&[("shop.yaml", SHOP)]);
    for (arguments, words) in [
        (&["--dir", "nowhere"][..], "cannot read nowhere"),
        (&["--dir", "shop.yaml"], "not a directory"),
        (&["nowhere.yaml"], "cannot read nowhere.yaml"),
        (&[], "--dir"),
        (&["--dir", ".", "--fail-on", "info"], "info"),
        (&["--explain", "Nonsense"], "--list-codes"),
        (&["--dir", ".", "--trust-domain", "a/b"], "trust-domain"),
    ] {
        let output = analyze(dir.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn every_code_is_listed_and_explained() {
    let list = analyze(Path::new("/"), &["--list-codes"]);
    assert_eq!(list.status.code(), Some(0));
    let list = stdout(&list);
    let codes: Vec<_> = list.lines().filter_map(|l| l.split(' ').next()).collect();
    assert!(codes.contains(&"L7Field") && codes.len() > 15, "{list}");
    for code in codes {
        let output = analyze(Path::new("/"), &["--explain", code]);
        assert_eq!(output.status.code(), Some(0), "{code}");
        let text = stdout(&output);
        assert!(text.starts_with(&format!("{code}\n\n")), "{text}");
    }
}

#[test]
fn help_says_how_it_exits() {
    let help = stdout(&analyze(Path::new("/"), &["--help"]));
    for words in ["Exit status:", "--fail-on", "--root-namespace", "--explain"] {
        assert!(help.contains(words), "{words} not in {help}");
    }
}
