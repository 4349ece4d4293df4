//! Tunnels whose proofs are withdrawn, or grow old.

use std::{sync::Arc, time::Duration};

use sluice_hbone::OpenError;
use sluice_identity::{Roots, Svid};
use tokio::{io::AsyncReadExt as _, net::TcpListener, task::spawn_local};

use crate::{
    authority::{DB, Root, WEB, id},
    fixtures::{Destination, Source, World, eventually, on_worker, pair, to_application},
    noise::Noise,
    peers::{Frame, Peer, kind},
};

/// Puts the root of nobody in force.
fn withdraw(svid: &Svid) {
    let nobody = Root::new().trust().roots().unwrap();
    let roots = Roots::new(nobody.certificates().to_vec()).unwrap();
    assert!(svid.trust().replace(roots));
}

#[test]
fn a_tunnel_to_a_peer_that_is_not_believed_any_more_ends_with_its_streams() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, _server) = pair(&world.source).await;
        world.source.pool.review();
        Noise::new(1).send(&mut connection.app, 1000).await;
        assert_eq!(world.source.pool.len(), 1);
        withdraw(&world.source.svid);
        world.source.pool.review();
        connection
            .app
            .read_to_end(&mut Vec::new())
            .await
            .unwrap_err();
        assert!(world.source.pool.is_empty());
        eventually("the server's end", || world.destination.serving() == 0).await;
    });
}

#[test]
fn it_takes_no_new_stream_before_anybody_looks() {
    on_worker(async {
        let world = World::new().await;
        let _old = pair(&world.source).await;
        withdraw(&world.source.svid);
        let error = world.source.open("10.0.0.1:80").await.unwrap_err();
        assert!(matches!(error, OpenError::Tls(_)), "{error:?}");
        assert_eq!(world.source.dialled(), 2);
    });
}

/// A world in which one end's certificate expires soon.
async fn short(life: [Duration; 2]) -> World {
    let root = Root::new();
    let svid = |identity, life| -> Arc<Svid> {
        root.svid_valid_for(life, &id(identity), &[identity], root.trust())
    };
    let destination = Destination::start(&svid(DB, life[1]), to_application).await;
    let source = Source::new(svid(WEB, life[0]), destination.addr).await;
    World {
        root,
        source,
        destination,
    }
}

#[test]
fn what_was_proven_by_an_expired_certificate_takes_no_new_streams_and_keeps_the_old() {
    const SOON: Duration = Duration::from_secs(6);
    const LATE: Duration = Duration::from_secs(3600);
    for life in [[SOON, LATE], [LATE, SOON]] {
        on_worker(async {
            let world = short(life).await;
            let (mut old, mut old_server) = pair(&world.source).await;
            let _second = pair(&world.source).await;
            assert_eq!(world.source.dialled(), 1);
            // Times in certificates are whole seconds, and the last one counts.
            tokio::time::sleep(SOON + Duration::from_secs(1)).await;
            // The next one needs a valid certificate, which is not there.
            world.source.open("10.0.0.1:80").await.unwrap_err();
            assert_eq!(world.source.dialled(), 2);
            Noise::new(1).send(&mut old.app, 100_000).await;
            Noise::new(1).expect(&mut old_server, 100_000).await;
        });
    }
}

#[test]
fn an_idle_tunnel_ends_when_a_certificate_expires() {
    on_worker(async {
        let life = Duration::from_secs(6);
        let world = short([Duration::from_secs(3600), life]).await;
        let (connection, server) = pair(&world.source).await;
        drop((connection, server));
        world.destination.ended().await.unwrap();
    });
}

/// A server that never says that its tunnels should end, as others do not.
#[test]
fn a_client_needs_no_word_of_its_server_to_leave_an_old_tunnel() {
    on_worker(async {
        let (root, life) = (Root::new(), Duration::from_secs(6));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = Source::new(root.svid(WEB), listener.local_addr().unwrap()).await;
        let db = root.svid_valid_for(life, &id(DB), &[DB], root.trust());
        spawn_local(async move {
            let settings = Frame::settings();
            let mut peer = Peer::accept_saying(&listener, db.server_config(), &settings).await;
            // One tunnel, and nobody to make another with.
            drop(listener);
            while let Some(frame) = peer.next().await {
                match frame.kind {
                    kind::PING => peer.send(&frame.answered()).await,
                    kind::HEADERS => peer.send(&Frame::accepting(frame.stream)).await,
                    _ => {}
                }
            }
        });
        let _old = source.open("10.0.0.1:80").await.unwrap();
        let _new = source.open("10.0.0.1:80").await.unwrap();
        assert_eq!(source.dialled(), 1);
        tokio::time::sleep(life + Duration::from_secs(1)).await;
        let error = source.open("10.0.0.1:80").await.unwrap_err();
        assert!(matches!(error, OpenError::Connect(_)), "{error:?}");
        assert_eq!(source.dialled(), 2);
    });
}
