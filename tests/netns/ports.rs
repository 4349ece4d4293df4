//! The ports by which a ztunnel reaches a pod's application: each pod has only so many, and those of
//! connections that have ended are kept by the kernel for a minute.

use std::net::{IpAddr, SocketAddr};

use anyhow::ensure;
use serde_json::Value;
use sluice_tests::eventually;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::scenario::scenario;

/// The ports that are chosen from, in a network namespace.
const PORTS: &str = "net/ipv4/ip_local_port_range";

/// More connections in a minute than there are ports, each ended by its client first.
#[test]
fn connections_come_faster_than_ports_are_freed() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let stranger = s.pod("a", "legacy", "stranger")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let log = podtool::serve(&server, "server", Serve::Echo, "[::]:80")?;
        server.netns.sysctl(PORTS, "50000 52999")?;
        for from in [&client, &stranger] {
            for ip in [server.v4().into(), server.v6().into()] {
                let to = SocketAddr::new(ip, 80);
                let options = ["--count", "3500", "--concurrency", "8"];
                let flood = podtool::flood(from, &to.to_string(), &options, PATIENCE)?;
                ensure!(flood.ok == 3500, "{to}: {flood:?}");
            }
        }
        // None of it shows.
        let clients: [IpAddr; 4] = [
            client.v4().into(),
            client.v6().into(),
            stranger.v4().into(),
            stranger.v6().into(),
        ];
        let mut accepted = 0;
        for line in log.log()?.lines() {
            if let Some(rest) = line.strip_prefix("accepted from=") {
                let ends: Vec<_> = rest.split([' ', '=']).collect();
                for shown in [ends[0], ends[4]] {
                    let shown: SocketAddr = shown.parse()?;
                    ensure!(clients.contains(&shown.ip().to_canonical()), "{line}");
                }
                accepted += 1;
            }
        }
        ensure!(accepted == 4 * 3500, "{accepted} connections");
        Ok(())
    });
}

/// More connections at a time than there are ports.
#[test]
fn more_connections_are_held_than_there_are_ports() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let _server = podtool::serve(&server, "server", Serve::Echo, "[::]:80")?;
        server.netns.sysctl(PORTS, "50000 50099")?;
        let _held = podtool::hold(&client, "held", &format!("{}:80", server.v4()), 300)?;
        let established = server.netns.established(80)?;
        ensure!(established >= 300, "{established} connections");
        Ok(())
    });
}

/// A port by which the ztunnel dialled in vain says nothing of who has it next.
#[test]
fn who_dials_from_a_port_after_the_ztunnel_is_not_taken_for_its_client() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let _server = podtool::serve(&server, "server", Serve::Greet, "[::]:80")?;
        server.netns.sysctl(PORTS, "50000 50003")?;
        // Nobody listens there.
        for _ in 0..8 {
            let outcome = attempt(&client, SocketAddr::new(server.v4().into(), 81))?;
            ensure!(outcome == Outcome::Reset, "{outcome:?}");
        }
        for port in 50000..=50003 {
            let own = SocketAddr::new(server.v4().into(), port).to_string();
            let to = format!("{}:80", server.v4());
            let connection = Connection::open_with(&server, &to, &["--bind", &own])?;
            let greeting = connection.line()?;
            let shown = format!(" peer=[::ffff:{}]:{port} ", server.v4());
            ensure!(greeting.contains(&shown), "{own} is shown as {greeting}");
        }
        Ok(())
    });
}

/// Whoever dials from there next may not be taken for what was captured.
#[test]
fn a_captured_connection_that_nobody_accepts_leaves_nothing_in_the_kernel() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        // The broker's programs go on capturing, and nobody listens any more.
        s.mesh.ztunnel("a").kill_broker()?;
        let to = format!("{}:80", server.v4());
        eventually(|| {
            let refused = Connection::open(&client, &to);
            let told = refused.as_ref().map_err(ToString::to_string);
            ensure!(
                told.is_err_and(|why| why.contains("refused")),
                "{refused:?}"
            );
            Ok(())
        })?;
        let pending = s
            .mesh
            .ztunnel("a")
            .trace("maps", &["ORIG_PENDING", "-o", "json"])?;
        let pending: Value = serde_json::from_str(&pending.success()?)?;
        ensure!(
            pending[0]["entries"].as_array().is_some_and(Vec::is_empty),
            "{pending:#}"
        );
        Ok(())
    });
}
