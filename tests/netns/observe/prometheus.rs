//! A real Prometheus scrapes the mesh, with the alerts that come with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::Value;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario_with};
use sluice_tests::topology::WIRE_V4;
use sluice_tests::{eventually, eventually_within, http};

use super::{Stage, options};

const PORT: u16 = 9090;
/// A file of rules is judged in less.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it takes until rates can be seen.
const PATIENCE: Duration = Duration::from_secs(120);
/// Metrics that are there in certain states only, which other tests bring about.
const RARE: [&str; 1] = ["sluice_snapshot_age_seconds"];
/// Metrics of Prometheus itself.
const FOREIGN: [&str; 1] = ["ALERTS"];

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../userspace/telemetry/dashboards")
}

/// The queries of the dashboard as Grafana would send them, by the panels' titles.
fn queries() -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(dashboards().join("ztunnel.json"))?;
    let dashboard: Value = serde_json::from_str(&text).context("the dashboard")?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let mut queries = BTreeMap::new();
    for panel in panels {
        let title = panel["title"].as_str().context("a title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("an expression")?;
            let query = expression
                .replace("$__rate_interval", "30s")
                .replace("$instance", ".*")
                .replace("$namespace", ".*");
            ensure!(!query.contains('$'), "{title}: {query}");
            queries.insert(format!("{title} {}", target["refId"]), query);
        }
    }
    ensure!(queries.len() > 30, "{} queries", queries.len());
    Ok(queries)
}

/// All that looks like the name of a metric of ours.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| {
        ["sluice_", "istio_", "process_"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
    };
    words.filter(ours).map(str::to_owned).collect()
}

#[test]
fn alerts_fire_when_they_should() {
    // Needs neither a mesh nor a network.
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new("promtool");
        command.args(arguments).current_dir(dashboards());
        let output = command.output().expect("promtool runs");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(&["check", "rules", "rules.yaml"]);
    run(&["test", "rules", "rules_test.yaml"]);
}

/// A Prometheus on the wire.
struct Prometheus<'a> {
    s: &'a Scenario,
    _process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(s: &'a Scenario) -> Result<Self> {
        let (wire, directory) = (s.topology.wire(), s.topology.run().dir().join("prometheus"));
        fs::create_dir(&directory)?;
        let nodes = s.topology.nodes().iter();
        let targets: Vec<String> = nodes.map(|node| format!("{}:15020", node.v4())).collect();
        let rules = dashboards().join("rules.yaml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs: [{{job_name: ztunnel, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        let file = directory.join("prometheus.yaml");
        fs::write(&file, config)?;
        let mut command = wire.command("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"));
        let mut process = Process::start(s.topology.run(), "prometheus", command)?;
        eventually_within(LIMIT, || {
            process.check()?;
            http::get_ok(&wire.netns, Self::address(), "/-/ready").map(drop)
        })?;
        Ok(Self {
            s,
            _process: process,
        })
    }

    fn address() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], PORT))
    }

    /// How many samples a query finds.
    fn samples(&self, query: &str) -> Result<f64> {
        let query = format!("count({query}) or vector(0)");
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let netns = &self.s.topology.wire().netns;
        let path = format!("/api/v1/query?query={encoded}");
        let text = http::get_ok(netns, Self::address(), &path).context(query)?;
        let answer: Value = serde_json::from_str(&text)?;
        let value = answer["data"]["result"][0]["value"][1].as_str();
        let value = value.with_context(|| format!("no result: {text}"))?;
        Ok(value.parse()?)
    }
}

/// Something of every kind, so that every metric has something to count.
fn stir(stage: &Stage<'_>, held: &mut Option<Connection>) -> Result<()> {
    ensure!(attempt(&stage.web, stage.to(super::GREET))? == Outcome::Served);
    // Denied by the policy, and refused by the tunnel's port.
    ensure!(attempt(&stage.web, stage.to(super::NOBODY))? == Outcome::Reset);
    let mut garbage = Connection::open(&stage.old, &stage.to(15008).to_string())?;
    garbage.send("this is no handshake")?;
    let outside = SocketAddr::new(WIRE_V4.into(), super::OUTSIDE);
    ensure!(attempt(&stage.web, outside)? == Outcome::Served);
    let mut query = Message::new(1, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(
        Name::from_ascii("elsewhere.example.")?,
        RecordType::A,
    ));
    // One nameserver answers, and where the other should be is none.
    for server in [WIRE_V4, stage.s.topology.node("b").v4()] {
        let server = format!("{server}:53");
        podtool::exchange_datagrams(&stage.web, &server, &query.to_vec()?, &[])?;
    }
    let mut talk = Connection::open(&stage.web, &stage.to(super::GREET).to_string())?;
    talk.line()?;
    talk.exchange("hello")?;
    drop(talk);
    if held.is_none() {
        *held = Some(Connection::open(
            &stage.web,
            &stage.to(super::GREET).to_string(),
        )?);
    }
    Ok(())
}

#[test]
fn a_prometheus_finds_everything_that_dashboard_and_alerts_ask_for() {
    scenario_with(&["a", "b"], options(&[]), |s| {
        let stage = Stage::build(s)?;
        let wire = stage.s.topology.wire();
        let _dns = podtool::answer_datagrams(wire, "dns", "[::]:53")?;
        let port = super::NOBODY;
        stage.policy(&format!(
            "action: DENY, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]"
        ))?;
        let mut held = None;
        stir(&stage, &mut held)?;

        // What is exported, from both nodes.
        let mut wanted = names(&fs::read_to_string(dashboards().join("rules.yaml"))?);
        let queries = queries()?;
        wanted.extend(queries.values().flat_map(|query| names(query)));
        wanted.retain(|name| !RARE.contains(&&**name) && !FOREIGN.contains(&&**name));
        eventually(|| {
            let nodes = stage.s.mesh.ztunnels().iter();
            let text = nodes.map(|ztunnel| ztunnel.metrics());
            let text = text.collect::<Result<Vec<_>>>()?.join("\n");
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            let exported: BTreeSet<_> = samples.flat_map(names).collect();
            let missing: Vec<_> = wanted.difference(&exported).collect();
            ensure!(missing.is_empty(), "no ztunnel exports {missing:?}");
            Ok(())
        })?;

        let prometheus = Prometheus::start(stage.s)?;
        eventually_within(PATIENCE, || {
            stir(&stage, &mut held)?;
            let mut empty = Vec::new();
            for (panel, query) in &queries {
                if prometheus.samples(query)? == 0.0 {
                    empty.push(panel);
                }
            }
            ensure!(empty.is_empty(), "panels without data: {empty:?}");
            Ok(())
        })?;
        let up = prometheus.samples("up == 1")?;
        ensure!(up == 2.0, "{up} of 2 ztunnels are scraped");
        let ready = prometheus.samples("ALERTS{alertname=\"SluiceZtunnelNotReady\"}")?;
        ensure!(ready == 0.0, "a ztunnel that is ready is alerted of");
        Ok(())
    });
}
