//! Envoy at the other end of a tunnel: a peer that nobody here wrote, as server and as client.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, PodSpec, eventually, objects};

use crate::stranger::Authority;

/// What Envoy calls itself.
const ENVOY: &str = "spiffe://cluster.local/ns/peers/sa/envoy";
const HTTP2: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Where Envoy, as a client, takes connections from applications; one port for each of the server's.
const ENTRANCES: [(u16, u16); 3] = [(9080, 80), (9081, 81), (9082, 82)];

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

/// Applications on the server's ports: an echo, a sum, and one that speaks first.
fn applications(pod: &Pod) -> Result<[Process; 3]> {
    let serve = |name, mode, port| podtool::serve(pod, name, mode, &format!("[::]:{port}"));
    Ok([
        serve("echo", Serve::Echo, 80)?,
        serve("sum", Serve::Sum, 81)?,
        serve("greet", Serve::Greet, 82)?,
    ])
}

/// Bytes both ways, half-close, a server that speaks first, and many connections.
fn exercise(client: &Pod, echo: &str, sum: &str, greet: &str) -> Result<()> {
    let report = podtool::half_close(client, echo, 5_000_000)?;
    ensure!(
        report["end"] == "eof"
            && report["received"] == 5_000_000
            && report["sent_checksum"] == report["received_checksum"],
        "echo: {report}"
    );
    let report = podtool::half_close(client, sum, 300_000)?;
    let wanted = format!(
        "sum 300000 {}",
        report["sent_checksum"].as_str().unwrap_or_default()
    );
    ensure!(
        report["end"] == "eof" && report["tail"] == wanted.as_str(),
        "sum: {report}"
    );
    let mut connection = Connection::open(client, greet)?;
    let greeting = connection.line()?;
    ensure!(greeting.starts_with("220 "), "{greeting}");
    ensure!(connection.exchange("hello")? == "250 hello");
    drop(connection);
    let options = ["--count", "200", "--concurrency", "10"];
    let flood = podtool::flood(client, echo, &options, PATIENCE * 3)?;
    ensure!(flood.ok == 200, "{flood:?}");
    Ok(())
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
        let _apps = applications(&envoy)?;
        let files = Files::issue(s)?;
        let process = server(&envoy, &files, &web.spiffe_id())?;
        let at = |port: u16| format!("{}:{port}", envoy.v4());
        exercise(&web, &at(80), &at(81), &at(82))?;

        s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("src.identity", &web.spiffe_id()),
            ("dst.identity", ENVOY),
            ("dst.addr", &at(15008)),
            ("dst.hbone_addr", &at(82)),
            ("error", ""),
        ])?;
        eventually(|| {
            let log = process.log()?;
            let line = log
                .lines()
                .find(|line| line.contains(&format!("authority={} ", at(80))))
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
        let mut refused = Connection::open(&web, &at(83))?;
        let _ = refused.send("hello");
        s.mesh.ztunnel("a").wait_for_access(&[
            ("direction", "outbound"),
            ("dst.hbone_addr", &at(83)),
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
        let _apps = applications(&catalog)?;
        let files = Files::issue(s)?;
        let _process = client(&envoy, &files, &catalog)?;
        let [echo, sum, greet] = ENTRANCES.map(|(entrance, _)| format!("127.0.0.1:{entrance}"));
        exercise(&envoy, &echo, &sum, &greet)?;

        s.mesh.ztunnel("b").wait_for_access(&[
            ("direction", "inbound"),
            ("src.identity", ENVOY),
            ("src.workload", "envoy"),
            ("dst.identity", &catalog.spiffe_id()),
            ("dst.hbone_addr", &format!("{}:82", catalog.v4())),
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
        let flood = podtool::flood(&envoy, &echo, &["--count", "3"], PATIENCE)?;
        ensure!(flood.ok == 0, "{flood:?}");
        s.mesh.ztunnel("b").wait_for_access(&[
            ("src.identity", ENVOY),
            ("error", "denied by policy shop/no-envoy, rule 0"),
        ])?;
        Ok(())
    });
}
