//! Machines made of namespaces: a wire, nodes on it, pods on the nodes; IPv4 and IPv6 alike.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, ensure};

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::place::Place;
use crate::run::Run;

/// The wire's own addresses; the control plane listens there.
pub const WIRE_V4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
pub const WIRE_V6: Ipv6Addr = Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 1);

/// The bridge in the wire's namespace, and each node's interface to it.
pub const BRIDGE: &str = "wire";
/// A node's bridge to its pods.
const PODS_BRIDGE: &str = "pods";
/// A pod's or node's own interface.
const UPLINK: &str = "eth0";
/// The first host number that is given to a pod; the node itself is number 1.
const FIRST_POD: u16 = 10;
/// As many ports as a bridge of the kernel has.
const PODS: u16 = 1023;

/// A wire and the nodes on it.
#[derive(Debug)]
pub struct Topology {
    nodes: Vec<Arc<Node>>,
    wire: Arc<Wire>,
    root: Cgroup,
    run: Arc<Run>,
}

impl Topology {
    /// A wire with a node for each name. The first node has number 1, and so on.
    pub fn new(run: &Arc<Run>, names: &[&str]) -> Result<Self> {
        ensure!(names.len() <= 8, "a wire has room for 8 nodes");
        let root = Cgroup::root(run)?;
        let wire = Wire::create(run, &root).context("building the wire")?;
        let numbers = 1..=u8::try_from(names.len())?;
        let nodes = names
            .iter()
            .zip(numbers.clone())
            .map(|(name, number)| {
                Node::create(&wire, &root, name, number)
                    .map(Arc::new)
                    .with_context(|| format!("building node {name}"))
            })
            .collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            node.place
                .netns
                .ip_batch(&routes(numbers.clone().filter(|n| *n != node.number)))?;
        }
        wire.place.netns.ip_batch(&routes(numbers))?;
        Ok(Self {
            nodes,
            wire: Arc::new(wire),
            root,
            run: Arc::clone(run),
        })
    }

    #[must_use]
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }

    #[must_use]
    pub fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    #[must_use]
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The run's cgroup, above those of all nodes.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.root
    }

    /// # Panics
    /// When there is no such node: the names are the caller's own.
    #[must_use]
    pub fn node(&self, name: &str) -> &Arc<Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("this topology has no node {name}"))
    }
}

/// The command that makes a bridge. It has an address of its own: a bridge without one takes the
/// least of its ports', and whoever has it as gateway loses it for seconds when a lesser one comes.
fn add_bridge(name: &str, number: u8) -> String {
    format!(
        "link add {name} address 02:00:00:00:00:{number:02x} type bridge forward_delay 0 mcast_snooping 0\n"
    )
}

/// The network between the nodes. It is a [`Place`] of its own, outside the mesh.
#[derive(Debug)]
pub struct Wire {
    place: Place,
}

impl Wire {
    fn create(run: &Arc<Run>, root: &Cgroup) -> Result<Self> {
        let netns = Netns::create(run, "wire")?;
        let cgroup = root.child("wire")?;
        netns.ip_batch(&format!(
            "{}\
             link set {BRIDGE} up\n\
             address add {WIRE_V4}/24 dev {BRIDGE}\n\
             address add {WIRE_V6}/64 dev {BRIDGE} nodad\n",
            add_bridge(BRIDGE, 0),
        ))?;
        Ok(Self {
            place: Place {
                run: Arc::clone(run),
                netns,
                cgroup,
            },
        })
    }
}

impl Deref for Wire {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// A machine: its namespace with the pods' network, its cgroup with the pods' cgroups. As a
/// [`Place`] it is where the broker runs: the node's namespace and the cgroup `ztunnel`, beside
/// `pods` and not above it, since capture is attached to the latter.
#[derive(Debug)]
pub struct Node {
    place: Place,
    pods: Cgroup,
    _cgroup: Cgroup,
    name: String,
    number: u8,
    next_pod: AtomicU16,
}

impl Node {
    fn create(wire: &Wire, root: &Cgroup, name: &str, number: u8) -> Result<Self> {
        let run = &wire.place.run;
        let netns = Netns::create(run, &format!("node-{name}"))?;
        let cgroup = root.child(&format!("node-{name}"))?;
        let (own, pods) = (cgroup.child("ztunnel")?, cgroup.child("pods")?);
        let port = wire_port(name);
        wire.place.netns.ip_batch(&format!(
            "link add {port} type veth peer name {UPLINK} netns {}\n\
             link set {port} master {BRIDGE} up\n",
            netns.name()
        ))?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        netns.ip_batch(&format!(
            "link set {UPLINK} up\n\
             address add {}/24 dev {UPLINK}\n\
             address add {}/64 dev {UPLINK} nodad\n\
             {}\
             link set {PODS_BRIDGE} up\n\
             address add {}/16 dev {PODS_BRIDGE}\n\
             address add {}/64 dev {PODS_BRIDGE} nodad\n",
            node_v4(number),
            node_v6(number),
            add_bridge(PODS_BRIDGE, number),
            pod_v4(number, 1),
            pod_v6(number, 1),
        ))?;
        Ok(Self {
            place: Place {
                run: Arc::clone(run),
                netns,
                cgroup: own,
            },
            pods,
            _cgroup: cgroup,
            name: name.to_owned(),
            number,
            next_pod: AtomicU16::new(FIRST_POD),
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's addresses on the wire.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        node_v4(self.number)
    }

    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        node_v6(self.number)
    }

    /// The cgroup that holds the cgroups of all pods.
    #[must_use]
    pub fn pods_cgroup(&self) -> &Cgroup {
        &self.pods
    }

    /// The interface on the wire's side: every packet from or to this node passes it.
    #[must_use]
    pub fn wire_port(&self) -> String {
        wire_port(&self.name)
    }

    /// A new pod on this node.
    pub fn pod(&self, spec: PodSpec<'_>) -> Result<Pod> {
        Pod::create(self, spec)
            .with_context(|| format!("building pod {}/{}", spec.namespace, spec.name))
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// What a pod is called; its addresses come from the node.
#[derive(Debug, Clone, Copy)]
pub struct PodSpec<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub service_account: &'a str,
}

/// A pod: a namespace with one interface, and a cgroup, which as a [`Place`] its processes
/// live in.
#[derive(Debug)]
pub struct Pod {
    place: Place,
    namespace: String,
    name: String,
    service_account: String,
    node: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Pod {
    fn create(node: &Node, spec: PodSpec<'_>) -> Result<Self> {
        let run = &node.place.run;
        let number = node.next_pod.fetch_add(1, Ordering::Relaxed);
        ensure!(
            number < FIRST_POD + PODS,
            "node {} has no room for more than {PODS} pods",
            node.name
        );
        let (v4, v6) = (pod_v4(node.number, number), pod_v6(node.number, number));
        let full_name = format!("{}-{}", spec.namespace, spec.name);
        let netns = Netns::create(run, &full_name)?;
        let cgroup = node.pods.child(&full_name)?;
        // The number keeps the name within the 15 bytes an interface may have.
        let port = format!("pod{number}");
        node.place.netns.ip_batch(&format!(
            "link add {port} type veth peer name {UPLINK} netns {}\n\
             link set {port} master {PODS_BRIDGE} up\n",
            netns.name()
        ))?;
        netns.ip_batch(&format!(
            "link set {UPLINK} up\n\
             address add {v4}/16 dev {UPLINK}\n\
             address add {v6}/64 dev {UPLINK} nodad\n\
             route add default via {}\n\
             route add default via {}\n",
            pod_v4(node.number, 1),
            pod_v6(node.number, 1),
        ))?;
        Ok(Self {
            place: Place {
                run: Arc::clone(run),
                netns,
                cgroup,
            },
            namespace: spec.namespace.to_owned(),
            name: spec.name.to_owned(),
            service_account: spec.service_account.to_owned(),
            node: node.name.clone(),
            v4,
            v6,
        })
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The name of the node it is on.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    #[must_use]
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// The SPIFFE ID that the mesh gives it, in the trust domain of the harness.
    #[must_use]
    pub fn spiffe_id(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.namespace, self.service_account
        )
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

fn wire_port(node: &str) -> String {
    format!("node-{node}")
}

fn node_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + node)
}

fn node_v6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(node))
}

fn pod_v4(node: u8, number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 240 + node, high, low)
}

fn pod_v6(node: u8, number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd44, node.into(), 0, 0, 0, 0, 0, number)
}

/// Routes to the pods of these nodes, over the wire.
fn routes(nodes: impl Iterator<Item = u8>) -> String {
    let mut lines = String::new();
    for node in nodes {
        let _ = writeln!(
            lines,
            "route add {}/16 via {}",
            pod_v4(node, 0),
            node_v4(node)
        );
        let _ = writeln!(
            lines,
            "route add {}/64 via {}",
            pod_v6(node, 0),
            node_v6(node)
        );
    }
    lines
}
