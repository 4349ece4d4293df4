//! Many connections, one after the other.

use std::{env, fs, process::Command, rc::Rc};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::spawn_local, time::timeout};

use crate::{
    fixtures::{PATIENCE, Source, World, application, eventually, on_worker},
    noise::{Dice, Noise},
};

const CONNECTIONS: u64 = 5000;
/// Set in the process that has nothing else to do.
const ALONE: &str = "SLUICE_DIRECT_ALONE";

/// Runs a test in a process of its own: descriptors are a process's, and in this one other tests
/// come and go.
fn alone(test: &str, run: impl Future<Output = ()>) {
    if env::var_os(ALONE).is_some() {
        return on_worker(run);
    }
    let test = format!("tunnel::many::{test}");
    let mut alone = Command::new(env::current_exe().unwrap());
    let alone = alone
        .args(["--exact", &test, "--nocapture"])
        .env(ALONE, "1");
    let output = alone.output().unwrap();
    let (said, failed) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{failed}");
    assert!(String::from_utf8_lossy(said).contains("1 passed"));
}

#[test]
fn many_short_connections_leave_nothing_behind() {
    alone("many_short_connections_leave_nothing_behind", async {
        let world = World::new().await;
        let echo = application(echo).await;
        let before = descriptors();
        let exchange = async |seed| {
            let mut connection = world.source.connect(echo).await;
            let size = seed % 2000;
            Noise::new(seed).send(&mut connection.app, size).await;
            connection.app.shutdown().await.unwrap();
            Noise::new(seed).expect_all(&mut connection.app, size).await;
            assert_eq!(connection.carried().await, (size, size));
        };
        for seed in 0..CONNECTIONS {
            exchange(seed).await;
        }
        assert_eq!(world.destination.accepted(), 1);
        // What is left is the tunnel, which has two ends here.
        eventually("all connections are closed", || descriptors() == before + 2).await;
    });
}

/// Says what it hears, until either side breaks.
async fn echo(mut tcp: TcpStream) {
    let (mut from, mut to) = tcp.split();
    if tokio::io::copy(&mut from, &mut to).await.is_ok() {
        // The other side may have broken it.
        let _ = to.shutdown().await;
    }
}

/// What may become of a connection, at any time.
#[derive(Clone, Copy)]
enum Fate {
    Whole,
    /// The application breaks it, the proxy gives it up, or both sides just go.
    Broken,
    GivenUp,
    Left,
}

const FATES: [Fate; 8] = [
    Fate::Whole,
    Fate::Whole,
    Fate::Whole,
    Fate::Whole,
    Fate::Whole,
    Fate::Broken,
    Fate::GivenUp,
    Fate::Left,
];

/// Ten thousand connections through many tunnels, which have come to all kinds of ends.
#[test]
fn all_kinds_of_ends_in_many_tunnels_leave_nothing_behind() {
    const TUNNELS: u8 = 25;
    const AT_A_TIME: u64 = 50;
    const EACH: u64 = 200;
    let seed = env::var("SLUICE_SEED").map_or_else(|_| rand(), |seed| seed.parse().unwrap());
    eprintln!("to repeat: SLUICE_SEED={seed}");
    alone(
        "all_kinds_of_ends_in_many_tunnels_leave_nothing_behind",
        async {
            let world = World::new().await;
            let echo = application(echo).await;
            let before = descriptors();
            let users: Vec<_> = (0..AT_A_TIME)
                .map(|user| {
                    let source = world.source.clone();
                    spawn_local(async move {
                        let mut dice = Dice(seed ^ user);
                        for _ in 0..EACH {
                            let tunnel = 1 + dice.below(TUNNELS.into()) as u8;
                            let one = exchange(&source, tunnel, echo, &mut dice);
                            timeout(PATIENCE, one).await.expect("it ends");
                        }
                    })
                })
                .collect();
            for user in users {
                // How long all of them take is the machine's.
                user.await.unwrap();
            }
            let (source, destination) = (&world.source.engine, &world.destination.engine);
            eventually("no stream is left", || {
                source.streams() + destination.streams() == 0
            })
            .await;
            // What broke were connections, and no tunnel.
            assert_eq!(world.destination.accepted(), usize::from(TUNNELS));
            for tunnel in 1..=TUNNELS {
                world.source.pool.forget_source([127, 0, 1, tunnel].into());
            }
            eventually("no tunnel is left", || {
                source.tunnels() + destination.tunnels() == 0
            })
            .await;
            eventually("all sockets are closed", || descriptors() == before).await;
        },
    );
}

/// Sends noise to an echo, and hears it again unless the connection has another fate.
async fn exchange(source: &Rc<Source>, tunnel: u8, echo: std::net::SocketAddr, dice: &mut Dice) {
    let mut key = source.key.clone();
    key.source_ip = [127, 0, 1, tunnel].into();
    let fate = FATES[dice.below(8) as usize];
    let size = if dice.one_in(50) {
        dice.below(1 << 20)
    } else {
        dice.below(5000)
    };
    let seed = dice.below(u64::MAX);
    let mut connection = source.connect_with(&key, echo).await;
    let (mut from, mut to) = connection.app.split();
    let (mut said, mut heard) = (Noise::new(seed), Noise::new(seed));
    let told = match fate {
        Fate::Whole => size,
        _ => dice.below(size + 1),
    };
    tokio::join!(said.send(&mut to, size), heard.expect(&mut from, told));
    match fate {
        Fate::Whole => {
            to.shutdown().await.unwrap();
            heard.expect_all(&mut from, 0).await;
            assert_eq!(connection.carried().await, (size, size));
        }
        Fate::Broken => connection.app.set_zero_linger().unwrap(),
        Fate::GivenUp => {
            dice.pause().await;
            connection.proxy.abort();
        }
        Fate::Left => {}
    }
}

/// A seed that nobody chose.
fn rand() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
