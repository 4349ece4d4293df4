//! A nameserver (RFC 1035 §4.1) that knows one address.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use crate::arguments::Arguments;
use crate::events::tell;

const HEADER: usize = 12;
const A: [u8; 2] = [0, 1];

/// Answers every question for an A record with `--ip`, and all others with no record.
pub(crate) fn serve(arguments: &Arguments) -> io::Result<()> {
    let ip: Ipv4Addr = arguments
        .option("ip")?
        .ok_or_else(|| io::Error::other("no --ip given"))?;
    let socket = UdpSocket::bind(arguments.address)?;
    tell(&format!("listening {}", socket.local_addr()?));
    let mut query = [0; 512];
    loop {
        let (size, from) = socket.recv_from(&mut query)?;
        if let Some(response) = answer(&query[..size], ip) {
            tell(&format!("question from={from}"));
            socket.send_to(&response, from)?;
        }
    }
}

/// `None` for what is no query.
fn answer(query: &[u8], ip: Ipv4Addr) -> Option<Vec<u8>> {
    let name = query.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1;
    // The name, its type and its class.
    let question = query.get(HEADER..HEADER + name + 4)?;
    let known = question[name..name + 2] == A;
    let mut response = query[..2].to_vec();
    // A response, recursion desired and available, no error; one question.
    response.extend([0x81, 0x80, 0, 1, 0, known.into(), 0, 0, 0, 0]);
    response.extend(question);
    if known {
        // The name of the question; A, IN, not to be remembered, four bytes.
        response.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        response.extend(ip.octets());
    }
    Some(response)
}
