//! What an application says first goes with the request for its stream, to a peer that is surely
//! there; and is neither lost nor said twice, whatever comes of the request.

use std::{io::Read as _, net::TcpStream as StdStream, rc::Rc, sync::Arc, time::Duration};

use rustls::ServerConfig;
use sluice_hbone::{CarryError, Meter, OpenError, Opened};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, spawn_local},
};

use crate::{
    fixtures::{Source, ended, eventually, on_worker, request, source_alone},
    peers::{Frame, Peer, code, flag, kind},
};

/// A tunnel with a stream in it, and its peer, that says what the test wants.
struct Stage {
    source: Rc<Source>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    peer: Peer,
    _first: Opened,
}

impl Stage {
    async fn new() -> Self {
        let (source, listener, tls) = source_alone().await;
        let opening = spawn_local({
            let source = source.clone();
            async move { source.open("10.0.0.1:80").await }
        });
        let mut peer = Peer::accept(&listener, tls.clone()).await;
        peer.send(&Frame::accepting(1)).await;
        Self {
            _first: ended(opening).await.unwrap(),
            source,
            listener,
            tls,
            peer,
        }
    }

    /// An application that has said this, and the other end of its connection.
    async fn saying(&self, words: &[u8]) -> (TcpStream, StdStream) {
        let (mut app, captured) = self.source.application().await;
        app.write_all(words).await.unwrap();
        eventually("what was said has come", || waiting(&captured) == words).await;
        (app, captured)
    }

    fn opening(&self, captured: &StdStream) -> JoinHandle<Result<Opened, OpenError>> {
        let (source, captured) = (self.source.clone(), captured.try_clone().unwrap());
        spawn_local(async move {
            let request = request("10.0.0.1:80");
            source
                .open_for(&source.key, &request, Some(&captured))
                .await
        })
    }
}

/// What can be read from a connection.
fn waiting(captured: &StdStream) -> Vec<u8> {
    let mut room = vec![0; 64 << 10];
    let length = captured.peek(&mut room).unwrap_or(0);
    room.truncate(length);
    room
}

fn carry(opened: Opened, captured: StdStream) -> JoinHandle<Result<(u64, u64), CarryError>> {
    spawn_local(async move {
        let meter = Rc::new(Meter::default());
        opened.stream.carry(captured, &meter).await?;
        Ok((meter.received.get(), meter.sent.get()))
    })
}

/// The next frame that is a stream's.
async fn next(peer: &mut Peer) -> Frame {
    peer.wait_for(|frame| frame.stream != 0).await
}

fn data(stream: u32, bytes: &[u8]) -> Frame {
    Frame::new(kind::DATA, 0, stream, bytes)
}

fn refusal(stream: u32) -> Frame {
    let mut refusal = Frame::headers(stream, &[(":status", "503")]);
    refusal.flags |= flag::END_STREAM;
    refusal
}

async fn expect_request(peer: &mut Peer, stream: u32) {
    let head = next(peer).await;
    assert_eq!((head.kind, head.stream), (kind::HEADERS, stream));
}

#[test]
fn what_an_application_has_said_goes_with_its_request() {
    on_worker(async {
        let mut stage = Stage::new().await;
        let (mut app, captured) = stage.saying(b"hello").await;
        let opening = stage.opening(&captured);
        let peer = &mut stage.peer;
        // Before there is an answer.
        expect_request(peer, 3).await;
        assert_eq!(next(peer).await, data(3, b"hello"));
        peer.send(&Frame::accepting(3)).await;
        let carried = carry(ended(opening).await.unwrap(), captured);
        app.write_all(b" again").await.unwrap();
        assert_eq!(next(peer).await, data(3, b" again"));
        let end = Frame::new(kind::DATA, flag::END_STREAM, 3, *b"bye");
        peer.send(&end).await;
        let mut heard = Vec::new();
        app.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
        drop(app);
        assert_eq!(ended(carried).await.unwrap(), (11, 3));
    });
}

/// An upload waits for the answer, but for its beginning; and its end does.
#[test]
fn an_upload_waits_for_the_answer_but_for_its_beginning() {
    on_worker(async {
        let mut stage = Stage::new().await;
        let words: Vec<u8> = (0..20_000_u32)
            .flat_map(u32::to_be_bytes)
            .take(20_000)
            .collect();
        let (app, captured) = stage.saying(&words).await;
        drop(app);
        let opening = stage.opening(&captured);
        let peer = &mut stage.peer;
        expect_request(peer, 3).await;
        let mut heard = next(peer).await.payload;
        assert_eq!(heard, words[..4096]);
        // What it says of itself meanwhile is all there is.
        let ping = Frame::new(kind::PING, 0, 0, *b"anything");
        peer.send(&ping).await;
        let frame = peer.next().await.unwrap();
        assert_eq!(frame, ping.answered());
        peer.send(&Frame::accepting(3)).await;
        let _carried = carry(ended(opening).await.unwrap(), captured);
        loop {
            let frame = next(peer).await;
            assert_eq!((frame.kind, frame.stream), (kind::DATA, 3));
            heard.extend(frame.payload);
            if frame.flags & flag::END_STREAM != 0 {
                break;
            }
        }
        assert!(heard == words, "{} bytes", heard.len());
    });
}

/// A peer that refuses has passed nothing on: everything is still there for another one.
#[test]
fn what_was_refused_is_not_lost() {
    on_worker(async {
        let mut stage = Stage::new().await;
        let (_app, mut captured) = stage.saying(b"hello").await;
        for stream in [3, 5] {
            let opening = stage.opening(&captured);
            expect_request(&mut stage.peer, stream).await;
            assert_eq!(next(&mut stage.peer).await, data(stream, b"hello"));
            stage.peer.send(&refusal(stream)).await;
            let error = ended(opening).await.unwrap_err();
            assert!(matches!(error, OpenError::Refused(_)), "{error}");
            let reset = next(&mut stage.peer).await;
            assert_eq!((reset.kind, reset.stream), (kind::RST_STREAM, stream));
        }
        let mut heard = [0; 5];
        captured.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    });
}

/// A peer may return credit for it piece by piece, as often as it is said: no flood of empty frames.
#[test]
fn credit_for_what_is_said_early_is_expected() {
    const PIECES: u32 = 5;
    on_worker(async {
        let mut stage = Stage::new().await;
        let (_app, captured) = stage.saying(&[7; 4096]).await;
        for stream in (3..).step_by(2).take(3000) {
            let opening = stage.opening(&captured);
            expect_request(&mut stage.peer, stream).await;
            assert_eq!(next(&mut stage.peer).await.payload.len(), 4096);
            let mut said = Vec::new();
            for _ in 0..PIECES {
                said.extend(Frame::credit(0, 4096 / PIECES).encode());
                said.extend(Frame::credit(stream, 4096 / PIECES).encode());
            }
            said.extend(refusal(stream).encode());
            stage.peer.say(&said).await;
            let error = ended(opening).await.unwrap_err();
            assert!(matches!(error, OpenError::Refused(_)), "{stream}: {error}");
            assert_eq!(next(&mut stage.peer).await.kind, kind::RST_STREAM);
        }
        assert_eq!(stage.source.dialled(), 1);
    });
}

/// A server that leaves says what it has not seen; that is said to its successor, once.
#[test]
fn what_a_leaving_server_did_not_see_is_said_to_its_successor() {
    on_worker(async {
        for refuses in [false, true] {
            let mut stage = Stage::new().await;
            let (_app, captured) = stage.saying(b"hello").await;
            let opening = stage.opening(&captured);
            expect_request(&mut stage.peer, 3).await;
            assert_eq!(next(&mut stage.peer).await, data(3, b"hello"));
            if refuses {
                let refusal = Frame::reset(3, code::REFUSED_STREAM);
                stage.peer.send(&refusal).await;
            } else {
                let last = [1_u32.to_be_bytes(), code::NO_ERROR.to_be_bytes()].concat();
                let farewell = Frame::new(kind::GOAWAY, 0, 0, last);
                stage.peer.send(&farewell).await;
            }
            let mut successor = Peer::accept(&stage.listener, stage.tls.clone()).await;
            successor.send(&Frame::accepting(1)).await;
            let _carried = carry(ended(opening).await.unwrap(), captured);
            assert_eq!(next(&mut successor).await, data(1, b"hello"));
        }
    });
}

/// Whether a server passed on what it was told before it died is not known. Nobody tries again what
/// may have been done.
#[test]
fn what_may_have_been_passed_on_is_not_said_again() {
    on_worker(async {
        for farewell in [None, Some(code::PROTOCOL_ERROR)] {
            let mut stage = Stage::new().await;
            let (_app, captured) = stage.saying(b"hello").await;
            let opening = stage.opening(&captured);
            expect_request(&mut stage.peer, 3).await;
            assert_eq!(next(&mut stage.peer).await, data(3, b"hello"));
            if let Some(code) = farewell {
                let last = [3_u32.to_be_bytes(), code.to_be_bytes()].concat();
                let farewell = Frame::new(kind::GOAWAY, 0, 0, last);
                stage.peer.send(&farewell).await;
            }
            drop(stage.peer);
            let error = ended(opening).await.unwrap_err();
            assert!(matches!(error, OpenError::Lost(_)), "{error:?}");
            assert_eq!(stage.source.dialled(), 1);
        }
    });
}

/// A tunnel that has been quiet may be dead, and so may one that has just begun be refused. A request
/// alone can be made again.
#[test]
fn nothing_is_said_early_to_who_may_not_be_there() {
    on_worker(async {
        let mut stage = Stage::new().await;
        let (_app, captured) = stage.saying(b"hello").await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::time::resume();
        let opening = stage.opening(&captured);
        expect_request(&mut stage.peer, 3).await;
        let ping = Frame::new(kind::PING, 0, 0, *b"anything");
        stage.peer.send(&ping).await;
        assert_eq!(stage.peer.next().await.unwrap(), ping.answered());
        // It is dead indeed, and nobody is the worse for it.
        drop(stage.peer);
        let mut successor = Peer::accept(&stage.listener, stage.tls.clone()).await;
        let ping = Frame::new(kind::PING, 0, 0, *b"anything");
        successor.send(&ping).await;
        let answer = successor.wait_for(|frame| frame.kind != kind::SETTINGS);
        assert_eq!(answer.await, ping.answered());
        successor.send(&Frame::accepting(1)).await;
        let _carried = carry(ended(opening).await.unwrap(), captured);
        assert_eq!(next(&mut successor).await, data(1, b"hello"));
    });
}

/// An application that is gone by the time of the answer: its stream is reset, as any other.
#[test]
fn who_breaks_off_before_the_answer_is_reset() {
    on_worker(async {
        let mut stage = Stage::new().await;
        let (app, captured) = stage.saying(b"hello").await;
        let opening = stage.opening(&captured);
        expect_request(&mut stage.peer, 3).await;
        assert_eq!(next(&mut stage.peer).await, data(3, b"hello"));
        app.set_zero_linger().unwrap();
        drop(app);
        eventually("the application is gone", || captured.peer_addr().is_err()).await;
        stage.peer.send(&Frame::accepting(3)).await;
        let carried = carry(ended(opening).await.unwrap(), captured);
        let reset = next(&mut stage.peer).await;
        assert_eq!((reset.kind, reset.code()), (kind::RST_STREAM, code::CANCEL));
        let error = ended(carried).await.unwrap_err();
        assert!(matches!(error, CarryError::Application(_)), "{error}");
    });
}
