//! `sluicectl status` where somebody does not answer, as an operator sees it.

mod served;

use std::process::{Command, Output};

use served::served;
use sluice_telemetry::serve::{JSON, Reply, Router};

const DUMP: &str = r#"{
  "version": "1.2.3", "node": "n1", "workloads": [], "certificates": [], "workloadState": {},
  "controlPlane": {"address": "https://10.0.0.1:15012", "connected": true, "snapshotTaken": null}
}"#;
/// Nobody is there.
const NOWHERE: &str = "127.0.0.1:9";

fn ztunnel() -> Router {
    Router::new()
        .get("/config_dump", |_| Reply::ok(JSON, DUMP))
        .get("/healthz/ready", |_| Reply::ok(JSON, "ready"))
}

fn status(ztunnel: &str, control: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
    command.args(["status", "--ztunnel", ztunnel, "--status", control]);
    command.output().unwrap()
}

#[test]
fn a_control_plane_that_does_not_answer_is_named_and_how_to_find_it() {
    let (_ztunnel, address) = served(ztunnel());
    let run = status(&address.to_string(), NOWHERE);
    let text = String::from_utf8(run.stdout).unwrap();
    // Not every node has one.
    assert!(run.status.success(), "{text}");
    let line = text.lines().next().unwrap();
    let why = "Control plane at 127.0.0.1:9: no answer from http://127.0.0.1:9/healthz/ready: ";
    assert!(line.starts_with(why), "{line}");
    assert!(
        line.ends_with("named by --status, its --status-listen address"),
        "{line}"
    );
}

#[test]
fn where_nobody_answers_both_are_named() {
    let run = status(NOWHERE, "127.0.0.1:11");
    assert_eq!(run.status.code(), Some(2));
    let error = String::from_utf8(run.stderr).unwrap();
    for words in [
        "no answer from http://127.0.0.1:9/config_dump",
        "no answer from http://127.0.0.1:11/healthz/ready",
        "--ztunnel and --status",
    ] {
        assert!(error.contains(words), "no {words:?}: {error}");
    }
}

#[test]
fn who_is_no_control_plane_is_named_and_how_to_find_it() {
    let (_ztunnel, address) = served(ztunnel());
    let address = address.to_string();
    let run = status(&address, &address);
    assert_eq!(run.status.code(), Some(2));
    let error = String::from_utf8(run.stderr).unwrap();
    let answered = format!("http://{address}/clients is answered with 404 Not Found");
    for words in [&*answered, "named by --status"] {
        assert!(error.contains(words), "no {words:?}: {error}");
    }
}
