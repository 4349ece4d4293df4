//! Bytes from one socket to another by way of a pipe: they stay in the kernel.

use std::{cell::RefCell, io, os::fd::OwnedFd};

use rustix::pipe::{self, PipeFlags, SpliceFlags};
use tokio::{io::Interest, net::TcpStream};

/// What a pipe is asked to hold, in bytes. The kernel may allow less, and gives what it holds back
/// when it is empty.
const CAPACITY: usize = 512 << 10;
/// How many pipes a thread keeps for the next that needs one.
const KEPT: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A pipe that is empty whenever nobody waits for one of its ends.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    holds: usize,
}

impl Pipe {
    /// One that is spare, or a new one.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(crate) fn take() -> io::Result<Self> {
        if let Some(pipe) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user's pipes together may be given no more: then it is a smaller one.
        let _ = pipe::fcntl_setpipe_size(&write, CAPACITY);
        Ok(Self {
            read,
            write,
            holds: 0,
        })
    }

    /// Keeps it for the next that needs one.
    pub(crate) fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT && self.holds == 0 {
                spare.push(self);
            }
        });
    }

    /// Takes what a socket has to say now, and says how many bytes that is: none at its end.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is nothing at the moment.
    pub(crate) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let taken = from.try_io(Interest::READABLE, || {
            let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
            Ok(pipe::splice(
                from,
                None,
                &self.write,
                None,
                CAPACITY,
                flags,
            )?)
        })?;
        self.holds += taken;
        Ok(taken)
    }

    /// Hands all that it holds to a socket.
    pub(crate) async fn empty(&mut self, to: &TcpStream) -> io::Result<()> {
        while self.holds > 0 {
            let given = to
                .async_io(Interest::WRITABLE, || {
                    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                    Ok(pipe::splice(&self.read, None, to, None, self.holds, flags)?)
                })
                .await?;
            if given == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.holds -= given;
        }
        Ok(())
    }
}
