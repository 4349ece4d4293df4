//! Connections between two pods of one node: straight from one to the other, in the kernel.

mod failure;
mod revocation;
mod way;

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::eventually::PATIENCE;
use sluice_tests::podtool::{self, Connection, Event, Serve};
use sluice_tests::process::Process;
use sluice_tests::scenario::Scenario;
use sluice_tests::ztunnel::Ztunnel;
use sluice_tests::{Pod, eventually};

use crate::catalog::{self, VIPS};

const PORT: u16 = 8080;
/// Rules of a policy that forbids `web`, and nobody else.
const NOT_WEB: &str = "action: DENY\n  rules: [{from: [{source: {serviceAccounts: [web]}}]}]";

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
        catalog::declare(s)?;
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

    /// By the service's address.
    fn vip(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::new(VIPS[0].parse()?, 80))
    }

    /// The server as an IPv6 socket dials its IPv4 address.
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
