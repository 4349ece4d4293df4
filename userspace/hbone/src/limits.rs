//! The protocol's numbers (wire contract §2, "HTTP/2").

use std::time::Duration;

use tokio::net::TcpStream;

/// Credit of a stream at its begin, in bytes: what an application may keep us waiting with.
pub(crate) const STREAM_WINDOW: u32 = 256 << 10;
/// What the credit of a stream grows to while its application takes everything at once, in bytes.
pub(crate) const MAX_STREAM_WINDOW: u32 = 4 << 20;
/// What the credit of all streams of a tunnel may grow by, in bytes.
pub(crate) const GROWTH: u32 = 32 << 20;
/// Credit of a whole tunnel, in bytes. It is returned when bytes arrive, so that no stream can stop
/// the others.
pub(crate) const TUNNEL_WINDOW: u32 = 16 << 20;
/// The largest request header we take, in bytes.
pub(crate) const MAX_HEADER_LIST: u32 = 64 << 10;
/// The largest header block that is read at all, in bytes, before and after its decompression. What
/// is only somewhat too large is read, and refused alone: it may change the tables.
pub(crate) const MAX_BLOCK: usize = 2 * MAX_HEADER_LIST as usize;
/// Streams that a client may have open at a time in a tunnel to us.
pub(crate) const MAX_STREAMS_IN: u32 = 200;
/// Streams that we put into one tunnel, if its server allows as many.
pub(crate) const MAX_STREAMS_OUT: usize = 100;

/// What is said beside a request before it is answered, in bytes: a request of the application, not
/// its upload.
pub(crate) const EARLY: usize = 4 << 10;
/// Only to a peer that was heard so recently. What is said to one that is gone is lost, and whether
/// it was is not known.
pub(crate) const EARLY_AFTER: Duration = Duration::from_secs(1);

/// A tunnel that carries so much, in bytes a second, gets no more streams as long as there can be
/// another: what waits in its socket would delay them.
pub(crate) const CROWDED: f64 = 50e6;
/// With so many tunnels between the same two ends, another one is made only for want of room.
pub(crate) const MAX_CROWDED: usize = 4;
/// For how long crowded tunnels have to do, after another one could not be made.
pub(crate) const CROWDED_PAUSE: Duration = Duration::from_secs(10);

/// Frames that carry nothing, which a peer may send beyond what our own frames call for: so many at
/// once, and so many more each second. More of them are an attack.
pub(crate) const IDLE_FRAMES: i64 = 10_000;
pub(crate) const IDLE_FRAMES_PER_SECOND: i64 = 1_000;
/// Frames of credit that a peer may send, for its stream and the tunnel, for so many bytes of ours.
pub(crate) const CREDIT_FOR: usize = 1 << 10;
/// Requests that a peer may have taken back, or broken, before anybody looked at them: so many at
/// once, and so many more each second.
pub(crate) const UNSEEN_RESETS: u32 = 100;
pub(crate) const UNSEEN_RESETS_PER_SECOND: u32 = 10;
/// Requests that a peer may have taken back, or broken, and that somebody still works for. With more
/// of them there is room for no others.
pub(crate) const MAX_ORPHANS: usize = 1000;
/// What may wait in a tunnel, beyond its applications' bytes, for a peer that does not read.
pub(crate) const MAX_LATE: usize = 256 << 10;

/// How long TLS and HTTP/2 may take to begin.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may take to answer a request: it waits for what it must know of its workload, and
/// then connects to the application, each for 10 s at most.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an unused tunnel is kept.
pub(crate) const IDLE_TUNNEL: Duration = Duration::from_secs(300);
/// How long one more unused tunnel is kept, beside others between the same two ends.
pub(crate) const SPARE_TUNNEL: Duration = Duration::from_secs(30);
/// A peer that says nothing for this long is asked whether it is there.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);
/// And has this long to say anything.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the last words of a tunnel have to be heard.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// Small messages of many streams leave together, so waiting for more helps nobody.
pub(crate) fn no_delay(tcp: &TcpStream) {
    // Can only fail on a socket that is dead, which the next write reports better.
    let _ = tcp.set_nodelay(true);
}
