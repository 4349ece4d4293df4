//! Envoy at the other end of a tunnel: a peer that nobody here wrote, as server and as client.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, PodSpec, eventually, objects};

use crate::stranger::Authority;

/// What Envoy calls itself.
const ENVOY: &str = "spiffe://cluster.local/ns/peers/sa/envoy";
const HTTP2: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Where Envoy, as a client, takes connections from applications; one port for each of the server's.
const ENTRANCES: [(u16, u16); 5] = [
    (9080, ECHO),
    (9081, SUM),
    (9082, GREET),
    (9083, HANGUP),
    (9084, RESET),
];
/// The ports of the applications, and one where there is none.
const ECHO: u16 = 80;
const SUM: u16 = 81;
const GREET: u16 = 82;
const HANGUP: u16 = 83;
const RESET: u16 = 84;
const NOBODY: u16 = 89;

/// The files that Envoy proves itself with.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

impl Files {
    /// A certificate of the mesh's own authority.
    fn issue(s: &Scenario) -> Result<Self> {
        let credentials = Authority::of_mesh(s.mesh.state())?.issue(ENVOY)?;
        let directory = s.topology.run().dir();
        let files = Self {
            certificate: directory.join("envoy-cert.pem"),
            key: directory.join("envoy-key.pem"),
            root: s.mesh.state().join("root-cert.pem"),
        };
        fs::write(&files.certificate, credentials.certificate_pem())?;
        fs::write(&files.key, credentials.key_pem())?;
        Ok(files)
    }

    /// TLS with exactly this peer.
    fn tls(&self, peer: &str) -> Value {
        let file = |path: &Path| json!({ "filename": path });
        json!({
            "alpn_protocols": ["h2"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [{
                "certificate_chain": file(&self.certificate),
                "private_key": file(&self.key),
            }],
            "validation_context": {
                "trusted_ca": file(&self.root),
                "match_typed_subject_alt_names": [
                    { "san_type": "URI", "matcher": { "exact": peer } },
                ],
            },
        })
    }
}

fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{name}").into();
    config
}

fn address(ip: Ipv4Addr, port: u16) -> Value {
    json!({ "socket_address": { "address": ip, "port_value": port } })
}

fn cluster(name: &str, ip: Ipv4Addr, port: u16) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(ip, port) } });
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [endpoint] }],
        },
    })
}

fn start(pod: &Pod, name: &str, listeners: &[Value], clusters: &[Value]) -> Result<Process> {
    let config = json!({ "static_resources": { "listeners": listeners, "clusters": clusters } });
    let file = pod.run.dir().join(format!("{name}.json"));
    fs::write(&file, format!("{config:#}"))?;
    let mut command = pod.command(pod.run.binaries().envoy()?);
    command.args(["--disable-hot-restart", "--concurrency", "1"]);
    command.args(["--log-level", "warning", "--config-path"]);
    command.arg(&file);
    Process::start(&pod.run, name, command)
}

fn wait_for_listener(pod: &Pod, port: u16, envoy: &mut Process) -> Result<()> {
    eventually(|| {
        envoy.check()?;
        ensure!(pod.netns.has_listener(port)?, "Envoy does not listen");
        Ok(())
    })
}

/// Ends tunnels and connects to the application of its pod that they ask for.
fn server(pod: &Pod, files: &Files, peer: &str) -> Result<Process> {
    let hosts = ENTRANCES.map(|(_, port)| {
        json!({
            "name": format!("app-{port}"),
            "domains": [format!("{}:{port}", pod.v4())],
            "routes": [{
                "match": { "connect_matcher": {} },
                "route": {
                    "cluster": format!("app-{port}"),
                    "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
                },
            }],
        })
    });
    let log = json!({
        "name": "stdout",
        "typed_config": typed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", json!({
            "log_format": { "text_format_source": {
                "inline_string":
                    "stream peer=%DOWNSTREAM_PEER_URI_SAN% authority=%REQ(:AUTHORITY)% \
                     forwarded=%REQ(FORWARDED)% baggage=%REQ(BAGGAGE)% code=%RESPONSE_CODE%\n",
            } },
        })),
    });
    let router = typed("envoy.extensions.filters.http.router.v3.Router", json!({}));
    let manager =
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let manager = typed(
        manager,
        json!({
            "stat_prefix": "tunnels",
            "codec_type": "HTTP2",
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "route_config": { "virtual_hosts": hosts },
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": router }],
            "access_log": [log],
            "stream_idle_timeout": "0s",
        }),
    );
    let tls = typed(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({ "common_tls_context": files.tls(peer), "require_client_certificate": true }),
    );
    let listener = json!({
        "name": "tunnels",
        "address": address(pod.v4(), 15008),
        "filter_chains": [{
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }],
            "transport_socket": { "name": "tls", "typed_config": tls },
        }],
    });
    let apps = ENTRANCES.map(|(_, port)| cluster(&format!("app-{port}"), pod.v4(), port));
    let mut envoy = start(pod, "envoy-server", &[listener], &apps)?;
    wait_for_listener(pod, 15008, &mut envoy)?;
    Ok(envoy)
}

/// Takes connections from applications of its pod and carries them through a tunnel to `to`.
fn client(pod: &Pod, files: &Files, to: &Pod) -> Result<Process> {
    let listeners = ENTRANCES.map(|(entrance, port)| {
        let proxy = typed(
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            json!({
                "stat_prefix": "app",
                "cluster": "tunnel",
                "tunneling_config": { "hostname": format!("{}:{port}", to.v4()) },
            }),
        );
        json!({
            "name": format!("app-{port}"),
            "address": address(Ipv4Addr::LOCALHOST, entrance),
            "filter_chains": [{
                "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy }],
            }],
        })
    });
    let tls = typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({ "common_tls_context": files.tls(&to.spiffe_id()) }),
    );
    let mut tunnel = cluster("tunnel", to.v4(), 15008);
    tunnel["transport_socket"] = json!({ "name": "tls", "typed_config": tls });
    tunnel["typed_extension_protocol_options"] = json!({
        HTTP2: typed(HTTP2, json!({ "explicit_http_config": { "http2_protocol_options": {} } })),
    });
    let mut envoy = start(pod, "envoy-client", &listeners, &[tunnel])?;
    for (entrance, _) in ENTRANCES {
        wait_for_listener(pod, entrance, &mut envoy)?;
    }
    Ok(envoy)
}

/// What runs on the server's ports.
struct Applications {
    echo: Process,
    hangup: Process,
    _others: [Process; 3],
}

impl Applications {
    fn start(pod: &Pod) -> Result<Self> {
        let serve = |name, mode, port| podtool::serve(pod, name, mode, &format!("[::]:{port}"));
        Ok(Self {
            echo: serve("echo", Serve::Echo, ECHO)?,
            hangup: serve("hangup", Serve::Hangup, HANGUP)?,
            _others: [
                serve("sum", Serve::Sum, SUM)?,
                serve("greet", Serve::Greet, GREET)?,
                serve("reset", Serve::Reset, RESET)?,
            ],
        })
    }
}

/// Waits until a server's log has a line that begins and ends so.
fn wait_for_line(process: &Process, begin: &str, end: &str) -> Result<()> {
    eventually(|| {
        let log = process.log()?;
        let seen = log
            .lines()
            .any(|l| l.starts_with(begin) && l.ends_with(end));
        ensure!(seen, "no line {begin}…{end} in {log}");
        Ok(())
    })
}

/// What a transfer carries.
const BYTES: u64 = 50_000_000;

/// Bytes both ways, a client that ends first, a server that speaks first, resets, and many connections. `at`
/// is where the client finds the application of a port.
fn exercise(client: &Pod, at: impl Fn(u16) -> String, apps: &Applications) -> Result<()> {
    let report = podtool::half_close(client, &at(ECHO), BYTES)?;
    ensure!(
        report["end"] == "eof"
            && report["received"] == BYTES
            && report["sent_checksum"] == report["received_checksum"],
        "echo: {report}"
    );
    let report = podtool::half_close(client, &at(SUM), BYTES)?;
    let sent = report["sent_checksum"].as_str().unwrap_or_default();
    let wanted = format!("sum {BYTES} {sent}");
    ensure!(
        report["end"] == "eof" && report["tail"] == wanted.as_str(),
        "sum: {report}"
    );
    let mut connection = Connection::open(client, &at(GREET))?;
    let greeting = connection.line()?;
    ensure!(greeting.starts_with("220 "), "{greeting}");
    ensure!(connection.exchange("hello")? == "250 hello");
    drop(connection);

    // A connection that breaks at one end does so at the other; Envoy may make an end of it.
    let mut connection = Connection::open(client, &at(RESET))?;
    connection.send("go away")?;
    let event = connection.event(PATIENCE)?;
    ensure!(
        matches!(event, Some(Event::Broken(_) | Event::Eof)),
        "{event:?}"
    );
    let ends = |log: &str| log.matches("\nclosed ").count() + log.matches("\nbroken ").count();
    let before = ends(&apps.echo.log()?);
    let mut connection = Connection::open_with(client, &at(ECHO), &["--end", "reset"])?;
    ensure!(connection.exchange("hello")? == "hello");
    connection.finish_sending();
    eventually(|| {
        let log = apps.echo.log()?;
        ensure!(ends(&log) > before, "the server has not heard of it: {log}");
        Ok(())
    })?;

    let options = ["--count", "200", "--concurrency", "10"];
    let flood = podtool::flood(client, &at(ECHO), &options, PATIENCE * 3)?;
    ensure!(flood.ok == 200, "{flood:?}");
    Ok(())
}

/// A server that has said everything before its client begins still hears all of it. Envoy as the
/// server's end resets the stream instead, which RFC 9113 §8.1 allows.
fn server_ends_first(client: &Pod, address: &str, server: &Process) -> Result<()> {
    let report = podtool::half_close(client, address, BYTES)?;
    ensure!(
        report["end"] == "eof" && report["received"] == 0 && report["sending"] == "ok",
        "hangup: {report}"
    );
    wait_for_line(server, "closed ", &format!(" received={BYTES}"))
}

#[test]
fn envoy_ends_our_tunnels() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("peers", Some("ambient"))?;
        let web = s.enrolled_pod("a", "shop", "web")?;
        // To the mesh it is a pod of a node that another proxy serves; never, not even for a moment,
        // one of ours.
        let envoy = s.topology.node("b").pod(PodSpec {
            namespace: "peers",
            name: "envoy",
            service_account: "envoy",
        })?;
        let object = objects::pod(&envoy, &[]).replace("nodeName: b", "nodeName: elsewhere");
        s.mesh.config().apply("pod-peers-envoy", &object)?;
        s.mesh.settle()?;
        let apps = Applications::start(&envoy)?;
        let files = Files::issue(s)?;
        let process = server(&envoy, &files, &web.spiffe_id())?;
        let at = |port: u16| format!("{}:{port}", envoy.v4());
        exercise(&web, at, &apps)?;

        s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("src.identity", &web.spiffe_id()),
            ("dst.identity", ENVOY),
            ("dst.addr", &at(15008)),
            ("dst.hbone_addr", &at(GREET)),
            ("error", ""),
        ])?;
        // What breaks behind Envoy is no end to us.
        let broken = s
            .mesh
            .ztunnel("a")
            .wait_for_access(&[("direction", "outbound"), ("dst.hbone_addr", &at(RESET))])?;
        ensure!(!broken.get("error").is_empty(), "{}", broken.text());
        eventually(|| {
            let log = process.log()?;
            let line = log
                .lines()
                .find(|line| line.contains(&format!("authority={} ", at(ECHO))))
                .context("Envoy logged no stream")?;
            for words in [
                format!("peer={} ", web.spiffe_id()),
                format!("forwarded=for=\"{}:", web.v4()),
                "k8s.namespace.name=shop".to_owned(),
                "code=200".to_owned(),
            ] {
                ensure!(line.contains(&words), "no {words} in {line}");
            }
            Ok(())
        })?;

        // What Envoy refuses is a failed connection, with its reason.
        let mut refused = Connection::open(&web, &at(NOBODY))?;
        let _ = refused.send("hello");
        s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("dst.hbone_addr", &at(NOBODY)),
            ("error", "http status: 404"),
        ])?;
        Ok(())
    });
}

#[test]
fn envoy_dials_our_pods() {
    scenario(|s| {
        s.mesh.apply_namespace("shop", Some("ambient"))?;
        s.mesh.apply_namespace("peers", None)?;
        let catalog = s.enrolled_pod("b", "shop", "catalog")?;
        let envoy = s.pod_as("a", "peers", "envoy", "envoy")?;
        s.mesh.settle()?;
        let apps = Applications::start(&catalog)?;
        let files = Files::issue(s)?;
        let _process = client(&envoy, &files, &catalog)?;
        let at = |port| {
            let entrance = ENTRANCES.iter().find(|(_, to)| *to == port);
            let (entrance, _) = entrance.expect("one for each port");
            format!("127.0.0.1:{entrance}")
        };
        exercise(&envoy, at, &apps)?;
        server_ends_first(&envoy, &at(HANGUP), &apps.hangup)?;

        s.mesh.ztunnel("b").wait_for_access(&[
            ("direction", "inbound"),
            ("src.identity", ENVOY),
            ("src.workload", "envoy"),
            ("dst.identity", &catalog.spiffe_id()),
            ("dst.hbone_addr", &format!("{}:{GREET}", catalog.v4())),
            ("error", ""),
        ])?;

        // Policy knows it by the identity that it proved.
        s.mesh.config().apply(
            "policy",
            "apiVersion: security.istio.io/v1\n\
             kind: AuthorizationPolicy\n\
             metadata: {name: no-envoy, namespace: shop}\n\
             spec:\n\
             \x20 action: DENY\n\
             \x20 rules: [{from: [{source: {principals: [cluster.local/ns/peers/sa/envoy]}}]}]\n",
        )?;
        s.mesh.settle()?;
        let flood = podtool::flood(&envoy, &at(ECHO), &["--count", "3"], PATIENCE)?;
        ensure!(flood.ok == 0, "{flood:?}");
        s.mesh.ztunnel("b").wait_for_access(&[
            ("src.identity", ENVOY),
            ("error", "denied by policy shop/no-envoy, rule 0"),
        ])?;
        Ok(())
    });
}
