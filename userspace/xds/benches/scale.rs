//! What a mesh costs a client: resident memory, and the time that updates take, as the mesh grows.
//!
//! `cargo bench -p sluice-xds`. The client is a process of its own. The times are from sending a
//! response to its acknowledgement, so they include the way there, parsing and applying.

#[path = "../tests/client/server.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod server;

use std::{
    collections::BTreeMap,
    env, fs,
    process::{Child, Command},
    time::{Duration, Instant},
};

use prost::Message as _;
use server::{ControlPlane, Session};
use sluice_identity::{ControlPlane as Reach, Live};
use sluice_proto::{discovery::Resource, security, workload};
use sluice_xds::{Client, Config, Node};

/// Workloads; there is a service for each twenty of them.
const SIZES: [usize; 4] = [1, 1_000, 10_000, 100_000];
const PER_SERVICE: usize = 20;
/// Pods of a node.
const PER_NODE: usize = 100;
/// The largest update that is timed.
const CHANGED: usize = 1_000;

fn main() {
    match env::args().skip_while(|arg| arg != "--client").nth(1) {
        Some(address) => client(address),
        None => {
            println!(
                "{:>10} {:>10} {:>12} {:>14} {:>12} {:>12}",
                "workloads", "RSS", "a workload", "first answer", "1 changed", "1000 changed"
            );
            let empty = measure(0, None);
            for size in SIZES {
                measure(size, Some(empty));
            }
        }
    }
}

/// Serves a mesh to a client in a process of its own; returns its resident memory in kB.
fn measure(size: usize, empty: Option<u64>) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let mut server = ControlPlane::start().await;
        let child = ClientProcess::start(&server.address());
        let mut session = server.session().await;
        for _ in 0..2 {
            session.request().await;
        }
        session
            .send_typed(security::TYPE_URL, "p", vec![], &[])
            .await;
        session.request().await;
        let everything = (0..size).map(|i| pod(i, true));
        let services = (0..size.div_ceil(PER_SERVICE)).map(service);
        let first = timed(&mut session, everything.chain(services).collect()).await;
        let rss = child.resident();
        if let Some(empty) = empty {
            let one = timed(&mut session, vec![pod(0, false)]).await;
            let changed = (0..CHANGED.min(size)).map(|i| pod(i, i == 0));
            let many = timed(&mut session, changed.collect()).await;
            println!(
                "{size:>10} {:>7} kB {:>10} B {:>11} ms {:>9} us {:>9} us",
                rss,
                (rss.saturating_sub(empty)) * 1024 / size as u64,
                first.as_millis(),
                one.as_micros(),
                many.as_micros()
            );
        }
        rss
    })
}

/// A client that is ended with this value.
struct ClientProcess(Child);

impl ClientProcess {
    fn start(address: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        Self(command.args(["--client", address]).spawn().unwrap())
    }

    /// In kB.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        kilobytes.unwrap().parse().unwrap()
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn client(address: String) {
    let client = Client::new(Config {
        control_plane: Reach {
            address,
            server_name: None,
            roots: Live::default(),
            token: Live::default(),
            cluster: "Kubernetes".to_owned(),
        },
        node: Node {
            ip: [10, 0, 0, 9].into(),
            name: "ztunnel-1".to_owned(),
            namespace: "istio-system".to_owned(),
            node_name: "node-0".to_owned(),
            cluster: "Kubernetes".to_owned(),
            metadata: BTreeMap::new(),
        },
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = runtime
        .unwrap()
        .block_on(async { tokio::spawn(client.run()).await });
    panic!("{:?}", ended.err());
}

/// How long it takes until a response is acknowledged.
async fn timed(session: &mut Session, resources: Vec<Resource>) -> Duration {
    let start = Instant::now();
    session
        .send_typed(workload::TYPE_URL, "n", resources, &[])
        .await;
    let answer = session.request().await;
    assert!(answer.error_detail.is_none(), "{answer:?}");
    start.elapsed()
}

fn resource(name: String, version: u64, address: workload::Address) -> Resource {
    Resource {
        name,
        version: format!("{version:016x}"),
        resource: Some(prost_types::Any {
            type_url: workload::TYPE_URL.to_owned(),
            value: address.encode_to_vec(),
        }),
        ..Default::default()
    }
}

/// A pod of a deployment of [`PER_SERVICE`], as a cluster names such things.
fn pod(i: usize, healthy: bool) -> Resource {
    let deployment = i / PER_SERVICE;
    let namespace = format!("team-{}", deployment / 10);
    let app = format!("app-{deployment}");
    let name = format!("{app}-5d9c7b8f6d-{i:05x}");
    let uid = format!("Kubernetes//Pod/{namespace}/{name}");
    let [_, b, c, d] = (i as u32).to_be_bytes();
    let status = match healthy {
        true => workload::WorkloadStatus::Healthy,
        false => workload::WorkloadStatus::Unhealthy,
    };
    let ports = vec![workload::Port {
        service_port: 80,
        target_port: 8080,
        ..Default::default()
    }];
    let key = format!("{namespace}/{app}.{namespace}.svc.cluster.local");
    let address = workload::Address::from(workload::Workload {
        uid: uid.clone(),
        name,
        service_account: app.clone(),
        canonical_name: app.clone(),
        canonical_revision: "latest".to_owned(),
        workload_name: app,
        node: format!("node-{}.example.internal", i / PER_NODE),
        addresses: vec![vec![10, b, c, d]],
        tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
        cluster_id: "Kubernetes".to_owned(),
        services: [(key, workload::PortList { ports })].into(),
        status: status.into(),
        namespace,
        ..Default::default()
    });
    resource(uid, 2 * i as u64 + u64::from(healthy), address)
}

fn service(i: usize) -> Resource {
    let namespace = format!("team-{}", i / 10);
    let hostname = format!("app-{i}.{namespace}.svc.cluster.local");
    let [_, b, c, d] = (i as u32).to_be_bytes();
    let address = workload::Address::from(workload::Service {
        name: format!("app-{i}"),
        namespace: namespace.clone(),
        hostname: hostname.clone(),
        addresses: vec![workload::NetworkAddress {
            address: vec![172, 16 | b, c, d],
            ..Default::default()
        }],
        ports: vec![workload::Port {
            service_port: 80,
            target_port: 8080,
            ..Default::default()
        }],
        ..Default::default()
    });
    resource(format!("{namespace}/{hostname}"), i as u64, address)
}
