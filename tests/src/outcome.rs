//! One connection to a server that speaks first, and what became of it.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::eventually::PATIENCE;
use crate::place::Place;
use crate::podtool::{Connection, Event};

/// What an application sees of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was greeted.
    Served,
    /// It was established, and reset before anything came.
    Reset,
}

/// Connects to a server of [`Serve::Greet`](crate::podtool::Serve::Greet). The client is silent: one
/// that writes may learn of a reset by that, and then reads an orderly end.
pub fn attempt(place: &Place, address: SocketAddr) -> Result<Outcome> {
    let connection = match Connection::open(place, &address.to_string()) {
        // The reset came before the client had seen that it was connected.
        Err(error) if error.to_string().contains("Failed(\"reset ") => return Ok(Outcome::Reset),
        other => other?,
    };
    match connection.event(PATIENCE)? {
        Some(Event::Line(line)) if line.starts_with("220 ") => Ok(Outcome::Served),
        Some(Event::Broken(how)) if how.starts_with("reset") => Ok(Outcome::Reset),
        other => bail!("neither greeted nor reset by {address}: {other:?}"),
    }
}
