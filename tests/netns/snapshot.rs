//! Without the control plane: what a ztunnel remembers, in memory and on disk.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually, objects};

/// Where the policy of the server is written.
const POLICY: &str = "policy";
const FROM_SNAPSHOT: &str = "ready, from the snapshot of ";

/// A server on node `b` with two ports; on node `a` two clients in the mesh and one outside of it.
struct Stage<'a> {
    s: &'a mut Scenario,
    server: Pod,
    web: Pod,
    batch: Pod,
    old: Pod,
    _servers: [Process; 2],
}

impl<'a> Stage<'a> {
    fn build(s: &'a mut Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let serve = |port| {
            let name = format!("catalog-{port}");
            podtool::serve(&server, &name, Serve::Greet, &format!("[::]:{port}"))
        };
        let servers = [serve(80)?, serve(81)?];
        let web = s.enrolled_pod("a", "shop", "web")?;
        let batch = s.enrolled_pod("a", "shop", "batch")?;
        let old = s.pod("a", "legacy", "old")?;
        Ok(Self {
            s,
            server,
            web,
            batch,
            old,
            _servers: servers,
        })
    }

    /// Puts a policy in force everywhere, and waits until both nodes would find it on disk.
    fn apply(&self, policy: &str) -> Result<()> {
        self.s.mesh.config().apply(POLICY, policy)?;
        self.remember()
    }

    /// Waits until both nodes would find on disk what is in force now. Certificates that were
    /// obtained before have been left to the next worker by then: they go the same way, and sooner.
    fn remember(&self) -> Result<()> {
        self.s.mesh.settle()?;
        for node in ["a", "b"] {
            let dump = self.s.mesh.ztunnel(node).config_dump()?;
            let marker = workload(&dump, "settled").context("no marker")?;
            let revision = marker["node"]
                .as_str()
                .context("a marker without revision")?;
            let path = self.s.mesh.ztunnel(node).snapshot();
            eventually(|| {
                let text = fs::read(&path)?;
                let text = String::from_utf8_lossy(&text);
                ensure!(
                    text.contains(revision),
                    "{revision} is not in {}",
                    path.display()
                );
                Ok(())
            })?;
        }
        Ok(())
    }

    fn expect(&self, client: &Pod, port: u16, wanted: Outcome) -> Result<()> {
        let outcome = attempt(client, SocketAddr::new(self.server.v4().into(), port))?;
        let name = client.name();
        ensure!(
            outcome == wanted,
            "{name} → {port}: {outcome:?}, and not {wanted:?}"
        );
        Ok(())
    }
}

/// Nobody may use this port of the server.
fn closed(port: u16) -> String {
    format!(
        "apiVersion: security.istio.io/v1\n\
         kind: AuthorizationPolicy\n\
         metadata: {{name: closed, namespace: shop}}\n\
         spec:\n\
         \x20 selector: {{matchLabels: {{app: catalog}}}}\n\
         \x20 action: DENY\n\
         \x20 rules: [{{to: [{{operation: {{ports: [\"{port}\"]}}}}]}}]\n"
    )
}

fn workload<'a>(dump: &'a Value, name: &str) -> Option<&'a Value> {
    let mut workloads = dump["workloads"].as_array()?.iter();
    workloads.find(|workload| workload["name"] == name)
}

/// Serial numbers of the certificates of a node, by identity.
fn serials(s: &Scenario, node: &str) -> Result<BTreeMap<String, String>> {
    let dump = s.mesh.ztunnel(node).config_dump()?;
    let entries = dump["certificates"].as_array().context("no certificates")?;
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let serial = |entry| (text(entry, "identity"), text(entry, "serialNumber"));
    Ok(entries.iter().map(serial).collect())
}

/// What a node says of its readiness.
fn readiness(s: &Scenario, node: &str) -> Result<String> {
    Ok(s.mesh.ztunnel(node).readiness()?.body)
}

#[test]
fn a_worker_that_dies_leaves_mesh_and_certificates_to_the_next() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.apply(&objects::allow_principals(
            "shop",
            "catalog",
            &["cluster.local/ns/shop/sa/web"],
        ))?;
        stage.expect(&stage.web, 80, Outcome::Served)?;
        stage.expect(&stage.batch, 80, Outcome::Reset)?;
        let before = [serials(stage.s, "a")?, serials(stage.s, "b")?];
        ensure!(before[0].len() == 2 && before[1].len() == 1, "{before:?}");
        stage.remember()?;

        stage.s.mesh.stop_control()?;
        for node in ["a", "b"] {
            let ztunnel = stage.s.mesh.ztunnel_mut(node);
            let killed = ztunnel.kill_worker()?;
            ztunnel.wait_for_successor(killed)?;
            ztunnel.wait_until_ready()?;
            let says = readiness(stage.s, node)?;
            ensure!(says.starts_with(FROM_SNAPSHOT), "{says}");
            let age = stage.s.mesh.ztunnel(node).metrics()?;
            ensure!(age.contains("\nsluice_snapshot_age_seconds "), "{age}");
        }
        // At once.
        stage.expect(&stage.web, 80, Outcome::Served)?;
        stage.expect(&stage.batch, 80, Outcome::Reset)?;
        stage.expect(&stage.old, 80, Outcome::Reset)?;
        let after = [serials(stage.s, "a")?, serials(stage.s, "b")?];
        ensure!(after == before, "{after:?} in place of {before:?}");

        stage.s.mesh.start_control()?;
        for node in ["a", "b"] {
            eventually(|| {
                let says = readiness(stage.s, node)?;
                ensure!(says == "ready\n", "{says}");
                Ok(())
            })?;
        }
        stage.expect(&stage.web, 80, Outcome::Served)
    });
}

/// Policy is remembered on disk. Keys are not, so that tunnels wait for the CA.
#[test]
fn a_ztunnel_starts_from_the_snapshot_on_disk() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.apply(&closed(81))?;
        stage.expect(&stage.old, 80, Outcome::Served)?;
        stage.expect(&stage.old, 81, Outcome::Reset)?;
        stage.s.mesh.stop_control()?;
        let ztunnel = stage.s.mesh.ztunnel_mut("b");
        ztunnel.stop(PATIENCE)?;
        let mode = fs::metadata(ztunnel.snapshot())?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{mode:o}");
        ztunnel.restart()?;
        let says = readiness(stage.s, "b")?;
        ensure!(says.starts_with(FROM_SNAPSHOT), "{says}");
        stage.s.mesh.wait_until_enrolled(&stage.server)?;
        stage.expect(&stage.old, 80, Outcome::Served)?;
        stage.expect(&stage.old, 81, Outcome::Reset)?;
        stage.expect(&stage.web, 80, Outcome::Reset)?;

        stage.s.mesh.start_control()?;
        eventually(|| stage.expect(&stage.web, 80, Outcome::Served))?;
        stage.expect(&stage.web, 81, Outcome::Reset)
    });
}

/// A file that is no snapshot is as none.
#[test]
fn without_snapshot_and_control_plane_a_ztunnel_waits_and_says_so() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.apply(&closed(81))?;
        stage.s.mesh.stop_control()?;
        let ztunnel = stage.s.mesh.ztunnel_mut("a");
        ztunnel.stop(PATIENCE)?;
        fs::write(ztunnel.snapshot(), "{\"kind\": \"List\"}")?;
        ztunnel.start_again()?;
        eventually(|| {
            let answer = ztunnel.readiness()?;
            ensure!(
                answer.status == 500
                    && answer.body.contains("control plane")
                    && answer.body.contains("there is no snapshot"),
                "{answer:?}"
            );
            Ok(())
        })?;
        ztunnel.wait_for_line(&["the snapshot is not used"])?;

        // Connections are made, and wait.
        stage.s.mesh.wait_until_enrolled(&stage.web)?;
        let server = SocketAddr::new(stage.server.v4().into(), 80);
        let waiting = Connection::open(&stage.web, &server.to_string())?;
        let early = waiting.event(Duration::from_secs(1))?;
        ensure!(early.is_none(), "{early:?} from nowhere");

        stage.s.mesh.start_control()?;
        let greeting = waiting.line()?;
        ensure!(greeting.starts_with("220 "), "{greeting}");
        stage.s.mesh.ztunnel_mut("a").wait_until_ready()?;
        stage.expect(&stage.web, 81, Outcome::Reset)
    });
}

#[test]
fn what_changed_meanwhile_takes_effect_when_the_control_plane_is_back() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let gone = stage.s.pod("a", "legacy", "gone")?;
        stage.apply(&closed(81))?;
        stage.s.mesh.stop_control()?;
        let ztunnel = stage.s.mesh.ztunnel_mut("b");
        ztunnel.stop(PATIENCE)?;
        ztunnel.restart()?;
        stage.s.mesh.wait_until_enrolled(&stage.server)?;
        let config = stage.s.mesh.config();
        config.apply(POLICY, &closed(80))?;
        config.delete(&format!("pod-legacy-{}", gone.name()))?;
        stage.expect(&stage.old, 80, Outcome::Served)?;
        stage.expect(&stage.old, 81, Outcome::Reset)?;
        let dump = stage.s.mesh.ztunnel("b").config_dump()?;
        ensure!(workload(&dump, "gone").is_some(), "{dump:#}");
        ensure!(dump["controlPlane"]["snapshotTaken"].is_u64(), "{dump:#}");

        stage.s.mesh.start_control()?;
        eventually(|| {
            let dump = stage.s.mesh.ztunnel("b").config_dump()?;
            ensure!(workload(&dump, "gone").is_none(), "it is still there");
            ensure!(dump["controlPlane"]["snapshotTaken"].is_null());
            Ok(())
        })?;
        stage.expect(&stage.old, 80, Outcome::Reset)?;
        stage.expect(&stage.old, 81, Outcome::Served)
    });
}
