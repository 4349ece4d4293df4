//! The protocol's numbers (wire contract §2, "HTTP/2").

use std::time::Duration;

use tokio::{io::BufReader, net::TcpStream};

/// Credit of one stream, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// Credit of a whole tunnel, in bytes: four streams' worth, so that one slow reader cannot stop the
/// others.
pub(crate) const TUNNEL_WINDOW: u32 = 16 << 20;
/// The largest frame we take, in bytes.
pub(crate) const MAX_FRAME: u32 = 1 << 20;
/// What frames may cost beyond their bytes while they wait for their streams, as h2 reckons: 256
/// bytes each, less what is in them. Whoever exceeds it loses the tunnel with all its streams, so
/// it is more than an honest peer's tiniest frames can come to in one go.
pub(crate) const FRAME_BUDGET: usize = 64 << 20;
/// The largest request header we take, in bytes.
pub(crate) const MAX_HEADER_LIST: u32 = 64 << 10;
/// Streams that a client may have open at a time in a tunnel to us.
pub(crate) const MAX_STREAMS_IN: u32 = 200;
/// Streams that we put into one tunnel, if its server allows as many.
pub(crate) const MAX_STREAMS_OUT: usize = 100;
/// Bytes queued for sending in one stream before the application is no longer read.
pub(crate) const MAX_SEND_QUEUE: usize = 512 << 10;

/// How long TLS and HTTP/2 may take to begin.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may take to answer a request: it waits for what it must know of its workload, and
/// then connects to the application, each for 10 s at most.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an unused tunnel is kept.
pub(crate) const IDLE_TUNNEL: Duration = Duration::from_secs(300);

/// What one read of a tunnel's socket takes at most, in bytes. TLS alone would read record by record.
const READ_BUFFER: usize = 128 << 10;
/// How much TLS prepares for one write to a tunnel's socket, in bytes.
pub(crate) const WRITE_BUFFER: usize = 256 << 10;

/// A tunnel's socket with room for many records, so that they cost few system calls.
pub(crate) fn buffered(tcp: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(READ_BUFFER, tcp)
}

/// Small messages of many streams leave together, so waiting for more helps nobody.
pub(crate) fn no_delay(tcp: &TcpStream) {
    // Can only fail on a socket that is dead, which the next write reports better.
    let _ = tcp.set_nodelay(true);
}
