//! What clients cost the control plane, and how fast a change reaches all of them.
//!
//! `cargo bench -p sluice-control`. Clients are connections of their own to the Unix socket, from a
//! process of their own: no TLS, so that what is measured is discovery. They read everything and
//! acknowledge it. The server has one thread, as in `sluice-control`.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use prost::Message as _;
use sluice_control::{
    addresses::Addresses,
    auth::{Authenticator, PeerCredentials},
    ca::{self, Authority, Certificates},
    feed,
    memory::Keeper,
    metrics::ControlMetrics,
    server::unix::{Config, UnixServer},
    translate,
    xds::{Clients, Discovery},
};
use sluice_objects::directory;
use sluice_proto::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    workload,
};
use tokio::{net::UnixStream, sync::mpsc};

const WORKLOADS: usize = 10_000;
const PER_FILE: usize = 100;
const CLIENTS: [usize; 3] = [10, 500, 2_000];
const CHANGES: usize = 5;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let argument = |name: &str| env::args().skip_while(|arg| arg != name).nth(1);
    match argument("--clients") {
        Some(count) => {
            let path = argument("--socket").unwrap();
            runtime.block_on(clients(count.parse().unwrap(), &path));
        }
        None => {
            println!(
                "{:>8} {:>14} {:>14} {:>14} {:>16} {:>14}",
                "clients", "RSS before", "a client", "peak", "all have all", "a change"
            );
            for count in CLIENTS {
                runtime.block_on(measure(count));
            }
        }
    }
}

/// Serves a mesh of its own to so many clients.
async fn measure(count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let (mesh, state) = (
        directory.path().join("mesh"),
        directory.path().join("state"),
    );
    fs::create_dir(&mesh).unwrap();
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";
    fs::write(mesh.join("shop.yaml"), namespace).unwrap();
    for file in 0..WORKLOADS / PER_FILE {
        write_pods(&mesh, file, 0);
    }
    let path = directory.path().join("control.sock");
    let counters = ControlMetrics::default();
    let config = translate::Config {
        trust_domain: "cluster.local".parse().unwrap(),
        trust_domain_aliases: Vec::new(),
        cluster: "c".into(),
        network: "".into(),
        root_namespace: "istio-system".into(),
        cluster_domain: "cluster.local".into(),
    };
    let keeper = Keeper::open(&state).unwrap();
    let addresses = Addresses::open(&state).unwrap();
    let source = directory::Config::new(&mesh);
    let (_watch, published) = feed::directory(source, config.clone(), keeper, addresses).unwrap();
    let callers = Arc::new(Authenticator {
        peer_credentials: Some(PeerCredentials {
            node: "n".into(),
            uids: [rustix::process::geteuid().as_raw()].into(),
        }),
        ..Authenticator::default()
    });
    let root = ca::Source::Own {
        directory: state,
        rotation: ca::Rotation {
            root_announcement: 3600,
            root_overlap: 3600,
        },
    };
    let authority = Arc::new(Authority::open(root, config.trust_domain).unwrap());
    let all = Clients::new(counters.clients.clone());
    let discovery = Discovery::new(published.clone(), callers.clone(), all, counters.clone());
    let certificates = Certificates::new(authority, callers, published, counters);
    let server = UnixServer::bind(&Config {
        path: path.clone(),
        group: None,
    })
    .unwrap();
    let serving = tokio::spawn(server.serve(discovery, certificates));
    // Connects and has everything before anything is measured: allocators grow once.
    let before = memory("VmRSS");
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let begin = now();
    let (mut child, mut told) = spawn(count, path.to_str().unwrap());
    let first = told.recv().await.unwrap() - begin;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (after, peak) = (memory("VmRSS"), memory("VmHWM"));
    let mut times = Vec::new();
    for change in 1..=CHANGES {
        let begin = now();
        write_pods(&mesh, 7, change);
        times.push(told.recv().await.unwrap() - begin);
    }
    times.sort_unstable();
    let _ = child.kill();
    let _ = child.wait();
    serving.abort();
    println!(
        "{count:>8} {before:>11} kB {:>11} kB {peak:>11} kB {:>13} ms {:>11} ms",
        (after.saturating_sub(before)) / count as u64,
        first / 1000,
        times[CHANGES / 2] / 1000,
    );
}

/// A hundred pods, of which one differs from version to version.
fn write_pods(directory: &Path, file: usize, version: usize) {
    let mut text = String::new();
    for i in 0..PER_FILE {
        let number = file * PER_FILE + i;
        let (third, fourth) = (number / 250, number % 250 + 1);
        let account = if i == 0 { version } else { 0 };
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web-{number}, namespace: shop, \
             labels: {{app: web}}}}\nspec: {{nodeName: n{}, serviceAccountName: web-{account}, \
             containers: []}}\nstatus: {{podIP: 10.1.{third}.{fourth}}}\n",
            number % 100,
        );
    }
    let temporary = directory.join(format!(".{file}"));
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, directory.join(format!("{file}.yaml"))).unwrap();
}

fn memory(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Microseconds, the same in both processes.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// Clients in another process, and when the last of them had each response.
fn spawn(count: usize, socket: &str) -> (Child, mpsc::UnboundedReceiver<u64>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--clients", &count.to_string(), "--socket", socket])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = sender.send(line.parse().unwrap());
        }
    });
    (child, receiver)
}

async fn clients(count: usize, path: &str) {
    let (had, mut responses) = mpsc::unbounded_channel();
    for _ in 0..count {
        let stream = UnixStream::connect(path).await.unwrap();
        tokio::spawn(client(stream, had.clone()));
    }
    let mut counts = [0; 1 + CHANGES];
    while let Some(number) = responses.recv().await {
        let number: usize = number;
        counts[number] += 1;
        if counts[number] == count {
            println!("{}", now());
        }
    }
}

/// Reads responses without keeping them, and tells the number of each that is complete.
async fn client(stream: UnixStream, had: mpsc::UnboundedSender<usize>) {
    let (mut sender, connection) = client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let uri = "http://localhost/envoy.service.discovery.v3.AggregatedDiscoveryService/\
               DeltaAggregatedResources";
    let request = http::Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut requests) = sender.send_request(request, false).unwrap();
    ask(&mut requests, String::new());
    let mut body = response.await.unwrap().into_body();
    for number in 0.. {
        let nonce = skip_response(&mut body).await;
        ask(&mut requests, nonce);
        had.send(number).unwrap();
    }
}

fn ask(requests: &mut SendStream<Bytes>, response_nonce: String) {
    let request = DeltaDiscoveryRequest {
        type_url: workload::TYPE_URL.to_owned(),
        response_nonce,
        ..DeltaDiscoveryRequest::default()
    };
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(request.encoded_len()).unwrap());
    request.encode(&mut frame).unwrap();
    requests.send_data(frame.freeze(), false).unwrap();
}

/// The nonce of a response, of which everything but the resources comes in the first frame.
async fn skip_response(body: &mut RecvStream) -> String {
    let first = body.data().await.unwrap().unwrap();
    let _ = body.flow_control().release_capacity(first.len());
    let length = u32::from_be_bytes(first[1..5].try_into().unwrap()) as usize;
    let rest = DeltaDiscoveryResponse::decode(first.slice(5..)).unwrap();
    let mut read = first.len() - 5;
    while read < length {
        let more = body.data().await.unwrap().unwrap();
        let _ = body.flow_control().release_capacity(more.len());
        read += more.len();
    }
    assert_eq!(read, length);
    rest.nonce
}
