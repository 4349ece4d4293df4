//! Peers that obey every rule of HTTP/2's letter, and want to cost more than they spend.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::mpsc,
    thread,
    time::Duration,
};

use sluice_hbone::Dialled;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::watch, task::spawn_local, time::sleep};

use super::{
    garbage::{still_works, survived},
    resets::until_reset,
};
use crate::{
    fixtures::{Acceptor, PATIENCE, World, eventually, on_worker, request, sockets, source_alone},
    peers::{Frame, Peer, code, flag, hpack, kind},
};

/// Requests that were taken back, and that somebody may still work for.
const MAX_ORPHANS: usize = 1000;

/// The tunnel ends with a word about calm.
async fn calmed(peer: &mut Peer) {
    let last = peer.rest().await;
    let last = last.iter().find(|frame| frame.kind == kind::GOAWAY);
    assert_eq!(last.expect("a GOAWAY").code(), code::ENHANCE_YOUR_CALM);
}

/// As a flood of requests that are taken back, but it is the server who is made to reset them
/// (CVE-2025-8671).
#[test]
fn a_flood_of_requests_that_must_be_reset() {
    survived(async |world| {
        let mut peer = Peer::begin(world).await;
        let mut flood = Vec::new();
        for stream in (1..20_000).step_by(2) {
            flood.extend(Frame::connect(stream, "127.0.0.1:1").encode());
            flood.extend(Frame::credit(stream, 0).encode());
        }
        peer.shout(&flood).await;
        calmed(&mut peer).await;
        assert!(world.destination.ended().await.is_err());
    });
}

/// What a request has set in motion goes on when it is taken back, and counts until it is done.
#[test]
fn requests_that_are_taken_back_count_while_somebody_works_for_them() {
    on_worker(async {
        let working = Rc::new(Cell::new(0));
        let (done, wait) = watch::channel(false);
        let world = World::serving({
            let working = working.clone();
            move |incoming| {
                let (working, mut wait) = (working.clone(), wait.clone());
                async move {
                    working.set(working.get() + 1);
                    wait.wait_for(|done| *done).await.unwrap();
                    working.set(working.get() - 1);
                    incoming.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
                }
            }
        })
        .await;
        let mut peer = Peer::begin(&world).await;
        let mut streams = (1..).step_by(2);
        for batch in 1..=12 {
            let batch_streams: Vec<u32> = streams.by_ref().take(100).collect();
            for stream in &batch_streams {
                peer.send(&Frame::connect(*stream, "127.0.0.1:1")).await;
            }
            if batch <= 10 {
                eventually("they are worked for", || working.get() == batch * 100).await;
            } else {
                for stream in &batch_streams {
                    let refused = peer.wait_for(|frame| frame.stream == *stream).await;
                    assert_eq!(refused, Frame::reset(*stream, code::REFUSED_STREAM));
                }
            }
            for stream in &batch_streams {
                peer.send(&Frame::reset(*stream, code::CANCEL)).await;
            }
        }
        assert_eq!(working.get(), MAX_ORPHANS);
        done.send_replace(true);
        eventually("all work is done", || working.get() == 0).await;
        let stream = streams.next().unwrap();
        peer.send(&Frame::connect(stream, "127.0.0.1:1")).await;
        let answer = peer.wait_for(|frame| frame.stream == stream).await;
        assert_eq!(answer.kind, kind::HEADERS, "{answer:?}");
    });
}

/// Clients change their minds now and then, which over the life of a tunnel adds up.
#[test]
fn requests_that_are_taken_back_are_forgiven_in_time() {
    survived(async |world| {
        let mut peer = Peer::begin(world).await;
        tokio::time::pause();
        for stream in (1..800).step_by(2) {
            let request = Frame::connect(stream, "127.0.0.1:1").encode();
            let change = Frame::reset(stream, code::CANCEL).encode();
            peer.say(&[request, change].concat()).await;
            if stream % 160 == 1 {
                sleep(Duration::from_secs(9)).await;
            }
        }
        tokio::time::resume();
        still_works(&mut peer).await;
    });
}

/// Each setting is work for each stream.
#[test]
fn settings_without_end() {
    survived(async |world| {
        let mut peer = Peer::begin(world).await;
        const INITIAL_WINDOW_SIZE: [u8; 6] = [0, 4, 0, 0, 0xff, 0xff];
        let many = Frame::new(kind::SETTINGS, 0, 0, INITIAL_WINDOW_SIZE.repeat(2700));
        peer.shout(&many.encode().repeat(4)).await;
        calmed(&mut peer).await;
    });
}

/// A byte of a header block may stand for a field as large as the table.
#[test]
fn a_header_block_that_unfolds() {
    survived(async |world| {
        let mut peer = Peer::begin(world).await;
        let mut block = hpack(&[(":method", "CONNECT"), (":authority", "127.0.0.1:1")]);
        let mut large = hpack(&[("x", &"x".repeat(4000))]);
        // Remembered as entry 62, the first of the dynamic table.
        large[0] = 0x40;
        block.extend(large);
        block.extend([0xbe; 10_000]);
        peer.send(&Frame::new(kind::HEADERS, flag::END_HEADERS, 1, block))
            .await;
        calmed(&mut peer).await;
    });
}

/// Some peers return credit for every few kilobytes that were read.
#[test]
fn a_peer_that_returns_credit_in_small_change() {
    const CHANGE: usize = 2 << 10;
    const ALL: usize = 16 << 20;
    on_worker(async {
        let (source, listener, tls) = source_alone().await;
        let mut connection = source.connect("127.0.0.1:1".parse().unwrap()).await;
        let mut peer = Peer::accept(&listener, tls).await;
        peer.send(&Frame::accepting(1)).await;
        let sending = spawn_local(async move {
            let piece = vec![b'x'; 64 << 10];
            for _ in 0..ALL / piece.len() {
                connection.app.write_all(&piece).await.unwrap();
            }
        });
        let mut heard = 0;
        while heard < ALL {
            let data = peer.wait_for(|frame| frame.kind == kind::DATA).await;
            heard += data.payload.len();
            let mut change = Vec::new();
            for piece in data.payload.chunks(CHANGE) {
                let piece = u32::try_from(piece.len()).unwrap();
                change.extend(Frame::credit(1, piece).encode());
                change.extend(Frame::credit(0, piece).encode());
            }
            peer.say(&change).await;
        }
        sending.await.unwrap();
    });
}

/// A client that keeps saying that it is there, but not that it has heard of the end, could begin
/// streams for ever on a certificate that has expired.
#[test]
fn a_client_that_does_not_hear_that_the_tunnel_ends() {
    on_worker(async {
        tokio::time::pause();
        let world = World::new().await;
        let mut server = Acceptor::start().await;
        let authority = server.addr.to_string();
        let mut peer = Peer::begin(&world).await;
        peer.send(&Frame::connect(1, &authority)).await;
        let _kept = server.next().await;
        world.destination.drain();
        let last_call = |frame: &Frame| frame.kind == kind::PING && frame.flags == 0;
        peer.wait_for(last_call).await;
        for _ in 0..6 {
            sleep(Duration::from_secs(5)).await;
            peer.send(&Frame::new(kind::PING, 0, 0, [1; 8])).await;
        }
        peer.send(&Frame::connect(3, &authority)).await;
        let answer = peer.wait_for(|frame| frame.stream == 3).await;
        assert_eq!(answer, Frame::reset(3, code::REFUSED_STREAM));
    });
}

/// Runs what might never come to an end, and take its thread along.
fn ends(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        // The other end is waiting, or has given up.
        let _ = done.send(());
    });
    if wait.recv_timeout(2 * PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("not done within {:?}", 2 * PATIENCE);
    }
    thread.join().unwrap();
}

/// A socket may break at any time, also between two writes of one turn.
#[test]
fn a_tunnel_that_breaks_while_its_applications_are_read() {
    ends(|| {
        on_worker(async {
            let world = World::new().await;
            let mut server = Acceptor::start().await;
            let authority = request(&server.addr.to_string());
            let tunnel = RefCell::new(None);
            let dial = async || {
                let dialled: Dialled = world.source.dial(&world.source.key).await?;
                let same = std::os::fd::AsFd::as_fd(&dialled.tcp).try_clone_to_owned();
                tunnel.replace(Some(std::net::TcpStream::from(same.unwrap())));
                Ok(dialled)
            };
            let (mut apps, mut servers) = (Vec::new(), Vec::new());
            for _ in 0..16 {
                let opened = world
                    .source
                    .pool
                    .open(&world.source.key, &authority, None, dial);
                let stream = opened.await.unwrap().stream;
                let (app, captured) = sockets().await;
                spawn_local(async move {
                    stream
                        .carry(captured.into_std().unwrap(), &Rc::default())
                        .await
                });
                apps.push(app);
                servers.push(server.next().await);
            }
            // It takes nothing any more, and says so only when it is given something.
            let tunnel = tunnel.take().unwrap();
            tunnel.shutdown(std::net::Shutdown::Write).unwrap();
            let fill = |app: &TcpStream| while app.try_write(&[0; 64 << 10]).is_ok() {};
            apps.iter().for_each(fill);
            for app in &mut apps {
                until_reset(app).await;
            }
        });
    });
}
