//! Moving bytes between a TCP connection and a stream, or between two TCP connections.
//!
//! Each direction ends on its own: the end of one side's bytes is passed on as the end of the
//! other's, and the opposite direction goes on. When either breaks, both ends are reset, so that
//! nobody takes a cut for an end.
//!
//! Whoever opened an application's socket has set its options, `TCP_NODELAY` among them: a listener's
//! are inherited, so that they cost a connection nothing.

use std::{
    cell::Cell,
    future::{pending, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use crate::queue::Queue;

/// What one read starts with, in bytes; it doubles while reads fill it.
const MIN_READ: usize = 4 << 10;
/// And ends with.
const MAX_READ: usize = 256 << 10;
/// What is gathered for one write, in bytes: few writes, of bytes that are still in the CPU's cache.
const BATCH: usize = 128 << 10;

/// Bytes carried so far, from the side of the TCP connection.
#[derive(Debug, Default)]
pub struct Meter {
    /// Read from the TCP connection.
    pub received: Cell<u64>,
    /// Written to the TCP connection.
    pub sent: Cell<u64>,
}

impl Meter {
    fn add(counter: &Cell<u64>, bytes: usize) {
        counter.set(counter.get() + bytes as u64);
    }
}

/// Why a connection ended before both sides had said that they were done.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    #[error("the application's connection: {0}")]
    Application(#[source] io::Error),
    #[error("the peer's connection: {0}")]
    Peer(#[source] io::Error),
    #[error("the tunnel: {0}")]
    Tunnel(#[source] h2::Error),
}

/// An open stream of a tunnel.
#[derive(Debug)]
pub struct Stream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: RecvStream,
    /// Keeps the stream's place in its tunnel taken.
    pub(crate) _place: Option<Rc<dyn std::any::Any>>,
}

impl Stream {
    /// Carries an application's connection through the stream until both directions have ended.
    ///
    /// # Errors
    /// When either side breaks; the other has been reset then, as both are when this is given up.
    pub async fn carry(self, mut tcp: TcpStream, meter: &Meter) -> Result<(), CarryError> {
        let Self {
            mut send,
            recv,
            _place,
        } = self;
        reset_when_closed(&tcp, true);
        let result = both_ways(&mut tcp, &mut send, recv, meter).await;
        match result {
            Ok(()) => reset_when_closed(&tcp, false),
            Err(_) => {
                // A reset overtakes what is queued. What the application said before its connection
                // broke, an answer perhaps, leaves first if it can.
                tokio::task::yield_now().await;
                send.send_reset(Reason::CANCEL);
            }
        }
        result
    }

    /// Refuses to go on; the peer sees a reset.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

/// Ends a connection by a reset instead of an orderly end, so that nobody takes a refusal for an
/// empty answer.
pub fn reset(tcp: TcpStream) {
    reset_when_closed(&tcp, true);
}

/// Whether closing a connection resets it instead of ending it. It is set as long as the connection
/// is carried, so that a cut looks like one even when nobody is left to say so.
fn reset_when_closed(tcp: &TcpStream, reset: bool) {
    // Lingering for no time at all is how a socket is told. It can only fail on a socket that is
    // dead, which the next use reports better.
    let _ = socket2::SockRef::from(tcp).set_linger(reset.then_some(Duration::ZERO));
}

async fn both_ways(
    tcp: &mut TcpStream,
    send: &mut SendStream<Bytes>,
    recv: RecvStream,
    meter: &Meter,
) -> Result<(), CarryError> {
    let (reader, writer) = tcp.split();
    let (uploaded, downloaded) = (Cell::new(false), Cell::new(false));
    let mut upload = pin!(async {
        let reader = upload(reader, send, meter).await?;
        uploaded.set(true);
        if downloaded.get() {
            return Ok(());
        }
        // After its last byte an application may still break its connection.
        Err(CarryError::Application(broken(&reader).await))
    });
    tokio::select! {
        // What has arrived before the tunnel broke is delivered before the application is told.
        biased;
        result = download(recv, writer, meter) => {
            result?;
            downloaded.set(true);
            if uploaded.get() { Ok(()) } else { upload.await }
        }
        result = &mut upload => result,
    }
}

/// Reads until the application has no more to say, or the peer wants to hear no more.
async fn upload<'a>(
    mut tcp: ReadHalf<'a>,
    stream: &mut SendStream<Bytes>,
    meter: &Meter,
) -> Result<ReadHalf<'a>, CarryError> {
    let mut buffer = BytesMut::new();
    let mut size = MIN_READ;
    loop {
        buffer.reserve(size);
        let read = tokio::select! {
            biased;
            reason = poll_fn(|cx| stream.poll_reset(cx)) => return stopped(reason).map(|()| tcp),
            read = tcp.read_buf(&mut buffer) => read.map_err(CarryError::Application)?,
        };
        if read == 0 {
            let end = stream.send_data(Bytes::new(), true);
            return end.map_err(CarryError::Tunnel).map(|()| tcp);
        }
        Meter::add(&meter.received, read);
        size = if read >= size {
            (size * 2).min(MAX_READ)
        } else {
            size.min(read * 2).max(MIN_READ)
        };
        // Handed over as the stream's credit allows.
        let mut data = buffer.split().freeze();
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let Some(capacity) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
                let reason = poll_fn(|cx| stream.poll_reset(cx)).await;
                return stopped(reason).map(|()| tcp);
            };
            let capacity = capacity.map_err(CarryError::Tunnel)?;
            let part = data.split_to(capacity.min(data.len()));
            stream.send_data(part, false).map_err(CarryError::Tunnel)?;
        }
    }
}

/// What a reset means to the direction towards the peer.
fn stopped(reset: Result<Reason, h2::Error>) -> Result<(), CarryError> {
    match reset {
        // The peer wants to hear no more, having said everything (RFC 9113 §8.1). If it has not,
        // the other direction breaks.
        Ok(Reason::NO_ERROR) => Ok(()),
        Ok(reason) => Err(CarryError::Tunnel(reason.into())),
        Err(error) => Err(CarryError::Tunnel(error)),
    }
}

/// Ends when a connection breaks from which there is nothing more to read.
async fn broken(tcp: &ReadHalf<'_>) -> io::Error {
    let error = match tcp.ready(Interest::ERROR).await {
        Ok(_) => tcp.as_ref().take_error(),
        Err(error) => Ok(Some(error)),
    };
    match error {
        Ok(Some(error)) | Err(error) => error,
        // The other direction has seen it first, and says so.
        Ok(None) => pending().await,
    }
}

/// Writes what arrives. All that has arrived is taken from the stream at once: in there, every
/// frame that waits counts against a budget that all streams of the tunnel share.
async fn download(
    mut stream: RecvStream,
    mut tcp: WriteHalf<'_>,
    meter: &Meter,
) -> Result<(), CarryError> {
    let mut queue = Queue::default();
    let mut open = true;
    while open || queue.has_remaining() {
        if queue.remaining() >= BATCH {
            match queue.try_write(&tcp) {
                Ok(written) => {
                    taken(&mut stream, meter, written)?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(CarryError::Application(error)),
            }
        }
        tokio::select! {
            biased;
            data = stream.data(), if open => match data {
                Some(Ok(data)) => queue.push(data),
                Some(Err(error)) => {
                    while let Ok(written @ 1..) = queue.try_write(&tcp) {
                        Meter::add(&meter.sent, written);
                    }
                    return Err(CarryError::Tunnel(error));
                }
                None => open = false,
            },
            written = tcp.write_buf(&mut queue), if queue.has_remaining() => {
                taken(&mut stream, meter, written.map_err(CarryError::Application)?)?;
            }
        }
    }
    shutdown(tcp.shutdown().await).map_err(CarryError::Application)
}

/// Counts what an application has taken, and returns the credit for it: only now, so that a slow
/// one slows its own peer and nobody else.
fn taken(stream: &mut RecvStream, meter: &Meter, bytes: usize) -> Result<(), CarryError> {
    Meter::add(&meter.sent, bytes);
    let returned = stream.flow_control().release_capacity(bytes);
    returned.map_err(CarryError::Tunnel)
}

/// Carries bytes between an application's connection and another one, without a tunnel.
///
/// # Errors
/// When either side breaks; the other has been reset then, as both are when this is given up.
pub async fn join(
    mut application: TcpStream,
    mut peer: TcpStream,
    meter: &Meter,
) -> Result<(), CarryError> {
    for tcp in [&application, &peer] {
        reset_when_closed(tcp, true);
    }
    let (app_read, app_write) = application.split();
    let (peer_read, peer_write) = peer.split();
    let result = tokio::try_join!(
        pipe(
            app_read,
            peer_write,
            &meter.received,
            CarryError::Application,
            CarryError::Peer
        ),
        pipe(
            peer_read,
            app_write,
            &meter.sent,
            CarryError::Peer,
            CarryError::Application
        ),
    );
    if result.is_ok() {
        reset_when_closed(&application, false);
        reset_when_closed(&peer, false);
    }
    result.map(|_| ())
}

async fn pipe(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    counter: &Cell<u64>,
    read_error: fn(io::Error) -> CarryError,
    write_error: fn(io::Error) -> CarryError,
) -> Result<(), CarryError> {
    let mut buffer = BytesMut::new();
    let mut size = MIN_READ;
    loop {
        buffer.reserve(size);
        let read = from.read_buf(&mut buffer).await.map_err(read_error)?;
        if read == 0 {
            return shutdown(to.shutdown().await).map_err(write_error);
        }
        size = if read >= size {
            (size * 2).min(MAX_READ)
        } else {
            size.min(read * 2).max(MIN_READ)
        };
        to.write_all(&buffer).await.map_err(write_error)?;
        Meter::add(counter, read);
        buffer.clear();
    }
}

/// The other side may be gone altogether by the time we say that there is no more.
fn shutdown(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}
