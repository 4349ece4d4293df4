//! The link between broker and worker: whole messages, in order, with descriptors beside them.
//!
//! Each worker thread has a link of its own, so that nothing is shared between threads. The broker
//! trusts nothing that comes from a worker beyond the shape of [`ToBroker`].

pub mod memory;
pub mod message;

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

pub use message::{
    Egress, Family, Memory, Neighbours, PodId, PodInfo, Settings, ToBroker, ToWorker, Transport,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixDatagram};

/// The most descriptors that one message carries.
pub const MAX_FDS: usize = 64;
/// The largest message, in bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// How long a message may take to find room.
const SEND_PATIENCE: Duration = Duration::from_secs(2);

/// One end of a link.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What came over a link.
#[derive(Debug)]
pub struct Received<T> {
    pub message: T,
    pub fds: Vec<OwnedFd>,
}

impl Link {
    /// Both ends of a new link. Receiving blocks; sending blocks for [`SEND_PATIENCE`] at most, so
    /// that a worker that hangs cannot hang its broker.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (a, b) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for end in [&a, &b] {
            sockopt::set_socket_timeout(end, sockopt::Timeout::Send, Some(SEND_PATIENCE))?;
        }
        Ok((Self(a), Self(b)))
    }

    /// Sends a message; descriptors are duplicated into the other process.
    ///
    /// # Errors
    /// The kernel's; `BrokenPipe` when the other end is closed. A message that is too large is
    /// `InvalidInput`.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = postcard::to_stdvec(message).map_err(invalid_input)?;
        if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(invalid_input("the message is too large for the link"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        // A closed link is an answer, not a signal.
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }

    /// Closes the link for both ends, whoever else holds them: what was sent is still received.
    pub fn shut(&self) {
        // Fails only when the other end has done so.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }

    /// Receives a message; `None` when the other end is closed.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` for what is not a whole message.
    pub fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<Received<T>>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(invalid_data(
                "a message was cut off; is the descriptor limit reached?",
            ));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        let message = postcard::from_bytes(&bytes[..received.bytes]).map_err(invalid_data)?;
        Ok(Some(Received { message, fds }))
    }
}

/// One end of a link, for a task that has other things to do while it waits.
#[derive(Debug)]
pub struct AsyncLink {
    link: Link,
    /// A duplicate of the link's descriptor, for its readiness only. tokio has no sockets of this
    /// type; to its reactor all of them are alike.
    readiness: UnixDatagram,
}

impl AsyncLink {
    /// Takes a link over; must be called within a runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(link: Link) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&link.0, true)?;
        let readiness = UnixDatagram::from_std(link.0.try_clone()?.into())?;
        Ok(Self { link, readiness })
    }

    /// As [`Link::recv`].
    ///
    /// # Errors
    /// As [`Link::recv`].
    pub async fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<Received<T>>> {
        self.readiness
            .async_io(Interest::READABLE, || self.link.recv())
            .await
    }

    /// As [`Link::send`], but `WouldBlock` when the other end is far behind.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.link.send(message, fds)
    }

    /// Sends a message, with descriptors, as soon as there is room for it.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub async fn send_when_room<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.readiness
            .async_io(Interest::WRITABLE, || self.link.send(message, fds))
            .await
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Link> for OwnedFd {
    fn from(link: Link) -> Self {
        link.0
    }
}

fn invalid_input(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

fn invalid_data(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, io::Write as _, net::IpAddr};

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_together_and_in_order() {
        let (a, b) = Link::pair().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        a.send(&ToWorker::RemovePod(PodId(7)), &[reader.as_fd()])
            .unwrap();
        a.send(&ToWorker::RemovePod(PodId(8)), &[]).unwrap();
        drop(reader);
        let first: Received<ToWorker> = b.recv().unwrap().unwrap();
        assert!(matches!(first.message, ToWorker::RemovePod(PodId(7))));
        writer.write_all(b"through").unwrap();
        drop(writer);
        let [fd] = <[OwnedFd; 1]>::try_from(first.fds).unwrap();
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let second: Received<ToWorker> = b.recv().unwrap().unwrap();
        assert!(matches!(second.message, ToWorker::RemovePod(PodId(8))));
        assert!(second.fds.is_empty());
    }

    #[test]
    fn a_closed_end_is_no_error_to_read_and_one_to_write() {
        let (a, b) = Link::pair().unwrap();
        drop(a);
        assert!(b.recv::<ToBroker>().unwrap().is_none());
        let error = b.send(&ToBroker::Ready, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_largest_list_of_addresses_fits_into_a_message() {
        let (a, b) = Link::pair().unwrap();
        let ip = "fd00:1111:2222:3333:4444:5555:6666:7777/128"
            .parse()
            .unwrap();
        let known = Egress::Known(vec![ip; message::MAX_ADDRESSES]);
        a.send(&ToBroker::Egress(known.clone()), &[]).unwrap();
        let received = b.recv::<ToBroker>().unwrap().unwrap().message;
        assert!(matches!(received, ToBroker::Egress(list) if list == known));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_message_waits_for_room() {
        let (a, b) = Link::pair().unwrap();
        let a = AsyncLink::new(a).unwrap();
        let ip = IpAddr::from([192, 0, 2, 1]).into();
        let message = ToBroker::Egress(Egress::Known(vec![ip; message::MAX_ADDRESSES]));
        let mut sent = 0;
        while a.send(&message, &[]).is_ok() {
            sent += 1;
        }
        let reader = std::thread::spawn(move || {
            for _ in 0..=sent {
                b.recv::<ToBroker>().unwrap().unwrap();
            }
        });
        a.send_when_room(&message, &[]).await.unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn garbage_is_invalid_data() {
        let (a, b) = Link::pair().unwrap();
        rustix::net::send(&a, &[0xff; 40], SendFlags::empty()).unwrap();
        let error = b.recv::<ToBroker>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
