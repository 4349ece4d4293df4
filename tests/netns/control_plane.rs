//! How ztunnels reach the control plane, and what happens when they cannot.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sluice_tests::eventually;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Flood, Serve};
use sluice_tests::scenario::{Scenario, scenario_with};
use sluice_tests::{Pod, eventually_within};

fn served(client: &Pod, server: &Pod) -> Result<()> {
    let outcome = attempt(client, SocketAddr::from((server.v4(), 80)))?;
    ensure!(outcome == Outcome::Served, "{outcome:?}");
    Ok(())
}

/// Which control plane a node says it is connected to; `None` when to none.
fn connected(s: &Scenario, node: &str) -> Result<Option<String>> {
    let dump = s.mesh.ztunnel(node).config_dump()?;
    let control = &dump["controlPlane"];
    let address = control["address"].as_str().context("no address")?;
    Ok((control["connected"] == true).then(|| address.to_owned()))
}

#[test]
fn a_single_host_needs_neither_token_nor_tls() {
    let options = Options {
        local: true,
        ..Options::default()
    };
    scenario_with(&["a"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let catalog = s.enrolled_pod("a", "shop", "catalog")?;
        let _server = podtool::serve(&catalog, "catalog", Serve::Greet, "[::]:80")?;
        s.mesh.settle()?;
        served(&web, &catalog)?;
        // The certificates came by the socket too.
        let line = [
            ("direction", "inbound"),
            ("src.identity", &*web.spiffe_id()),
            ("dst.identity", &*catalog.spiffe_id()),
        ];
        s.mesh.ztunnel("a").wait_for_access(&line)?;
        let address = connected(s, "a")?.context("not connected")?;
        ensure!(address.starts_with("unix:///"), "{address}");
        let clients = s.mesh.ask_control("/clients")?;
        ensure!(
            clients.contains("peerCredentials") && clients.contains("uid 0"),
            "{clients}"
        );
        // It comes back by itself.
        s.mesh.stop_control()?;
        served(&web, &catalog)?;
        s.mesh.start_control()?;
        let late = s.enrolled_pod("a", "shop", "late")?;
        eventually(|| served(&late, &catalog))?;
        ensure!(connected(s, "a")?.is_some());
        Ok(())
    });
}

#[test]
fn the_second_control_plane_takes_over_under_traffic() {
    let options = Options {
        spare: true,
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let catalog = s.enrolled_pod("b", "shop", "catalog")?;
        let _echo = podtool::serve(&catalog, "catalog", Serve::Echo, "[::]:80")?;
        let first = connected(s, "a")?.context("not connected")?;
        ensure!(first.ends_with(":15012"), "{first}");
        let flood = podtool::start_flood(
            &web,
            "flood",
            &format!("{}:80", catalog.v4()),
            &["--seconds", "10", "--rate", "40", "--concurrency", "8"],
        )?;
        s.mesh.stop_control()?;
        for node in ["a", "b"] {
            eventually(|| {
                let now = connected(s, node)?.with_context(|| format!("{node} has none"))?;
                ensure!(now.ends_with(":15013"), "{node}: {now}");
                Ok(())
            })?;
        }
        // Both halves of it: what is new is heard of, and certified.
        let late = s.enrolled_pod("a", "shop", "late")?;
        eventually(|| {
            let mut connection = Connection::open(&late, &format!("{}:80", catalog.v4()))?;
            ensure!(connection.exchange("late")? == "late");
            Ok(())
        })?;
        s.mesh.ztunnel("b").wait_for_access(&[
            ("direction", "inbound"),
            ("src.identity", &*late.spiffe_id()),
        ])?;
        let flood = eventually_within(PATIENCE * 2, || Flood::parse(&flood.log()?))?;
        ensure!(
            flood.attempted > 100 && flood.ok == flood.attempted,
            "{flood:?}"
        );
        Ok(())
    });
}

#[test]
fn a_token_that_expires_ends_the_calls_and_not_the_traffic() {
    let options = Options {
        control: ["--recheck-callers", "1"].map(str::to_owned).into(),
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let catalog = s.enrolled_pod("b", "shop", "catalog")?;
        let _server = podtool::serve(&catalog, "catalog", Serve::Echo, "[::]:80")?;
        let address = format!("{}:80", catalog.v4());
        let mut standing = Connection::open(&web, &address)?;
        ensure!(standing.exchange("before")? == "before");

        let tokens = fs::read_to_string(s.mesh.join_tokens())?;
        let expires = |line: &str| match line.starts_with("a ") {
            true => format!("{line} 2020-01-01T00:00:00Z\n"),
            false => format!("{line}\n"),
        };
        let expired: String = tokens.lines().map(expires).collect();
        fs::write(s.mesh.join_tokens(), expired)?;
        eventually(|| {
            ensure!(connected(s, "a")?.is_none(), "its stream goes on");
            let log = s.mesh.ztunnel("a").log()?;
            ensure!(log.contains("the control plane refuses this node; check its token"));
            Ok(())
        })?;
        let control = s.mesh.control()?;
        control.wait_for_line(&["of node a, expired at 2020", "peer="])?;
        let log = control.log()?;
        let token = tokens.lines().find_map(|line| line.strip_prefix("a "));
        ensure!(
            !log.contains(token.context("a token of a")?),
            "the log has the token"
        );
        ensure!(connected(s, "b")?.is_some(), "the other's token counts");

        ensure!(standing.exchange("after")? == "after");
        let mut new = Connection::open(&web, &address)?;
        ensure!(new.exchange("new")? == "new");
        fs::write(s.mesh.join_tokens(), tokens)?;
        eventually_within(PATIENCE * 2, || {
            ensure!(connected(s, "a")?.is_some(), "it does not come back");
            Ok(())
        })
    });
}
