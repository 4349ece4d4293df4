//! Work inside a pod's network namespace.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::thread::LinkNameSpaceType;
use sluice_kernel::ports;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::link::{Family, Transport, message::Listener};

/// How many connections may wait for a worker; the namespace's `net.core.somaxconn` caps it.
const BACKLOG: i32 = 4096;

/// A pod's network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    file: File,
    pub(super) path: PathBuf,
    pub(super) cookie: u64,
}

impl Netns {
    /// Opens the namespace at a path such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .with_context(|| format!("open the network namespace {}", path.display()))?;
        let cookie = sluice_kernel::cookie_of(&file)
            .with_context(|| format!("{} is not a network namespace", path.display()))?;
        let path = path.to_owned();
        Ok(Self { file, path, cookie })
    }

    /// Every address in the namespace but loopback's.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>> {
        within(&self.file, || {
            let mut addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
                .filter_map(|interface| {
                    let address = interface.address?;
                    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
                })
                .filter(|ip| !ip.is_loopback())
                .collect();
            addresses.sort_unstable();
            addresses.dedup();
            Ok(addresses)
        })
    }

    /// Opens one set of listeners per thread; all threads' listeners share their ports. DNS queries
    /// are few, so that one thread gets all of them, if they are captured.
    pub(super) fn listeners(
        &self,
        threads: usize,
        dns: Option<usize>,
    ) -> Result<Vec<Vec<(Listener, OwnedFd)>>> {
        within(&self.file, || {
            let set = |thread| {
                let mut set = listener_set()?;
                if dns == Some(thread) {
                    set.append(&mut dns_sockets()?);
                }
                Ok(set)
            };
            (0..threads).map(set).collect()
        })
    }

    /// Runs something inside the namespace, on a thread of its own.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.file, work)
    }

    /// Moves the calling thread into the namespace, for good.
    pub(super) fn enter(&self) -> io::Result<()> {
        enter(&self.file)
    }

    pub(super) fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn enter(netns: &File) -> io::Result<()> {
    let kind = Some(LinkNameSpaceType::Network);
    Ok(rustix::thread::move_into_link_name_space(
        netns.as_fd(),
        kind,
    )?)
}

/// Runs something inside a namespace, on a thread that ends with it.
fn within<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    sluice_kernel::within(netns, work).context("enter the network namespace")?
}

fn listener_set() -> Result<Vec<(Listener, OwnedFd)>> {
    let mut set = vec![
        (Listener::Plaintext, dual_stack(ports::INBOUND_PLAINTEXT)?),
        (Listener::Hbone, dual_stack(ports::HBONE)?),
        (
            Listener::Outbound,
            listen(Ipv4Addr::LOCALHOST.into(), ports::OUTBOUND)?,
        ),
    ];
    match listen(Ipv6Addr::LOCALHOST.into(), ports::OUTBOUND) {
        Ok(v6) => set.push((Listener::Outbound, v6)),
        Err(error) if lacks_ipv6(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(set)
}

fn dns_sockets() -> Result<Vec<(Listener, OwnedFd)>> {
    let mut set = dns_sockets_of(Ipv4Addr::LOCALHOST.into())?;
    match dns_sockets_of(Ipv6Addr::LOCALHOST.into()) {
        Ok(mut v6) => set.append(&mut v6),
        Err(error) if lacks_ipv6(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(set)
}

fn dns_sockets_of(ip: IpAddr) -> Result<Vec<(Listener, OwnedFd)>> {
    let mut set = vec![(Listener::DnsByTcp, listen(ip, ports::DNS)?)];
    for port in ports::DNS..ports::DNS + ports::DNS_PORTS {
        set.push((Listener::Dns, receive(ip, port)?));
    }
    Ok(set)
}

/// A socket for the DNS queries of a pod.
fn receive(ip: IpAddr, port: u16) -> Result<OwnedFd> {
    let address = SocketAddr::new(ip, port);
    let open = || {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(OwnedFd::from(socket))
    };
    let hint = "does something in the pod use this port? With --dns-capture false it is free";
    open().with_context(|| format!("receive DNS queries on {address} ({hint})"))
}

/// Listens for both families, or for IPv4 alone where IPv6 is switched off.
fn dual_stack(port: u16) -> Result<OwnedFd> {
    match listen(Ipv6Addr::UNSPECIFIED.into(), port) {
        Err(error) if lacks_ipv6(&error) => listen(Ipv4Addr::UNSPECIFIED.into(), port),
        other => other,
    }
}

fn lacks_ipv6(error: &anyhow::Error) -> bool {
    let code = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    matches!(
        code,
        Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
    )
}

fn listen(ip: IpAddr, port: u16) -> Result<OwnedFd> {
    let address = SocketAddr::new(ip, port);
    let open = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(!ip.is_unspecified())?;
        }
        socket.set_reuse_port(true)?;
        // Connections of a former life of this pod in the mesh may linger on the port.
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit these.
        tune(&socket)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok::<_, io::Error>(OwnedFd::from(socket))
    };
    let hint = "does something in the pod use this port? The mesh needs 15001, 15006, \
                15008, and 15053 for DNS";
    open().with_context(|| format!("listen on {address} ({hint})"))
}

/// An unconnected socket in the calling thread's namespace.
pub(super) fn dialling_socket(transport: Transport, family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = match transport {
        Transport::Tcp => {
            let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            tune(&socket)?;
            socket
        }
        Transport::Udp => Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?,
    };
    Ok(socket.into())
}

/// Keepalive as the contract has it (wire contract §2): a peer that vanished is noticed even when
/// nobody sends.
fn tune(socket: &Socket) -> io::Result<()> {
    let period = Duration::from_secs(180);
    let keepalive = TcpKeepalive::new()
        .with_time(period)
        .with_interval(period)
        .with_retries(9);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_nodelay(true)
}
