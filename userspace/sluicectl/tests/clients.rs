//! `sluicectl clients`, as an operator sees it.

mod served;

use std::process::{Command, Output};

use served::served;
use sluice_telemetry::serve::{JSON, Reply, Router};

const PAGE: &str = r#"[
  {"node": "n1", "address": "10.0.0.1:4711", "credential": "joinToken", "id": "ztunnel~1",
   "connected": "2030-01-01T00:00:00Z", "types": {
     "type.googleapis.com/istio.security.Authorization": {
       "sent": {"version": "11111111aaaa", "nonce": "1", "at": "2030-01-01T00:00:01Z"},
       "acknowledged": {"version": "11111111aaaa", "nonce": "1", "at": "2030-01-01T00:00:02Z"},
       "lastRejection": null},
     "type.googleapis.com/istio.workload.Address": {
       "sent": {"version": "22222222bbbb", "nonce": "2", "at": "2030-01-01T00:00:03Z"},
       "acknowledged": null,
       "lastRejection": {"version": "22222222bbbb", "nonce": "2", "at": "2030-01-01T00:00:04Z",
                         "message": "shop/web: no"}}}},
  {"node": "node-two", "address": "process 7 of uid 0", "credential": "peerCredentials", "id": "",
   "connected": "2030-01-01T00:00:09Z", "types": {}}
]"#;

/// Runs the command against a control plane whose clients are shown at `path`.
fn clients(arguments: &[&str], path: &'static str) -> Output {
    let (_control, address) = served(Router::new().get(path, |_| Reply::ok(JSON, PAGE)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
    command.args(["clients", "--status", &address.to_string()]);
    command.args(arguments).output().unwrap()
}

#[test]
fn a_table_tells_how_far_each_client_is() {
    let run = clients(&[], "/clients");
    assert!(run.status.success());
    let text = String::from_utf8(run.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .collect()
        })
        .collect();
    let (connected, later) = ("2030-01-01T00:00:00Z", "2030-01-01T00:00:09Z");
    let [headings, policies, addresses, two, rejection] = &rows[..] else {
        panic!("{text}")
    };
    assert_eq!(headings[..3], ["NODE", "ADDRESS", "CONNECTED"]);
    let of_n1 = ["n1", "10.0.0.1:4711", connected];
    assert_eq!(policies[..3], of_n1);
    let rest = [
        "Authorization",
        "synced",
        "11111111",
        "2030-01-01T00:00:02Z",
    ];
    assert_eq!(policies[3..], rest);
    assert_eq!(addresses[..3], of_n1);
    let rest = ["Address", "rejected", "22222222", "2030-01-01T00:00:03Z"];
    assert_eq!(addresses[3..], rest);
    assert_eq!(
        two[..],
        ["node-two", "process 7 of uid 0", later, "connected"]
    );
    let told = "n1: Address rejected at 2030-01-01T00:00:04Z: shop/web: no";
    assert_eq!(rejection[..], [told]);
}

#[test]
fn json_is_what_the_control_plane_says() {
    let run = clients(&["-o", "json"], "/clients");
    assert_eq!(String::from_utf8(run.stdout).unwrap(), PAGE);
}

#[test]
fn whoever_is_no_control_plane_is_named() {
    let run = clients(&[], "/elsewhere");
    assert_eq!(run.status.code(), Some(2));
    let error = String::from_utf8(run.stderr).unwrap();
    assert!(
        error.contains("cannot ask the control plane at 127.0.0.1:"),
        "{error}"
    );
    assert!(error.contains("404 Not Found"), "{error}");
}
