//! Connecting in the ways that programs do: from a port of their own, or without waiting.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use crate::arguments::Arguments;
use crate::events::tell;

/// Connects as the options say: `--bind IP:PORT`, `--wait poll`.
pub(crate) fn dial(arguments: &Arguments) -> io::Result<TcpStream> {
    let source: Option<SocketAddr> = arguments.option("bind")?;
    let wait: Option<String> = arguments.option("wait")?;
    match (source, wait.as_deref()) {
        (None, None) => TcpStream::connect(arguments.address),
        (source, None) => by_hand(arguments.address, source, SockFlag::empty()),
        (source, Some("poll")) => by_hand(arguments.address, source, SockFlag::SOCK_NONBLOCK),
        (_, Some(other)) => Err(io::Error::other(format!("--wait: not {other}, but poll"))),
    }
}

/// Makes the socket send a reset instead of an orderly end when it is closed.
pub(crate) fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(stream, sockopt::Linger, &at_once)?)
}

/// Tries to connect to where no route leads, again and again by one socket: what is left of a
/// connect then is the system call, the programs attached to it, and the search for a route.
pub(crate) fn knock(arguments: &Arguments) -> io::Result<()> {
    let count = arguments.option("count")?.unwrap_or(100_000_u32);
    let family = family(arguments.address);
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    let address = SockaddrStorage::from(arguments.address);
    let begin = Instant::now();
    for _ in 0..count {
        match connect(socket.as_raw_fd(), &address) {
            Err(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {}
            outcome => {
                let address = arguments.address;
                return Err(io::Error::other(format!(
                    "a route to {address}: {outcome:?}"
                )));
            }
        }
    }
    let each = begin.elapsed().as_nanos() as f64 / f64::from(count);
    tell(&format!("nanoseconds {each:.1}"));
    Ok(())
}

fn family(of: SocketAddr) -> AddressFamily {
    match of {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn by_hand(to: SocketAddr, from: Option<SocketAddr>, flags: SockFlag) -> io::Result<TcpStream> {
    let socket = socket(family(to), SockType::Stream, flags, None)?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => finish(socket),
        outcome => outcome
            .map(|()| TcpStream::from(socket))
            .map_err(Into::into),
    }
}

/// Waits for a connect that has begun, and learns how it ended.
fn finish(socket: OwnedFd) -> io::Result<TcpStream> {
    poll(
        &mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)],
        PollTimeout::NONE,
    )?;
    let stream = TcpStream::from(socket);
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    // What follows reads and writes as every simple program does.
    stream.set_nonblocking(false)?;
    Ok(stream)
}
