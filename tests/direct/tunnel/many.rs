//! Many connections, one after the other.

use std::{env, fs, process::Command};

use tokio::io::AsyncWriteExt as _;

use crate::{
    fixtures::{World, application, eventually, on_worker},
    noise::Noise,
};

const CONNECTIONS: u64 = 5000;
/// Set in the process that has nothing else to do.
const ALONE: &str = "SLUICE_DIRECT_ALONE";

#[test]
fn many_short_connections_leave_nothing_behind() {
    // Descriptors are a process's, and in this one other tests come and go.
    if env::var_os(ALONE).is_none() {
        let test = "tunnel::many::many_short_connections_leave_nothing_behind";
        let mut alone = Command::new(env::current_exe().unwrap());
        alone.args(["--exact", test, "--nocapture"]).env(ALONE, "1");
        let output = alone.output().unwrap();
        let (said, failed) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{failed}");
        assert!(String::from_utf8_lossy(said).contains("1 passed"));
        return;
    }
    on_worker(async {
        let world = World::new().await;
        let echo = application(|mut tcp| async move {
            let (mut from, mut to) = tcp.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
        })
        .await;
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

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
