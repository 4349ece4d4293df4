//! What is not the mesh's business: it goes straight out, and is told of all the same.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::scenario::{scenario, scenario_with};
use sluice_tests::topology::WIRE_V4;
use sluice_tests::ztunnel::Ztunnel;
use sluice_tests::{Pod, eventually, objects};

use super::egress::{OUTSIDE, PORT, Stage, external, greeted};

const ANNOTATION: &str = "sluice.io/bypass";

impl Stage<'_> {
    fn ztunnel(&self) -> &Ztunnel {
        self.s.mesh.ztunnel("a")
    }

    fn outside(&self) -> [SocketAddr; 2] {
        OUTSIDE.map(|ip| SocketAddr::new(ip, PORT))
    }

    /// Where a connection goes: what the kernel let go, and what it captured.
    fn goes(&self, client: &Pod, to: SocketAddr) -> Result<[f64; 2]> {
        let before = verdicts(self.ztunnel())?;
        greeted(client, to)?;
        let after = verdicts(self.ztunnel())?;
        Ok([after[0] - before[0], after[1] - before[1]])
    }

    fn straight(&self, client: &Pod, to: SocketAddr) -> Result<()> {
        let goes = self.goes(client, to)?;
        ensure!(goes == [1.0, 0.0], "{to} is captured: {goes:?}");
        Ok(())
    }

    fn captured(&self, client: &Pod, to: SocketAddr) -> Result<()> {
        let goes = self.goes(client, to)?;
        ensure!(goes == [0.0, 1.0], "{to} is not captured: {goes:?}");
        Ok(())
    }

    /// Waits until the worker has told where the client may go.
    fn settled(&self, client: &Pod) -> Result<()> {
        eventually(|| self.straight(client, self.outside()[0]))
    }
}

/// How many connections the kernel let go out of the mesh, and how many it captured.
fn verdicts(ztunnel: &Ztunnel) -> Result<[f64; 2]> {
    let count = |reason| ztunnel.metric("sluice_kernel_verdicts_total", &[("reason", reason)]);
    Ok([count("outside")?, count("captured")?])
}

#[test]
fn what_the_mesh_does_not_know_goes_straight_and_is_told_of() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.settled(&stage.client)?;
        let mut all = stage.outside().to_vec();
        all.push(format!("[::ffff:{WIRE_V4}]:{PORT}").parse()?);
        for to in all {
            stage.straight(&stage.client, to)?;
            let mut held = Connection::open(&stage.client, &to.to_string())?;
            let greeting = held.line()?;
            ensure!(held.peer.parse::<SocketAddr>()? == to, "{}", held.peer);
            let local: SocketAddr = held.local.parse()?;
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            ensure!(stage.client.ips().contains(&local.ip()), "{local}");
            let answer = held.exchange("hello")?;
            let bye = held.exchange("QUIT")?;
            ensure!(held.event(PATIENCE)? == Some(Event::Eof));
            drop(held);
            let lines = [&greeting, &answer, &bye];
            let received: usize = lines.map(|line| line.len() + "\r\n".len()).iter().sum();
            let line = stage
                .ztunnel()
                .wait_for_access(&[("src.addr", &local.to_string())])?;
            let to = SocketAddr::new(to.ip().to_canonical(), to.port());
            let wanted = [
                ("path", "kernel"),
                ("direction", "outbound"),
                ("src.workload", "web"),
                ("src.namespace", "shop"),
                ("src.identity", ""),
                ("dst.addr", &*to.to_string()),
                ("dst.workload", ""),
                ("dst.service", ""),
                ("bytes_sent", "11"),
                ("bytes_recv", &*received.to_string()),
                ("error", ""),
            ];
            ensure!(line.has(&wanted), "{}", line.text());
        }
        let labels = [
            ("reporter", "source"),
            ("source_workload", "web"),
            ("destination_workload", "unknown"),
            ("connection_security_policy", "unknown"),
        ];
        let metric = |name| stage.ztunnel().metric(name, &labels);
        eventually(|| {
            let (opened, closed) = (
                metric("istio_tcp_connections_opened_total")?,
                metric("istio_tcp_connections_closed_total")?,
            );
            ensure!(opened >= 7.0 && opened == closed, "{opened}, {closed}");
            let received = metric("istio_tcp_received_bytes_total")?;
            ensure!(received == 33.0, "{received}");
            Ok(())
        })?;
        // What nobody answers is told as well, and its socket may dial again.
        let closed = SocketAddr::new(OUTSIDE[0], 9);
        ensure!(Connection::open(&stage.client, &closed.to_string()).is_err());
        stage.ztunnel().wait_for_access(&[
            ("path", "kernel"),
            (
                "error",
                &format!(
                    "connect to {closed}: refused, or no answer; does the application listen there?"
                ),
            ),
        ])?;
        // The mesh's business is captured as before.
        for to in stage.known()? {
            stage.captured(&stage.client, to)?;
        }
        Ok(())
    });
}

#[test]
fn what_joins_the_mesh_is_captured_from_then_on() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.settled(&stage.client)?;
        let [v4, v6] = stage.outside();
        let config = stage.s.mesh.config();
        config.apply("external", &external("10.96.0.9".parse()?))?;
        eventually(|| stage.captured(&stage.client, v4))?;
        stage.captured(&stage.client, "10.96.0.9:80".parse()?)?;
        stage.straight(&stage.client, v6)?;
        config.apply(
            "range",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                 metadata: {{name: outside, namespace: shop}}\n\
                 spec: {{hosts: [outside.example], addresses: [\"{}/64\"], resolution: NONE, \
                 ports: [{{number: {PORT}, name: tcp, protocol: TCP}}]}}\n",
                v6.ip()
            ),
        )?;
        eventually(|| stage.captured(&stage.client, v6))?;
        config.delete("external")?;
        eventually(|| stage.straight(&stage.client, v4))?;
        stage.captured(&stage.client, v6)?;

        // A pod that is enrolled is reached by a tunnel as soon as the node knows of it.
        let late = stage.s.enrolled_pod("b", "shop", "late")?;
        let _late = podtool::serve(&late, "late", Serve::Greet, "[::]:8080")?;
        let address = SocketAddr::new(late.v4().into(), 8080);
        eventually(|| stage.captured(&stage.client, address))?;
        let line = stage
            .ztunnel()
            .wait_for_access(&[("dst.workload", "late"), ("direction", "outbound")])?;
        ensure!(
            line.has(&[("dst.identity", &late.spiffe_id())]),
            "{}",
            line.text()
        );
        Ok(())
    });
}

/// The setting of a pod, of a namespace, and of a node.
#[test]
fn it_can_be_turned_off() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.settled(&stage.client)?;
        let config = stage.s.mesh.config();
        let [v4, v6] = stage.outside();
        let pod = objects::pod(&stage.client, &[]);
        let off = objects::with_annotation(&pod, ANNOTATION, "\"false\"");
        config.apply("pod-shop-web", &off)?;
        eventually(|| stage.captured(&stage.client, v4))?;
        stage.captured(&stage.client, v6)?;
        config.apply("pod-shop-web", &pod)?;
        stage.settled(&stage.client)?;
        let namespace = objects::namespace("shop", Some("ambient"));
        let off = objects::with_annotation(&namespace, ANNOTATION, "\"false\"");
        config.apply("namespace-shop", &off)?;
        eventually(|| stage.captured(&stage.client, v4))
    });
    let options = Options {
        ztunnel: ["--bypass", "false"].map(str::to_owned).to_vec(),
        ..Options::default()
    };
    scenario_with(&["a", "b"], options, |s| {
        let stage = Stage::build(s)?;
        for to in stage.outside() {
            stage.captured(&stage.client, to)?;
        }
        ensure!(verdicts(stage.ztunnel())?[0] == 0.0);
        Ok(())
    });
}

/// For how long nobody may tell of changes, and a little more.
const ORPHANED: Duration = Duration::from_secs(14);

#[test]
fn it_needs_no_worker_but_not_for_long() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        stage.settled(&stage.client)?;
        let [v4, _] = stage.outside();
        let (client, before) = (&stage.client, verdicts(stage.ztunnel())?);
        let killed = stage.ztunnel().kill_worker()?;
        greeted(client, v4)?;
        stage.s.mesh.ztunnel_mut("a").wait_for_successor(killed)?;
        stage.s.mesh.ztunnel_mut("a").wait_until_ready()?;
        let after = verdicts(stage.ztunnel())?;
        ensure!(
            after == [before[0] + 1.0, before[1]],
            "{before:?}, {after:?}"
        );

        // No worker lives long enough to say anything.
        let begin = Instant::now();
        while begin.elapsed() < ORPHANED {
            let _ = stage.ztunnel().kill_worker();
            std::thread::sleep(Duration::from_millis(1));
        }
        let waiting = Connection::open(client, &v4.to_string())?;
        stage.s.mesh.ztunnel_mut("a").wait_until_ready()?;
        waiting.line()?;
        let last = verdicts(stage.ztunnel())?;
        ensure!(last == [after[0], after[1] + 1.0], "{after:?}, {last:?}");
        stage.settled(&stage.client)?;

        // A broker that is gone vouches for nothing.
        let ztunnel = stage.s.mesh.ztunnel_mut("a");
        ztunnel.kill_broker()?;
        ztunnel.broker().wait(PATIENCE)?;
        greeted(&stage.client, v4)?;
        eventually(|| {
            let connected = Connection::open(&stage.client, &v4.to_string());
            ensure!(connected.is_err(), "still let go");
            Ok(())
        })?;
        stage.s.mesh.ztunnel_mut("a").restart()?;
        stage.settled(&stage.client)
    });
}
