//! What applications send arrives: all of it, in order, and so do the ways a connection ends.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually};

/// A client on node `a` and a server on node `b`.
fn two_pods(s: &Scenario) -> Result<(Pod, Pod)> {
    s.mesh.apply_namespace("shop", Some("ambient"))?;
    let client = s.pod("a", "shop", "client")?;
    let server = s.enrolled_pod("b", "shop", "server")?;
    s.mesh.wait_until_enrolled(&client)?;
    Ok((client, server))
}

fn at(server: &Pod, port: u16) -> String {
    SocketAddr::from((server.v4(), port)).to_string()
}

/// How the next event must be: the connection is broken by a reset.
fn expect_reset(connection: &Connection) -> Result<()> {
    match connection.event(PATIENCE)? {
        Some(Event::Broken(how)) if how.starts_with("reset") => Ok(()),
        other => bail!("not reset, but {other:?}"),
    }
}

/// The outbound line about a connection that a client has made.
fn outbound_error(s: &Scenario, client: &Pod, connection: &Connection) -> Result<String> {
    let port = connection
        .local
        .rsplit_once(':')
        .context("a local address has a port")?
        .1;
    let src = format!("{}:{port}", client.v4());
    let line = s
        .mesh
        .ztunnel("a")
        .wait_for_access(&[("direction", "outbound"), ("src.addr", &src)])?;
    Ok(line.get("error").to_owned())
}

#[test]
fn half_closed_connections_carry_on_the_other_way() {
    const BYTES: u64 = 8_000_000;
    scenario(|s| {
        let (client, server) = two_pods(s)?;
        let _sum = podtool::serve(&server, "sum", Serve::Sum, "[::]:81")?;
        let hangup = podtool::serve(&server, "hangup", Serve::Hangup, "[::]:82")?;
        // The server answers only once it has seen the client's end.
        let report = podtool::half_close(&client, &at(&server, 81), BYTES)?;
        let checksum = report["sent_checksum"].as_str().unwrap_or_default();
        ensure!(
            report["tail"] == format!("sum {BYTES} {checksum}").as_str() && report["end"] == "eof",
            "{report}"
        );
        // The server has ended before the client begins, and still gets all.
        let report = podtool::half_close(&client, &at(&server, 82), BYTES)?;
        ensure!(
            report["end"] == "eof" && report["received"] == 0 && report["sending"] == "ok",
            "{report}"
        );
        eventually(|| {
            let log = hangup.log()?;
            let all = format!(" received={BYTES}");
            ensure!(
                log.lines()
                    .any(|l| l.starts_with("closed ") && l.ends_with(&all)),
                "{log}"
            );
            Ok(())
        })?;
        for line in s.mesh.ztunnel("a").access_log()? {
            ensure!(line.get("error").is_empty(), "{}", line.text());
        }
        Ok(())
    });
}

#[test]
fn a_large_transfer_leaves_room_for_small_requests() {
    const BYTES: u64 = 50_000_000;
    scenario(|s| {
        let (client, server) = two_pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        let echo = at(&server, 80);
        thread::scope(|threads| -> Result<()> {
            // There and back at once.
            let large = threads.spawn(|| podtool::half_close(&client, &echo, BYTES));
            let mut requests = 0;
            while !large.is_finished() {
                let options = ["--count", "20", "--concurrency", "4"];
                let flood = podtool::flood(&client, &echo, &options, Duration::from_secs(30))?;
                ensure!(flood.ok == 20, "{flood:?}");
                requests += flood.ok;
            }
            let report = large.join().map_err(|_| anyhow!("half-close panicked"))??;
            ensure!(
                report["end"] == "eof"
                    && report["received"] == BYTES
                    && report["sent_checksum"] == report["received_checksum"],
                "{report}"
            );
            ensure!(requests >= 20, "the transfer was over before the requests");
            Ok(())
        })
    });
}

#[test]
fn greetings_come_first_and_idle_connections_stay() {
    scenario(|s| {
        let (client, server) = two_pods(s)?;
        let log = podtool::serve(&server, "greet", Serve::Greet, "[::]:25")?;
        let smtp = at(&server, 25);
        let mut idle = Connection::open(&client, &smtp)?;
        ensure!(idle.line()?.starts_with("220 "));
        // Meanwhile others come and go.
        for _ in 0..10 {
            let mut other = Connection::open(&client, &smtp)?;
            ensure!(other.line()?.starts_with("220 "));
            ensure!(other.exchange("QUIT")? == "221 bye");
            ensure!(other.event(PATIENCE)? == Some(Event::Eof));
        }
        ensure!(
            idle.event(Duration::from_secs(3))?.is_none(),
            "something happened on a connection that nobody used"
        );
        ensure!(idle.exchange("still here?")? == "250 still here?");
        idle.finish_sending();
        ensure!(idle.event(PATIENCE)? == Some(Event::Eof));
        eventually(|| {
            let closed = log.log()?.matches("\nclosed ").count();
            ensure!(closed == 11, "{closed} of 11 are closed");
            Ok(())
        })
    });
}

#[test]
fn resets_arrive_as_resets() {
    scenario(|s| {
        let (client, server) = two_pods(s)?;
        let _resets = podtool::serve(&server, "resets", Serve::Reset, "[::]:80")?;
        let mut connection = Connection::open(&client, &at(&server, 80))?;
        connection.send("go away")?;
        expect_reset(&connection)?;
        let error = outbound_error(s, &client, &connection)?;
        ensure!(!error.is_empty(), "a reset is logged as a success");

        let log = podtool::serve(&server, "echo", Serve::Echo, "[::]:81")?;
        let mut connection = Connection::open_with(&client, &at(&server, 81), &["--end", "reset"])?;
        ensure!(connection.exchange("hello")? == "hello");
        connection.finish_sending();
        eventually(|| {
            let log = log.log()?;
            let broken = log.lines().find(|line| line.starts_with("broken "));
            let broken = broken.context("the server does not see that the client is gone")?;
            ensure!(broken.contains(" reset "), "{broken}");
            Ok(())
        })?;
        let error = outbound_error(s, &client, &connection)?;
        ensure!(!error.is_empty(), "a reset is logged as a success");

        // Nothing listens there. The connection to the proxy stands already, so that the client
        // sees a reset instead of a refusal.
        let connection = Connection::open(&client, &at(&server, 9))?;
        expect_reset(&connection)?;
        let error = outbound_error(s, &client, &connection)?;
        ensure!(
            error.contains("503") && error.contains("cannot reach the workload"),
            "{error}"
        );
        let inbound = s.mesh.ztunnel("b").wait_for_access(&[
            ("direction", "inbound"),
            ("dst.hbone_addr", &at(&server, 9)),
        ])?;
        ensure!(
            inbound
                .get("error")
                .contains("connection refused: nothing listens there"),
            "{}",
            inbound.text()
        );
        Ok(())
    });
}

#[test]
fn twenty_thousand_connections_leave_no_trace() {
    const COUNT: u64 = 20_000;
    scenario(|s| {
        let (client, server) = two_pods(s)?;
        let _server = podtool::serve(&server, "echo", Serve::Echo, "[::]:80")?;
        let flood = |count: u64| {
            let count = count.to_string();
            let options = ["--count", &count, "--concurrency", "16"];
            podtool::flood(
                &client,
                &at(&server, 80),
                &options,
                Duration::from_secs(240),
            )
        };
        // Tunnels and stocks of sockets are made with the first connections, and kept.
        flood(200)?;
        let descriptors = |node: &str| -> Result<usize> {
            let worker = s.mesh.ztunnel(node).worker()?;
            Ok(fs::read_dir(format!("/proc/{}/fd", worker.pid))?.count())
        };
        let nodes = ["a", "b"];
        let before = nodes.map(descriptors);
        let report = flood(COUNT)?;
        ensure!(
            (report.attempted, report.ok) == (COUNT, COUNT),
            "{report:?}"
        );
        for (node, before) in nodes.into_iter().zip(before) {
            let before = before?;
            eventually(|| {
                let now = descriptors(node)?;
                // A stock of sockets has grown by a batch for each thread and family, at most.
                ensure!(
                    now <= before + 300,
                    "the worker of {node} had {before} descriptors, and has {now}"
                );
                Ok(())
            })?;
        }
        for pod in [&client, &server] {
            eventually(|| {
                let waiting = pod.netns.close_waits()?;
                ensure!(
                    waiting == 0,
                    "{waiting} sockets of {} wait to be closed",
                    pod.name()
                );
                Ok(())
            })?;
        }
        Ok(())
    });
}
