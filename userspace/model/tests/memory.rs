//! What policies and decisions take of memory. One test, since the allocator counts for all threads.

#[path = "../benches/policies/mod.rs"]
mod policies;

use policies::{CLIENT, Elsewhere, applicable, connection, mesh};
use sluice_model::SpiffeId;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Bytes of a policy with ten rules, its index included.
const POLICY: usize = 3_500;

#[test]
fn a_decision_allocates_nothing_and_a_policy_is_small() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let before = dhat::HeapStats::get().curr_bytes;
    let none = mesh(0, Elsewhere::Principals);
    let with_one = dhat::HeapStats::get().curr_bytes - before;
    let client: SpiffeId = CLIENT.parse().unwrap();
    let mut judged = vec![none];
    for elsewhere in Elsewhere::ALL {
        let count = 1_000;
        let before = dhat::HeapStats::get().curr_bytes;
        judged.push(mesh(count, elsewhere));
        let bytes = dhat::HeapStats::get().curr_bytes - before - with_one;
        let each = bytes / count;
        println!("{elsewhere:?}: {each} bytes a policy");
        assert!(each <= POLICY, "{elsewhere:?}: {each} bytes a policy");
    }
    for policies in judged.iter().map(applicable) {
        let before = dhat::HeapStats::get().total_blocks;
        let judgement = policies.judge(&connection(&client));
        let blocks = dhat::HeapStats::get().total_blocks - before;
        assert!(judgement.decision.is_allowed());
        assert_eq!(blocks, 0, "allocations in a decision");
    }
}
