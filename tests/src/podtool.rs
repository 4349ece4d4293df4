//! `podtool`, the application in a pod, as tests drive it.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::eventually::{PATIENCE, eventually};
use crate::place::Place;
use crate::process::{Group, Process};

/// What a server does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// Sends back what it gets.
    Echo,
    /// Speaks first: `220 local=… peer=… ready`, then `250 <line>` for each line.
    Greet,
    /// After the end of what comes: `sum <length> <checksum>`.
    Sum,
    /// Sends a million bytes at once and ends; reads nothing.
    Push,
    /// Ends its sending side at once, reads to the end.
    Hangup,
    /// Reads a line, then resets the connection.
    Reset,
}

impl Serve {
    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Greet => "greet",
            Self::Sum => "sum",
            Self::Push => "push",
            Self::Hangup => "hangup",
            Self::Reset => "reset",
        }
    }
}

/// Starts a server and waits until it listens. Its log has a line per event:
/// `accepted from=… local=… peer=…`, `closed …`, `broken …`.
pub fn serve(place: &Place, name: &str, mode: Serve, address: &str) -> Result<Process> {
    start_server(place, name, &["serve", address, "--mode", mode.name()])
}

/// Starts a UDP server that sends datagrams back; its log has lines `datagram from=…`.
pub fn answer_datagrams(place: &Place, name: &str, address: &str) -> Result<Process> {
    start_server(place, name, &["answer", address])
}

/// Starts a nameserver that answers every question with one address; its log has lines
/// `question from=…`.
pub fn answer_names(place: &Place, name: &str, address: &str, ip: Ipv4Addr) -> Result<Process> {
    start_server(place, name, &["names", address, "--ip", &ip.to_string()])
}

/// Sends a datagram and returns `local=… peer=… from=… answer=…`, or `failed …`.
pub fn ask_by_datagram(place: &Place, address: &str, text: &str) -> Result<String> {
    let mut command = place.command(place.run.binaries().podtool()?);
    command.args(["ask", address, "--text", text]);
    let finished = crate::process::finish_within(&place.run, command, PATIENCE)?;
    Ok(finished.success()?.trim().to_owned())
}

/// A datagram that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whom the socket is connected to, by getpeername; or else where the answer came from.
    pub peer: String,
    /// Where it came from.
    pub from: String,
    pub bytes: Vec<u8>,
}

/// Sends bytes with options of `podtool ask`, and returns what comes back.
pub fn exchange_datagrams(
    place: &Place,
    address: &str,
    bytes: &[u8],
    options: &[&str],
) -> Result<Answer> {
    let mut answers = ask_with(place, address, bytes, options)?;
    ensure!(answers.len() == 1, "{answers:?}");
    answers.pop().context("one answer")
}

/// Sends the same bytes to two addresses by one socket; returns what comes back, in any order.
pub fn exchange_with_both(
    place: &Place,
    addresses: [&str; 2],
    bytes: &[u8],
) -> Result<Vec<Answer>> {
    let [address, also] = addresses;
    let options = ["--socket", "unconnected", "--also", also];
    ask_with(place, address, bytes, &options)
}

fn ask_with(place: &Place, address: &str, bytes: &[u8], options: &[&str]) -> Result<Vec<Answer>> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = place.command(place.run.binaries().podtool()?);
    command.args(["ask", address, "--hex", &hex]).args(options);
    let finished = crate::process::finish_within(&place.run, command, PATIENCE)?;
    let told = finished.success()?;
    let answers = told.lines().map(Answer::parse);
    answers
        .collect::<Option<_>>()
        .with_context(|| format!("from {address}, {options:?}: {told}"))
}

impl Answer {
    /// Parses `local=… peer=… from=… answer=…`.
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut fields = line.split_whitespace().filter_map(|f| f.split_once('='));
            fields
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_owned())
        };
        let hex = field("answer")?;
        let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
        Some(Self {
            peer: field("peer")?,
            from: field("from")?,
            bytes: (0..hex.len()).step_by(2).map(byte).collect::<Option<_>>()?,
        })
    }
}

/// Makes connections to an echo server, each of which works, and keeps them until it is dropped.
pub fn hold(place: &Place, name: &str, address: &str, count: u32) -> Result<Process> {
    let count = count.to_string();
    start_until(
        place,
        name,
        &["hold", address, "--count", &count],
        "holding",
    )
}

/// What one `connect` costs that fails for want of a route, before anything is sent: the mean of
/// so many, in nanoseconds.
pub fn knock(place: &Place, address: &str, count: u32) -> Result<f64> {
    let mut command = place.command(place.run.binaries().podtool()?);
    command.args(["knock", address, "--count", &count.to_string()]);
    let finished = crate::process::finish_within(&place.run, command, PATIENCE)?;
    let told = finished.success()?;
    told.trim()
        .strip_prefix("nanoseconds ")
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("podtool knock told {told:?}"))
}

fn start_server(place: &Place, name: &str, arguments: &[&str]) -> Result<Process> {
    start_until(place, name, arguments, "listening ")
}

/// Starts a process, and waits until it has told something.
fn start_until(place: &Place, name: &str, arguments: &[&str], told: &str) -> Result<Process> {
    let mut command = place.command(place.run.binaries().podtool()?);
    command.args(arguments);
    let mut process = Process::start(&place.run, name, command)?;
    eventually(|| {
        process.check()?;
        ensure!(
            process.log()?.contains(told),
            "{name} does not say `{told}`: podtool {}",
            arguments.join(" ")
        );
        Ok(())
    })?;
    Ok(process)
}

/// What a connection has told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `local` is its getsockname, `peer` its getpeername.
    Connected {
        local: String,
        peer: String,
    },
    Line(String),
    Eof,
    /// In a word (`refused`, `reset`, `timeout`, …) and the system's own text.
    Failed(String),
    /// The same, after it had been established.
    Broken(String),
}

impl Event {
    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        match kind {
            "connected" => {
                let (local, peer) = rest.strip_prefix("local=")?.split_once(" peer=")?;
                Some(Self::Connected {
                    local: local.to_owned(),
                    peer: peer.to_owned(),
                })
            }
            "line" => Some(Self::Line(rest.to_owned())),
            "eof" => Some(Self::Eof),
            "failed" => Some(Self::Failed(rest.to_owned())),
            "broken" => Some(Self::Broken(rest.to_owned())),
            _ => None,
        }
    }
}

/// One connection of a process in a pod, held as long as this value.
#[derive(Debug)]
pub struct Connection {
    pub local: String,
    pub peer: String,
    stdin: Option<ChildStdin>,
    events: Receiver<Event>,
    _process: Group,
}

impl Connection {
    /// Fails with the reason when the connection is not made.
    pub fn open(place: &Place, address: &str) -> Result<Self> {
        Self::open_with(place, address, &[])
    }

    /// The same with options of `podtool connect`.
    pub fn open_with(place: &Place, address: &str, options: &[&str]) -> Result<Self> {
        let mut command = place.command(place.run.binaries().podtool()?);
        command
            .args(["connect", address])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Group::start(&place.run, &mut command)?;
        let (stdin, stdout) = process.pipes()?;
        let (sender, events) = channel();
        // Ends with the process, whose end of the pipe it reads.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Some(event) = Event::parse(&line) else {
                    continue;
                };
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        match events.recv_timeout(PATIENCE) {
            Ok(Event::Connected { local, peer }) => Ok(Self {
                local,
                peer,
                stdin: Some(stdin),
                events,
                _process: process,
            }),
            Ok(other) => bail!("connecting to {address}: {other:?}"),
            Err(error) => bail!("connecting to {address}: {error} within {PATIENCE:?}"),
        }
    }

    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("the sending side has been ended")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .context("writing to podtool")
    }

    /// Ends the sending side (FIN, or a reset with `--end reset`); what comes is still read.
    pub fn finish_sending(&mut self) {
        self.stdin = None;
    }

    /// The next event, or `None` when none comes for this long.
    pub fn event(&self, wait: Duration) -> Result<Option<Event>> {
        match self.events.recv_timeout(wait) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the connection has ended before"),
        }
    }

    /// The next line; anything else is an error.
    pub fn line(&self) -> Result<String> {
        match self.event(PATIENCE)? {
            Some(Event::Line(line)) => Ok(line),
            other => bail!("expected a line from {}, got {other:?}", self.peer),
        }
    }

    /// Sends a line and returns the one that comes back.
    pub fn exchange(&mut self, line: &str) -> Result<String> {
        self.send(line)?;
        self.line()
    }
}

/// What became of many connections.
#[derive(Debug, Clone)]
pub struct Flood {
    pub attempted: u64,
    pub connected: u64,
    pub ok: u64,
    /// `connect_refused`, `exchange_reset` and so on.
    pub failures: Vec<(String, u64)>,
    pub connect_p50_us: u64,
    pub connect_max_us: u64,
}

impl Flood {
    pub fn parse(text: &str) -> Result<Self> {
        // The first line says that the flood has begun.
        let text = text
            .lines()
            .find(|line| line.starts_with('{'))
            .unwrap_or(text);
        let json: Value = serde_json::from_str(text)
            .with_context(|| format!("podtool flood told {text:?} instead of JSON"))?;
        let number = |key: &str| {
            json[key]
                .as_u64()
                .with_context(|| format!("podtool flood told no {key}: {json}"))
        };
        let failures = json["failures"]
            .as_object()
            .context("podtool flood told no failures")?;
        Ok(Self {
            attempted: number("attempted")?,
            connected: number("connected")?,
            ok: number("ok")?,
            failures: failures
                .iter()
                .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(0)))
                .collect(),
            connect_p50_us: number("connect_p50_us")?,
            connect_max_us: number("connect_max_us")?,
        })
    }

    /// Connections that could not be made, for whatever reason.
    #[must_use]
    pub fn not_connected(&self) -> u64 {
        self.attempted - self.connected
    }
}

/// Opens many connections to an echo server and waits for all; `options` as in podtool's help.
pub fn flood(place: &Place, address: &str, options: &[&str], limit: Duration) -> Result<Flood> {
    let mut command = place.command(place.run.binaries().podtool()?);
    command.args(["flood", address]).args(options);
    let finished = crate::process::finish_within(&place.run, command, limit)?;
    Flood::parse(&finished.success()?)
}

/// The same in the background; when it has ended, [`Flood::parse`] reads its log.
pub fn start_flood(place: &Place, name: &str, address: &str, options: &[&str]) -> Result<Process> {
    let mut command = place.command(place.run.binaries().podtool()?);
    command.args(["flood", address]).args(options);
    Process::start(&place.run, name, command)
}

/// Sends so many bytes, ends the sending side, reads to the end. Fields: `sent`,
/// `sent_checksum`, `received`, `received_checksum`, `end` (`eof` when all is well), `tail`.
pub fn half_close(place: &Place, address: &str, bytes: u64) -> Result<Value> {
    let mut command = place.command(place.run.binaries().podtool()?);
    command.args(["half-close", address, "--bytes", &bytes.to_string()]);
    let finished = crate::process::finish_within(&place.run, command, PATIENCE * 3)?;
    let text = finished.success()?;
    serde_json::from_str(&text).with_context(|| format!("podtool half-close told {text:?}"))
}
