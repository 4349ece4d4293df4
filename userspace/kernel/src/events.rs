//! Events and log lines from the programs.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::mpsc,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use sluice_abi::event::Event;

use crate::Error;

/// How long events are gathered. The kernel wakes a reader only with the first one that it has not
/// read, so that this is also how often it is woken at most.
const GATHER: Duration = Duration::from_millis(10);

/// Whether the programs write events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    On,
    Off,
}

/// Reads what the programs say. Meant for a thread of its own.
pub struct EventReader {
    events: RingBuf<MapData>,
    log: EbpfLogger<ToTracing>,
    /// Log lines that were passed on.
    lines: mpsc::Receiver<String>,
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").finish_non_exhaustive()
    }
}

pub(crate) fn reader(ebpf: &mut Ebpf) -> Result<EventReader, Error> {
    let missing = |name| Error::Missing { kind: "map", name };
    let map: Map = ebpf.take_map("EVENTS").ok_or_else(|| missing("EVENTS"))?;
    let (sender, lines) = mpsc::channel();
    let log = EbpfLogger::init_with_logger(ebpf, ToTracing(sender));
    Ok(EventReader {
        events: map.try_into().map_err(Error::map("EVENTS"))?,
        log: log.map_err(|_| missing("AYA_LOGS"))?,
        lines,
    })
}

impl EventReader {
    /// Waits until something is said or `stop` is readable (or closed), gathers for a moment what else
    /// is said, then passes events on, and logs the rest through `tracing` and passes it on. False when
    /// `stop` ended it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(
        &mut self,
        stop: BorrowedFd<'_>,
        mut on_event: impl FnMut(&Event),
        on_line: impl FnMut(String),
    ) -> io::Result<bool> {
        poll(&[self.events.as_fd(), self.log.as_fd(), stop], None)?;
        let stopped = poll(&[stop], Some(GATHER))?;
        while let Some(item) = self.events.next() {
            if let Ok(bytes) = <&[u8; size_of::<Event>()]>::try_from(&*item) {
                // SAFETY: `Event` is `repr(C)` of integers without implicit padding, so any bytes
                // of its size are one; the read is unaligned.
                on_event(&unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) });
            }
        }
        self.log.flush();
        self.lines.try_iter().for_each(on_line);
        Ok(!stopped)
    }
}

/// Waits until one of these is readable or closed; false when it took too long, or was interrupted.
fn poll(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<bool> {
    let fds = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
    let mut fds: Vec<_> = fds.collect();
    let limit = match limit {
        None => PollTimeout::NONE,
        Some(limit) => limit.try_into().unwrap_or(PollTimeout::MAX),
    };
    match nix::poll::poll(&mut fds, limit) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Logs what the programs log, under the target `ebpf`, and passes it on.
struct ToTracing(mpsc::Sender<String>);

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // Fails when the reader is about to end.
        let _ = self.0.send(record.args().to_string());
        match record.level() {
            log::Level::Error => tracing::error!(target: "ebpf", "{}", record.args()),
            log::Level::Warn => tracing::warn!(target: "ebpf", "{}", record.args()),
            log::Level::Info => tracing::info!(target: "ebpf", "{}", record.args()),
            log::Level::Debug => tracing::debug!(target: "ebpf", "{}", record.args()),
            log::Level::Trace => tracing::trace!(target: "ebpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
