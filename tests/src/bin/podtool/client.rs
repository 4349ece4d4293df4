//! One connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use crate::arguments::Arguments;
use crate::dial::{dial, reset_on_close};
use crate::events::{Checksum, ends, reason, send_pattern, tell};

pub(crate) fn connect(arguments: &Arguments) -> io::Result<()> {
    let ends_in_reset = arguments.option::<String>("end")?.as_deref() == Some("reset");
    let holds = arguments.option::<String>("eof")?.as_deref() == Some("hold");
    let stream = match dial(arguments) {
        Ok(stream) => stream,
        Err(error) => {
            tell(&format!("failed {} {error}", reason(&error)));
            return Ok(());
        }
    };
    tell(&format!("connected {}", ends(&stream)));
    let mut sender = stream.try_clone()?;
    let sending = thread::spawn(move || -> io::Result<()> {
        for line in io::stdin().lines() {
            // A failure is told by the reading side.
            if sender.write_all(format!("{}\n", line?).as_bytes()).is_err() {
                return Ok(());
            }
        }
        if ends_in_reset {
            reset_on_close(&sender)?;
            tell("reset");
            // Also closes the descriptor of the reading side, which would put the end off.
            std::process::exit(0);
        }
        sender.shutdown(Shutdown::Write)
    });
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => {
                tell("eof");
                if holds {
                    // Its failure would be one of a connection that has ended anyway.
                    let _ = sending.join();
                }
                return Ok(());
            }
            Ok(_) => tell(&format!(
                "line {}",
                String::from_utf8_lossy(&line).trim_end()
            )),
            Err(error) => {
                tell(&format!("broken {} {error}", reason(&error)));
                return Ok(());
            }
        }
    }
}

pub(crate) fn half_close(arguments: &Arguments) -> io::Result<()> {
    let bytes = arguments.option("bytes")?.unwrap_or(1_000_000);
    let mut stream = TcpStream::connect(arguments.address)?;
    let mut sender = stream.try_clone()?;
    // Both ways at once: an echo server stops reading when nobody reads its answers.
    let sending = thread::spawn(move || -> io::Result<Checksum> {
        let checksum = send_pattern(&mut sender, bytes)?;
        sender.shutdown(Shutdown::Write)?;
        Ok(checksum)
    });
    let (mut received, mut checksum, mut tail) = (0_u64, Checksum::new(), Vec::new());
    let mut block = vec![0; 64 * 1024];
    let end = loop {
        match stream.read(&mut block) {
            Ok(0) => break "eof",
            Ok(size) => {
                received += size as u64;
                checksum.add(&block[..size]);
                tail = block[size.saturating_sub(64)..size].to_vec();
            }
            Err(error) => break reason(&error),
        }
    };
    let (sent, sending_end) = match sending.join() {
        Ok(Ok(checksum)) => (checksum.to_string(), "ok"),
        Ok(Err(error)) => (String::new(), reason(&error)),
        Err(_) => (String::new(), "panic"),
    };
    // The end of what came, made harmless for JSON: the answer of `serve --mode sum`.
    let tail: String = tail
        .iter()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(*byte)
            } else {
                ' '
            }
        })
        .collect();
    tell(&format!(
        r#"{{"sent":{bytes},"sent_checksum":"{sent}","sending":"{sending_end}","received":{received},"received_checksum":"{checksum}","end":"{end}","tail":"{}"}}"#,
        tail.trim()
    ));
    Ok(())
}
