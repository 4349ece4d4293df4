//! UDP.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::events::{reason, tell};

/// Sends every datagram back to whoever sent it.
pub(crate) fn serve(arguments: &Arguments) -> io::Result<()> {
    let socket = UdpSocket::bind(arguments.address)?;
    tell(&format!("listening {}", socket.local_addr()?));
    let mut datagram = vec![0; 64 * 1024];
    loop {
        let (size, from) = socket.recv_from(&mut datagram)?;
        tell(&format!("datagram from={from}"));
        socket.send_to(&datagram[..size], from)?;
    }
}

/// Sends one datagram by a connected socket and prints what comes back.
pub(crate) fn ask(arguments: &Arguments) -> io::Result<()> {
    let text: String = arguments.option("text")?.unwrap_or_default();
    let any = if arguments.address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(arguments.address)?;
    socket.send(text.as_bytes())?;
    let mut answer = vec![0; 64 * 1024];
    match socket.recv(&mut answer) {
        Ok(size) => tell(&format!(
            "local={} peer={} answer={}",
            socket.local_addr()?,
            socket.peer_addr()?,
            String::from_utf8_lossy(&answer[..size])
        )),
        Err(error) => tell(&format!("failed {} {error}", reason(&error))),
    }
    Ok(())
}
