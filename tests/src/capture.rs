//! What passed an interface: tcpdump writes it down, a small parser reads it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::eventually::{PATIENCE, eventually};
use crate::place::Place;
use crate::process::Process;

/// A TCP segment as it was on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// Whether it opens a connection, or answers to that.
    pub syn: bool,
    pub sequence: u32,
    pub payload: Vec<u8>,
}

impl Segment {
    #[must_use]
    pub fn uses_port(&self, port: u16) -> bool {
        self.from.port() == port || self.to.port() == port
    }

    #[must_use]
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.payload
            .windows(bytes.len())
            .any(|window| window == bytes)
    }
}

/// All that one side of a connection sent, put together; `None` if its beginning or a piece in
/// between was not captured. `segments` are those of one direction between two addresses.
#[must_use]
pub fn reassemble(segments: &[&Segment]) -> Option<Vec<u8>> {
    let first = segments
        .iter()
        .find(|segment| segment.syn)?
        .sequence
        .wrapping_add(1);
    let mut pieces: Vec<_> = segments
        .iter()
        .filter(|segment| !segment.payload.is_empty() && !segment.syn)
        .map(|segment| {
            (
                segment.sequence.wrapping_sub(first) as usize,
                &segment.payload,
            )
        })
        .collect();
    pieces.sort_by_key(|(at, _)| *at);
    let mut bytes = Vec::new();
    for (at, payload) in pieces {
        // What is sent again overlaps what came before.
        let known = bytes.len().checked_sub(at)?;
        bytes.extend(payload.get(known..).unwrap_or_default());
    }
    Some(bytes)
}

/// A capture that is going on. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Begins to write down all TCP that passes `interface`, and returns once it does.
    pub fn start(place: &Place, name: &str, interface: &str) -> Result<Self> {
        // Debian's AppArmor profile lets tcpdump write only files of this kind.
        let file = place.run.dir().join(format!("{name}.pcap"));
        let log = format!("tcpdump-{name}");
        let mut command = place.command("tcpdump");
        // -Z root: the run's directory is not writable for the user it would become.
        command.args([
            "-Z", "root", "-i", interface, "-s", "0", "-B", "32768", "-U", "-n",
        ]);
        command
            .args(["--immediate-mode", "-w"])
            .arg(&file)
            .arg("tcp");
        let mut process = Process::start(&place.run, &log, command)?;
        eventually(|| {
            process.check()?;
            ensure!(
                process.log()?.contains("listening on"),
                "tcpdump does not listen"
            );
            Ok(())
        })?;
        Ok(Self { process, file })
    }

    /// Ends the capture and returns its segments, those without payload included.
    pub fn finish(mut self) -> Result<Vec<Segment>> {
        self.wait_until_quiet()?;
        self.process.signal(Signal::SIGINT)?;
        self.process.stop(PATIENCE)?;
        let log = self.process.log()?;
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "tcpdump lost packets, the capture proves nothing: {log}"
        );
        let bytes =
            fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))?;
        segments(&bytes).with_context(|| format!("parsing {}", self.file.display()))
    }

    /// What has passed the interface reaches the file a moment later, and SIGINT would end
    /// tcpdump before: waits until the file has stopped growing.
    fn wait_until_quiet(&self) -> Result<()> {
        const QUIET: Duration = Duration::from_millis(100);
        let size = || {
            fs::metadata(&self.file)
                .map(|data| data.len())
                .with_context(|| format!("looking at {}", self.file.display()))
        };
        eventually(|| {
            let before = size()?;
            thread::sleep(QUIET);
            ensure!(
                size()? == before,
                "traffic does not stop, the capture has no end"
            );
            Ok(())
        })
    }
}

/// Reads a pcap file of Ethernet frames, as this machine's tcpdump writes it.
fn segments(file: &[u8]) -> Result<Vec<Segment>> {
    const FILE_HEADER: usize = 24;
    const RECORD_HEADER: usize = 16;
    const LINKTYPE_ETHERNET: u32 = 1;
    ensure!(
        file.len() >= FILE_HEADER,
        "the file is cut off in its header"
    );
    ensure!(
        word(file, 0) == 0xa1b2_c3d4,
        "not a pcap file of this machine's byte order"
    );
    ensure!(
        word(file, 20) == LINKTYPE_ETHERNET,
        "not a capture of Ethernet frames"
    );
    let mut segments = Vec::new();
    let mut rest = &file[FILE_HEADER..];
    while rest.len() >= RECORD_HEADER {
        let (captured, original) = (word(rest, 8) as usize, word(rest, 12) as usize);
        ensure!(captured == original, "a frame was captured only in part");
        let Some(frame) = rest.get(RECORD_HEADER..RECORD_HEADER + captured) else {
            bail!("the file is cut off in a frame");
        };
        segments.extend(segment(frame));
        rest = &rest[RECORD_HEADER + captured..];
    }
    Ok(segments)
}

/// The TCP segment in an Ethernet frame, if it is one.
fn segment(frame: &[u8]) -> Option<Segment> {
    const ETHERNET_HEADER: usize = 14;
    const PROTOCOL_TCP: u8 = 6;
    let packet = frame.get(ETHERNET_HEADER..)?;
    let (from, to, protocol, tcp): (IpAddr, IpAddr, u8, &[u8]) = match half(frame, 12)? {
        0x0800 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            let total = usize::from(half(packet, 2)?);
            let address = |at: usize| -> Option<Ipv4Addr> {
                Some(Ipv4Addr::from(
                    <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
                ))
            };
            // A frame may be padded to Ethernet's minimum.
            let tcp = packet.get(header..total)?;
            (
                address(12)?.into(),
                address(16)?.into(),
                *packet.get(9)?,
                tcp,
            )
        }
        0x86dd => {
            let length = usize::from(half(packet, 4)?);
            let address = |at: usize| -> Option<Ipv6Addr> {
                Some(Ipv6Addr::from(
                    <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?,
                ))
            };
            let tcp = packet.get(40..40 + length)?;
            (
                address(8)?.into(),
                address(24)?.into(),
                *packet.get(6)?,
                tcp,
            )
        }
        _ => return None,
    };
    if protocol != PROTOCOL_TCP {
        return None;
    }
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, half(tcp, 0)?),
        to: SocketAddr::new(to, half(tcp, 2)?),
        syn: tcp.get(13)? & 0x02 != 0,
        sequence: (u32::from(half(tcp, 4)?) << 16) | u32::from(half(tcp, 6)?),
        payload: tcp.get(header..)?.to_vec(),
    })
}

/// A field of the file format: in the byte order of the machine that wrote it.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A field of a protocol: in network byte order.
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8], padding: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(40 + payload.len()).unwrap_or(0).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([
            0x1f, 0x90, 0x00, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0,
        ]);
        frame.extend(payload);
        frame.extend(vec![0; padding]);
        frame
    }

    #[test]
    fn a_segment_is_found_in_a_padded_frame() {
        let segment = segment(&frame(b"hello", 9)).expect("a TCP segment");
        assert_eq!(segment.from.to_string(), "10.0.0.1:8080");
        assert_eq!(segment.to.to_string(), "10.0.0.2:80");
        assert_eq!(segment.payload, b"hello");
        assert!(segment.contains(b"ell") && segment.uses_port(80));
    }

    #[test]
    fn a_stream_is_put_together_whatever_the_order() {
        let address: SocketAddr = "10.0.0.1:1".parse().expect("an address");
        let piece = |syn, sequence, payload: &[u8]| Segment {
            from: address,
            to: address,
            syn,
            sequence,
            payload: payload.to_vec(),
        };
        // The sequence numbers wrap round after two bytes.
        let syn = piece(true, u32::MAX - 2, b"");
        let head = piece(false, u32::MAX - 1, b"abc");
        let tail = piece(false, 1, b"def");
        let again = piece(false, 0, b"cd");
        let whole = reassemble(&[&syn, &tail, &head, &again]);
        assert_eq!(whole.as_deref(), Some(&b"abcdef"[..]));
        assert_eq!(reassemble(&[&syn, &tail]), None);
        assert_eq!(reassemble(&[&head, &tail]), None);
    }

    #[test]
    fn a_cut_off_file_is_an_error() {
        let frame = frame(b"hello", 0);
        let mut file = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0, 0, 0, 65535, 1] {
            file.extend(word.to_ne_bytes());
        }
        let length = u32::try_from(frame.len()).unwrap_or(0);
        for word in [0, 0, length, length] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(&frame);
        assert_eq!(segments(&file).map(|found| found.len()).ok(), Some(1));
        file.pop();
        assert!(segments(&file).is_err());
    }
}
