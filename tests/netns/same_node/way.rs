//! What goes straight, who is let in, and what is told of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::scenario::scenario_with;
use sluice_tests::{Pod, eventually, objects};

use super::{Held, PORT, Stage, verdicts};

const ANNOTATION: &str = "sluice.io/same-node";
const ONLY_WEB: &str = "rules: [{from: [{source: {serviceAccounts: [web]}}]}]";

#[test]
fn pods_of_a_node_talk_straight_and_see_each_other() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let mut all = stage.addresses()?;
        all.push(stage.mapped()?);
        for to in all {
            let mut held = stage.straight(&stage.web, to)?;
            held.is_alive()?;
            let v6 = to.ip().to_canonical().is_ipv6();
            let of_family = |ips: [IpAddr; 2]| ips[usize::from(v6)];
            ensure!(held.connection.peer.parse::<SocketAddr>()? == to, "{to}");
            let local: SocketAddr = held.connection.local.parse()?;
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            ensure!(local.ip() == of_family(stage.web.ips()));
            ensure!(held.server_sees("peer")? == local, "{}", held.greeting);
            let server = SocketAddr::new(of_family(stage.server.ips()), PORT);
            ensure!(held.server_sees("local")? == server, "{}", held.greeting);
        }
        Ok(())
    });
}

/// Of one connection, what the log and the metrics say; and that no tunnel carried it.
#[test]
fn the_log_and_the_metrics_tell_of_both_ends() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let vip = stage.vip()?;
        drop(stage.straight(&stage.web, vip)?);
        let tunnels = [("connection_security_policy", "mutual_tls")];
        let by_tunnel = || -> Result<[f64; 3]> {
            let metric = |name| stage.ztunnel().metric(name, &tunnels);
            Ok([
                metric("istio_tcp_connections_opened_total")?,
                metric("istio_tcp_sent_bytes_total")?,
                metric("istio_tcp_received_bytes_total")?,
            ])
        };
        let before = by_tunnel()?;
        let mut held = Held::open(&stage.web, vip)?;
        let client: SocketAddr = held.connection.local.parse()?;
        let answer = held.connection.exchange("hello")?;
        let bye = held.connection.exchange("QUIT")?;
        let lines = [&held.greeting, &answer, &bye];
        let received: usize = lines.map(|line| line.len() + "\r\n".len()).iter().sum();
        let received = received.to_string();
        ensure!(held.connection.event(PATIENCE)? == Some(Event::Eof));
        drop(held);
        for direction in ["outbound", "inbound"] {
            let line = stage
                .ztunnel()
                .wait_for_access(&[("src.addr", &client.to_string()), ("direction", direction)])?;
            let (web, catalog) = (stage.web.spiffe_id(), stage.server.spiffe_id());
            let wanted = [
                ("path", "kernel"),
                ("dst.addr", &*stage.direct().to_string()),
                ("dst.hbone_addr", ""),
                ("dst.service", "catalog.shop.svc.cluster.local"),
                ("src.workload", "web"),
                ("src.identity", &*web),
                ("dst.workload", "catalog"),
                ("dst.identity", &*catalog),
                ("bytes_sent", "11"),
                ("bytes_recv", &*received),
                ("error", ""),
            ];
            ensure!(line.has(&wanted), "{}", line.text());
        }
        ensure!(by_tunnel()? == before, "a tunnel was used");
        // The kernel has counted it before it told of its end.
        let direct = |name| stage.ztunnel().metric(name, &[("path", "direct")]);
        let ended = direct("sluice_flow_connections_total")?;
        let bytes = [
            direct("sluice_flow_sent_bytes_total")?,
            direct("sluice_flow_received_bytes_total")?,
        ];
        ensure!(
            ended >= 2.0 && bytes[0] >= 11.0 && bytes[1] >= received.parse()?,
            "{ended} connections, {bytes:?} bytes"
        );
        ensure!(direct("sluice_flow_rtt_seconds_count")? == ended);
        for reporter in ["source", "destination"] {
            let labels = [
                ("reporter", reporter),
                ("connection_security_policy", "unknown"),
                ("source_workload", "web"),
                ("destination_workload", "catalog"),
                ("destination_service_name", "catalog"),
                ("source_principal", &*stage.web.spiffe_id()),
            ];
            let metric = |name| stage.ztunnel().metric(name, &labels);
            eventually(|| {
                let (opened, closed) = (
                    metric("istio_tcp_connections_opened_total")?,
                    metric("istio_tcp_connections_closed_total")?,
                );
                ensure!(
                    opened == 2.0 && closed == 2.0,
                    "{reporter}: {opened}, {closed}"
                );
                Ok(())
            })?;
            ensure!(metric("istio_tcp_received_bytes_total")? == 11.0);
        }
        // What nobody answers is told as well.
        drop(stage._serving);
        ensure!(Held::open(&stage.web, vip).is_err());
        stage.s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("path", "kernel"),
            (
                "error",
                &format!(
                    "connect to {}:8080: refused, or no answer; does the application listen there?",
                    stage.server.v4()
                ),
            ),
        ])?;
        Ok(())
    });
}

/// Nobody gets in but who was let go straight, whatever he sends.
#[test]
fn who_is_not_allowed_is_not_let_in() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        stage.policy(ONLY_WEB)?;
        stage
            .s
            .mesh
            .config()
            .apply("strict", &objects::peer_authentication("shop", "STRICT"))?;
        stage.s.mesh.settle()?;
        let refused = |client: &Pod, options: &[&str]| -> Result<()> {
            let connection = Connection::open_with(client, &stage.direct().to_string(), options);
            let greeted = connection.and_then(|connection| connection.line());
            ensure!(greeted.is_err(), "{greeted:?}");
            Ok(())
        };
        eventually(|| refused(&stage.batch, &[]))?;
        let mut held = stage.straight(&stage.web, stage.direct())?;
        let straight = verdicts(stage.ztunnel())?;
        refused(&stage.batch, &[])?;
        // From outside the mesh, with an address of its own, and with one that is allowed.
        stage.s.mesh.apply_namespace("legacy", None)?;
        let stranger = stage.s.pod("a", "legacy", "stranger")?;
        refused(&stranger, &[])?;
        stranger
            .netns
            .ip_batch(&format!("address add {}/32 dev lo\n", stage.web.v4()))?;
        let steered = || {
            let steered = [("reason", "steered")];
            stage
                .ztunnel()
                .metric("sluice_kernel_verdicts_total", &steered)
        };
        let before = steered()?;
        let forged = format!("{}:40000", stage.web.v4());
        let target = stage.direct().to_string();
        std::thread::scope(|scope| {
            // It gets no answer, and so takes its time.
            let forging = scope
                .spawn(|| Connection::open_with(&stranger, &target, &["--bind", &forged]).is_err());
            eventually(|| {
                ensure!(steered()? > before, "it did not come to the server");
                Ok(())
            })?;
            ensure!(forging.join().unwrap_or(false), "it was let in");
            anyhow::Ok(())
        })?;
        ensure!(verdicts(stage.ztunnel())? == straight);
        held.is_alive()
    });
}

/// Where the mesh has a choice, it is the mesh that chooses.
#[test]
fn a_service_with_several_endpoints_is_left_to_the_ztunnel() {
    scenario_with(&["a", "b"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let vip = stage.vip()?;
        drop(stage.straight(&stage.web, vip)?);
        let far = stage.s.pod("b", "shop", "far")?;
        let text = objects::pod(&far, &[]).replace("app: far", "app: catalog");
        stage.s.mesh.config().apply("pod-shop-far", &text)?;
        stage.s.mesh.wait_until_enrolled(&far)?;
        let _far = podtool::serve(&far, "far", Serve::Greet, "[::]:8080")?;
        stage.s.mesh.settle()?;
        let mut seen = BTreeSet::new();
        eventually(|| {
            let straight = verdicts(stage.ztunnel())?;
            let held = Held::open(&stage.web, vip)?;
            seen.insert(held.server_sees("local")?.ip());
            ensure!(verdicts(stage.ztunnel())? == straight);
            ensure!(seen.len() == 2, "{seen:?}");
            Ok(())
        })?;
        // By its own address it is no question who is meant.
        drop(stage.straight(&stage.web, stage.direct())?);
        Ok(())
    });
}

/// The setting of a pod, of a namespace, and of a node.
#[test]
fn it_can_be_turned_off() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let config = stage.s.mesh.config();
        let by_tunnel = |client: &Pod| -> Result<()> {
            let straight = verdicts(stage.ztunnel())?;
            for to in stage.addresses()? {
                Held::open(client, to)?.is_alive()?;
            }
            ensure!(verdicts(stage.ztunnel())? == straight, "straight");
            Ok(())
        };
        let held = stage.straight(&stage.web, stage.direct())?;
        let mut other = stage.straight(&stage.batch, stage.direct())?;
        let pod = objects::pod(&stage.web, &[]);
        let off = objects::with_annotation(&pod, ANNOTATION, "\"false\"");
        config.apply("pod-shop-web", &off)?;
        held.is_cut()?;
        by_tunnel(&stage.web)?;
        other.is_alive()?;
        config.apply("pod-shop-web", &pod)?;
        drop(stage.straight(&stage.web, stage.direct())?);

        let namespace = objects::namespace("shop", Some("ambient"));
        let off = objects::with_annotation(&namespace, ANNOTATION, "\"false\"");
        config.apply("namespace-shop", &off)?;
        other.is_cut()?;
        by_tunnel(&stage.batch)
    });
    let options = Options {
        ztunnel: ["--same-node", "false"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    scenario_with(&["a"], options, |s| {
        let stage = Stage::build(s)?;
        for to in stage.addresses()? {
            for _ in 0..3 {
                Held::open(&stage.web, to)?;
            }
        }
        ensure!(verdicts(stage.ztunnel())? == [0.0; 2]);
        Ok(())
    });
}
