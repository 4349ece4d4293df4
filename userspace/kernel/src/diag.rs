//! The kernel's socket diagnosis (`sock_diag(7)`): lists TCP sockets with what programs stored with
//! them, and ends them. The layouts are of `linux/inet_diag.h` and `linux/sock_diag.h`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
};
use serde::Serialize;
use sluice_abi::{event::tcp, ports};

use crate::sys;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// Bits of an attribute's type that do not name it: nested, byte order.
const NLA_TYPE_MASK: u16 = 0x3fff;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
const NLMSG_HEADER: usize = 16;
/// `struct inet_diag_sockid`
const ID: usize = 48;
/// `struct inet_diag_msg`
const DIAG_MESSAGE: usize = 72;
/// A dump comes in pieces of at most this many bytes.
const PIECE: usize = 64 << 10;
/// Those in which a client's connection can carry bytes, or will.
const STATES: u32 = 1 << tcp::SYN_SENT
    | 1 << tcp::ESTABLISHED
    | 1 << tcp::FIN_WAIT1
    | 1 << tcp::FIN_WAIT2
    | 1 << tcp::CLOSE_WAIT
    | 1 << tcp::LAST_ACK;

/// A TCP socket as the kernel lists it.
#[derive(Debug)]
pub(crate) struct Socket {
    family: u8,
    id: [u8; ID],
    pub(crate) remote: SocketAddr,
}

/// A conversation about the sockets of the network namespace that it was begun in.
#[derive(Debug)]
pub(crate) struct Diag {
    link: OwnedFd,
    sequence: u32,
}

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        let link = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self { link, sequence: 0 })
    }

    /// The sockets of both families for which a map of socket storage has a wanted value.
    pub(crate) fn sockets_with(
        &mut self,
        map: RawFd,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        self.list(STATES, map, |body| {
            if stored(body).is_some_and(&wanted) {
                sockets.extend(Socket::parse(body));
            }
        })?;
        Ok(sockets)
    }

    /// Passes on each socket of both families in one of these states, as the kernel describes it:
    /// with what a map of socket storage has for it among the attributes.
    fn list(
        &mut self,
        states: u32,
        map: RawFd,
        mut on_socket: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = request(family as u8, states, &[0; ID]);
            let fd = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map.to_ne_bytes());
            request.extend(attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &fd));
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &request)?;
            self.receive(&mut on_socket)?;
        }
        Ok(())
    }

    /// Ends a connection with a reset; false when it has ended already.
    pub(crate) fn destroy(&mut self, socket: &Socket) -> io::Result<bool> {
        let request = request(socket.family, STATES, &socket.id);
        self.send(SOCK_DESTROY, NLM_F_ACK, &request)?;
        match self.receive(|_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = (NLMSG_HEADER + body.len()) as u32;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.link.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes the answer to the last request, to its end.
    fn receive(&self, mut on_message: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let length = match recv(self.link.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let mut rest = &buffer[..length];
            while let Some((header, _)) = rest.split_first_chunk::<NLMSG_HEADER>() {
                let word = |at: usize| {
                    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
                };
                let length = word(0) as usize;
                let Some(body) = rest.get(NLMSG_HEADER..length) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                match u16::from_ne_bytes([header[4], header[5]]) {
                    // An answer to something before.
                    _ if word(8) != self.sequence => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = body.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => on_message(body),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// What the map that was asked for has for a socket.
fn stored(body: &[u8]) -> Option<&[u8]> {
    let found = attributes_of(body)
        .filter(|(kind, _)| *kind == INET_DIAG_SK_BPF_STORAGES)
        .flat_map(|(_, all)| attributes(all))
        .filter(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE)
        .flat_map(|(_, one)| attributes(one))
        .find(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE_MAP_VALUE);
    found.map(|(_, value)| value)
}

/// The id of the control group that a socket belongs to: an accepted one to its listener's. Absent of
/// what is hardly a socket any more, or not yet.
fn cgroup(body: &[u8]) -> Option<u64> {
    let found = attributes_of(body).find(|(kind, _)| *kind == INET_DIAG_CGROUP_ID);
    let (_, value) = found?;
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

fn attributes_of(body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(body.get(DIAG_MESSAGE..).unwrap_or_default())
}

impl Socket {
    /// From a `struct inet_diag_msg`.
    fn parse(body: &[u8]) -> Option<Self> {
        let family = *body.first()?;
        let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
        Some(Self {
            family,
            id,
            remote: end(family, &id, 2, 20)?,
        })
    }
}

/// One end of a socket, of a `struct inet_diag_sockid` that has its port and its address there.
fn end(family: u8, id: &[u8; ID], port: usize, address: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([id[port], id[port + 1]]);
    let octets: [u8; 16] = id[address..address + 16].try_into().ok()?;
    let ip = if i32::from(family) == libc::AF_INET {
        IpAddr::from(Ipv4Addr::from(*octets.first_chunk::<4>()?))
    } else {
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
    };
    Some(SocketAddr::new(ip, port))
}

/// A TCP socket, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcpSocket {
    /// As `ss` names it.
    pub state: &'static str,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// It is the ztunnel's.
    pub proxy: bool,
    /// The ztunnel has not opened it, but accepted it.
    pub accepted: bool,
    /// Bytes that wait to be read, or, of a listener, connections that wait to be accepted.
    pub waiting: u32,
    /// Bytes that the peer has not acknowledged.
    pub unacknowledged: u32,
}

impl TcpSocket {
    /// From a `struct inet_diag_msg`.
    fn parse(body: &[u8]) -> Option<Self> {
        let Socket { family, id, remote } = Socket::parse(body)?;
        let word = |at: usize| Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            state: STATE_NAMES.get(usize::from(*body.get(1)?)).copied()?,
            local: end(family, &id, 0, 4)?,
            remote,
            proxy: false,
            accepted: false,
            waiting: word(56)?,
            unacknowledged: word(60)?,
        })
    }

    /// What the ztunnel has it for: `outbound` is what applications dial, `plaintext` what comes
    /// without a tunnel, `dialled` what the ztunnel has dialled otherwise. `None` for an application's.
    pub fn purpose(&self) -> Option<&'static str> {
        match (self.local.port(), self.remote.port()) {
            (ports::OUTBOUND, _) => Some("outbound"),
            (ports::HBONE, _) => Some("tunnel-in"),
            (ports::DNS, _) => Some("dns"),
            // Where an application listens on that port itself, the ztunnel's is not bound to loopback.
            (ports::INBOUND_PLAINTEXT, _) => Some("plaintext"),
            // What comes without a tunnel is steered to the ztunnel, and keeps its port.
            _ if self.accepted => Some("plaintext"),
            (_, ports::HBONE) if self.proxy => Some("tunnel-out"),
            _ if self.proxy => Some("dialled"),
            _ => None,
        }
    }
}

/// Lists TCP sockets and tells the ztunnel's own from others.
#[derive(Debug)]
pub struct TcpSockets {
    /// The map `PROXY`, which has a value for each socket that the ztunnel opened.
    proxies: OwnedFd,
}

impl TcpSockets {
    /// `proxies` is the path of the map `PROXY`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(proxies: &Path) -> io::Result<Self> {
        let proxies = sys::open_pin(proxies, false)?;
        Ok(Self { proxies })
    }

    /// Passes on each TCP socket of the network namespace that the calling thread is in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn for_each(&self, mut on_socket: impl FnMut(TcpSocket)) -> io::Result<()> {
        // Listeners come before what they have accepted, which is known by their control group.
        let mut own = None;
        Diag::open()?.list(u32::MAX, self.proxies.as_raw_fd(), |body| {
            let Some(mut socket) = TcpSocket::parse(body) else {
                return;
            };
            let (opened, cgroup) = (stored(body).is_some(), cgroup(body));
            if opened {
                own = cgroup;
            }
            socket.accepted = !opened && cgroup.is_some() && cgroup == own;
            socket.proxy = opened || socket.accepted;
            on_socket(socket);
        })
    }

    /// All of them.
    ///
    /// # Errors
    /// As [`Self::for_each`].
    pub fn list(&self) -> io::Result<Vec<TcpSocket>> {
        let mut sockets = Vec::new();
        self.for_each(|socket| sockets.push(socket))?;
        Ok(sockets)
    }
}

/// By their numbers in the kernel.
const STATE_NAMES: [&str; 13] = [
    "unknown",
    "ESTAB",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "CLOSED",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
    "NEW-SYN-RECV",
];

/// `struct inet_diag_req_v2`
fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut request = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(id);
    if id.iter().all(|byte| *byte == 0) {
        // The cookie of no socket in particular.
        request.truncate(8 + ID - 8);
        request.extend([0xff; 8]);
    }
    request
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut attribute = (length as u16).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(length.next_multiple_of(4), 0);
    attribute
}

/// Types and values of attributes in a row.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
