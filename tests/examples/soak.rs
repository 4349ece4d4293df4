//! A tunnel's two ends at full load, for as long as wanted: every byte is checked, and the memory
//! must stay flat.
//!
//!     cargo run --release -p sluice-tests --example soak -- --seconds 600

use std::{
    cell::Cell,
    env, fs,
    future::pending,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::{JoinHandle, LocalSet, spawn_local},
    time::{sleep, timeout},
};

#[path = "../direct/authority.rs"]
mod authority;
#[path = "../direct/fixtures.rs"]
#[expect(dead_code, reason = "more is for the tests")]
mod fixtures;
#[path = "../direct/noise.rs"]
#[expect(dead_code, reason = "more is for the tests")]
mod noise;

use fixtures::{Source, World, application};
use noise::{Dice, Noise};

/// Connections that say much, at a time; those that say little, and end soon.
const LONG: u64 = 8;
const SHORT: u64 = 32;
/// What a long one says before another takes its place, in bytes.
const MUCH: u64 = 64 << 20;
/// How long a connection may take, on a busy machine.
const STUCK: Duration = Duration::from_secs(120);
/// What memory may grow by after the beginning, in KiB: as much as the windows of a tunnel may.
const GROWTH: u64 = 32 << 10;

#[derive(Default)]
struct Done {
    bytes: Cell<u64>,
    connections: Cell<u64>,
}

async fn echo(mut tcp: TcpStream) {
    let (mut from, mut to) = tcp.split();
    if tokio::io::copy(&mut from, &mut to).await.is_ok() {
        // The other side may have broken it.
        let _ = to.shutdown().await;
    }
}

async fn load(source: Rc<Source>, to: std::net::SocketAddr, most: u64, seed: u64, done: Rc<Done>) {
    let mut dice = Dice(seed);
    loop {
        let (size, seed) = (1 + dice.below(most), dice.below(u64::MAX));
        let mut connection = source.connect(to).await;
        let (mut from, mut to) = connection.app.split();
        let (mut said, mut heard) = (Noise::new(seed), Noise::new(seed));
        let mut told = size;
        if dice.one_in(16) {
            // Broken in the middle, with bytes on their way.
            told = size / 2;
            let saying = async {
                said.send(&mut to, size).await;
                pending::<()>().await;
            };
            let hearing = timeout(STUCK, heard.expect(&mut from, told));
            tokio::select! {
                heard = hearing => heard.expect("no connection is stuck"),
                () = saying => {}
            }
            connection.app.set_zero_linger().expect("a socket");
        } else {
            let saying = async {
                said.send(&mut to, size).await;
                to.shutdown().await.expect("an end");
            };
            let both = async { tokio::join!(saying, heard.expect_all(&mut from, size)) };
            timeout(STUCK, both).await.expect("no connection is stuck");
        }
        done.bytes.set(done.bytes.get() + 2 * told);
        done.connections.set(done.connections.get() + 1);
    }
}

/// What this process holds of memory, in KiB, and of descriptors.
fn held() -> (u64, usize) {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let descriptors = fs::read_dir("/proc/self/fd").expect("procfs").count();
    let memory = memory.and_then(|kib| kib.parse().ok()).expect("VmRSS");
    (memory, descriptors)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let seconds = match &*arguments {
        [] => Ok(600),
        [flag, seconds] if flag == "--seconds" => seconds.parse(),
        _ => "".parse(),
    };
    let Ok(seconds) = seconds else {
        eprintln!("usage: soak [--seconds N]");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, soak(Duration::from_secs(seconds)))
}

async fn soak(time: Duration) -> ExitCode {
    let world = World::new().await;
    let to = application(echo).await;
    let done = Rc::new(Done::default());
    let users: Vec<_> = (0..LONG + SHORT)
        .map(|user| {
            let most = if user < LONG { MUCH } else { 10_000 };
            spawn_local(load(world.source.clone(), to, most, user, done.clone()))
        })
        .collect();
    let begin = Instant::now();
    let mut first = None;
    loop {
        sleep((time / 20).max(Duration::from_secs(1))).await;
        let (memory, descriptors) = held();
        let elapsed = begin.elapsed();
        println!(
            "{:6.1} s {:8.1} GB {:9} connections {memory:8} KiB {descriptors:4} descriptors {:3} + {:3} streams",
            elapsed.as_secs_f64(),
            done.bytes.get() as f64 / 1e9,
            done.connections.get(),
            world.source.engine.streams(),
            world.destination.engine.streams(),
        );
        if users.iter().any(JoinHandle::is_finished) {
            println!("a connection did not carry what it should");
            return ExitCode::FAILURE;
        }
        // By then everything has been large once.
        if elapsed < time / 4 {
            continue;
        }
        let before = *first.get_or_insert(memory);
        if memory > before + GROWTH {
            println!("memory grew from {before} KiB to {memory} KiB");
            return ExitCode::FAILURE;
        }
        if elapsed >= time {
            return ExitCode::SUCCESS;
        }
    }
}
