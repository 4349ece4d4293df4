//! What connections cost that idle, and pods.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_tests::eventually;
use sluice_tests::podtool::{self, Serve};
use sluice_tests::scenario::{Scenario, scenario};

/// What the process holds that is no file's, in bytes.
fn anonymous(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let rollup = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10)
        .with_context(|| format!("no anonymous memory in {path}"))
}

/// The workers of both nodes, that of the clients first.
fn workers(s: &Scenario) -> Result<[u64; 2]> {
    let of = |node| anonymous(s.mesh.ztunnel(node).worker()?.pid);
    Ok([of("a")?, of("b")?])
}

#[test]
fn connections_that_idle_hold_less_than_a_kilobyte_on_each_side() {
    /// As many as drown the rest of what a worker holds.
    const IDLE: u32 = 2000;
    const MOST: u64 = 1000;
    /// In which a silent peer is asked twice.
    const QUESTIONS: Duration = Duration::from_secs(25);
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let _echo = podtool::serve(&server, "echo", Serve::Echo, "[::]:81")?;
        let to = SocketAddr::from((server.v4(), 81)).to_string();
        // A tunnel, and what is made when there is a first connection.
        let _first = podtool::hold(&client, "first", &to, 1)?;
        let before = workers(s)?;
        let _held = podtool::hold(&client, "held", &to, IDLE)?;
        let hold_little = || -> Result<()> {
            for (side, (after, before)) in workers(s)?.into_iter().zip(before).enumerate() {
                let each = after.saturating_sub(before) / u64::from(IDLE);
                ensure!(each <= MOST, "{each} bytes for each, side {side}");
            }
            Ok(())
        };
        // What it took to make them is given back when the worker rests.
        eventually(hold_little)?;
        // And that is so at all times: every tunnel asks its peer now and then whether it is there, all
        // of them at once.
        let end = Instant::now() + QUESTIONS;
        while Instant::now() < end {
            hold_little().context("while tunnels ask their peers")?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    });
}

#[test]
fn pods_that_do_nothing_hold_less_than_64_kilobytes_each() {
    const PODS: u32 = 40;
    const MOST: u64 = 64 << 10;
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let _first = s.enrolled_pod("a", "shop", "first")?;
        let [before, _] = workers(s)?;
        for number in 0..PODS {
            s.enrolled_pod("a", "shop", &format!("idle-{number}"))?;
        }
        eventually(|| {
            let [after, _] = workers(s)?;
            let each = after.saturating_sub(before) / u64::from(PODS);
            ensure!(each <= MOST, "{each} bytes for each");
            Ok(())
        })
    });
}
