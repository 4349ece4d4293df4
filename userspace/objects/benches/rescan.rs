//! What it costs a broker to follow a directory that holds the pods of a whole mesh.
//!
//! `cargo bench -p sluice-objects`. Each pod is a file of its own, and few of them are of the node.
//! Times are of a processor, both in this process and in the kernel on its behalf.

use std::{fs, time::Duration};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use sluice_objects::{Store, scan::scan};

const FILES: [u32; 3] = [1_000, 10_000, 100_000];
const NODES: u32 = 1_000;
const ROUNDS: u32 = 5;

fn main() {
    println!(
        "{:>8} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "files", "first", "no change", "one change", "memory", "peak"
    );
    for files in FILES {
        measure(files);
    }
}

fn measure(files: u32) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";
    fs::write(root.join("shop.yaml"), namespace).unwrap();
    for number in 0..files {
        fs::write(root.join(format!("pod-{number}.yaml")), pod(number, "v1")).unwrap();
    }
    // Files that have just been written are looked at more closely.
    std::thread::sleep(Duration::from_secs(3));
    let before = status("VmRSS");
    let mut store = Store::default().for_node("node-0".into());
    let first = processor_time(|| assert!(store.reload(scan(root).unwrap()).is_some()));
    let (memory, peak) = (status("VmRSS") - before, status("VmHWM") - before);
    let no_change = processor_time(|| {
        for _ in 0..ROUNDS {
            assert!(store.reload(scan(root).unwrap()).is_none());
        }
    });
    let one_change = processor_time(|| {
        for round in 0..ROUNDS {
            let version = format!("w{round}");
            fs::write(root.join("pod-0.yaml"), pod(0, &version)).unwrap();
            assert!(store.reload(scan(root).unwrap()).is_some());
        }
    });
    assert_eq!(store.snapshot().objects.pods.len() as u32, files / NODES);
    println!(
        "{files:>8} {first:>9.1?} {:>9.1?} {:>9.1?} {memory:>9} kB {peak:>9} kB",
        no_change / ROUNDS,
        one_change / ROUNDS
    );
}

fn processor_time(work: impl FnOnce()) -> Duration {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let used = usage.user_time() + usage.system_time();
        Duration::from_micros(used.num_microseconds() as u64)
    };
    let before = used();
    work();
    used() - before
}

/// A field of `/proc/self/status`, in kB.
fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn pod(number: u32, version: &str) -> String {
    let node = number % NODES;
    let [_, a, b, c] = number.to_be_bytes();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{number}\n  namespace: shop\n  \
         labels: {{app: app-{number}, version: {version}}}\n  annotations:\n    \
         sluice.io/netns: /run/netns/pod-{number}\nspec:\n  nodeName: node-{node}\n  \
         serviceAccountName: account-{node}\n  containers: [{{name: main, image: example}}]\n\
         status: {{podIP: 10.{a}.{b}.{c}}}\n"
    )
}
