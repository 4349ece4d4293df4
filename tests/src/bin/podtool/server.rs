//! Servers that tell whom they accepted.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use crate::arguments::Arguments;
use crate::dial::reset_on_close;
use crate::events::{Checksum, ends, reason, send_pattern, tell};

#[derive(Clone, Copy)]
enum Mode {
    Echo,
    Greet,
    Sum,
    Push { bytes: u64 },
    Hangup,
    Reset,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "echo" => Ok(Self::Echo),
            "greet" => Ok(Self::Greet),
            "sum" => Ok(Self::Sum),
            "push" => Ok(Self::Push { bytes: 1_000_000 }),
            "hangup" => Ok(Self::Hangup),
            "reset" => Ok(Self::Reset),
            _ => Err(()),
        }
    }
}

pub(crate) fn serve(arguments: &Arguments) -> io::Result<()> {
    let mut mode = arguments.option("mode")?.unwrap_or(Mode::Echo);
    if let (Mode::Push { bytes }, Some(wanted)) = (&mut mode, arguments.option("bytes")?) {
        *bytes = wanted;
    }
    let listener = TcpListener::bind(arguments.address)?;
    tell(&format!("listening {}", listener.local_addr()?));
    loop {
        let (stream, from) = match listener.accept() {
            Ok(accepted) => accepted,
            // The client went away in the queue, or descriptors ran out for a moment.
            Err(error) => {
                tell(&format!("not accepted: {error}"));
                thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        tell(&format!("accepted from={from} {}", ends(&stream)));
        thread::spawn(move || {
            let ends = ends(&stream);
            match converse(mode, stream) {
                Ok(received) => tell(&format!("closed {ends} received={received}")),
                Err(error) => tell(&format!("broken {ends} {} {error}", reason(&error))),
            }
        });
    }
}

/// Serves one connection to its end; returns how many bytes came.
fn converse(mode: Mode, mut stream: TcpStream) -> io::Result<u64> {
    let received = match mode {
        Mode::Echo => echo(&mut stream)?,
        Mode::Greet => greet(&mut stream)?,
        Mode::Sum => sum(&mut stream)?,
        Mode::Hangup => {
            stream.shutdown(Shutdown::Write)?;
            io::copy(&mut stream, &mut io::sink())?
        }
        Mode::Reset => return reset(stream),
        Mode::Push { bytes } => {
            send_pattern(&mut stream, bytes)?;
            0
        }
    };
    // The client may have gone already; it got everything.
    let _ = stream.shutdown(Shutdown::Write);
    Ok(received)
}

fn echo(stream: &mut TcpStream) -> io::Result<u64> {
    let mut received = 0;
    let mut block = vec![0; 64 * 1024];
    loop {
        let size = stream.read(&mut block)?;
        if size == 0 {
            return Ok(received);
        }
        stream.write_all(&block[..size])?;
        received += size as u64;
    }
}

/// Like SMTP: the server speaks first, and the greeting tells the client how it is seen.
fn greet(stream: &mut TcpStream) -> io::Result<u64> {
    let greeting = format!("220 {} ready\r\n", ends(stream));
    stream.write_all(greeting.as_bytes())?;
    let mut received = 0;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    loop {
        line.clear();
        received += match lines.read_line(&mut line)? {
            0 => return Ok(received),
            size => size as u64,
        };
        if line.trim() == "QUIT" {
            stream.write_all(b"221 bye\r\n")?;
            return Ok(received);
        }
        stream.write_all(format!("250 {}\r\n", line.trim()).as_bytes())?;
    }
}

fn sum(stream: &mut TcpStream) -> io::Result<u64> {
    let (mut received, mut checksum) = (0_u64, Checksum::new());
    let mut block = vec![0; 64 * 1024];
    loop {
        let size = stream.read(&mut block)?;
        if size == 0 {
            stream.write_all(format!("sum {received} {checksum}\n").as_bytes())?;
            return Ok(received);
        }
        received += size as u64;
        checksum.add(&block[..size]);
    }
}

fn reset(stream: TcpStream) -> io::Result<u64> {
    let received = BufReader::new(&stream).read_line(&mut String::new())?;
    reset_on_close(&stream)?;
    Ok(received as u64)
}
