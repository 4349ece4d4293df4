//! A slow application slows its own peer, and nobody else; and costs a bounded amount of memory.

use std::{cell::Cell, rc::Rc};

use tokio::{io::AsyncReadExt as _, task::spawn_local, time::timeout};

use super::bytes;
use crate::{
    fixtures::{Acceptor, PATIENCE, SOCKET_BUFFER, World, eventually, on_worker, pair},
    noise::Noise,
    peers::{Frame, Peer, kind},
};

const MIB: u64 = 1 << 20;
/// Credit of a stream whose application takes nothing.
const STREAM_WINDOW: u64 = 256 << 10;
/// What may lie between two applications that do not read: the stream's credit, which may have
/// grown once while the kernel took bytes, and what the kernel keeps in the four sockets, which it
/// doubles.
const MOST_IN_FLIGHT: u64 = 2 * STREAM_WINDOW + 8 * SOCKET_BUFFER as u64;

#[test]
fn one_that_does_not_read_stops_its_own_peer_and_nobody_else() {
    on_worker(async {
        const ALL: u64 = 24 * MIB;
        const PIECE: u64 = 16 << 10;
        let world = World::new().await;
        let (mut stuck, mut unread) = pair(&world.source).await;
        let taken = Rc::new(Cell::new(0));
        let sender = spawn_local({
            let taken = taken.clone();
            async move {
                let mut noise = Noise::new(1);
                while taken.get() < ALL {
                    noise.send(&mut stuck.app, PIECE).await;
                    taken.set(taken.get() + PIECE);
                }
                stuck
            }
        });
        eventually("the window is used", || taken.get() >= STREAM_WINDOW).await;
        bytes::exchange(world.source.clone(), 2, 50 * MIB, 50 * MIB).await;
        assert_eq!(world.destination.accepted(), 1);
        assert!(
            taken.get() <= MOST_IN_FLIGHT,
            "{} bytes were taken from one whose peer does not read",
            taken.get()
        );
        // And nothing of it is lost.
        let mut noise = Noise::new(1);
        for _ in 0..ALL / PIECE {
            noise.expect(&mut unread, PIECE).await;
        }
        drop(sender.await.unwrap());
        assert_eq!(unread.read(&mut [0]).await.unwrap(), 0);
    });
}

/// The credit of a tunnel is shared; what broken streams held of it must come back.
#[test]
fn credit_of_streams_that_break_with_unread_bytes_returns() {
    on_worker(async {
        let world = World::new().await;
        for round in 0..8 {
            let (stuck, unread) = pair(&world.source).await;
            let taken = Rc::new(Cell::new(0));
            let sender = spawn_local({
                let taken = taken.clone();
                async move {
                    while let Ok(()) = stuck.app.writable().await {
                        match stuck.app.try_write(&[0; 4096]) {
                            Ok(bytes) => taken.set(taken.get() + bytes as u64),
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                            Err(_) => return,
                        }
                    }
                }
            });
            eventually("the window is used", || taken.get() >= STREAM_WINDOW).await;
            if round % 2 == 0 {
                drop(unread);
                timeout(PATIENCE, sender).await.expect("a reset").unwrap();
            } else {
                sender.abort();
            }
        }
        bytes::exchange(world.source.clone(), 1, 20 * MIB, 20 * MIB).await;
        assert_eq!(world.destination.accepted(), 1);
    });
}

/// Tiny frames that an application does not read cost their bytes, and the tunnel nothing.
#[test]
fn tiny_frames_that_nobody_reads_do_not_break_the_tunnel() {
    on_worker(async {
        const TINY: usize = STREAM_WINDOW as usize;
        let world = World::new().await;
        let mut reader = Acceptor::start().await;
        let authority = reader.addr.to_string();
        let mut peer = Peer::begin(&world).await;
        peer.send(&Frame::connect(1, &authority)).await;
        peer.wait_for(|frame| frame.kind == kind::HEADERS).await;
        let mut tcp = reader.next().await;
        let tiny = Frame::new(kind::DATA, 0, 1, [2]);
        peer.say(&tiny.encode().repeat(TINY)).await;
        // A stream that is answered after all that: the tunnel lives.
        peer.send(&Frame::connect(3, &authority)).await;
        peer.wait_for(|frame| frame.kind == kind::HEADERS && frame.stream == 3)
            .await;
        let mut bytes = vec![0; TINY];
        let reading = timeout(PATIENCE, tcp.read_exact(&mut bytes)).await;
        reading.expect("all bytes in bounded time").unwrap();
        assert!(bytes.iter().all(|byte| *byte == 2));
    });
}
