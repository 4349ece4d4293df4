//! What is compared: pairs of pods, and the proxies between them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_tests::mesh::HBONE_PORT;
use sluice_tests::process::Process;
use sluice_tests::{Mesh, Pod, PodSpec, Topology, Wire, eventually_within, podtool};

use super::peer::{Peer, Proxy};
use super::programs::{self, ECHO_PORT};
use super::usage::Usage;

/// Longer than a connection may take that fails.
const TUNNEL_PATIENCE: Duration = Duration::from_secs(60);

/// Which ways of a connection are measured, each beside the same way without a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// From a pod of one node to a pod of another
    Between,
    /// Between two pods of one node
    SameNode,
    /// From a pod of the mesh to another node, to a destination outside the mesh
    Outside,
}

impl Way {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Between => "between nodes",
            Self::SameNode => "on one node",
            Self::Outside => "out of the mesh",
        }
    }

    /// The setup without a mesh.
    pub(crate) fn baseline(self) -> &'static str {
        match self {
            Self::Between | Self::Outside => "no mesh",
            Self::SameNode => "no mesh, one node",
        }
    }

    /// The setup with Sluice.
    pub(crate) fn ours(self) -> &'static str {
        match self {
            Self::Between => "Sluice",
            Self::SameNode => "Sluice, one node",
            Self::Outside => "Sluice, outside",
        }
    }

    /// Of the two pods between nodes.
    pub(crate) const NAMESPACE_BETWEEN: &'static str = "meshed";

    fn namespace(self) -> &'static str {
        match self {
            Self::Between => Self::NAMESPACE_BETWEEN,
            Self::SameNode => "near",
            Self::Outside => "outward",
        }
    }

    fn server_node(self) -> &'static str {
        match self {
            Self::SameNode => "a",
            Self::Between | Self::Outside => "b",
        }
    }
}

/// A client on node a and a server on node b or a, as one setup has them.
#[derive(Debug)]
pub(crate) struct Side<'m> {
    /// What the setup is called, in tables and charts.
    pub(crate) setup: String,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    /// Whether tunnels of proxies at both ends carry what passes.
    pub(crate) tunnelled: bool,
    /// Only beside our own pods between nodes.
    pub(crate) bystanders: Option<Bystanders>,
    proxies: Proxies<'m>,
    _servers: Vec<Process>,
}

/// Who is not enrolled.
#[derive(Debug)]
pub(crate) struct Bystanders {
    /// Where no program of ours is attached.
    pub(crate) free: Arc<Wire>,
    /// A pod, so that they are attached to it all the same.
    pub(crate) stranger: Pod,
}

/// What works for a side.
#[derive(Debug)]
enum Proxies<'m> {
    None,
    Ztunnels(&'m Mesh),
    Peer(Vec<Proxy>),
}

impl<'m> Side<'m> {
    /// Pods that no mesh knows.
    pub(crate) fn plain(topology: &Topology, way: Way) -> Result<Self> {
        let namespace = match way {
            Way::SameNode => "plain-near",
            Way::Between | Way::Outside => "plain",
        };
        Self::build(topology, way.baseline(), namespace, way.server_node())
    }

    /// Pods of the mesh; for the way out of it, only the client is one.
    pub(crate) fn meshed(topology: &Topology, mesh: &'m Mesh, way: Way) -> Result<Self> {
        let namespace = way.namespace();
        let mut side = Self::build(topology, way.ours(), namespace, way.server_node())?;
        side.proxies = Proxies::Ztunnels(mesh);
        mesh.apply_namespace(namespace, Some("ambient"))?;
        let members = match way {
            Way::Outside => vec![&side.client],
            Way::Between | Way::SameNode => vec![&side.client, &side.server],
        };
        for pod in &members {
            mesh.apply_pod(pod, &[])?;
        }
        for pod in members {
            mesh.wait_until_enrolled(pod)?;
        }
        if way == Way::Between {
            side.wait_until_tunnelled()?;
            side.bystanders = Some(Bystanders {
                free: Arc::clone(topology.wire()),
                stranger: pod(topology, "a", "stranger", "client")?,
            });
        }
        Ok(side)
    }

    /// Pods of the mesh whose proxies are a peer's.
    pub(crate) fn of_peer(topology: &Topology, mesh: &'m Mesh, peer: &Peer) -> Result<Self> {
        let namespace = format!("peer-{}", peer.name);
        let mut side = Self::build(topology, &peer.name, &namespace, Way::Between.server_node())?;
        mesh.apply_namespace(&namespace, Some("ambient"))?;
        let proxies = [&side.client, &side.server]
            .into_iter()
            .map(|pod| Proxy::start(peer, topology, mesh, pod))
            .collect::<Result<_>>()?;
        side.proxies = Proxies::Peer(proxies);
        side.wait_until_tunnelled()?;
        Ok(side)
    }

    fn build(topology: &Topology, setup: &str, namespace: &str, far: &str) -> Result<Self> {
        let client = pod(topology, "a", namespace, "client")?;
        // One client makes more connections here than its kernel has ports for in a minute, and the
        // search for a free one would soon be all that is measured.
        client.netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        let server = pod(topology, far, namespace, "server")?;
        let servers = programs::start_servers(&server)?;
        Ok(Self {
            setup: setup.to_owned(),
            client,
            server,
            tunnelled: false,
            bystanders: None,
            proxies: Proxies::None,
            _servers: servers,
        })
    }

    /// Waits until a connection works and a tunnel is there for it: what is measured is what it is
    /// said to be.
    fn wait_until_tunnelled(&mut self) -> Result<()> {
        let address = format!("{}:{ECHO_PORT}", self.server.v4());
        eventually_within(TUNNEL_PATIENCE, || {
            if let Proxies::Peer(proxies) = &mut self.proxies {
                for proxy in proxies {
                    proxy.check()?;
                }
            }
            // A connection that begins before the proxies are there may be lost, and take its time.
            for pod in [&self.client, &self.server] {
                ensure!(
                    pod.netns.has_listener(HBONE_PORT)?,
                    "nothing listens on {HBONE_PORT} of pod {}",
                    pod.name()
                );
            }
            podtool::Connection::open(&self.client, &address)?.exchange("through a tunnel?")?;
            ensure!(
                self.server.netns.established(HBONE_PORT)? > 0,
                "connections come without a tunnel"
            );
            Ok(())
        })
        .with_context(|| format!("no tunnel between the pods of {}", self.setup))?;
        self.tunnelled = true;
        Ok(())
    }

    /// What the proxies of both ends have used; `None` if there are none.
    pub(crate) fn usage(&self) -> Result<Option<Usage>> {
        match &self.proxies {
            Proxies::None => Ok(None),
            Proxies::Ztunnels(mesh) => Usage::of_ztunnels(mesh).map(Some),
            Proxies::Peer(proxies) => proxies
                .iter()
                .map(Proxy::usage)
                .sum::<Result<Usage>>()
                .map(Some),
        }
    }

    /// The first connection to a port of the same node goes another way than the next ones.
    pub(crate) fn is_direct(&self) -> bool {
        self.setup == Way::SameNode.ours()
    }
}

fn pod(topology: &Topology, node: &str, namespace: &str, name: &str) -> Result<Pod> {
    topology.node(node).pod(PodSpec {
        namespace,
        name,
        service_account: name,
    })
}
