//! Each direction ends on its own.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    fixtures::{World, on_worker, pair},
    noise::Noise,
};

const MIB: u64 = 1 << 20;

#[test]
fn an_answer_may_follow_the_end_of_the_question() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, mut server) = pair(&world.source).await;
        Noise::new(1).send(&mut connection.app, 100_000).await;
        connection.app.shutdown().await.unwrap();
        // As `sort` does: not a byte before it has read everything.
        Noise::new(1).expect_all(&mut server, 100_000).await;
        let answer = async {
            Noise::new(2).send(&mut server, 6 * MIB).await;
            drop(server);
        };
        let mut expected = Noise::new(2);
        tokio::join!(expected.expect_all(&mut connection.app, 6 * MIB), answer);
        assert_eq!(connection.carried().await, (100_000, 6 * MIB));
    });
}

#[test]
fn a_server_may_end_first() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, mut server) = pair(&world.source).await;
        Noise::new(1).send(&mut server, 1000).await;
        server.shutdown().await.unwrap();
        Noise::new(1).expect_all(&mut connection.app, 1000).await;
        let client = async {
            Noise::new(2).send(&mut connection.app, 6 * MIB).await;
            connection.app.shutdown().await.unwrap();
        };
        let mut expected = Noise::new(2);
        tokio::join!(expected.expect_all(&mut server, 6 * MIB), client);
        assert_eq!(connection.carried().await, (6 * MIB, 1000));
    });
}

#[test]
fn a_server_may_speak_first() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, mut server) = pair(&world.source).await;
        let mut said = [0; 11];
        server.write_all(b"220 ready\r\n").await.unwrap();
        connection.app.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"220 ready\r\n");
        connection.app.write_all(b"QUIT\r\n").await.unwrap();
        server.read_exact(&mut said[..6]).await.unwrap();
        assert_eq!(&said[..6], b"QUIT\r\n");
        drop(server);
        assert_eq!(connection.app.read(&mut said).await.unwrap(), 0);
        assert_eq!(connection.carried().await, (6, 11));
    });
}

#[test]
fn a_connection_without_a_byte_ends_in_order() {
    on_worker(async {
        let world = World::new().await;
        let (connection, mut server) = pair(&world.source).await;
        let mut nothing = Vec::new();
        let (carried, read) = tokio::join!(connection.carried(), async {
            let read = server.read_to_end(&mut nothing).await;
            drop(server);
            read
        });
        assert_eq!((carried, read.unwrap()), ((0, 0), 0));
    });
}
