//! Connections between two pods of one node: straight from one to the other, in the kernel.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::mesh::Options;
use sluice_tests::podtool::{self, Connection, Event, Flood, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario_with};
use sluice_tests::ztunnel::Ztunnel;
use sluice_tests::{Pod, eventually, objects};

const PORT: u16 = 8080;
const VIPS: [&str; 2] = ["10.96.0.1", "fd96::1"];
const ANNOTATION: &str = "sluice.io/same-node";

/// Clients and a server on one node; the server is the only endpoint of a service, too.
struct Stage<'a> {
    s: &'a mut Scenario,
    web: Pod,
    batch: Pod,
    server: Pod,
    _serving: Process,
}

impl<'a> Stage<'a> {
    fn build(s: &'a mut Scenario) -> Result<Self> {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        let server = s.enrolled_pod("a", "shop", "catalog")?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        let batch = s.enrolled_pod("a", "shop", "batch")?;
        let text = objects::service_selecting(
            "shop",
            "catalog",
            &VIPS,
            ("app", "catalog"),
            &[(80, "8080")],
        );
        s.mesh.config().apply("service", &text)?;
        let serving = podtool::serve(&server, "catalog", Serve::Greet, "[::]:8080")?;
        s.mesh.settle()?;
        Ok(Self {
            s,
            web,
            batch,
            server,
            _serving: serving,
        })
    }

    fn ztunnel(&self) -> &Ztunnel {
        self.s.mesh.ztunnel("a")
    }

    fn direct(&self) -> SocketAddr {
        SocketAddr::new(self.server.v4().into(), PORT)
    }

    /// The same as an IPv6 socket dials it.
    fn mapped(&self) -> Result<SocketAddr> {
        Ok(format!("[::ffff:{}]:{PORT}", self.server.v4()).parse()?)
    }

    /// The server's own addresses, and the service's.
    fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let mut all: Vec<SocketAddr> = self.server.ips().map(|ip| SocketAddr::new(ip, PORT)).into();
        for vip in VIPS {
            all.push(SocketAddr::new(vip.parse()?, 80));
        }
        Ok(all)
    }

    /// A connection that goes straight, once it may: the first ones go through the tunnel.
    fn straight(&self, client: &Pod, to: SocketAddr) -> Result<Held> {
        eventually(|| {
            let before = verdicts(self.ztunnel())?;
            let held = Held::open(client, to)?;
            let after = verdicts(self.ztunnel())?;
            ensure!(
                after == [before[0] + 1.0, before[1] + 1.0],
                "not straight: {before:?}, then {after:?}"
            );
            Ok(held)
        })
    }

    fn policy(&self, rules: &str) -> Result<()> {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: test, namespace: shop}}\nspec:\n  {rules}\n"
        );
        self.s.mesh.config().apply("policy", &text)
    }
}

/// How many connections the kernel let go straight, and how many it let in.
fn verdicts(ztunnel: &Ztunnel) -> Result<[f64; 2]> {
    let count = |reason| ztunnel.metric("sluice_kernel_verdicts_total", &[("reason", reason)]);
    Ok([count("direct")?, count("from_neighbour")?])
}

/// A connection that has been greeted.
struct Held {
    connection: Connection,
    greeting: String,
}

impl Held {
    fn open(client: &Pod, to: SocketAddr) -> Result<Self> {
        let connection = Connection::open(client, &to.to_string())?;
        let greeting = connection.line()?;
        ensure!(greeting.starts_with("220 "), "{to}: {greeting}");
        Ok(Self {
            connection,
            greeting,
        })
    }

    /// What the server takes for its own end, or for the client.
    fn server_sees(&self, end: &str) -> Result<SocketAddr> {
        let word = self.greeting.split_whitespace().find_map(|word| {
            let (key, value) = word.split_once('=')?;
            (key == end).then_some(value)
        });
        let address: SocketAddr = word.context("no such end")?.parse()?;
        Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    fn is_alive(&mut self) -> Result<()> {
        self.connection.exchange("still there?").map(drop)
    }

    fn is_cut(&self) -> Result<()> {
        match self.connection.event(PATIENCE)? {
            Some(Event::Broken(_)) => Ok(()),
            other => bail!("not cut: {other:?}"),
        }
    }
}

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
        let vip = SocketAddr::new(VIPS[0].parse()?, 80);
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

const ONLY_WEB: &str = "rules: [{from: [{source: {serviceAccounts: [web]}}]}]";

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

/// Exactly what a change forbids is cut; the same in `undo` may go straight again.
fn revoked_by(change: impl Fn(&mut Stage<'_>) -> Result<()>, reason: &str) {
    scenario_with(&["a"], Options::default(), |s| {
        let mut stage = Stage::build(s)?;
        let vip = SocketAddr::new(VIPS[0].parse()?, 80);
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
    });
}

#[test]
fn a_policy_ends_what_goes_straight() {
    revoked_by(
        |stage| {
            stage.policy("action: DENY\n  rules: [{from: [{source: {serviceAccounts: [web]}}]}]")
        },
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
            let forbidden = "action: DENY\n  rules: [{from: [{source: {serviceAccounts: [web]}}]}]";
            stage.policy(forbidden)?;
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

#[test]
fn a_killed_worker_disturbs_nothing_and_its_successor_judges() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let vip = SocketAddr::new(VIPS[0].parse()?, 80);
        let mut held = stage.straight(&stage.web, vip)?;
        let mut other = stage.straight(&stage.batch, stage.direct())?;
        let killed = stage.ztunnel().kill_worker()?;
        // The kernel needs no worker.
        let mut between = Held::open(&stage.web, vip)?;
        between.is_alive()?;
        stage.s.mesh.ztunnel_mut("a").wait_for_successor(killed)?;
        for held in [&mut held, &mut other, &mut between] {
            held.is_alive()?;
        }
        stage.policy("action: DENY\n  rules: [{from: [{source: {serviceAccounts: [web]}}]}]")?;
        held.is_cut()?;
        between.is_cut()?;
        other.is_alive()
    });
}

/// What nobody has judged for 10 s is cut, and comes again when somebody does.
#[test]
fn without_a_worker_nothing_goes_straight_for_long() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let held = stage.straight(&stage.web, stage.direct())?;
        // No worker lives long enough to say anything.
        let begin = Instant::now();
        while held.connection.event(Duration::from_millis(1))?.is_none() {
            let _ = stage.ztunnel().kill_worker();
            ensure!(begin.elapsed() < PATIENCE, "it is not cut");
        }
        ensure!(begin.elapsed() > Duration::from_secs(9), "cut too soon");
        stage.s.mesh.ztunnel_mut("a").wait_until_ready()?;
        drop(stage.straight(&stage.web, stage.direct())?);
        Ok(())
    });
}

/// Nobody is let go straight on the word of a broker that is gone, and the next one ends what it
/// has not judged.
#[test]
fn a_broker_that_is_gone_vouches_for_nobody() {
    scenario_with(&["a"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let held = stage.straight(&stage.web, stage.direct())?;
        let ztunnel = stage.s.mesh.ztunnel_mut("a");
        ztunnel.kill_broker()?;
        ztunnel.broker().wait(PATIENCE)?;
        eventually(|| {
            let greeted = Connection::open(&stage.web, &stage.direct().to_string());
            ensure!(greeted.is_err(), "still let go");
            Ok(())
        })?;
        stage.s.mesh.ztunnel_mut("a").restart()?;
        held.is_cut()?;
        drop(stage.straight(&stage.web, stage.direct())?);
        // One that is stopped takes them along.
        let held = stage.straight(&stage.web, stage.direct())?;
        stage.s.mesh.ztunnel_mut("a").stop(PATIENCE)?;
        held.is_cut()
    });
}

/// Where the mesh has a choice, it is the mesh that chooses.
#[test]
fn a_service_with_several_endpoints_is_left_to_the_ztunnel() {
    scenario_with(&["a", "b"], Options::default(), |s| {
        let stage = Stage::build(s)?;
        let vip = SocketAddr::new(VIPS[0].parse()?, 80);
        drop(stage.straight(&stage.web, vip)?);
        let far = stage.s.pod("b", "shop", "far")?;
        let text = objects::pod(&far, &[]).replace("app: far", "app: catalog");
        stage.s.mesh.config().apply("pod-shop-far", &text)?;
        stage.s.mesh.wait_until_enrolled(&far)?;
        let _far = podtool::serve(&far, "far", Serve::Greet, "[::]:8080")?;
        stage.s.mesh.settle()?;
        let mut seen = std::collections::BTreeSet::new();
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
