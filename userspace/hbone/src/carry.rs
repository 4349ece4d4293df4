//! Moving bytes between a TCP connection and a stream, or between two TCP connections.
//!
//! Each direction ends on its own: the end of one side's bytes is passed on as the end of the
//! other's, and the opposite direction goes on. When either breaks, both ends are reset, so that
//! nobody takes a cut for an end.

use std::{cell::Cell, future::poll_fn, io, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

/// What one read starts with, in bytes; it doubles while reads fill it.
const MIN_READ: usize = 4 << 10;
/// And ends with.
const MAX_READ: usize = 256 << 10;

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
    /// When either side breaks; the other has been reset then.
    pub async fn carry(self, mut tcp: TcpStream, meter: &Meter) -> Result<(), CarryError> {
        let Self {
            mut send,
            recv,
            _place,
        } = self;
        crate::limits::no_delay(&tcp);
        let (reader, writer) = tcp.split();
        let result = tokio::try_join!(
            upload(reader, &mut send, meter),
            download(recv, writer, meter),
        );
        if let Err(error) = result {
            send.send_reset(Reason::CANCEL);
            reset(tcp);
            return Err(error);
        }
        Ok(())
    }

    /// Refuses to go on; the peer sees a reset.
    pub fn reset(mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

/// Ends a connection by a reset instead of an orderly end, so that nobody takes a refusal for an
/// empty answer.
pub fn reset(tcp: TcpStream) {
    // Lingering for no time at all is how a socket is told to reset on close. tokio deprecates the
    // setter for blocking on long times, which this is not.
    let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
}

async fn upload(
    mut tcp: ReadHalf<'_>,
    stream: &mut SendStream<Bytes>,
    meter: &Meter,
) -> Result<(), CarryError> {
    let mut buffer = BytesMut::new();
    let mut size = MIN_READ;
    loop {
        buffer.reserve(size);
        let read = tokio::select! {
            biased;
            reason = poll_fn(|cx| stream.poll_reset(cx)) => {
                return Err(CarryError::Tunnel(reason.map_or_else(|e| e, h2::Error::from)));
            }
            read = tcp.read_buf(&mut buffer) => read.map_err(CarryError::Application)?,
        };
        if read == 0 {
            break;
        }
        Meter::add(&meter.received, read);
        size = if read >= size {
            (size * 2).min(MAX_READ)
        } else {
            size.min(read * 2).max(MIN_READ)
        };
        send_all(stream, buffer.split().freeze())
            .await
            .map_err(CarryError::Tunnel)?;
    }
    stream
        .send_data(Bytes::new(), true)
        .map_err(CarryError::Tunnel)
}

/// Hands data over as the stream's credit allows.
async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(capacity) => capacity?,
            // The stream is closed; sending says why.
            None => data.len(),
        };
        let part = data.split_to(capacity.min(data.len()));
        stream.send_data(part, false)?;
    }
    Ok(())
}

async fn download(
    mut stream: RecvStream,
    mut tcp: WriteHalf<'_>,
    meter: &Meter,
) -> Result<(), CarryError> {
    while let Some(data) = stream.data().await {
        let data = data.map_err(CarryError::Tunnel)?;
        tcp.write_all(&data)
            .await
            .map_err(CarryError::Application)?;
        Meter::add(&meter.sent, data.len());
        // Credit is returned once the application has the bytes, so a slow one slows its own peer
        // and nobody else.
        stream
            .flow_control()
            .release_capacity(data.len())
            .map_err(CarryError::Tunnel)?;
    }
    shutdown(tcp.shutdown().await).map_err(CarryError::Application)
}

/// Carries bytes between an application's connection and another one, without a tunnel.
///
/// # Errors
/// When either side breaks; the other has been reset then.
pub async fn join(
    mut application: TcpStream,
    mut peer: TcpStream,
    meter: &Meter,
) -> Result<(), CarryError> {
    crate::limits::no_delay(&application);
    crate::limits::no_delay(&peer);
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
    if let Err(error) = result {
        reset(application);
        reset(peer);
        return Err(error);
    }
    Ok(())
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
