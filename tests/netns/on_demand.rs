//! A ztunnel that knows only what its pods use.

use anyhow::{Context, Result, ensure};
use sluice_tests::mesh::Options;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::scenario::{Scenario, scenario, scenario_with};
use sluice_tests::{eventually, objects};

const VIP: &str = "10.96.0.7";
const HOST: &str = "server.shop.svc.cluster.local";

fn options() -> Options {
    let flags = ["--on-demand", "true", "--dns-capture", "false"];
    Options {
        ztunnel: flags.map(str::to_owned).into(),
        ..Options::default()
    }
}

/// The names of the workloads, or the hosts of the services, that a node knows.
fn known(s: &Scenario, node: &str, kind: &str, name: &str) -> Result<Vec<String>> {
    let dump = s.mesh.ztunnel(node).config_dump()?;
    let all = dump[kind]
        .as_array()
        .with_context(|| format!("no {kind}"))?;
    let names = all.iter().filter_map(|one| one[name].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn greeted(s: &Scenario, client: &sluice_tests::Pod, dialled: &str) -> Result<()> {
    let connection = Connection::open(client, dialled)?;
    connection.line().map(drop).with_context(|| {
        let log = s.mesh.ztunnel("a").access_log();
        format!("{dialled}; the log of a: {log:?}")
    })
}

#[test]
fn pods_reach_each_other_and_services_that_were_never_told_of() {
    scenario_with(&["a", "b"], options(), |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let _other = s.enrolled_pod("b", "shop", "other")?;
        // Identities are enforced, so that only a tunnel gets through.
        let strict = objects::peer_authentication("shop", "STRICT");
        s.mesh.config().apply("strict", &strict)?;
        let _greets = podtool::serve(&server, "server", Serve::Greet, "[::]:7000")?;
        s.mesh.apply_service("shop", "server", VIP, &[(80, 7000)])?;
        eventually(|| {
            let own = known(s, "a", "workloads", "name")?;
            ensure!(own == ["client"], "node a knows {own:?}");
            Ok(())
        })?;
        let pod = format!("{}:7000", server.v4());
        greeted(s, &client, &pod)?;
        let line = [
            ("direction", "outbound"),
            ("dst.identity", &*server.spiffe_id()),
        ];
        s.mesh.ztunnel("a").wait_for_access(&line)?;
        // The other end has asked who its visitor is.
        let line = [("direction", "inbound"), ("src.workload", "client")];
        s.mesh.ztunnel("b").wait_for_access(&line)?;
        ensure!(known(s, "a", "services", "hostname")?.is_empty());

        let vip = format!("{VIP}:80");
        eventually(|| greeted(s, &client, &vip))?;
        let services = known(s, "a", "services", "hostname")?;
        ensure!(services == [HOST], "{services:?}");
        let workloads = known(s, "a", "workloads", "name")?;
        ensure!(workloads == ["client", "server"], "{workloads:?}");

        // What is asked for is told of when it changes, and when it goes.
        s.mesh.apply_service("shop", "server", VIP, &[(81, 7000)])?;
        eventually(|| greeted(s, &client, &format!("{VIP}:81")))?;
        s.mesh.config().delete("service-shop-server")?;
        eventually(|| {
            let services = known(s, "a", "services", "hostname")?;
            ensure!(services.is_empty(), "{services:?}");
            Ok(())
        })?;
        greeted(s, &client, &pod)
    });
}

#[test]
fn what_is_known_survives_the_control_plane_and_what_is_not_is_not_guessed() {
    scenario_with(&["a", "b"], options(), |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let stranger = s.enrolled_pod("b", "shop", "stranger")?;
        let [_one, _two] = [&server, &stranger].map(|pod| {
            podtool::serve(pod, pod.name(), Serve::Greet, "[::]:7000").expect("a server")
        });
        let address = |pod: &sluice_tests::Pod| (pod.v4(), 7000).into();
        let served = |pod| -> Result<()> {
            let outcome = attempt(&client, address(pod))?;
            ensure!(outcome == Outcome::Served, "{}: {outcome:?}", pod.name());
            Ok(())
        };
        served(&server)?;
        s.mesh.stop_control()?;
        served(&server)?;
        // Never asked for: it might be a pod that takes tunnels only, so nothing is sent to it.
        let outcome = attempt(&client, address(&stranger))?;
        ensure!(outcome == Outcome::Reset, "{outcome:?}");
        let line = [("direction", "outbound"), ("response_flags", "CONNECT")];
        let name = format!("the control plane was asked for /{}", stranger.v4());
        eventually(|| {
            let log = s.mesh.ztunnel("a").log()?;
            ensure!(log.contains(&name), "{line:?}: {log}");
            Ok(())
        })?;
        s.mesh.start_control()?;
        eventually(|| served(&stranger))
    });
}

#[test]
fn pods_that_may_go_only_to_what_the_mesh_knows_have_it_asked_for() {
    scenario_with(&["a", "b"], options(), |s| {
        let restricted = objects::with_annotation(
            &objects::namespace("shop", Some("ambient")),
            "sluice.io/outbound-traffic-policy",
            "REGISTRY_ONLY",
        );
        s.mesh.config().apply("namespace-shop", &restricted)?;
        s.mesh.apply_namespace("legacy", None)?;
        let client = s.enrolled_pod("a", "shop", "client")?;
        let server = s.enrolled_pod("b", "shop", "server")?;
        let plain = s.pod("b", "legacy", "plain")?;
        let _greets = podtool::serve(&server, "server", Serve::Greet, "[::]:7000")?;
        let _plain = podtool::serve(&plain, "plain", Serve::Greet, "[::]:7000")?;
        for pod in [&server, &plain] {
            let outcome = attempt(&client, (pod.v4(), 7000).into())?;
            ensure!(outcome == Outcome::Served, "{}: {outcome:?}", pod.name());
        }
        let outcome = attempt(&client, ([192, 0, 2, 1], 7000).into())?;
        ensure!(outcome == Outcome::Reset, "{outcome:?}");
        let line = [("direction", "outbound"), ("dst.addr", "192.0.2.1:7000")];
        let line = s.mesh.ztunnel("a").wait_for_access(&line)?;
        ensure!(line.get("error").contains("REGISTRY_ONLY"), "{line:?}");
        Ok(())
    });
}

#[test]
fn it_cannot_be_combined_with_dns_capture() {
    scenario(|s| {
        let changes = [
            ("--on-demand", Some("true")),
            ("--dns-capture", Some("true")),
        ];
        let finished = s.mesh.ztunnel("a").attempt(&changes)?;
        ensure!(!finished.status.success());
        let expected = "--on-demand and --dns-capture cannot be combined";
        ensure!(finished.stderr.contains(expected), "{}", finished.stderr);
        Ok(())
    });
}
