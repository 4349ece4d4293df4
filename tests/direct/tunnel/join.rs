//! Two connections without a tunnel between them: the same promises.

use sluice_hbone::{Meter, join};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::{JoinHandle, spawn_local},
};

use super::resets::{greet, reset, until_reset};
use crate::{
    fixtures::{ended, on_worker, sockets},
    noise::{Noise, converse},
};

struct Joined {
    client: TcpStream,
    server: TcpStream,
    proxy: JoinHandle<Result<Meter, sluice_hbone::CarryError>>,
}

async fn joined() -> Joined {
    let (client, application) = sockets().await;
    let (peer, server) = sockets().await;
    let proxy = spawn_local(async move {
        let meter = Meter::default();
        join(application, peer, &meter).await.map(|()| meter)
    });
    Joined {
        client,
        server,
        proxy,
    }
}

#[test]
fn every_byte_arrives_in_both_directions() {
    on_worker(async {
        for (there, back) in [(0, 0), (1, 0), (0, 1), (100_000, 20 << 20), (20 << 20, 1)] {
            let mut joined = joined().await;
            let [question, answer] = [1, 2].map(|seed| move || Noise::new(seed));
            tokio::join!(
                converse(&mut joined.client, (question(), there), (answer(), back)),
                converse(&mut joined.server, (answer(), back), (question(), there)),
            );
            let meter = ended(joined.proxy).await.unwrap();
            assert_eq!((meter.received.get(), meter.sent.get()), (there, back));
        }
    });
}

#[test]
fn each_direction_ends_on_its_own() {
    on_worker(async {
        let mut joined = joined().await;
        joined.client.shutdown().await.unwrap();
        Noise::new(1).expect_all(&mut joined.server, 0).await;
        Noise::new(2).send(&mut joined.server, 100_000).await;
        drop(joined.server);
        Noise::new(2).expect_all(&mut joined.client, 100_000).await;
        ended(joined.proxy).await.unwrap();
    });
}

#[test]
fn a_reset_arrives_as_a_reset() {
    on_worker(async {
        for of_the_client in [true, false] {
            let mut joined = joined().await;
            greet(&mut joined.client, &mut joined.server).await;
            if of_the_client {
                reset(joined.client);
                until_reset(&mut joined.server).await;
            } else {
                reset(joined.server);
                until_reset(&mut joined.client).await;
            }
            let error = ended(joined.proxy).await.unwrap_err().to_string();
            let whose = if of_the_client { "application" } else { "peer" };
            assert!(
                error.starts_with(&format!("the {whose}'s connection")),
                "{error}"
            );
        }
    });
}

#[test]
fn a_connection_that_the_proxy_gives_up_is_reset_at_both_ends() {
    on_worker(async {
        let mut joined = joined().await;
        greet(&mut joined.client, &mut joined.server).await;
        joined.proxy.abort();
        until_reset(&mut joined.client).await;
        until_reset(&mut joined.server).await;
    });
}
