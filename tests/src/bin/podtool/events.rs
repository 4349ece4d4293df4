//! What a client or server tells, and the bytes it sends.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};

/// Prints one event at once, though standard output is a pipe or a file.
pub(crate) fn tell(event: &str) {
    let mut out = io::stdout().lock();
    // Whoever started us and does not listen any more does not need the event.
    let _ = writeln!(out, "{event}");
    let _ = out.flush();
}

/// `local=… peer=…` by getsockname and getpeername.
pub(crate) fn ends(stream: &TcpStream) -> String {
    let show = |address: io::Result<SocketAddr>| match address {
        Ok(address) => address.to_string(),
        Err(error) => format!("?{:?}", error.kind()),
    };
    format!(
        "local={} peer={}",
        show(stream.local_addr()),
        show(stream.peer_addr())
    )
}

/// How a connection failed, in one word.
pub(crate) fn reason(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
            "reset"
        }
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
        ErrorKind::PermissionDenied => "denied",
        ErrorKind::UnexpectedEof => "closed",
        _ => "other",
    }
}

/// FNV-1a: enough to notice a lost, doubled or swapped byte.
#[derive(Clone, Copy)]
pub(crate) struct Checksum(u64);

impl Checksum {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Sends `count` bytes of a sequence that does not repeat at any block size; tells its checksum.
pub(crate) fn send_pattern(out: &mut impl Write, count: u64) -> io::Result<Checksum> {
    let mut checksum = Checksum::new();
    let mut state = 1_u64;
    let mut block = [0; 16 * 1024];
    let mut left = count;
    while left > 0 {
        for byte in &mut block {
            // Knuth's MMIX generator; the high bits are the good ones.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = state.to_be_bytes()[0];
        }
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        out.write_all(&block[..size])?;
        checksum.add(&block[..size]);
        left -= size as u64;
    }
    Ok(checksum)
}
