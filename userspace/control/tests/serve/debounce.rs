//! Changes that come faster than anybody wants to hear of them.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use sluice_objects::directory;
use sluice_proto::workload;

use crate::{
    discovery::{answer, ask, workload as content},
    world::{PATIENCE, Setup, World, pod},
};

/// Nothing stays unchanged for so long while the test writes.
const QUIET: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_millis(600);

#[tokio::test]
async fn changes_without_end_are_told_in_time_and_together() {
    let world = World::with(Setup {
        debounce: directory::Config {
            quiet: QUIET,
            longest_burst: LONGEST,
            ..directory::Config::new("")
        },
        ..Setup::default()
    })
    .await;
    let mut stream = world.stream().await;
    stream.send(ask(workload::TYPE_URL)).await;
    stream.next().await;
    let begin = Instant::now();
    let done = Cell::new(false);
    let write = async {
        let mut writes: u16 = 0;
        while !done.get() {
            writes += 1;
            let [high, low] = writes.to_be_bytes();
            world.write("web.yaml", &pod("web", &format!("10.1.{high}.{low}")));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        writes
    };
    let follow = async {
        let mut told = Vec::new();
        // Although there is never a quiet moment.
        while told.len() < 3 {
            let response = stream.next().await;
            stream.send(answer(&response)).await;
            told.push(begin.elapsed());
        }
        done.set(true);
        told
    };
    let (writes, told) = tokio::join!(write, follow);
    // And though each was a change: after one is told, the next is at least a quiet moment later.
    assert!(told[2] > 2 * QUIET, "{writes} writes: {told:?}");
    // The last change is not lost: whoever asks anew has it.
    let [high, low] = writes.to_be_bytes();
    let expected = format!("10.1.{high}.{low}");
    let published = world.published.clone();
    loop {
        let mut other = world.stream().await;
        other.send(ask(workload::TYPE_URL)).await;
        let response = other.next().await;
        if content(&response, "c//Pod/shop/web").ips[0].to_string() == expected {
            break;
        }
        assert!(begin.elapsed() < told[2] + PATIENCE, "never told");
        let mut published = published.clone();
        let _ = tokio::time::timeout(LONGEST, published.changed()).await;
    }
}
