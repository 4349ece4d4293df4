//! The protocol's numbers (wire contract §2, "HTTP/2").

use std::time::Duration;

use tokio::net::TcpStream;

/// Credit of one stream, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// Credit of a whole tunnel, in bytes: four streams' worth, so that one slow reader cannot stop the
/// others.
pub(crate) const TUNNEL_WINDOW: u32 = 16 << 20;
/// The largest frame we take, in bytes.
pub(crate) const MAX_FRAME: u32 = 1 << 20;
/// The largest request header we take, in bytes.
pub(crate) const MAX_HEADER_LIST: u32 = 64 << 10;
/// Streams that a client may have open at a time in a tunnel to us.
pub(crate) const MAX_STREAMS_IN: u32 = 200;
/// Streams that we put into one tunnel, if its server allows as many.
pub(crate) const MAX_STREAMS_OUT: usize = 100;
/// Bytes queued for sending in one stream before the application is no longer read.
pub(crate) const MAX_SEND_QUEUE: usize = 512 << 10;

/// A peer that says nothing for this long is asked whether it is there.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(10);
/// And has this long to answer.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long TLS and HTTP/2 may take to begin.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused tunnel is kept.
pub(crate) const IDLE_TUNNEL: Duration = Duration::from_secs(300);

/// Asks a tunnel's peer regularly whether it is there; ends when it is not.
pub(crate) async fn keep_alive(mut ping: h2::PingPong) {
    let mut interval = tokio::time::interval(PING_INTERVAL);
    interval.tick().await;
    loop {
        interval.tick().await;
        let answer = tokio::time::timeout(PING_TIMEOUT, ping.ping(h2::Ping::opaque())).await;
        if !matches!(answer, Ok(Ok(_))) {
            return;
        }
    }
}

/// Small messages of many streams leave together, so waiting for more helps nobody.
pub(crate) fn no_delay(tcp: &TcpStream) {
    // Can only fail on a socket that is dead, which the next write reports better.
    let _ = tcp.set_nodelay(true);
}
