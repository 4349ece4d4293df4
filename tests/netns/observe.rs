//! What operators see of connections: lines, counts, spans, and what Prometheus makes of them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sluice_tests::access_log::AccessLine;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario_with};
use sluice_tests::topology::WIRE_V4;
use sluice_tests::{Pod, eventually};

mod filters;
mod kernel_flows;
mod live;
mod prometheus;
mod sockets;
mod spans;

const GREET: u16 = 80;
const SUM: u16 = 81;
const RESET: u16 = 82;
const NOBODY: u16 = 83;
/// Of a server that the mesh does not know.
const OUTSIDE: u16 = 8888;
/// Of a service that nobody is behind.
const EMPTY: &str = "10.96.0.9";

fn options(ztunnel: &[&str]) -> Options {
    Options {
        ztunnel: ztunnel.iter().map(|&one| one.to_owned()).collect(),
        ..Options::default()
    }
}

/// A client on node `a`, a server on node `b`, one outside the mesh, and a client that is not in it.
struct Stage<'a> {
    s: &'a mut Scenario,
    web: Pod,
    old: Pod,
    catalog: Pod,
    _servers: Vec<Process>,
}

impl<'a> Stage<'a> {
    fn build(s: &'a mut Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("legacy", None)?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let catalog = s.enrolled_pod("b", "shop", "catalog")?;
        let old = s.pod("a", "legacy", "old")?;
        s.mesh.apply_service("shop", "empty", EMPTY, &[(80, 80)])?;
        let mut servers = Vec::new();
        for (port, mode) in [
            (GREET, Serve::Greet),
            (SUM, Serve::Sum),
            (RESET, Serve::Reset),
        ] {
            let (name, address) = (format!("catalog-{port}"), format!("[::]:{port}"));
            servers.push(podtool::serve(&catalog, &name, mode, &address)?);
        }
        let (wire, address) = (s.topology.wire(), format!("[::]:{OUTSIDE}"));
        servers.push(podtool::serve(wire, "outside", Serve::Greet, &address)?);
        s.mesh.settle()?;
        Ok(Self {
            s,
            web,
            old,
            catalog,
            _servers: servers,
        })
    }

    fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.catalog.v4().into(), port)
    }

    /// The line of a node about connections through the tunnel to this port.
    fn line(&self, node: &str, port: u16, more: &[(&str, &str)]) -> Result<AccessLine> {
        let to = self.to(port).to_string();
        let message = ("message", "connection complete");
        let fields = [&[("dst.hbone_addr", &*to), message], more].concat();
        self.s.mesh.ztunnel(node).wait_for_access(&fields)
    }

    /// Waits until a node's metric has this value.
    fn counts(&self, node: &str, name: &str, labels: &[(&str, &str)], wanted: f64) -> Result<()> {
        eventually(|| {
            let found = self.s.mesh.ztunnel(node).metric(name, labels)?;
            ensure!(found == wanted, "{name}{labels:?} of {node} is {found}");
            Ok(())
        })
    }

    /// The same for connections that failed at both ends.
    fn failed(&self, causes: [&str; 2]) -> Result<()> {
        for (node, reporter, cause) in [("a", "source", causes[0]), ("b", "destination", causes[1])]
        {
            let labels = [("reporter", reporter), ("cause", cause)];
            self.counts(node, "sluice_failed_connections_total", &labels, 1.0)?;
        }
        Ok(())
    }

    fn policy(&self, spec: &str) -> Result<()> {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: test, namespace: shop}}\nspec: {{{spec}}}\n"
        );
        self.s.mesh.config().apply("policy", &text)?;
        self.s.mesh.settle()
    }
}

#[test]
fn known_connections_have_the_lines_and_counts_that_they_must() {
    scenario_with(&["a", "b"], options(&["--log", "info,access=debug"]), |s| {
        let stage = Stage::build(s)?;
        let gauge = "istio_tcp_sockets_open";
        let ends = [("a", "source"), ("b", "destination")];
        let open = |wanted| -> Result<()> {
            for (node, reporter) in ends {
                stage.counts(node, gauge, &[("reporter", reporter)], wanted)?;
                let tunnelled = [("reporter", reporter), ("state", "tunnelled")];
                stage.counts(node, "sluice_connections", &tunnelled, wanted)?;
            }
            Ok(())
        };

        // Allowed, and cut by a policy.
        let mut held = Connection::open(&stage.web, &stage.to(GREET).to_string())?;
        held.line()?;
        held.exchange("hello")?;
        open(1.0)?;
        let to = stage.to(GREET).to_string();
        for node in ["a", "b"] {
            let opened = [("message", "connection opened"), ("dst.hbone_addr", &*to)];
            let line = stage.s.mesh.ztunnel(node).wait_for_access(&opened)?;
            ensure!(line.level == "debug", "{}", line.text());
            ensure!(line.get("bytes_sent").is_empty(), "{}", line.text());
        }
        stage.policy("action: DENY, rules: [{to: [{operation: {ports: ['80']}}]}]")?;
        ensure!(matches!(held.event(PATIENCE)?, Some(Event::Broken(_))));
        let cut = stage.line("b", GREET, &[("policy", "shop/test")])?;
        ensure!(
            cut.get("error")
                .starts_with("cut, since policy has changed"),
            "{}",
            cut.text()
        );
        stage.failed(["tunnel_broken", "cut"])?;
        open(0.0)?;

        // Denied.
        ensure!(attempt(&stage.web, stage.to(GREET))? == Outcome::Reset);
        stage.failed(["peer_denied", "policy"])?;

        // Half-closed.
        podtool::half_close(&stage.web, &stage.to(SUM).to_string(), 5000)?;
        for node in ["a", "b"] {
            let line = stage.line(node, SUM, &[("bytes_sent", "5000")])?;
            ensure!(
                line.level == "info" && line.get("error").is_empty(),
                "{}",
                line.text()
            );
        }

        // Reset by the application.
        let mut reset = Connection::open(&stage.web, &stage.to(RESET).to_string())?;
        reset.send("hello")?;
        ensure!(matches!(reset.event(PATIENCE)?, Some(Event::Broken(_))));
        for (node, words) in [
            ("a", "the tunnel: "),
            ("b", "the application's connection: "),
        ] {
            let line = stage.line(node, RESET, &[])?;
            ensure!(
                line.level == "error" && line.get("error").starts_with(words),
                "{}",
                line.text()
            );
        }
        let reset = [("reporter", "destination"), ("cause", "reset")];
        stage.counts("b", "sluice_failed_connections_total", &reset, 1.0)?;

        // Nobody listens.
        ensure!(attempt(&stage.web, stage.to(NOBODY))? == Outcome::Reset);
        stage.failed(["peer_refused", "application_unreachable"])?;

        // Nobody is behind the service.
        let empty = SocketAddr::new(EMPTY.parse()?, 80);
        ensure!(attempt(&stage.web, empty)? == Outcome::Reset);
        let cause = [("reporter", "source"), ("cause", "no_endpoint")];
        stage.counts("a", "sluice_failed_connections_total", &cause, 1.0)?;

        // Somebody speaks no TLS to the tunnel's port.
        let mut garbage = Connection::open(&stage.old, &stage.to(15008).to_string())?;
        garbage.send("this is no handshake")?;
        let cause = [("direction", "inbound"), ("cause", "tls")];
        stage.counts("b", "sluice_tunnel_failures_total", &cause, 1.0)?;
        let early = [("message", "connection failed"), ("direction", "inbound")];
        let line = stage.s.mesh.ztunnel("b").wait_for_access(&early)?;
        ensure!(
            line.level == "warn" && line.get("error").starts_with("TLS with the peer"),
            "{}",
            line.text()
        );

        // Straight out of the mesh.
        let outside = SocketAddr::new(WIRE_V4.into(), OUTSIDE);
        eventually(|| {
            ensure!(attempt(&stage.web, outside)? == Outcome::Served);
            let way = [("path", "outside")];
            let ztunnel = stage.s.mesh.ztunnel("a");
            let ended = ztunnel.metric("sluice_flow_connections_total", &way)?;
            ensure!(ended >= 1.0, "the kernel has counted none");
            let rtt = ztunnel.metric("sluice_flow_rtt_seconds_count", &way)?;
            ensure!(rtt == ended, "{rtt} times of {ended} connections");
            let bytes = ztunnel.metric("sluice_flow_received_bytes_total", &way)?;
            ensure!(bytes >= 10.0 * ended, "{bytes} bytes of {ended} greetings");
            Ok(())
        })?;
        // The application's own connections to the ztunnel.
        let captured = stage.s.mesh.ztunnel("a");
        let captured = captured.metric("sluice_flow_connections_total", &[("path", "captured")])?;
        ensure!(captured >= 5.0, "{captured} captured connections");
        Ok(())
    });
}

#[test]
fn lines_come_as_json_and_none_is_lost_at_the_end() {
    scenario_with(&["a", "b"], options(&["--log-format", "json"]), |s| {
        let stage = Stage::build(s)?;
        let (client, to) = (stage.web.v4().to_string(), stage.to(GREET).to_string());
        ensure!(attempt(&stage.web, stage.to(GREET))? == Outcome::Served);
        let opened = [("reporter", "source")];
        stage.counts("a", "istio_tcp_connections_closed_total", &opened, 1.0)?;
        let identity = [stage.web.spiffe_id(), stage.catalog.spiffe_id()];
        let ztunnel = stage.s.mesh.ztunnel_mut("a");
        ztunnel.stop(PATIENCE)?;
        let log = ztunnel.log()?;
        let mut lines = log.lines().map(|line| {
            let line: serde_json::Value =
                serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            for key in ["level", "time", "scope", "message"] {
                ensure!(line[key].is_string(), "no {key}: {line}");
            }
            Ok(line)
        });
        let lines = lines.by_ref().collect::<Result<Vec<_>>>()?;
        let complete = lines.iter().find(|line| line["scope"] == "access");
        let line = complete.context("no line of the access log")?;
        for (key, wanted) in [
            ("level", "info"),
            ("message", "connection complete"),
            ("src.workload", "web"),
            ("src.namespace", "shop"),
            ("src.identity", &identity[0]),
            ("src.cluster", "Kubernetes"),
            ("dst.hbone_addr", &to),
            ("dst.workload", "catalog"),
            ("dst.namespace", "shop"),
            ("dst.identity", &identity[1]),
            ("dst.cluster", "Kubernetes"),
            ("direction", "outbound"),
        ] {
            ensure!(line[key] == wanted, "{key}: {line}");
        }
        let address = line["src.addr"].as_str().unwrap_or_default();
        ensure!(address.starts_with(&format!("{client}:")), "{line}");
        ensure!(line["bytes_sent"] == 0 && line["bytes_recv"].as_u64() > Some(10));
        let duration = line["duration"].as_str().unwrap_or_default();
        let millis = duration.strip_suffix("ms").map(str::parse::<u64>);
        ensure!(matches!(millis, Some(Ok(_))), "{line}");
        ensure!(line.get("error").is_none(), "{line}");
        // The worker's may come after it.
        let withdrawn = lines.iter().any(|line| line["message"] == "pod withdrawn");
        ensure!(withdrawn, "the broker's last line is missing");
        Ok(())
    });
}

#[test]
fn connections_that_end_with_the_ztunnel_are_told_of() {
    scenario_with(&["a", "b"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let to = stage.to(GREET).to_string();
        for stopped in [false, true] {
            let mut held = Vec::new();
            for client in [&stage.web, &stage.old] {
                // After the first round the next worker may not serve yet.
                let mut one = eventually(|| Connection::open(client, &to))?;
                one.line()?;
                one.exchange("hello")?;
                held.push(one);
            }
            let told = |stage: &Stage<'_>| -> Result<usize> {
                let log = stage.s.mesh.ztunnel("b").access_log()?;
                let cut = [
                    ("bytes_sent", "6"),
                    ("error", "cut: this ztunnel has been stopped"),
                ];
                Ok(log.iter().filter(|line| line.has(&cut)).count())
            };
            let before = told(&stage)?;
            if stopped {
                stage.s.mesh.ztunnel_mut("b").stop(PATIENCE)?;
            } else {
                let worker = stage.s.mesh.ztunnel("b").quit_worker()?;
                eventually(|| {
                    ensure!(!worker.is_alive(), "the worker goes on");
                    Ok(())
                })?;
            }
            // Its process has ended, so there is nothing to wait for.
            let lines = told(&stage)? - before;
            ensure!(lines == 2, "{lines} lines of 2 connections");
            for one in held {
                let event = one.event(PATIENCE)?;
                ensure!(matches!(event, Some(Event::Broken(_))), "{event:?}");
            }
        }
        Ok(())
    });
}
