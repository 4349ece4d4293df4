//! UDP.

use std::io;
use std::net::{SocketAddr, UdpSocket};
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

/// Sends a datagram, to one address or two, and prints what comes back.
pub(crate) fn ask(arguments: &Arguments) -> io::Result<()> {
    let connects = match arguments.option::<String>("socket")?.as_deref() {
        None | Some("connected") => true,
        Some("unconnected") => false,
        Some(other) => {
            let error = format!("--socket: not {other}, but connected or unconnected");
            return Err(io::Error::other(error));
        }
    };
    let hex: Option<String> = arguments.option("hex")?;
    let datagram = match &hex {
        Some(hex) => from_hex(hex)?,
        None => arguments
            .option::<String>("text")?
            .unwrap_or_default()
            .into_bytes(),
    };
    let any = if arguments.address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let own: Option<String> = arguments.option("bind")?;
    let socket = UdpSocket::bind(own.as_deref().unwrap_or(any))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let also: Option<SocketAddr> = arguments.option("also")?;
    if connects {
        socket.connect(arguments.address)?;
        socket.send(&datagram)?;
    } else {
        socket.send_to(&datagram, arguments.address)?;
    }
    if let Some(also) = also {
        socket.send_to(&datagram, also)?;
    }
    let mut answer = vec![0; 64 * 1024];
    for _ in [Some(arguments.address), also].iter().flatten() {
        let (size, from) = match socket.recv_from(&mut answer) {
            Ok(received) => received,
            Err(error) => {
                tell(&format!("failed {} {error}", reason(&error)));
                continue;
            }
        };
        let answer = &answer[..size];
        let shown = match hex {
            Some(_) => answer.iter().map(|byte| format!("{byte:02x}")).collect(),
            None => String::from_utf8_lossy(answer).into_owned(),
        };
        let peer = if connects { socket.peer_addr()? } else { from };
        let local = socket.local_addr()?;
        tell(&format!(
            "local={local} peer={peer} from={from} answer={shown}"
        ));
    }
    Ok(())
}

fn from_hex(text: &str) -> io::Result<Vec<u8>> {
    let byte = |at| {
        text.get(at..at + 2)
            .map(|pair| u8::from_str_radix(pair, 16))
    };
    (0..text.len())
        .step_by(2)
        .map(|at| match byte(at) {
            Some(Ok(byte)) => Ok(byte),
            _ => Err(io::Error::other(format!("--hex: not bytes: {text}"))),
        })
        .collect()
}
