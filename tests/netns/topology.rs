//! The machines that the harness builds, without a mesh on them.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::binaries::Binaries;
use sluice_tests::capture::Capture;
use sluice_tests::eventually;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::{PodSpec, Run, Topology};

fn two_nodes() -> Result<Topology> {
    Topology::new(&Run::start(Binaries::locate()?)?, &["a", "b"])
}

fn spec<'a>(namespace: &'a str, name: &'a str) -> PodSpec<'a> {
    PodSpec {
        namespace,
        name,
        service_account: name,
    }
}

/// Who has it as gateway would otherwise lose it for seconds.
#[test]
fn a_node_keeps_its_link_address_when_pods_come() -> Result<()> {
    let topology = two_nodes()?;
    let node = topology.node("a");
    let first = node.pod(spec("shop", "first"))?;
    let gateway = || -> Result<String> {
        // Whatever is sent there makes the pod ask for it.
        let _ = first.run(PATIENCE, "ip", ["neigh", "flush", "dev", "eth0"])?;
        let away = format!("{}:9", node.v4());
        ensure!(
            Connection::open(&first, &away).is_err(),
            "{away} is listened to"
        );
        let known = ["-4", "neigh", "show", "dev", "eth0"];
        first.run(PATIENCE, "ip", known)?.success()
    };
    let link = |known: &str| -> Result<String> {
        let mut words = known
            .split_whitespace()
            .skip_while(|word| *word != "lladdr");
        Ok(words
            .nth(1)
            .with_context(|| format!("no link address in {known:?}"))?
            .to_owned())
    };
    let before = link(&gateway()?)?;
    let mut others = Vec::new();
    for number in 0..12 {
        others.push(node.pod(spec("shop", &format!("other-{number}")))?);
    }
    let after = link(&gateway()?)?;
    ensure!(before == after, "{before} has become {after}");
    Ok(())
}

#[test]
fn pods_reach_each_other_by_both_families() -> Result<()> {
    let topology = two_nodes()?;
    let client = topology.node("a").pod(spec("shop", "client"))?;
    let near = topology.node("a").pod(spec("shop", "near"))?;
    let far = topology.node("b").pod(spec("shop", "far"))?;
    for server in [&near, &far] {
        let _server = podtool::serve(server, server.name(), Serve::Greet, "[::]:80")?;
        let mapped = format!("[::ffff:{}]:80", server.v4());
        for address in [
            format!("{}:80", server.v4()),
            format!("[{}]:80", server.v6()),
            mapped,
        ] {
            let mut connection = Connection::open(&client, &address)?;
            ensure!(
                connection.peer == address,
                "dialled {address}, see {}",
                connection.peer
            );
            let greeting = connection.line()?;
            let own = connection
                .local
                .replace("::ffff:", "")
                .replace(['[', ']'], "");
            ensure!(
                greeting
                    .replace("::ffff:", "")
                    .replace(['[', ']'], "")
                    .contains(&own),
                "the server sees {greeting}, the client is {own}"
            );
            ensure!(connection.exchange("hello")? == "250 hello");
        }
    }
    Ok(())
}

#[test]
fn a_node_reaches_its_pods_and_the_wire() -> Result<()> {
    let topology = two_nodes()?;
    let node = topology.node("b");
    let pod = node.pod(spec("shop", "server"))?;
    let _server = podtool::serve(&pod, "server", Serve::Echo, "[::]:80")?;
    for ip in pod.ips() {
        node.netns
            .enter(|| TcpStream::connect((ip, 80)))?
            .context("from the node")?;
        topology
            .wire()
            .netns
            .enter(|| TcpStream::connect((ip, 80)))?
            .context("from the wire")?;
    }
    ensure!(pod.netns.has_listener(80)? && !pod.netns.has_listener(81)?);
    Ok(())
}

#[test]
fn a_process_lives_in_its_pods_cgroup() -> Result<()> {
    let topology = two_nodes()?;
    let pod = topology.node("a").pod(spec("shop", "server"))?;
    let server = podtool::serve(&pod, "server", Serve::Echo, "0.0.0.0:80")?;
    ensure!(pod.cgroup.pids()? == [server.pid()]);
    ensure!(pod.cgroup.path().parent() == Some(topology.node("a").pods_cgroup().path()));
    let netns = fs::read_link(format!("/proc/{}/ns/net", server.pid()))?;
    let own = pod
        .netns
        .enter(|| fs::read_link("/proc/thread-self/ns/net"))??;
    ensure!(netns == own, "the server is in {}", netns.display());
    Ok(())
}

#[test]
fn a_capture_on_the_wire_sees_plaintext() -> Result<()> {
    let topology = two_nodes()?;
    let client = topology.node("a").pod(spec("shop", "client"))?;
    let server = topology.node("b").pod(spec("shop", "server"))?;
    let _server = podtool::serve(&server, "server", Serve::Echo, "[::]:80")?;
    let capture = Capture::start(topology.wire(), "wire", &topology.node("a").wire_port())?;
    for ip in server.ips() {
        let address = std::net::SocketAddr::new(ip, 80);
        Connection::open(&client, &address.to_string())?.exchange("a marker")?;
    }
    let segments = capture.finish()?;
    for ip in server.ips() {
        let seen = segments
            .iter()
            .filter(|segment| segment.contains(b"a marker"));
        let (to, from): (Vec<_>, Vec<_>) = seen
            .filter(|s| s.to.ip() == ip || s.from.ip() == ip)
            .partition(|s| s.to.ip() == ip);
        ensure!(
            (to.len(), from.len()) == (1, 1),
            "{ip}: {} there, {} back",
            to.len(),
            from.len()
        );
    }
    Ok(())
}

#[test]
fn podtool_tells_how_connections_end() -> Result<()> {
    let topology = two_nodes()?;
    let client = topology.node("a").pod(spec("shop", "client"))?;
    let server = topology.node("b").pod(spec("shop", "server"))?;
    let refused = Connection::open(&client, &format!("{}:1", server.v4()));
    ensure!(refused.is_err_and(|error| error.to_string().contains("refused")));

    let echo = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
    let address = format!("{}:80", server.v4());
    let flood = podtool::flood(
        &client,
        &address,
        &["--count", "300", "--concurrency", "4"],
        Duration::from_secs(30),
    )?;
    ensure!(
        (flood.attempted, flood.connected, flood.ok) == (300, 300, 300),
        "{flood:?}"
    );
    let report = podtool::half_close(&client, &address, 3_000_000)?;
    ensure!(
        report["end"] == "eof" && report["received"] == 3_000_000,
        "{report}"
    );
    ensure!(
        report["sent_checksum"] == report["received_checksum"],
        "{report}"
    );

    let mut connection = Connection::open(&client, &address)?;
    connection.exchange("before")?;
    drop(echo);
    let end = connection.event(PATIENCE)?;
    ensure!(
        matches!(end, Some(Event::Eof | Event::Broken(_))),
        "{end:?}"
    );

    let _sum = podtool::serve(&server, "sum", Serve::Sum, "[::]:81")?;
    let report = podtool::half_close(&client, &format!("{}:81", server.v4()), 100_000)?;
    let answer = format!(
        "sum 100000 {}",
        report["sent_checksum"].as_str().unwrap_or_default()
    );
    ensure!(report["tail"] == answer.as_str(), "{report}");
    eventually(|| {
        let again = Connection::open(&client, &format!("{}:81", server.v4()))?;
        drop(again);
        Ok(())
    })
}
