//! Tunnels are shared, and forgotten when nobody needs them.

use std::{cell::RefCell, rc::Rc, time::Duration};

use sluice_hbone::{Idle, OpenError, Opened, TunnelKey};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::spawn_local,
};

use super::bytes;
use crate::{
    authority::{DB, WEB},
    fixtures::{
        Destination, PATIENCE, Source, World, application, ended, eventually, on_worker, pair,
        request, source_alone, to_application,
    },
    noise::Noise,
    peers::{Frame, Peer, kind},
};

/// An application that says nothing and reads to the end.
pub(super) async fn quiet() -> String {
    let addr = application(|mut tcp| async move {
        let _ = tokio::io::copy(&mut tcp, &mut tokio::io::sink()).await;
    })
    .await;
    addr.to_string()
}

/// Opens many streams at once.
pub(super) async fn open_all(
    source: &Rc<Source>,
    key: &TunnelKey,
    authority: &str,
    streams: usize,
) -> Vec<Result<Opened, OpenError>> {
    let openings: Vec<_> = (0..streams)
        .map(|_| {
            let (source, key, request) = (source.clone(), key.clone(), request(authority));
            spawn_local(async move { source.open_with(&key, &request).await })
        })
        .collect();
    let mut opened = Vec::new();
    for opening in openings {
        opened.push(ended(opening).await);
    }
    opened
}

pub(super) fn all_opened(opened: Vec<Result<Opened, OpenError>>) -> Vec<Opened> {
    opened
        .into_iter()
        .map(|opened| opened.expect("a stream"))
        .collect()
}

#[test]
fn a_burst_shares_one_tunnel() {
    on_worker(async {
        let world = World::new().await;
        let quiet = quiet().await;
        let _streams = all_opened(open_all(&world.source, &world.source.key, &quiet, 50).await);
        assert_eq!(
            (world.destination.accepted(), world.source.dialled()),
            (1, 1)
        );
        assert_eq!(world.source.pool.len(), 1);
    });
}

/// Whatever tells two connections apart keeps them in different tunnels.
#[test]
fn another_key_is_another_tunnel() {
    on_worker(async {
        let world = World::new().await;
        let quiet = quiet().await;
        let other = Destination::start(&world.root.svid(DB), to_application).await;
        let key = &world.source.key;
        let keys = [
            key.clone(),
            TunnelKey {
                source_ip: [127, 0, 0, 2].into(),
                ..key.clone()
            },
            TunnelKey {
                source: DB.parse().unwrap(),
                ..key.clone()
            },
            TunnelKey {
                expected: vec![DB.parse().unwrap(), WEB.parse().unwrap()],
                ..key.clone()
            },
            TunnelKey {
                destination: other.addr,
                ..key.clone()
            },
        ];
        for (others, key) in keys.iter().enumerate() {
            for _ in 0..2 {
                all_opened(open_all(&world.source, key, &quiet, 5).await);
                let tunnels = world.destination.accepted() + other.accepted();
                assert_eq!(tunnels, others + 1, "{key:?}");
            }
        }
    });
}

#[test]
fn a_full_tunnel_gets_a_second_one_beside_it() {
    on_worker(async {
        let world = World::new().await;
        let quiet = quiet().await;
        let key = &world.source.key;
        let mut streams = all_opened(open_all(&world.source, key, &quiet, 100).await);
        assert_eq!(world.destination.accepted(), 1);
        streams.extend(all_opened(open_all(&world.source, key, &quiet, 60).await));
        assert_eq!(world.destination.accepted(), 2);
        // There is room again once streams have ended.
        streams.truncate(50);
        streams.extend(all_opened(open_all(&world.source, key, &quiet, 100).await));
        assert_eq!(world.destination.accepted(), 2);
    });
}

/// Says something and has it heard, again and again, by a clock that goes by what was heard: the rate
/// is the same on every machine.
async fn crowd(mut app: TcpStream, mut server: TcpStream, stopped: watch::Receiver<bool>) {
    let begin = std::time::Instant::now();
    let talk = async {
        let (chunk, mut heard) = (vec![7; 1 << 20], vec![0; 1 << 20]);
        while !*stopped.borrow() {
            let said = tokio::join!(app.write_all(&chunk), server.read_exact(&mut heard));
            assert!(said.0.is_ok() && said.1.is_ok(), "{said:?}");
            // 100 MB in a second.
            tokio::time::advance(Duration::from_millis(10)).await;
        }
    };
    // While there is something to do, a paused clock does not go on by itself.
    let busy = async {
        while begin.elapsed() < PATIENCE {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = talk => {}
        () = busy => panic!("nobody stopped it within {PATIENCE:?}"),
    }
}

/// What fills a tunnel does not delay those who come later; and the other tunnel goes with the load.
#[test]
fn a_crowded_tunnel_gets_another_beside_it_that_goes_again() {
    on_worker(async {
        let world = World::new().await;
        let quiet = quiet().await;
        let source = world.source.clone();
        let (bulk, server) = pair(&source).await;
        tokio::time::pause();
        let (stop, stopped) = watch::channel(false);
        let talk = spawn_local(crowd(bulk.app, server, stopped));
        // Each of these is small, and kept.
        let mut others = Vec::new();
        while source.pool.len() == 1 {
            // Long before it has as many streams as it may have.
            assert!(others.len() < 50, "one tunnel takes everything");
            others.push(source.open(&quiet).await.unwrap());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let later = source.open(&quiet).await.unwrap();
        assert_eq!(
            (source.pool.len(), source.dialled()),
            (2, 2),
            "the second one is shared"
        );
        stop.send_replace(true);
        ended(talk).await;
        drop((others, later));
        let mut idle = Idle::default();
        source.pool.sweep(&mut idle);
        assert_eq!(source.pool.len(), 2, "not at once");
        tokio::time::advance(Duration::from_secs(31)).await;
        source.pool.sweep(&mut idle);
        assert_eq!(source.pool.len(), 1);
    });
}

/// A server that allows few streams is heard, even by those who ask before it has said so.
#[test]
fn a_servers_own_limit_holds() {
    on_worker(async {
        let (source, listener, tls) = source_alone().await;
        // How many requests came in each tunnel.
        let requests = Rc::new(RefCell::new(Vec::new()));
        let (speak, spoken) = watch::channel(false);
        spawn_local({
            let requests = requests.clone();
            async move {
                loop {
                    let mut peer = Peer::accept_silently(&listener, tls.clone()).await;
                    let tunnel = requests.borrow().len();
                    requests.borrow_mut().push(0);
                    let (requests, mut spoken) = (requests.clone(), spoken.clone());
                    spawn_local(async move {
                        spoken.wait_for(|spoken| *spoken).await.unwrap();
                        peer.send(&Frame::allowing(10)).await;
                        while let Some(frame) = peer.next().await {
                            let answer = match frame.kind {
                                kind::PING => frame.answered(),
                                kind::HEADERS => Frame::accepting(frame.stream),
                                _ => continue,
                            };
                            requests.borrow_mut()[tunnel] +=
                                usize::from(answer.kind == kind::HEADERS);
                            peer.send(&answer).await;
                        }
                    });
                }
            }
        });
        let early = spawn_local({
            let source = source.clone();
            async move { source.open("10.0.0.1:80").await }
        });
        eventually("there is a tunnel", || source.pool.len() == 1).await;
        let (streams, ()) =
            tokio::join!(open_all(&source, &source.key, "10.0.0.1:80", 34), async {
                // By then they all have asked for a stream.
                tokio::task::yield_now().await;
                speak.send_replace(true);
            });
        let _streams = (ended(early).await.unwrap(), all_opened(streams));
        assert_eq!(*requests.borrow(), [10, 10, 10, 5]);
    });
}

#[test]
fn tunnels_of_a_forgotten_pod_close_with_their_last_stream() {
    on_worker(async {
        let world = World::new().await;
        let (mut connection, mut server) = pair(&world.source).await;
        world.source.pool.forget_source([127, 0, 0, 9].into());
        assert_eq!(world.source.pool.len(), 1);
        world.source.pool.forget_source([127, 0, 0, 1].into());
        assert_eq!(world.source.pool.len(), 0);

        // The established connection goes on; a new one does not go the same way.
        Noise::new(1).send(&mut connection.app, 1000).await;
        Noise::new(1).expect(&mut server, 1000).await;
        bytes::exchange(world.source.clone(), 2, 1000, 1000).await;
        assert_eq!(world.destination.accepted(), 2);
        assert_eq!(world.destination.serving(), 2);

        connection.app.shutdown().await.unwrap();
        drop(server);
        assert_eq!(connection.carried().await, (1000, 0));
        world.destination.ended().await.unwrap();
        assert_eq!(world.destination.serving(), 1);

        world.source.pool.forget_source([127, 0, 0, 1].into());
        world.destination.ended().await.unwrap();
    });
}

#[test]
fn only_tunnels_that_idle_for_long_are_swept() {
    on_worker(async {
        tokio::time::pause();
        let world = World::new().await;
        let quiet = quiet().await;
        let mut idle = Idle::default();
        let stream = world.source.open(&quiet).await.unwrap();
        let pool = &world.source.pool;
        let mut minutes = async |minutes: u64| {
            tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
            pool.sweep(&mut idle);
            pool.len()
        };
        assert_eq!(minutes(0).await, 1);
        assert_eq!(minutes(10).await, 1, "a tunnel in use is kept");
        drop(stream);
        assert_eq!(minutes(0).await, 1);
        assert_eq!(minutes(4).await, 1, "a tunnel that was just used is kept");
        assert_eq!(minutes(2).await, 0);
        world.destination.ended().await.unwrap();
    });
}

/// Whoever does not want the stream any more leaves nothing behind.
#[test]
fn an_open_that_is_given_up_frees_its_place() {
    on_worker(async {
        let held = Rc::new(RefCell::new(Vec::new()));
        let world = World::serving({
            let held = held.clone();
            move |incoming| {
                held.borrow_mut().push(incoming);
                async {}
            }
        })
        .await;
        for round in 1..=3 {
            let openings: Vec<_> = (0..100)
                .map(|_| {
                    let source = world.source.clone();
                    spawn_local(async move { source.open("10.0.0.1:80").await })
                })
                .collect();
            eventually("the requests arrive", || held.borrow().len() == round * 100).await;
            for opening in openings {
                opening.abort();
            }
        }
        assert_eq!(world.destination.accepted(), 1);
    });
}
