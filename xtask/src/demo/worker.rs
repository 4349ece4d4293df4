//! The worker, which parses all that comes from the network, may die.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_tests::eventually;
use sluice_tests::podtool::{self, Flood};

use super::claims::Claims;
use super::shop::{ECHO_PORT, Shop};

const RATE: &str = "200";
const SECONDS: &str = "6";

pub(crate) fn prove(shop: &mut Shop, claims: &mut Claims) {
    claims.observe("The workers have no capability at all", || {
        let mut evidence = Vec::new();
        for node in ["a", "b"] {
            let worker = shop.mesh.ztunnel(node).worker()?;
            let status = fs::read_to_string(format!("/proc/{}/status", worker.pid))?;
            for field in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                let line = status.lines().find(|line| line.starts_with(field));
                let value = line.and_then(|line| line.split_whitespace().nth(1));
                let value = value.with_context(|| format!("no {field} in /proc"))?;
                let none = value.chars().all(|digit| digit == '0');
                ensure!(none, "worker {} has {field} {value}", worker.pid);
            }
            evidence.push(format!(
                "node {node}: all sets of pid {} are empty",
                worker.pid
            ));
        }
        Ok(evidence.join("; "))
    });
    claims.observe("Killing the workers refuses no new connection", || {
        kill_both(shop)
    });
}

/// Kills the worker of the client's node, then that of the server's, under steady load.
fn kill_both(shop: &mut Shop) -> Result<String> {
    let echo = format!("{}:{ECHO_PORT}", shop.catalog.v4());
    let options = ["--seconds", SECONDS, "--rate", RATE, "--concurrency", "32"];
    let mut flood = podtool::start_flood(&shop.web, "flood-worker", &echo, &options)?;
    eventually(|| {
        ensure!(
            flood.log()?.contains("begin"),
            "podtool flood has not begun"
        );
        Ok(())
    })?;
    let mut replaced = Vec::new();
    for node in ["a", "b"] {
        // Not waiting for anything: this is load before, between and after.
        thread::sleep(Duration::from_millis(1500));
        let ztunnel = shop.mesh.ztunnel_mut(node);
        let begin = Instant::now();
        let killed = ztunnel.kill_worker()?;
        let successor = ztunnel.wait_for_successor(killed)?;
        let took = begin.elapsed().as_millis();
        replaced.push(format!(
            "{node}: {} → {} ({took} ms)",
            killed.pid, successor.pid
        ));
    }
    let report = eventually(|| {
        let log = flood.log()?;
        ensure!(log.contains('}'), "podtool flood has not ended");
        Flood::parse(&log)
    })?;
    flood.stop(Duration::from_secs(1))?;
    ensure!(
        report.not_connected() == 0,
        "{} not connected: {report:?}",
        report.not_connected()
    );
    // Had the mesh not carried them, they would prove nothing.
    let fields = [("direction", "outbound"), ("dst.hbone_addr", echo.as_str())];
    let log = shop.mesh.ztunnel("a").access_log()?;
    let carried = log.iter().filter(|line| line.has(&fields)).count() as u64;
    ensure!(
        report.ok > 0 && carried * 10 >= report.ok * 9,
        "the log of a has only {carried} of them: {report:?}"
    );
    let cut = report.attempted - report.ok;
    Ok(format!(
        "{} of {} connections at {RATE}/s were made, 0 refused ({cut} of them in flight were cut \
         off); workers {}",
        report.connected,
        report.attempted,
        replaced.join(", ")
    ))
}
