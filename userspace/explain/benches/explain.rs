//! What a question costs in a large mesh.
//!
//! `cargo bench -p sluice-explain`. Who is named is found without a look at everybody else, and every
//! endpoint of a service is looked at once.

use std::{hint::black_box, net::Ipv4Addr};

use criterion::{Criterion, criterion_group, criterion_main};
use sluice_explain::{World, explain};
use sluice_model::{Mesh, Name, Update, workload::TunnelProtocol};

#[path = "../../model/tests/shop/mod.rs"]
mod shop;

use shop::{endpoint_of, mesh, service, workload};

const WORKLOADS: u32 = 100_000;
/// Of the workloads, those behind the one service.
const ENDPOINTS: u32 = 1_000;

fn large() -> Mesh {
    let pods = (0..WORKLOADS).map(|number| {
        let ip = Ipv4Addr::from(0x0a00_0000 + number).to_string();
        let pod = workload(&format!("pod-{number}"), &ip, TunnelProtocol::Hbone);
        let pod = if number < ENDPOINTS {
            endpoint_of(pod)
        } else {
            pod
        };
        Update::from(pod)
    });
    mesh(
        [Update::Service(service("10.96.0.1"))]
            .into_iter()
            .chain(pods)
            .collect(),
    )
}

fn questions(criterion: &mut Criterion) {
    let mesh = large();
    let network = Name::default();
    let world = World {
        mesh: &mesh,
        cluster: "Kubernetes",
        network: &network,
        cluster_domain: "cluster.local",
        bypass: true,
        whole: true,
        here: None,
    };
    let mut group = criterion.benchmark_group(format!("explain among {WORKLOADS} workloads"));
    group.sample_size(20);
    for (name, source, destination) in [
        (
            "a pod by its name",
            "shop/pod-70000",
            "pod/shop/pod-99999:8080",
        ),
        ("a pod by its address", "10.1.17.112", "10.1.134.159:8080"),
        (
            "a service of 1000 endpoints",
            "10.1.17.112",
            "service/shop/catalog:80",
        ),
        (
            "a pod that is not there",
            "shop/nobody",
            "10.1.134.159:8080",
        ),
    ] {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        group.bench_function(name, |b| {
            b.iter(|| explain(black_box(world), &source, &destination));
        });
    }
}

criterion_group!(benches, questions);
criterion_main!(benches);
