//! Who may talk to whom: authorization and modes of mutual TLS, seen from both doors.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use sluice_tests::outcome::{Outcome, attempt};
use sluice_tests::podtool::{self, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::{Scenario, scenario};
use sluice_tests::{Pod, eventually};

const REFUSED: &str = "http status: 401 (the peer's policy denies it)";

/// Policies, and who can reach the server while they are in force.
struct Row {
    what: &'static str,
    policies: &'static [&'static str],
    /// `CLIENT:PORT …` of all that get through.
    served: &'static str,
    /// The reason that the log gives for all the others; it begins so.
    reason: &'static str,
}

/// A server in `shop` with two ports, two clients in the mesh and one outside of it.
struct Stage<'a> {
    s: &'a Scenario,
    server: Pod,
    clients: [Pod; 3],
    _processes: [Process; 2],
}

/// The ports of the server.
const PORTS: [u16; 2] = [80, 81];
/// Where the policies of a row are written.
const FILE: &str = "policies";

impl<'a> Stage<'a> {
    fn build(s: &'a Scenario) -> Result<Self> {
        for (namespace, mode) in [
            ("shop", Some("ambient")),
            ("other", Some("ambient")),
            ("legacy", None),
        ] {
            s.mesh.apply_namespace(namespace, mode)?;
        }
        let server = s.enrolled_pod("b", "shop", "catalog")?;
        let serve = |port| {
            let name = format!("catalog-{port}");
            podtool::serve(&server, &name, Serve::Greet, &format!("[::]:{port}"))
        };
        let processes = [serve(PORTS[0])?, serve(PORTS[1])?];
        let clients = [
            s.enrolled_pod("a", "shop", "web")?,
            s.enrolled_pod("a", "other", "batch")?,
            s.pod("a", "legacy", "old")?,
        ];
        s.mesh.settle()?;
        Ok(Self {
            s,
            server,
            clients,
            _processes: processes,
        })
    }

    /// Puts policies in force; none, if there are none. `$web` and so on are addresses.
    fn apply(&self, policies: &[&str]) -> Result<()> {
        let mut text = policies.join("\n---\n");
        for client in &self.clients {
            text = text.replace(
                &format!("${}", client.name()),
                &format!("{}/32", client.v4()),
            );
        }
        self.s.mesh.config().apply(FILE, &text)?;
        self.s.mesh.settle()
    }

    fn check(&self, row: &Row) -> Result<()> {
        self.apply(row.policies)?;
        let served: Vec<&str> = row.served.split_whitespace().collect();
        for client in &self.clients {
            for port in PORTS {
                let name = format!("{}:{port}", client.name());
                let reason = (!served.contains(&name.as_str())).then_some(row.reason);
                self.attempt(client, port, reason)
                    .and_then(|()| self.explain(client, port, reason))
                    .with_context(|| format!("{} → port {port}", client.name()))?;
            }
        }
        Ok(())
    }

    /// Connects once, and looks for the reason in the logs if the connection is to be refused.
    fn attempt(&self, client: &Pod, port: u16, refused: Option<&str>) -> Result<()> {
        let (near, far) = (self.s.mesh.ztunnel("a"), self.s.mesh.ztunnel("b"));
        let seen = (near.access_log()?.len(), far.access_log()?.len());
        let outcome = attempt(client, SocketAddr::new(self.server.v4().into(), port))?;
        let Some(reason) = refused else {
            ensure!(outcome == Outcome::Served, "{outcome:?}, and not served");
            return Ok(());
        };
        ensure!(outcome == Outcome::Reset, "{outcome:?}, and not reset");
        let asked = format!("{}:{port}", self.server.v4());
        let tunnel = client.namespace() != "legacy";
        eventually(|| {
            let lines = far.access_log()?;
            // The line of one that was served before may come only now.
            let mut refusals = lines[seen.1..].iter().filter(|line| line.level == "error");
            let line = refusals.find(|line| {
                let (address, identity) = if tunnel {
                    ("dst.hbone_addr", client.spiffe_id())
                } else {
                    ("dst.addr", String::new())
                };
                line.has(&[
                    ("direction", "inbound"),
                    ("src.workload", client.name()),
                    ("src.identity", &identity),
                    (address, &asked),
                ])
            });
            let line = line.context("no line about the refused connection")?;
            ensure!(
                line.get("error").starts_with(reason),
                "another reason: {}",
                line.text()
            );
            Ok(())
        })?;
        if tunnel {
            eventually(|| {
                let lines = near.access_log()?;
                let wanted = [
                    ("direction", "outbound"),
                    ("dst.hbone_addr", &asked),
                    ("error", REFUSED),
                ];
                ensure!(
                    lines[seen.0..].iter().any(|line| line.has(&wanted)),
                    "no such outbound line: {wanted:?}"
                );
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn check_all(rows: &[Row]) {
    scenario(|s| {
        let stage = Stage::build(s)?;
        for row in rows {
            stage.check(row).context(row.what)?;
        }
        Ok(())
    });
}

/// An AuthorizationPolicy named `test`.
macro_rules! authorization {
    ($namespace:literal, $($spec:literal),+ $(,)?) => {
        concat!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n",
            "metadata: {name: test, namespace: ", $namespace, "}\nspec:\n",
            $("  ", $spec, "\n"),+
        )
    };
}

const ALL: &str = "web:80 web:81 batch:80 batch:81 old:80 old:81";
const IN_MESH: &str = "web:80 web:81 batch:80 batch:81";

// After the macro, which they use.
mod authorization;
mod explained;
mod live;
mod metrics;
mod mutual_tls;
