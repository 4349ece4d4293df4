//! Every byte arrives, in order, and no other.

use std::rc::Rc;

use tokio::task::spawn_local;

use crate::{
    fixtures::{Source, World, application, ended, on_worker},
    noise::{Dice, MUCH, Noise, converse},
};

const MIB: u64 = 1 << 20;

/// Bytes from the client and from the server, around the sizes of TLS records, frames, and windows.
const SIZES: [(u64, u64); 10] = [
    (1, 1),
    (1, 20 * MIB),
    (20 * MIB, 1),
    (20 * MIB, 20 * MIB),
    ((16 << 10) - 1, 16 << 10),
    ((16 << 10) + 1, (64 << 10) - 1),
    (64 << 10, (64 << 10) + 1),
    (MIB - 1, MIB + 1),
    (4 * MIB, 4 * MIB + 1),
    (0, 4 * MIB - 1),
];

#[test]
fn every_byte_arrives_in_both_directions_of_concurrent_streams() {
    on_worker(async {
        let world = World::new().await;
        let mut dice = Dice(7);
        let random = (0..10).map(|_| (dice.below(300_000), dice.below(300_000)));
        let exchanges = SIZES.into_iter().chain(random).zip(1..);
        let exchanges: Vec<_> = exchanges
            .map(|((there, back), seed)| {
                spawn_local(exchange(world.source.clone(), seed, there, back))
            })
            .collect();
        for exchange in exchanges {
            ended(exchange).await;
        }
        assert_eq!(world.destination.accepted(), 1, "all shared one tunnel");
    });
}

#[test]
fn much_arrives_in_both_directions_of_a_stream() {
    on_worker(async {
        let world = World::new().await;
        exchange(world.source.clone(), 1, MUCH, MUCH).await;
    });
}

#[test]
fn small_messages_are_not_held_back() {
    on_worker(async {
        let world = World::new().await;
        let echo = application(|mut tcp| async move {
            let (mut from, mut to) = tcp.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        })
        .await;
        let mut connection = world.source.connect(echo).await;
        // Nothing follows a message before its answer, so whoever waits for more waits for ever.
        for seed in 0..500 {
            let size = seed % 40 + 1;
            Noise::new(seed).send(&mut connection.app, size).await;
            Noise::new(seed).expect(&mut connection.app, size).await;
        }
    });
}

/// Sends both ways at once, and checks what arrives.
pub(super) async fn exchange(source: Rc<Source>, seed: u64, there: u64, back: u64) {
    let server = application(move |mut tcp| async move {
        let (question, answer) = (Noise::new(seed), Noise::new(!seed));
        converse(&mut tcp, (answer, back), (question, there)).await;
    })
    .await;
    let mut connection = source.connect(server).await;
    let (question, answer) = (Noise::new(seed), Noise::new(!seed));
    converse(&mut connection.app, (question, there), (answer, back)).await;
    assert_eq!(connection.carried().await, (there, back));
}
