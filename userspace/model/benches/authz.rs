//! What a decision costs beside policies that cannot match.
//!
//! `cargo bench -p sluice-model`. The cost must not grow with the number of policies.

mod policies;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policies::{CLIENT, Elsewhere, applicable, connection, mesh};
use sluice_model::SpiffeId;

const COUNTS: [usize; 4] = [0, 10, 1_000, 100_000];

fn decisions(criterion: &mut Criterion) {
    let client: SpiffeId = CLIENT.parse().unwrap();
    for elsewhere in Elsewhere::ALL {
        let mut group = criterion.benchmark_group(format!("decide beside other {elsewhere:?}"));
        for count in COUNTS {
            let policies = applicable(&mesh(count, elsewhere));
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                b.iter(|| policies.judge(black_box(&connection(&client))));
            });
        }
    }
}

criterion_group!(benches, decisions);
criterion_main!(benches);
