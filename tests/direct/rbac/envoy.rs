//! A process of Envoy's with all policy sets in force at once.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    binaries::Binaries,
    eventually::{PATIENCE, eventually_within},
    http, process,
};
use tempfile::TempDir;

use crate::{credentials::Authority, generate::Case, translate};

/// The names of the listeners.
const TLS: &str = "tls";
const PLAINTEXT: &str = "plaintext";

/// In its directory.
const LOG: &str = "log";

/// The source port by which a connection asks for a policy set: no policy looks at it.
pub(crate) fn port_of(set: usize) -> usize {
    set + 1
}

/// Where the policy sets are in force.
pub(crate) struct Addresses {
    pub(crate) tls: SocketAddr,
    pub(crate) plaintext: SocketAddr,
}

/// Dropping it kills the process. An interrupt at the terminal ends it too: it stays in the process
/// group of the test.
pub(crate) struct Envoy {
    child: Child,
    /// With its configuration and its log.
    directory: TempDir,
}

impl Envoy {
    pub(crate) fn start(cases: &[Case], authority: &Authority) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        fs::write(path.join("root.pem"), authority.root_pem())?;
        fs::write(path.join("cert.pem"), authority.server_pem()?)?;
        fs::write(path.join("key.pem"), authority.key_pem())?;
        // The kernel chooses the ports; the admin listener knows them, and a file knows its.
        let bootstrap = json!({
            "admin": { "address": any_port() },
            "static_resources": { "listeners": listeners(cases, path) },
        });
        fs::write(path.join("envoy.json"), bootstrap.to_string())?;
        let log = File::create(path.join(LOG))?;
        let child = Command::new(Binaries::locate()?.envoy()?)
            .args(["--disable-hot-restart", "--concurrency", "1"])
            .args(["--log-level", "warning"])
            .args(["--config-path", "envoy.json"])
            .args(["--admin-address-path", "admin"])
            .current_dir(path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting Envoy")?;
        Ok(Self { child, directory })
    }

    /// Waits until it listens.
    pub(crate) fn addresses(&mut self) -> Result<Addresses> {
        // It has a lot to read, and other tests run beside it.
        eventually_within(3 * PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("Envoy ended by itself: {status}");
            }
            ensure!(self.get("/ready")?.trim() == "LIVE", "Envoy is not ready");
            let listeners: Value = serde_json::from_str(&self.get("/listeners?format=json")?)?;
            Ok(Addresses {
                tls: address(&listeners, TLS)?,
                plaintext: address(&listeners, PLAINTEXT)?,
            })
        })
    }

    /// How many connections its RBAC filters refused.
    pub(crate) fn refused(&self) -> Result<usize> {
        let stats = self.get("/stats?filter=rbac.denied$")?;
        let counts = stats.lines().filter_map(|line| line.split_once(": "));
        counts.map(|(_, count)| Ok(count.parse::<usize>()?)).sum()
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        process::tail(&self.directory.path().join(LOG), 20)
    }

    /// From its admin listener.
    fn get(&self, path: &str) -> Result<String> {
        let admin = fs::read_to_string(self.directory.path().join("admin"));
        let admin = admin.context("Envoy has no admin listener yet")?.parse()?;
        Ok(http::exchange("GET", admin, path)?.body)
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Either fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A message in the form of an extension's configuration.
pub(crate) fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/{name}").into();
    config
}

pub(crate) fn extension(name: &str, config: Value) -> Value {
    json!({ "name": name, "typed_config": config })
}

fn any_port() -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } })
}

/// What the admin listener says of the address of one of the listeners.
fn address(listeners: &Value, name: &str) -> Result<SocketAddr> {
    let statuses = listeners["listener_statuses"].as_array();
    let one = statuses.and_then(|all| all.iter().find(|one| one["name"] == name));
    let address = &one.context("a listener is missing")?["local_address"]["socket_address"];
    let ip = address["address"].as_str().context("an address")?;
    let port = address["port_value"].as_u64().context("a port")?;
    Ok(SocketAddr::new(ip.parse()?, port.try_into()?))
}

/// One of TLS and one of plaintext, both with a filter chain for each policy set.
fn listeners(cases: &[Case], directory: &Path) -> [Value; 2] {
    let sets: Vec<_> = cases.iter().map(filters).collect();
    let listener = |name: &str, transport: Option<Value>| {
        let chains = sets.iter().enumerate().map(|(set, filters)| {
            let mut chain = json!({
                "filter_chain_match": { "source_ports": [port_of(set)] },
                "filters": filters,
            });
            if let Some(transport) = &transport {
                chain["transport_socket"] = transport.clone();
            }
            chain
        });
        let proxy = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
        let proxy = typed(proxy, json!({}));
        json!({
            "name": name,
            "address": any_port(),
            "listener_filters": [extension("envoy.filters.listener.proxy_protocol", proxy)],
            "filter_chains": chains.collect::<Vec<_>>(),
        })
    };
    [
        listener(TLS, Some(mutual_tls(directory))),
        listener(PLAINTEXT, None),
    ]
}

fn filters(case: &Case) -> Vec<Value> {
    let mut filters = translate::filters(&case.scopes.concat());
    // The RBAC filters judge when the first byte arrives; this one then returns it.
    let echo = typed("envoy.extensions.filters.network.echo.v3.Echo", json!({}));
    filters.push(extension("envoy.filters.network.echo", echo));
    filters
}

/// Any client of the authority's; who it is, is for the policies to judge.
fn mutual_tls(directory: &Path) -> Value {
    let file = |name: &str| json!({ "filename": directory.join(name) });
    let context = json!({
        "require_client_certificate": true,
        "common_tls_context": {
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [{
                "certificate_chain": file("cert.pem"),
                "private_key": file("key.pem"),
            }],
            "validation_context": { "trusted_ca": file("root.pem") },
        },
    });
    let name = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    extension("envoy.transport_sockets.tls", typed(name, context))
}
