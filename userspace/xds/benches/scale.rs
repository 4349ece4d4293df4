//! What a mesh costs a client: resident memory, and the time that updates take, as the mesh grows.
//!
//! `cargo bench -p sluice-xds` measures the client alone, in a process of its own. With
//! `-- --ztunnel PATH`, as root, it measures that ztunnel, broker and worker, without pods; it takes
//! ports 15000, 15020 and 15021 of the network namespace that it runs in. The times are from sending
//! a response to its acknowledgement, so they include the way there, parsing and applying.

#[path = "../tests/client/server.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod server;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use server::{ControlPlane, Session};
use sluice_identity::{ControlPlane as Reach, Direct, Live};
use sluice_proto::{discovery::Resource, security, workload};
use sluice_xds::{Client, Config, Node};

/// Workloads; there is a service for each twenty of them.
const SIZES: [usize; 4] = [20, 1_000, 10_000, 100_000];
const PER_SERVICE: usize = 20;
/// Pods of a node.
const PER_NODE: usize = 100;
/// The largest update that is timed.
const CHANGED: usize = 1_000;
/// How long memory that is no longer used may stay, and a mesh be written down.
const SETTLE: Duration = Duration::from_secs(20);

fn main() {
    let value = |flag: &str| env::args().skip_while(|arg| arg != flag).nth(1);
    if let Some(address) = value("--client") {
        return client(address);
    }
    let subject = value("--ztunnel").map_or(Subject::Client, |path| Subject::Ztunnel(path.into()));
    println!(
        "{:>10} {:>9} {:>10} {:>10} {:>11} {:>13} {:>10} {:>12}",
        "workloads",
        "services",
        "RSS",
        "PSS",
        "a workload",
        "first answer",
        "1 changed",
        "1000 changed"
    );
    let empty = measure(&subject, 0, None);
    for size in SIZES {
        measure(&subject, size, Some(empty));
    }
}

/// What is measured.
enum Subject {
    Client,
    Ztunnel(PathBuf),
}

/// Serves a mesh to a process; returns what it takes without one, or with it.
fn measure(subject: &Subject, size: usize, empty: Option<Memory>) -> Memory {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let mut server = ControlPlane::start().await;
        let measured = match subject {
            Subject::Client => Measured::client(&server.address()),
            Subject::Ztunnel(path) => Measured::ztunnel(path, &server.address()),
        };
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
        let count = services.len();
        let first = timed(&mut session, everything.chain(services).collect()).await;
        if let Subject::Ztunnel(_) = subject {
            tokio::time::sleep(SETTLE).await;
        }
        let memory = measured.memory();
        if let Some(empty) = empty {
            let one = timed(&mut session, vec![pod(0, false)]).await;
            let changed = (0..CHANGED.min(size)).map(|i| pod(i, i == 0));
            let many = timed(&mut session, changed.collect()).await;
            let more = memory.pss.saturating_sub(empty.pss);
            println!(
                "{size:>10} {count:>9} {:>7} kB {:>7} kB {:>9} B {:>10} ms {:>7} us {:>9} us",
                memory.rss,
                memory.pss,
                more * 1024 / size as u64,
                first.as_millis(),
                one.as_micros(),
                many.as_micros()
            );
        } else {
            println!(
                "{size:>10} {count:>9} {:>7} kB {:>7} kB",
                memory.rss, memory.pss
            );
        }
        memory
    })
}

/// Of all processes that are measured, in kB.
#[derive(Clone, Copy, Default)]
struct Memory {
    rss: u64,
    /// What they share is counted once.
    pss: u64,
}

/// A process, and those that it has started; ended with this value.
struct Measured {
    process: Child,
    /// A cgroup without pods, for a ztunnel to look at.
    cgroup: Option<PathBuf>,
}

impl Measured {
    fn client(address: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        Self {
            process: command.args(["--client", address]).spawn().unwrap(),
            cgroup: None,
        }
    }

    fn ztunnel(program: &Path, address: &str) -> Self {
        let directory = directory();
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("config")).unwrap();
        for file in ["root", "token"] {
            fs::write(directory.join(file), "none").unwrap();
        }
        let cgroup = cgroup_root().join(directory.file_name().unwrap());
        for name in ["broker", "pods"] {
            fs::create_dir_all(cgroup.join(name)).expect("a cgroup; is this root?");
        }
        // It must be in a cgroup of its own before it runs: its sockets are told by that.
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]);
        command.arg(cgroup.join("broker")).arg(program);
        command.args(["--node", "node-0", "--control", address]);
        command.args(["--threads", "2", "--log", "warn", "--instance", "scale"]);
        for (flag, path) in [
            ("--config-dir", "config"),
            ("--control-root", "root"),
            ("--token-file", "token"),
            ("--run-dir", "run"),
        ] {
            command.arg(flag).arg(directory.join(path));
        }
        command.arg("--pods-cgroup").arg(cgroup.join("pods"));
        Self {
            process: command.stdin(Stdio::null()).spawn().unwrap(),
            cgroup: Some(cgroup),
        }
    }

    fn memory(&self) -> Memory {
        let id = self.process.id().to_string();
        let worker = self.cgroup.as_ref().map(|_| {
            let file = directory().join("run/worker.pid");
            fs::read_to_string(file).unwrap().trim().to_owned()
        });
        let mut sum = Memory::default();
        for process in worker.into_iter().chain([id]) {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
            let value = |name: &str| -> u64 {
                let line = rollup.lines().find_map(|line| line.strip_prefix(name));
                let kilobytes = line.and_then(|line| line.split_whitespace().next());
                kilobytes.unwrap().parse().unwrap()
            };
            sum.rss += value("Rss:");
            sum.pss += value("Pss:");
        }
        sum
    }
}

/// Where the cgroups of version 2 are.
fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut mounts = fields.filter(|fields| fields[2] == "cgroup2");
    mounts.next().expect("cgroups of version 2 are mounted")[1].into()
}

/// Where a ztunnel finds what it reads, and keeps what it writes.
fn directory() -> PathBuf {
    env::temp_dir().join(format!("sluice-scale-{}", std::process::id()))
}

impl Drop for Measured {
    fn drop(&mut self) {
        let Some(cgroup) = &self.cgroup else {
            let _ = self.process.kill();
            let _ = self.process.wait();
            return;
        };
        // In good order: it has things of the kernel's to give back.
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let _ = self.process.wait();
        for empty in [cgroup.join("broker"), cgroup.join("pods"), cgroup.clone()] {
            let _ = fs::remove_dir(empty);
        }
        let _ = fs::remove_dir_all(directory());
    }
}

fn client(address: String) {
    let client = Client::new(Config {
        control_plane: Reach {
            addresses: address.into(),
            dial: Arc::new(Direct),
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
        patience: Config::PATIENCE,
        on_demand: None,
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
