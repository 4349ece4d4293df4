//! The status for people.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};

use super::{Node, Status};
use crate::show;

const NODES: [&str; 9] = [
    "NODE",
    "VERSION",
    "STATE",
    "SYNC",
    "PODS",
    "WORKLOADS",
    "CONNECTIONS",
    "CERTIFICATES",
    "FIRST EXPIRES",
];
const PODS: [&str; 6] = ["POD", "NODE", "ADDRESS", "MESH", "HEALTH", "CONNECTIONS"];

pub(super) fn text(status: &Status) -> String {
    let control = &status.control_plane;
    let mut text = format!(
        "Control plane at {}: {}\n\n",
        control.address, control.readiness
    );
    let mut rows = vec![NODES.map(str::to_owned)];
    rows.extend(status.nodes.iter().map(of_node));
    text += &show::table(&rows);
    if !status.pods.is_empty() {
        let mut rows = vec![PODS.map(str::to_owned)];
        rows.extend(status.pods.iter().map(|pod| {
            [
                pod.pod.clone(),
                pod.node.clone(),
                pod.addresses.join(","),
                pod.membership.to_owned(),
                pod.health.clone(),
                pod.connections.to_string(),
            ]
        }));
        text.push('\n');
        text += &show::table(&rows);
    }
    if !status.problems.is_empty() {
        text.push('\n');
    }
    for problem in &status.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    text
}

fn of_node(node: &Node) -> [String; 9] {
    let count = |count: Option<usize>| count.map_or("-".to_owned(), |count| count.to_string());
    let asked = node.version.is_some();
    let valid = node
        .certificates
        .iter()
        .filter(|one| one.state == "Available");
    let first = node
        .certificates
        .iter()
        .filter_map(|one| one.expiration_time)
        .min();
    [
        node.node.clone(),
        node.version.clone().unwrap_or("-".to_owned()),
        node.readiness.clone().unwrap_or("-".to_owned()),
        node.sync.unwrap_or("-").to_owned(),
        match (node.enrolled, node.expected) {
            (Some(enrolled), Some(expected)) => format!("{enrolled}/{expected}"),
            _ => "-".to_owned(),
        },
        count(node.workloads),
        count(node.connections),
        match asked {
            true => format!("{}/{}", valid.count(), node.certificates.len()),
            false => "-".to_owned(),
        },
        first.map_or("-".to_owned(), until),
    ]
}

/// How long it is until then, to the hour, or to the minute where that is less.
fn until(time: Timestamp) -> String {
    let left = time.duration_since(Timestamp::now());
    if left <= SignedDuration::ZERO {
        return "expired".to_owned();
    }
    match left.as_hours() {
        0 => format!("in {} min", left.as_mins()),
        hours => format!("in {hours} h"),
    }
}
