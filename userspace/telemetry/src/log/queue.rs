//! Lines on their way to standard output.
//!
//! Nothing waits for whoever reads the log, and a system call for each line would cost more than the
//! line: lines are gathered, and written by a thread of their own some milliseconds later.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd as _, unix::fs::FileTypeExt as _},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::SigSet;
use tracing_subscriber::fmt::MakeWriter;

/// For how long lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(20);
/// How many bytes of lines may wait; what comes then is lost.
const CAPACITY: usize = 4 << 20;
/// A buffer that has grown beyond this is given back.
const KEPT: usize = 64 << 10;
/// How long the end of a process waits for a reader that does not read.
const FAREWELL: Duration = Duration::from_secs(2);
/// The most that goes into a pipe in one piece, whoever else writes to it (`PIPE_BUF`).
const ATOMIC: usize = 4096;

/// The beginning of the lines' way. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// There is a first line, or there will be no more.
    filled: Condvar,
    /// The thread has ended.
    ended: Condvar,
    lost: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines lost since that was told the last time.
    lost: u64,
    closed: bool,
    ended: bool,
}

/// The log of this process. Dropped, it has written everything; lines that come later are written
/// one by one.
#[must_use = "lines that wait are lost when the process ends before this is dropped"]
#[derive(Debug)]
pub struct Log(Queue);

impl Log {
    /// Counts the lines that could not be written: the reader was too slow, or is gone.
    pub fn lost(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let lost = self.0.0.lost.clone();
        move || lost.load(Relaxed)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let shared = &*self.0.0;
        let mut waiting = shared.lock();
        waiting.closed = true;
        shared.filled.notify_all();
        let ended = shared
            .ended
            .wait_timeout_while(waiting, FAREWELL, |waiting| !waiting.ended);
        drop(ended);
    }
}

/// Starts the thread that writes to standard output.
pub(super) fn to_stdout() -> io::Result<(Queue, Log)> {
    let own = io::stdout().as_fd().try_clone_to_owned()?;
    let is_pipe = File::from(own).metadata()?.file_type().is_fifo();
    // Broker and worker share a pipe.
    start(io::stdout(), if is_pipe { ATOMIC } else { usize::MAX })
}

/// Starts a thread that writes whole lines, of at most so many bytes together.
fn start(out: impl Write + Send + 'static, piece: usize) -> io::Result<(Queue, Log)> {
    let queue = Queue(Arc::default());
    let shared = queue.0.clone();
    thread::Builder::new().name("log".into()).spawn(move || {
        // Signals are for others, who may not have said so yet.
        let _ = SigSet::all().thread_block();
        shared.write(out, piece);
    })?;
    Ok((queue.clone(), Log(queue)))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing is left half done in it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line.
    fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.closed {
            // Late, and nobody else will write it.
            let _ = io::stdout().write_all(line);
            return;
        }
        if waiting.lines.len() + line.len() > CAPACITY {
            waiting.lost += 1;
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if first {
            self.filled.notify_one();
        }
    }

    fn write(&self, mut out: impl Write, piece: usize) {
        let mut lines = Vec::new();
        loop {
            let waiting = self.lock();
            let waiting = self
                .filled
                .wait_while(waiting, |w| w.lines.is_empty() && !w.closed)
                .unwrap_or_else(PoisonError::into_inner);
            let (mut waiting, _) = self
                .filled
                .wait_timeout_while(waiting, GATHER, |w| !w.closed)
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut waiting.lines, &mut lines);
            let lost = std::mem::take(&mut waiting.lost);
            let closed = waiting.closed;
            drop(waiting);
            self.write_pieces(&mut out, &lines, piece);
            lines.clear();
            lines.shrink_to(KEPT);
            if lost > 0 {
                tracing::warn!(
                    lines = lost,
                    "the log grew faster than it could be written; lines are lost"
                );
            }
            if closed {
                break;
            }
        }
        self.lock().ended = true;
        self.ended.notify_all();
    }

    fn write_pieces(&self, out: &mut impl Write, mut lines: &[u8], piece: usize) {
        while !lines.is_empty() {
            let (now, later) = lines.split_at(whole_lines(lines, piece));
            if out.write_all(now).and_then(|()| out.flush()).is_err() {
                // There is nobody left to tell.
                let lost = now.iter().filter(|byte| **byte == b'\n').count();
                self.lost.fetch_add(lost as u64, Relaxed);
            }
            lines = later;
        }
    }
}

/// How many bytes of these lines make a piece: as many whole lines as fit, and at least one.
fn whole_lines(lines: &[u8], piece: usize) -> usize {
    if lines.len() <= piece {
        return lines.len();
    }
    let end = |byte: &u8| *byte == b'\n';
    let last = lines[..piece].iter().rposition(end);
    let first = || lines.iter().position(end);
    last.or_else(first).map_or(lines.len(), |at| at + 1)
}

/// Takes one line.
#[derive(Debug)]
pub(super) struct Line<'a>(&'a Shared);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Hands every piece over, and takes the next one only when that was received.
    struct Pieces(mpsc::SyncSender<Vec<u8>>);

    impl Write for Pieces {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.0
                .send(piece.to_vec())
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_together_in_order_and_whole() {
        let (sender, pieces) = mpsc::sync_channel(0);
        let (queue, log) = start(Pieces(sender), 64).unwrap();
        let all: Vec<u8> = (0..100)
            .flat_map(|i| format!("line {i}\n").into_bytes())
            .collect();
        for line in all.split_inclusive(|byte| *byte == b'\n') {
            queue.make_writer().write_all(line).unwrap();
        }
        let end = thread::spawn(move || drop(log));
        let pieces: Vec<Vec<u8>> = pieces.iter().collect();
        end.join().unwrap();
        assert!(pieces.iter().all(|p| p.len() <= 64 && p.ends_with(b"\n")));
        assert!(pieces.len() < 30, "{} writes of 100 lines", pieces.len());
        assert_eq!(pieces.concat(), all);
    }

    #[test]
    fn a_line_longer_than_a_piece_stays_whole() {
        let long = [vec![b'x'; 100], b"\nshort\n".to_vec()].concat();
        assert_eq!(whole_lines(&long, 64), 101);
        assert_eq!(whole_lines(&long[101..], 64), 6);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_no_time() {
        let (sender, pieces) = mpsc::sync_channel(0);
        let (queue, log) = start(Pieces(sender), usize::MAX).unwrap();
        let lost = log.lost();
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        let mut sent = 0;
        while lost() == 0 {
            queue.make_writer().write_all(&line).unwrap();
            sent += 1;
            assert!(sent < 20_000, "what waits is not bounded");
        }
        let reader = thread::spawn(move || pieces.iter().map(|piece| piece.len()).sum::<usize>());
        drop((log, queue));
        let read = reader.join().unwrap();
        assert_eq!(read, (sent - lost() as usize) * line.len());
    }
}
