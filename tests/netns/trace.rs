//! What `sluicectl trace flows` tells of connections that are known.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario, scenario_with};
use sluice_tests::topology::WIRE_V4;
use sluice_tests::{Pod, eventually, objects};

use crate::drift::Held;

/// Somebody who traces a node.
struct Tracer {
    process: Process,
}

/// A step that is expected: its name, and what some of its fields contain.
type Wanted<'a> = (&'a str, &'a [(&'a str, &'a str)]);

impl Tracer {
    fn start(s: &Scenario, node: &str, verb: &str, arguments: &[&str]) -> Result<Self> {
        let ztunnel = s.mesh.ztunnel(node);
        let mut command = ztunnel.trace_command(verb, &["--json"])?;
        command.args(arguments);
        let name = format!("trace-{node}-{verb}");
        let process = Process::start(&ztunnel.node().run, &name, command)?;
        eventually(|| {
            ensure!(
                process.log()?.contains("following"),
                "nobody follows: {}",
                process.log()?
            );
            // The kernel tells of connections only when it is asked to.
            let config = ztunnel
                .trace("maps", &["CONFIG", "-o", "json"])?
                .success()?;
            let config: Value = serde_json::from_str(&config)?;
            let entries = config[0]["entries"].as_array().context("no entries")?;
            let on = entries
                .iter()
                .any(|entry| entry["key"] == "events" && entry["value"] == "1");
            ensure!(on, "the kernel tells nothing: {config}");
            Ok(())
        })?;
        Ok(Self { process })
    }

    fn steps(&self) -> Result<Vec<Value>> {
        let log = self.process.log()?;
        Ok(log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// Waits until the steps of one connection are these among others, in this order; returns all of its.
    fn expect(&self, wanted: &[Wanted<'_>]) -> Result<Vec<Value>> {
        eventually(|| {
            let steps = self.steps()?;
            let number = |step: &Value| step["connection"].as_u64().unwrap_or_default();
            let numbers: BTreeSet<u64> = steps.iter().map(number).collect();
            for one in numbers {
                let own: Vec<&Value> = steps.iter().filter(|step| number(step) == one).collect();
                let mut rest = own.iter();
                if wanted
                    .iter()
                    .all(|wanted| rest.any(|step| is(step, *wanted)))
                {
                    return Ok(own.into_iter().cloned().collect());
                }
            }
            let all: String = steps.iter().map(|step| format!("{step}\n")).collect();
            anyhow::bail!("no connection has the steps {wanted:?}:\n{all}")
        })
    }
}

fn is(step: &Value, (name, fields): Wanted<'_>) -> bool {
    let has = |(field, wanted): &(&str, &str)| match &step[*field] {
        Value::Null => false,
        Value::String(text) => text.contains(wanted),
        other => *wanted == other.to_string().as_str(),
    };
    step["step"] == name && fields.iter().all(has)
}

/// A client on node `a`, and a server behind a service on node `b`, and who traces both nodes.
struct Stage {
    client: Pod,
    server: Pod,
    a: Tracer,
    b: Tracer,
    _servers: Vec<Process>,
}

const SERVICE: &str = "catalog.shop.svc.cluster.local";
const VIP: &str = "10.96.0.1:80";

impl Stage {
    fn build(s: &Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let ports = [(80, "8080")];
        let vips = ["10.96.0.1", "fd96::1"];
        let text = objects::service_selecting("shop", "catalog", &vips, ("app", "catalog"), &ports);
        s.mesh.config().apply("service", &text)?;
        let servers = vec![
            podtool::serve(&server, "greet", Serve::Greet, "[::]:8080")?,
            podtool::serve(&server, "sum", Serve::Sum, "[::]:8081")?,
            podtool::serve(s.topology.wire(), "outside", Serve::Greet, "[::]:8888")?,
        ];
        s.mesh.settle()?;
        Ok(Self {
            a: Tracer::start(s, "a", "flows", &[])?,
            b: Tracer::start(s, "b", "flows", &[])?,
            client,
            server,
            _servers: servers,
        })
    }

    fn server(&self, port: u16) -> String {
        SocketAddr::from((self.server.v4(), port)).to_string()
    }

    fn greeted(&self, to: &str) -> Result<()> {
        let mut connection = Connection::open(&self.client, to)?;
        connection.line()?;
        connection.exchange("hello")?;
        connection.exchange("QUIT")?;
        ensure!(connection.event(PATIENCE)? == Some(Event::Eof));
        Ok(())
    }
}

#[test]
fn every_step_of_a_connection_through_a_tunnel_is_told() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let (web, catalog) = (stage.client.spiffe_id(), stage.server.spiffe_id());
        // Each thread has a tunnel of its own: after some connections one of them is used again.
        const CONNECTIONS: usize = 8;
        for _ in 0..CONNECTIONS {
            stage.greeted(VIP)?;
        }
        for tunnel in ["new", "reused"] {
            let sealed: Wanted<'_> = (
                "tunnel",
                &[
                    ("tunnel", tunnel),
                    ("tls", "TLSv1_3"),
                    ("cipher", "AES_"),
                    ("group", "X25519MLKEM768"),
                    ("sourceIdentity", &web),
                    ("destinationIdentity", &catalog),
                ],
            );
            let to = stage.server(8080);
            stage.a.expect(&[
                (
                    "connect",
                    &[
                        ("verdict", "captured"),
                        ("pod", "shop/web"),
                        ("destination", VIP),
                    ],
                ),
                ("accept", &[("destination", VIP), ("direction", "outbound")]),
                (
                    "destination",
                    &[
                        ("service", SERVICE),
                        ("peer", "shop/catalog"),
                        ("authority", &to),
                    ],
                ),
                sealed,
                ("open", &[]),
                (
                    "end",
                    &[("verdict", "ok"), ("bytesSent", "11"), ("service", SERVICE)],
                ),
            ])?;
        }
        // As the kernel sees the application's socket.
        stage.a.expect(&[
            ("connect", &[("verdict", "captured")]),
            ("close", &[("retransmits", "0"), ("pod", "shop/web")]),
        ])?;
        stage.b.expect(&[
            (
                "accept",
                &[
                    ("reason", "in a tunnel"),
                    ("group", "X25519MLKEM768"),
                    ("sourceIdentity", &web),
                    ("pod", "shop/catalog"),
                ],
            ),
            ("policy", &[("verdict", "allowed")]),
            ("destination", &[("reason", "application")]),
            ("open", &[]),
            (
                "end",
                &[
                    ("verdict", "ok"),
                    ("bytesSent", "11"),
                    ("direction", "inbound"),
                ],
            ),
        ])?;

        // What has ended is remembered for those who come later, and can be chosen from.
        let since = ["--since", "5m", "--no-follow", "--json"];
        let past = |more: &[&str]| -> Result<usize> {
            let arguments = [&since[..], more].concat();
            let text = s.mesh.ztunnel("a").trace("flows", &arguments)?.success()?;
            let steps = text
                .lines()
                .map(serde_json::from_str)
                .collect::<Result<Vec<Value>, _>>()?;
            ensure!(steps.iter().all(|step| is(step, ("end", &[]))), "{text}");
            Ok(steps.len())
        };
        ensure!(past(&["--service", "catalog", "--port", "8080"])? == CONNECTIONS);
        ensure!(
            past(&[
                "--pod",
                "shop/web",
                "--namespace",
                "shop",
                "--verdict",
                "ok"
            ])? == CONNECTIONS
        );
        ensure!(past(&["--verdict", "denied"])? == 0 && past(&["--pod", "nobody"])? == 0);
        // For people, without colour where nobody looks.
        let lines = s.mesh.ztunnel("a").trace("flows", &since[..3])?.success()?;
        ensure!(
            lines.contains(SERVICE) && !lines.contains('\x1b'),
            "{lines}"
        );
        let lines = s.mesh.ztunnel("a").trace(
            "flows",
            &["--since", "5m", "--no-follow", "--color", "always"],
        )?;
        ensure!(lines.success()?.contains("\x1b["));
        Ok(())
    });
}

#[test]
fn what_ends_badly_says_why() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        // Half-closed: all is well.
        podtool::half_close(&stage.client, &stage.server(8081), 100_000)?;
        stage.a.expect(&[
            ("open", &[]),
            ("end", &[("verdict", "ok"), ("bytesSent", "100000")]),
        ])?;
        // Reset by the client.
        let mut reset = Connection::open_with(&stage.client, VIP, &["--end", "reset"])?;
        reset.line()?;
        reset.finish_sending();
        stage.a.expect(&[
            ("connect", &[("verdict", "captured")]),
            ("open", &[]),
            ("end", &[("verdict", "failed"), ("reason", "application")]),
        ])?;
        // Cut by a change of policy.
        let held = Connection::open(&stage.client, VIP)?;
        held.line()?;
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                      metadata: {name: test, namespace: shop}\n\
                      spec: {action: DENY, rules: [{to: [{operation: {ports: ['8080']}}]}]}\n";
        s.mesh.config().apply("policy", policy)?;
        stage.b.expect(&[
            ("policy", &[("verdict", "allowed")]),
            (
                "end",
                &[
                    ("verdict", "denied"),
                    ("reason", "cut, since policy has changed"),
                ],
            ),
        ])?;
        // Denied by a rule.
        let refused = Connection::open(&stage.client, VIP)?;
        ensure!(matches!(refused.event(PATIENCE)?, Some(Event::Broken(_))));
        stage.b.expect(&[
            ("accept", &[("reason", "in a tunnel")]),
            (
                "policy",
                &[
                    ("verdict", "denied"),
                    ("policy", "shop/test"),
                    ("rule", "0"),
                ],
            ),
            (
                "end",
                &[
                    ("verdict", "denied"),
                    ("reason", "denied by policy shop/test, rule 0"),
                ],
            ),
        ])?;
        stage
            .a
            .expect(&[
                ("tunnel", &[("tunnel", "reused")]),
                ("end", &[("verdict", "failed")]),
            ])
            .or_else(|_| {
                stage.a.expect(&[
                    ("connect", &[("verdict", "captured")]),
                    ("destination", &[("peer", "shop/catalog")]),
                    ("end", &[("verdict", "failed"), ("reason", "401")]),
                ])
            })?;
        // No TLS: whoever dials the tunnel's port must prove itself.
        s.mesh.apply_namespace("legacy", None)?;
        let stranger = s.pod("b", "legacy", "stranger")?;
        let mut garbage = Connection::open(&stranger, &stage.server(15008))?;
        garbage.send("this is no TLS")?;
        stage
            .b
            .expect(&[("end", &[("verdict", "failed"), ("reason", "TLS")])])?;
        // Plaintext is judged too.
        let plain = Connection::open(&stranger, &stage.server(8080))?;
        ensure!(matches!(plain.event(PATIENCE)?, Some(Event::Broken(_))));
        stage.b.expect(&[
            ("arrive", &[("verdict", "steered"), ("pod", "shop/catalog")]),
            ("accept", &[("reason", "without a tunnel")]),
            ("policy", &[("verdict", "denied")]),
            ("end", &[("verdict", "denied")]),
        ])?;
        Ok(())
    });
}

#[test]
fn what_the_kernel_lets_go_or_refuses_is_told() {
    scenario(|s| {
        let stage = Stage::build(s)?;
        let outside = format!("{WIRE_V4}:8888");
        eventually(|| {
            stage.greeted(&outside)?;
            let steps = stage.a.steps()?;
            let gone = steps
                .iter()
                .any(|step| is(step, ("connect", &[("verdict", "outside")])));
            ensure!(gone, "it is captured yet");
            Ok(())
        })?;
        stage.a.expect(&[
            (
                "connect",
                &[
                    ("verdict", "outside"),
                    ("pod", "shop/web"),
                    ("destination", &outside),
                ],
            ),
            ("close", &[("retransmits", "0")]),
        ])?;
        stage.a.expect(&[
            ("connect", &[("verdict", "outside")]),
            (
                "end",
                &[
                    ("verdict", "ok"),
                    ("bytesSent", "11"),
                    ("reason", "path kernel"),
                ],
            ),
        ])?;
        let kernel = Tracer::start(s, "a", "kernel", &[])?;
        stage.greeted(&outside)?;
        let told = kernel.expect(&[
            (
                "kernel",
                &[
                    ("verdict", "outside"),
                    ("reason", "Connect"),
                    ("destination", &outside),
                ],
            ),
            ("kernel", &[("reason", "OutsideOpen")]),
            // What was sent, the SYN and the FIN.
            (
                "kernel",
                &[("reason", "OutsideClose"), ("bytesAcked", "13")],
            ),
        ])?;
        for event in told {
            let name = event["reason"].as_str().unwrap_or_default();
            let ended = name.starts_with("OutsideClose");
            for counter in ["bytesAcked", "bytesReceived"] {
                ensure!(event[counter].is_null() != ended, "{counter}: {event}");
            }
            ensure!(event["bytesSent"].is_null(), "{event}");
            let bound = !name.starts_with("Connect");
            ensure!(event["client"].is_null() != bound, "{event}");
        }
        // It may go only to what the mesh knows.
        let pod = objects::pod(&stage.client, &[]);
        let annotation = "sluice.io/outbound-traffic-policy";
        let restricted = objects::with_annotation(&pod, annotation, "REGISTRY_ONLY");
        s.mesh.config().apply("pod-shop-web", &restricted)?;
        eventually(|| {
            ensure!(
                Connection::open(&stage.client, &outside).is_err(),
                "it may still go there"
            );
            Ok(())
        })?;
        stage.a.expect(&[(
            "connect",
            &[("verdict", "not_in_registry"), ("reason", "REGISTRY_ONLY")],
        )])?;

        // When nobody traces, the kernel is silent.
        drop((stage.a, kernel));
        eventually(|| {
            let config = s.mesh.ztunnel("a").trace("maps", &["CONFIG"])?.success()?;
            let off = config.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some("events") && words.next() == Some("0")
            });
            ensure!(off, "{config}");
            Ok(())
        })
    });
}

#[test]
fn what_programs_log_is_told_to_whoever_traces_the_kernel() {
    let options = Options {
        ztunnel: vec!["--bpf-log".to_owned()],
        ..Options::default()
    };
    scenario_with(&["a"], options, |s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let kernel = Tracer::start(s, "a", "kernel", &[])?;
        let refused = Connection::open(&client, &format!("{WIRE_V4}:8889"));
        ensure!(refused.is_err(), "somebody listens");
        kernel.expect(&[("kernel", &[("reason", "port 8889 reason")])])?;
        Ok(())
    });
}

/// A reader that does not keep up learns how much it has missed.
#[test]
fn events_that_nobody_could_take_are_counted() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let client = s.enrolled_pod("a", "shop", "web")?;
        let kernel = Tracer::start(s, "a", "kernel", &[])?;
        // The ring has room for some 4,000.
        const KNOCKS: u32 = 20_000;
        let nowhere = "198.51.100.1:9";
        let route = "route replace unreachable 198.51.100.1/32\n";
        client.netns.ip_batch(route)?;
        eventually(|| podtool::knock(&client, nowhere, 1).context("it is captured yet"))?;
        let broker = Held::hold(s.mesh.ztunnel("a").broker_pid())?;
        podtool::knock(&client, nowhere, KNOCKS)?;
        drop(broker);
        eventually(|| {
            let steps = kernel.steps()?;
            let lost = steps.iter().filter_map(|step| step["lost"].as_u64());
            let lost: u64 = lost.sum();
            let told = steps
                .iter()
                .filter(|step| is(step, ("kernel", &[("destination", nowhere)])))
                .count() as u64;
            ensure!(
                told > 0 && lost > 0 && told + lost >= u64::from(KNOCKS),
                "{told} events told, {lost} lost"
            );
            Ok(())
        })
    });
}

#[test]
fn who_cannot_ask_is_told_so() {
    scenario(|s| {
        let program = s.topology.run().binaries().sluicectl()?;
        let nobody = ["trace", "flows", "--admin", "127.0.0.1:9", "--for", "5s"];
        let output = Command::new(program).args(nobody).output()?;
        ensure!(output.status.code() == Some(2), "{:?}", output.status);
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("nobody answers at 127.0.0.1:9"), "{said}");
        Ok(())
    });
}
