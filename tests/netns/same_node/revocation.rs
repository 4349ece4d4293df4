//! What is not allowed any more is cut, and nothing else is.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Flood, Serve};
use sluice_tests::scenario::scenario_with;
use sluice_tests::{Pod, eventually, objects};

use super::{Held, NOT_WEB, PORT, Stage, verdicts};

/// Exactly what a change forbids is cut; the same in `undo` may go straight again.
fn revoked_by(change: impl Fn(&mut Stage<'_>) -> Result<()>, reason: &str) {
    scenario_with(&["a"], Options::default(), |s| {
        let mut stage = Stage::build(s)?;
        let vip = stage.vip()?;
        let v6 = SocketAddr::new(stage.server.v6().into(), PORT);
        let mut doomed = Vec::new();
        for to in [stage.direct(), vip, v6, stage.mapped()?] {
            doomed.push(stage.straight(&stage.web, to)?);
        }
        let mut untouched = stage.straight(&stage.batch, stage.direct())?;
        change(&mut stage)?;
        for held in &doomed {
            held.is_cut()?;
        }
        untouched.is_alive()?;
        eventually(|| {
            let straight = verdicts(stage.ztunnel())?;
            for to in stage.addresses()? {
                ensure!(Held::open(&stage.web, to).is_err(), "{to} is reached");
            }
            ensure!(verdicts(stage.ztunnel())? == straight, "still straight");
            Ok(())
        })?;
        untouched.is_alive()?;
        eventually(|| {
            let told = stage.ztunnel().access_log()?;
            let told = told.iter().filter(|line| {
                line.has(&[
                    ("direction", "inbound"),
                    ("error", reason),
                    ("path", "kernel"),
                ])
            });
            ensure!(told.count() == doomed.len(), "not told of all");
            Ok(())
        })
    });
}

#[test]
fn a_policy_ends_what_goes_straight() {
    revoked_by(
        |stage| stage.policy(NOT_WEB),
        "cut, since policy has changed: denied by policy shop/test, rule 0",
    );
}

#[test]
fn a_label_ends_what_goes_straight() {
    revoked_by(
        |stage| {
            let rule = "selector: {matchLabels: {guarded: yes-it-is}}\n  action: DENY\n  \
                        rules: [{from: [{source: {serviceAccounts: [web]}}]}]";
            stage.policy(rule)?;
            stage
                .s
                .mesh
                .apply_pod(&stage.server, &[("guarded", "yes-it-is")])
        },
        "cut, since policy has changed: denied by policy shop/test, rule 0",
    );
}

/// Connections come and go while they are forbidden: none is left over, of those that were being made
/// neither.
#[test]
fn nothing_survives_a_revocation() {
    const SILENT: u16 = 9090;
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let to = SocketAddr::new(stage.server.v4().into(), SILENT).to_string();
        // It never answers, so that whoever is not cut waits for ever.
        let _silent = podtool::serve(&stage.server, "silent", Serve::Sum, "[::]:9090")?;
        for round in 0..4 {
            eventually(|| {
                let before = verdicts(stage.ztunnel())?;
                let _connection = Connection::open(&stage.web, &to)?;
                ensure!(verdicts(stage.ztunnel())?[0] > before[0], "not straight");
                Ok(())
            })?;
            let many = ["--count", "400", "--concurrency", "400", "--rate", "1000"];
            let forever = ["--timeout-ms", "120000"];
            let options = [many.as_slice(), &forever].concat();
            let name = format!("many-{round}");
            let flood = podtool::start_flood(&stage.web, &name, &to, &options)?;
            eventually(|| {
                let established = stage.server.netns.established(SILENT)?;
                ensure!(established > 50, "{established} connections");
                Ok(())
            })?;
            stage.policy(NOT_WEB)?;
            let log = eventually(|| {
                let left = stage.server.netns.established(SILENT)?;
                let log = flood.log()?;
                ensure!(left == 0 && log.contains('}'), "{left} are left");
                Ok(log)
            })?;
            let flood = Flood::parse(&log)?;
            ensure!(flood.attempted == 400 && flood.ok == 0, "{flood:?}");
            stage.s.mesh.config().delete("policy")?;
        }
        Ok(())
    });
}

/// The client's name and address come to another pod, of an account that nothing was said of.
#[test]
fn a_pod_that_takes_the_place_of_another_inherits_nothing() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        stage.policy(
            "rules: [{from: [{source: {serviceAccounts: [web]}}]}, \
             {from: [{source: {serviceAccounts: [batch]}}]}]",
        )?;
        stage.s.mesh.settle()?;
        let held = stage.straight(&stage.web, stage.direct())?;
        let mut untouched = stage.straight(&stage.batch, stage.direct())?;
        let straight = verdicts(stage.ztunnel())?;
        let other = stage.s.pod_as("a", "legacy", "other", "intruder")?;
        let text = objects::pod(&stage.web, &[]);
        let path = |pod: &Pod| pod.netns.path().display().to_string();
        let text = text
            .replace(&path(&stage.web), &path(&other))
            .replace("serviceAccountName: web", "serviceAccountName: intruder");
        stage.web.netns.ip_batch("link set eth0 down\n")?;
        let [v4, v6] = stage.web.ips();
        other.netns.ip_batch(&format!(
            "address flush dev eth0\naddress add {v4}/24 dev eth0\n\
             address add {v6}/64 dev eth0 nodad\n"
        ))?;
        stage.s.mesh.config().apply("pod-shop-web", &text)?;
        eventually(|| {
            let dump = stage.ztunnel().config_dump()?.to_string();
            ensure!(dump.contains("intruder"), "not known yet");
            Ok(())
        })?;
        held.is_cut()?;
        for _ in 0..3 {
            let connection = Connection::open(&other, &stage.direct().to_string());
            let greeted = connection.and_then(|connection| connection.line());
            ensure!(greeted.is_err(), "{greeted:?}");
        }
        ensure!(verdicts(stage.ztunnel())? == straight);
        untouched.is_alive()
    });
}

#[test]
fn pods_that_leave_or_go_take_their_connections_along() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let leaving = stage.straight(&stage.web, stage.direct())?;
        let mut staying = stage.straight(&stage.batch, stage.direct())?;
        let text = objects::pod(&stage.web, &[("istio.io/dataplane-mode", "none")]);
        stage.s.mesh.config().apply("pod-shop-web", &text)?;
        leaving.is_cut()?;
        staying.is_alive()?;
        // It comes back, and all is as before.
        stage.s.mesh.apply_pod(&stage.web, &[])?;
        let again = stage.straight(&stage.web, stage.direct())?;
        stage.s.mesh.config().delete("pod-shop-catalog")?;
        again.is_cut()?;
        staying.is_cut()
    });
}
