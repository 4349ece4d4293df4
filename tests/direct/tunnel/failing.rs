//! Tunnels that break, that cannot be made, or whose server leaves: no connection fails for them
//! that could have been made, and none waits without end.

use std::{cell::Cell, io, rc::Rc};

use sluice_hbone::{Dialled, Idle, OpenError, TunnelKey};
use tokio::{io::AsyncReadExt as _, sync::Notify, task::spawn_local};
use tokio_rustls::TlsAcceptor;

use super::pool::{all_opened, open_all, quiet};
use crate::{
    authority::WEB,
    fixtures::{Connection, World, ended, eventually, on_worker, pair, request, source_alone},
    noise::Noise,
    peers::{Frame, Peer, code, kind},
};

#[test]
fn a_broken_tunnel_is_replaced_without_a_failure() {
    on_worker(async {
        let world = World::new().await;
        let quiet = quiet().await;
        for noticed in [false, true] {
            // More than one tunnel, all of them idle.
            let key = &world.source.key;
            drop(all_opened(open_all(&world.source, key, &quiet, 150).await));
            let before = world.destination.accepted();
            world.destination.kill();
            if noticed {
                eventually("the tunnels' end is noticed", || {
                    world.source.pool.sweep(&mut Idle::default());
                    world.source.pool.is_empty()
                })
                .await;
            }
            all_opened(open_all(&world.source, key, &quiet, 50).await);
            assert_eq!(world.destination.accepted(), before + 1);
        }
    });
}

#[test]
fn a_draining_server_finishes_its_streams_and_gets_no_new_ones() {
    on_worker(async {
        let world = World::new().await;
        let (mut old, mut old_server) = pair(&world.source).await;
        world.destination.drain();
        // Until the word is heard, streams may still be let in; none may fail.
        let mut new: Vec<(Connection, _)> = Vec::new();
        while world.destination.accepted() < 2 {
            assert!(new.len() < 100, "the drained tunnel takes every stream");
            let (mut connection, mut server) = pair(&world.source).await;
            Noise::new(1).send(&mut connection.app, 1000).await;
            Noise::new(1).expect(&mut server, 1000).await;
            new.push((connection, server));
        }
        Noise::new(2).send(&mut old.app, 100_000).await;
        Noise::new(2).expect(&mut old_server, 100_000).await;
        drop(old_server);
        assert_eq!(old.app.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(old.carried().await, (100_000, 0));
        drop(new);
        world.destination.ended().await.unwrap();
        assert_eq!(world.destination.serving(), 1);
    });
}

#[test]
fn an_idle_tunnel_drains_at_once() {
    on_worker(async {
        let world = World::new().await;
        world.source.open(&quiet().await).await.unwrap();
        world.destination.drain();
        world.destination.ended().await.unwrap();
    });
}

#[test]
fn who_waits_for_a_dial_shares_its_failure_and_the_next_tries_again() {
    on_worker(async {
        let world = World::new().await;
        let (dials, dialling) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
        let openings: Vec<_> = (0..20)
            .map(|_| {
                let (source, dials, dialling) =
                    (world.source.clone(), dials.clone(), dialling.clone());
                spawn_local(async move {
                    let request = request("10.0.0.1:80");
                    let dial = || {
                        let (dials, dialling) = (dials.clone(), dialling.clone());
                        async move {
                            dials.set(dials.get() + 1);
                            dialling.notified().await;
                            let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
                            Err::<Dialled, _>(OpenError::Connect(Rc::new(refused)))
                        }
                    };
                    source.pool.open(&source.key, &request, None, dial).await
                })
            })
            .collect();
        eventually("somebody dials", || dials.get() == 1).await;
        // By now all the others wait: they were started before the dial.
        dialling.notify_one();
        for opening in openings {
            let error = ended(opening).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot connect to the peer: connection refused"
            );
        }
        assert_eq!(dials.get(), 1);
        world.source.open(&quiet().await).await.unwrap();
    });
}

#[test]
fn a_peer_that_is_refused_is_dialled_once_for_all() {
    on_worker(async {
        let world = World::new().await;
        let key = TunnelKey {
            expected: vec![WEB.parse().unwrap()],
            ..world.source.key.clone()
        };
        for opened in open_all(&world.source, &key, "10.0.0.1:80", 50).await {
            let error = opened.unwrap_err();
            assert!(matches!(error, OpenError::Tls(_)), "{error}");
        }
        assert_eq!(world.destination.accepted(), 1);
    });
}

/// A server that takes connections and begins nothing in them.
#[test]
fn a_server_that_says_nothing_fails_those_who_wait_in_bounded_time() {
    on_worker(async {
        for closes in [true, false] {
            let (source, listener, tls) = source_alone().await;
            let accepting = spawn_local(async move {
                let (tcp, _) = listener.accept().await.unwrap();
                let tls = TlsAcceptor::from(tls).accept(tcp).await.unwrap();
                (listener, (!closes).then_some(tls))
            });
            let openings = spawn_local({
                let source = source.clone();
                async move { open_all(&source, &source.key, "10.0.0.1:80", 20).await }
            });
            let _accepted = ended(accepting).await;
            tokio::time::pause();
            let reason = if closes {
                "the peer began no HTTP/2 session: "
            } else {
                "no HTTP/2 session with the peer within 10s"
            };
            for opened in ended(openings).await {
                let error = opened.unwrap_err().to_string();
                assert!(error.starts_with(reason), "{error}");
            }
            tokio::time::resume();
            assert_eq!(source.dialled(), 1);
        }
    });
}

/// What a server has not begun to handle when it leaves is asked of its successor, and not of
/// those that were there with it.
#[test]
fn a_request_that_a_leaving_server_did_not_see_goes_elsewhere() {
    on_worker(async {
        let (source, listener, tls) = source_alone().await;
        let open = || {
            let source = source.clone();
            spawn_local(async move { source.open("10.0.0.1:80").await })
        };
        // Two tunnels, because each takes one stream at a time; both are idle in the end.
        let (mut streams, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let opening = open();
            let settings = Frame::allowing(1);
            let mut peer = Peer::accept_saying(&listener, tls.clone(), &settings).await;
            peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
            peer.send(&Frame::accepting(1)).await;
            streams.push(ended(opening).await.unwrap());
            peers.push(peer);
        }
        drop(streams);
        for peer in &mut peers {
            peer.wait_for(|frame| frame.kind == kind::RST_STREAM).await;
        }

        let opening = open();
        for mut peer in peers {
            spawn_local(async move {
                peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
                let last = [1_u32.to_be_bytes(), code::NO_ERROR.to_be_bytes()].concat();
                peer.send(&Frame::new(kind::GOAWAY, 0, 0, last)).await;
                peer.rest().await;
            });
        }
        let mut successor = Peer::accept(&listener, tls).await;
        successor.send(&Frame::accepting(1)).await;
        ended(opening).await.unwrap();
    });
}

#[test]
fn a_dial_that_is_given_up_is_taken_over() {
    on_worker(async {
        let world = World::new().await;
        let quiet = quiet().await;
        let dialling = Rc::new(Notify::new());
        let first = spawn_local({
            let (source, dialling) = (world.source.clone(), dialling.clone());
            async move {
                let never = || {
                    dialling.notify_one();
                    std::future::pending()
                };
                let request = request("10.0.0.1:80");
                source.pool.open(&source.key, &request, None, never).await
            }
        });
        dialling.notified().await;
        let second = spawn_local({
            let source = world.source.clone();
            async move { source.open(&quiet).await }
        });
        tokio::task::yield_now().await;
        first.abort();
        ended(second).await.unwrap();
    });
}
