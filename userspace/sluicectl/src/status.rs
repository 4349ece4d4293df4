//! `sluicectl status`: nodes, pods, certificates and how far each node is, at a glance.

mod output;

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ask,
    clients::Client,
    show::{self, Format},
};

/// Shows nodes, pods, enrolment, certificates, and how far each node is with the mesh.
///
/// SYNC is what the control plane says of a node: `synced` when it has acknowledged the last of
/// everything. A pod that should be part of the mesh, and has not been enrolled on its node, is named
/// below.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status:\n  \
                  0  all is well\n  \
                  1  something is not; it is named at the end\n  \
                  2  neither a ztunnel nor the control plane could be asked")]
pub(crate) struct Arguments {
    /// A ztunnel to ask, by the address of its admin port, which only its own node reaches; may be
    /// repeated.
    #[arg(long, default_values = [ask::ZTUNNEL], value_name = "ADDRESS")]
    ztunnel: Vec<SocketAddr>,
    /// The `--status-listen` address of sluice-control.
    #[arg(long, default_value = ask::CONTROL, value_name = "ADDRESS")]
    status: SocketAddr,
    /// How the status is written.
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What to do where the control plane is not found.
const ELSEWHERE: &str =
    "a control plane that is elsewhere is named by --status, its --status-listen address";

/// All that is known.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    control_plane: ControlPlane,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    /// What is not well, in words.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ControlPlane {
    address: SocketAddr,
    /// What it says of its readiness, or why nobody knows.
    readiness: String,
}

/// A node, as its ztunnel and the control plane describe it; what nobody was asked is absent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    node: String,
    version: Option<String>,
    readiness: Option<String>,
    /// Absent where the control plane does not know the node.
    sync: Option<&'static str>,
    /// Pods that are enrolled, and those that should be.
    enrolled: Option<usize>,
    expected: Option<usize>,
    workloads: Option<usize>,
    connections: Option<usize>,
    certificates: Vec<Certificate>,
}

/// A pod of a node that was asked.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    pod: String,
    node: String,
    addresses: Vec<String>,
    membership: &'static str,
    health: String,
    connections: usize,
}

/// What is read of a ztunnel's dump.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dump {
    version: String,
    node: String,
    workloads: Vec<Workload>,
    certificates: Vec<Certificate>,
    workload_state: BTreeMap<String, State>,
    control_plane: Uplink,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    uid: String,
    name: String,
    namespace: String,
    node: String,
    protocol: String,
    status: String,
    host_network: bool,
    workload_ips: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    identity: String,
    state: String,
    expiration_time: Option<Timestamp>,
    last_error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct State {
    connections: Connections,
}

#[derive(Debug, Default, Deserialize)]
struct Connections {
    inbound: Vec<serde_json::Value>,
    outbound: Vec<serde_json::Value>,
}

impl Connections {
    fn count(&self) -> usize {
        self.inbound.len() + self.outbound.len()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Uplink {
    address: String,
    connected: bool,
    snapshot_taken: Option<i64>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let status = Status::ask(arguments)?;
    show::print(&match arguments.output {
        Format::Text => output::text(&status),
        Format::Json => show::json(&status)?,
        Format::Yaml => show::yaml(&status)?,
    })?;
    Ok(if status.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Status {
    fn ask(arguments: &Arguments) -> anyhow::Result<Self> {
        let control = arguments.status;
        let readiness = ask::page(control, "/healthz/ready");
        let mut status = Self {
            control_plane: ControlPlane {
                address: control,
                readiness: match &readiness {
                    Ok(page) => page.text().trim().to_owned(),
                    Err(error) => format!("{error:#}; {ELSEWHERE}"),
                },
            },
            nodes: Vec::new(),
            pods: Vec::new(),
            problems: Vec::new(),
        };
        let mut asked = 0;
        for address in &arguments.ztunnel {
            match ask::json::<Dump>(*address, "/config_dump") {
                Ok(dump) => {
                    asked += 1;
                    status.add(&dump, *address);
                }
                Err(error) => {
                    let problem = format!("the ztunnel cannot be asked: {error:#}");
                    status.problems.push(problem);
                }
            }
        }
        match readiness {
            Ok(page) => {
                if !page.status.is_success() {
                    let text = page.text();
                    status
                        .problems
                        .push(format!("the control plane is {}", text.trim()));
                }
                let clients = ask::json::<Vec<Client>>(control, "/clients");
                status.add_clients(&clients.with_context(|| {
                    format!("cannot ask {control} who is connected to it; {ELSEWHERE}")
                })?);
            }
            Err(error) if asked == 0 => {
                let problems = status.problems.join("; ");
                bail!(
                    "{problems}; nor can the control plane: {error:#}. Run this on a \
                     node, or say where they are with --ztunnel and --status"
                );
            }
            // On a node without one there is nothing to ask there.
            Err(_) => {}
        }
        Ok(status)
    }

    fn add(&mut self, dump: &Dump, address: SocketAddr) {
        let node = &dump.node;
        let here = dump.workloads.iter().filter(|one| one.node == *node);
        let mut expected = 0;
        for workload in here {
            let state = dump.workload_state.get(&workload.uid);
            let member = workload.protocol == "HBONE" && !workload.host_network;
            expected += usize::from(member);
            let name = format!("{}/{}", workload.namespace, workload.name);
            if member && state.is_none() {
                self.problems.push(format!(
                    "{name} should be part of the mesh, and has not been enrolled on node {node}; the \
                     `pods` file and the log of the ztunnel there say why"
                ));
            }
            self.pods.push(Pod {
                pod: name,
                node: node.clone(),
                addresses: workload.workload_ips.clone(),
                membership: match (member, state) {
                    (true, Some(_)) => "enrolled",
                    (true, None) => "missing",
                    (false, _) => "outside",
                },
                health: workload.status.clone(),
                connections: state.map_or(0, |state| state.connections.count()),
            });
        }
        let uplink = &dump.control_plane;
        if !uplink.connected {
            let since = uplink
                .snapshot_taken
                .and_then(|at| Timestamp::from_second(at).ok());
            let by = since.map_or_else(String::new, |at| {
                format!("; it works by its snapshot of {at}")
            });
            self.problems.push(format!(
                "node {node} does not reach the control plane at {}{by}",
                uplink.address
            ));
        }
        for certificate in &dump.certificates {
            if certificate.state != "Available" {
                let why = certificate
                    .last_error
                    .as_deref()
                    .unwrap_or("it was just asked for");
                let (identity, state) = (&certificate.identity, &certificate.state);
                self.problems.push(format!(
                    "node {node}: the certificate of {identity} is {state}: {why}"
                ));
            }
        }
        let readiness = ask::page(address, "/healthz/ready");
        let readiness = readiness.map_or_else(
            |error| format!("{error:#}"),
            |page| page.text().trim().to_owned(),
        );
        if !readiness.starts_with("ready") {
            self.problems.push(format!("node {node} is {readiness}"));
        }
        let states = dump.workload_state.values();
        self.nodes.push(Node {
            node: node.clone(),
            version: Some(dump.version.clone()),
            readiness: Some(readiness),
            sync: None,
            enrolled: Some(dump.workload_state.len()),
            expected: Some(expected),
            workloads: Some(dump.workloads.len()),
            connections: Some(states.map(|state| state.connections.count()).sum()),
            certificates: dump.certificates.clone(),
        });
    }

    fn add_clients(&mut self, clients: &[Client]) {
        for node in &mut self.nodes {
            if !clients.iter().any(|client| client.node == node.node) {
                let name = &node.node;
                self.problems
                    .push(format!("the control plane does not know node {name}"));
            }
        }
        for client in clients {
            let state = client.state();
            if state == "rejected" {
                self.problems.push(format!(
                    "node {} has rejected what the control plane sent; `sluicectl clients` says why",
                    client.node
                ));
            }
            match self.nodes.iter_mut().find(|node| node.node == client.node) {
                Some(node) => node.sync = Some(state),
                None => self.nodes.push(Node {
                    node: client.node.clone(),
                    version: None,
                    readiness: None,
                    sync: Some(state),
                    enrolled: None,
                    expected: None,
                    workloads: None,
                    connections: None,
                    certificates: Vec::new(),
                }),
            }
        }
    }
}
