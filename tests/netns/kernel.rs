//! What the eBPF programs say, and what the sockets that the mesh makes are like.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Pod, eventually,
    eventually::PATIENCE,
    mesh::Options,
    podtool::{self, Connection, Serve},
    scenario::{scenario, scenario_with},
};

fn talkative() -> Options {
    let ztunnel = [
        "--flow-events",
        "--bpf-log",
        "--log",
        "info,flow=debug,ebpf=debug",
    ];
    Options {
        ztunnel: ztunnel.map(str::to_owned).to_vec(),
        ..Options::default()
    }
}

/// Events and log lines are code of their own in the programs: they must pass the verifier, and
/// tell the truth.
#[test]
fn events_and_log_lines_follow_a_connection() {
    scenario_with(&["a", "b"], talkative(), |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:8080")?;
        let dialled = format!("{}:8080", server.v4());
        let mut connection = Connection::open(&client, &dialled)?;
        connection.line()?;
        connection.exchange("hello")?;
        drop(connection);
        let has = |node: &str, words: &[&str]| s.mesh.ztunnel(node).wait_for_line(words);
        let remote = format!("remote={dialled}");
        has("a", &["\tflow\t", "Connect", &remote, "captured"])?;
        has("a", &["\tflow\t", "Active", "remote=127.0.0.1:15001"])?;
        // The greeting and the answer reached the application: bytes are not zero.
        has("a", &["\tflow\t", "Close", "remote=127.0.0.1:15001"])?;
        has("a", &["\tebpf\t", "connect: netns", "port 8080"])?;
        let tunnel = format!("local={}:15008", server.v4());
        has("b", &["\tflow\t", "Lookup", &tunnel, "tunnel"])?;
        // Plaintext from outside the mesh is steered.
        s.mesh.apply_namespace("legacy", None)?;
        let stranger = s.pod("a", "legacy", "stranger")?;
        let plain = Connection::open(&stranger, &dialled)?;
        plain.line()?;
        let steered = format!("local={dialled}");
        has("b", &["\tflow\t", "Lookup", &steered, "steered"])?;
        Ok(())
    });
}

/// What `ss` tells of a pod's established connections.
fn sockets(pod: &Pod, options: &str, filter: &str) -> Result<String> {
    let arguments = [options, "state", "established", filter];
    pod.run(PATIENCE, "ss", arguments)?.success()
}

/// A peer that vanished must be noticed on both legs, even when nobody sends.
#[test]
fn both_legs_of_a_connection_are_kept_alive() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:8080")?;
        let connection = Connection::open(&client, &format!("{}:8080", server.v4()))?;
        connection.line()?;
        let kept_alive = |text: &str, what: &str| -> Result<()> {
            ensure!(!text.trim().is_empty(), "there is no connection {what}");
            for line in text.lines() {
                ensure!(
                    line.contains("timer:(keepalive"),
                    "{what} is not kept alive: {line}"
                );
            }
            Ok(())
        };
        for (pod, filter, what) in [
            (
                &client,
                "sport = :15001",
                "from the application to its ztunnel",
            ),
            (&client, "dport = :15008", "from ztunnel to ztunnel"),
            (
                &server,
                "sport = :15008",
                "from ztunnel to ztunnel, at its end",
            ),
            (
                &server,
                "dport = :8080",
                "from the ztunnel to the application",
            ),
        ] {
            // Only one timer is shown, and as long as data is on its way that is another.
            eventually(|| kept_alive(&sockets(pod, "-Htno", filter)?, what))?;
        }
        Ok(())
    });
}

/// A node's congestion control is for the network: between an application and its ztunnel there is
/// none.
#[test]
fn only_tunnels_have_the_congestion_control_of_the_node() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let node = congestion_control_of_a_node()?;
        for pod in [&client, &server] {
            let choice = format!("net.ipv4.tcp_congestion_control={node}");
            pod.run(PATIENCE, "sysctl", ["-w", &choice])?.success()?;
        }
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:8080")?;
        for address in [server.v4().to_string(), format!("[{}]", server.v6())] {
            let connection = Connection::open(&client, &format!("{address}:8080"))?;
            connection.line()?;
            for (pod, filter, algorithm) in [
                (&client, "dport = :15001", "reno"),
                (&client, "sport = :15001", "reno"),
                (&client, "dport = :15008", node.as_str()),
                (&server, "sport = :15008", node.as_str()),
                (&server, "dport = :8080", "reno"),
                (&server, "sport = :8080", "reno"),
            ] {
                let told = sockets(pod, "-HtniO", filter)?;
                ensure!(!told.trim().is_empty(), "there is no connection {filter}");
                for line in told.lines() {
                    let has = line.split_whitespace().any(|word| word == algorithm);
                    ensure!(has, "{filter} is not {algorithm}: {line}");
                }
            }
        }
        // Across the network it is kept without a tunnel as well.
        s.mesh.apply_namespace("legacy", None)?;
        let stranger = s.pod("b", "legacy", "stranger")?;
        let _server = podtool::serve(&stranger, "stranger", Serve::Greet, "[::]:9090")?;
        let connection = Connection::open(&server, &format!("{}:9090", stranger.v4()))?;
        connection.line()?;
        eventually(|| {
            let told = sockets(&server, "-HtniO", "dport = :9090")?;
            ensure!(told.split_whitespace().any(|word| word == node), "{told}");
            Ok(())
        })
    });
}

/// One that a pod may choose, and that nobody gets who did not.
///
/// Which ones a network namespace may choose is the machine's to say: CUBIC is not always among them.
fn congestion_control_of_a_node() -> Result<String> {
    let allowed = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let names = fs::read_to_string(allowed).with_context(|| format!("reading {allowed}"))?;
    let other = names.split_whitespace().find(|name| *name != "reno");
    let other = other.with_context(|| format!("{allowed} has none but reno: {names}"))?;
    Ok(other.to_owned())
}
