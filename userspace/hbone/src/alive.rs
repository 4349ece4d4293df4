//! Noticing peers that are gone without a word.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};

/// A peer that says nothing for this long is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// And has this long to say anything.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether the peer was heard from since the last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Rc<Cell<bool>>);

/// A connection that notes when something arrives.
#[derive(Debug)]
pub(crate) struct Listening<T> {
    io: T,
    heard: Heard,
}

impl<T> Listening<T> {
    pub(crate) fn new(io: T) -> (Self, Heard) {
        let heard = Heard::default();
        let listening = Self {
            io,
            heard: heard.clone(),
        };
        (listening, heard)
    }
}

/// Ends when the peer is silent, and stays so though asked.
///
/// A peer that is heard from is not asked, and not only to save the question: h2 reads nothing
/// while an answer to a ping waits for room in the socket, and two ends that ask each other while
/// both their sockets are full would wait for each other for ever.
pub(crate) async fn lost(mut ping: PingPong, heard: Heard) {
    loop {
        sleep(PING_INTERVAL).await;
        if !heard.0.take() && !answers(&mut ping, &heard, PING_TIMEOUT).await {
            return;
        }
    }
}

/// Asks, and waits for the answer as long as anything else is heard. The peer's settings have
/// arrived by then, because they are the first thing that a peer says.
pub(crate) async fn answers(ping: &mut PingPong, heard: &Heard, patience: Duration) -> bool {
    let mut answer = pin!(ping.ping(Ping::opaque()));
    loop {
        match timeout(patience, answer.as_mut()).await {
            Ok(answer) => return answer.is_ok(),
            Err(_) if heard.0.take() => {}
            Err(_) => return false,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Listening<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.0.set(true);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Listening<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
