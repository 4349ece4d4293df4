//! What a worker without privileges may ask and tell the kernel about its own sockets.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::maps::{HashMap, Map, MapData, MapError, SkStorage};
use sluice_abi::{Addr, maps};

use crate::{Error, sys};

const ORIG_DST: &str = "ORIG_DST";
const ORIG_PENDING: &str = "ORIG_PENDING";
const CLIENT: &str = "CLIENT";
const ASKED: &str = "ASKED";

/// Descriptors of the maps behind [`SocketMaps`], for handing over.
#[derive(Debug)]
pub struct SocketMapFds([OwnedFd; 4]);

impl SocketMapFds {
    /// How many descriptors there are.
    pub const COUNT: usize = 4;

    pub(crate) fn open(maps: &Path) -> Result<Self, Error> {
        let open = |name: &str, read_only| {
            let path = maps.join(name);
            sys::open_pin(&path, read_only)
                .map_err(Error::system(format!("open {}", path.display())))
        };
        // What the kernel trusts is read-only; what is merely shown to applications is not.
        Ok(Self([
            open(ORIG_DST, true)?,
            open(ORIG_PENDING, true)?,
            open(CLIENT, false)?,
            open(ASKED, true)?,
        ]))
    }

    /// The descriptors, in the order in which [`SocketMaps::from_fds`] takes them.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; Self::COUNT] {
        self.0.each_ref().map(std::os::fd::AsFd::as_fd)
    }
}

/// Where captured connections wanted to go, and whom dialled ones stand for.
#[derive(Debug)]
pub struct SocketMaps {
    orig_dst: SkStorage<MapData, maps::OrigDst>,
    orig_pending: HashMap<MapData, maps::Tuple, Addr>,
    client: SkStorage<MapData, Addr>,
    asked: HashMap<MapData, maps::Query, Addr>,
}

impl SocketMaps {
    /// From descriptors that a broker handed over.
    ///
    /// # Errors
    /// When they are not those maps.
    pub fn from_fds(fds: [OwnedFd; SocketMapFds::COUNT]) -> Result<Self, Error> {
        let [orig_dst, orig_pending, client, asked] = fds;
        Ok(Self {
            orig_dst: SkStorage::try_from(Map::SkStorage(map(ORIG_DST, orig_dst)?))
                .map_err(Error::map(ORIG_DST))?,
            orig_pending: HashMap::try_from(Map::LruHashMap(map(ORIG_PENDING, orig_pending)?))
                .map_err(Error::map(ORIG_PENDING))?,
            client: SkStorage::try_from(Map::SkStorage(map(CLIENT, client)?))
                .map_err(Error::map(CLIENT))?,
            asked: HashMap::try_from(Map::LruHashMap(map(ASKED, asked)?))
                .map_err(Error::map(ASKED))?,
        })
    }

    /// What the connection behind an accepted socket dialled before capture rewrote it; `None` for
    /// a connection that was not captured.
    ///
    /// `peer` is the connecting end, and `netns` the cookie of the namespace they are both in.
    ///
    /// # Errors
    /// The kernel's, other than "no such entry".
    pub fn orig_dst(
        &self,
        socket: &impl AsRawFd,
        peer: SocketAddr,
        netns: u64,
    ) -> Result<Option<SocketAddr>, Error> {
        let key = maps::Tuple {
            netns,
            ip: peer.ip().into(),
            port: peer.port().into(),
            pad: 0,
        };
        let stored = || found(ORIG_DST, self.orig_dst.get(socket, 0)).map(|o| o.map(|o| o.dst));
        let pending = || found(ORIG_PENDING, self.orig_pending.get(&key, 0));
        // accept(2) may return before the kernel half has moved the entry to the socket; and it may
        // move it between the first two looks.
        for look in [
            &stored as &dyn Fn() -> Result<Option<Addr>, Error>,
            &pending,
            &stored,
        ] {
            if let Some(dst) = look()? {
                return Ok(Some(dst.into()));
            }
        }
        Ok(None)
    }

    /// Which server a DNS query was sent to before capture rewrote it; `None` when the application's
    /// socket is gone, or was not captured. Asked right after the query was received.
    ///
    /// `port` is the one it was received on, and `netns` the cookie of the namespace they are in.
    ///
    /// # Errors
    /// The kernel's, other than "no such entry".
    pub fn server_asked(
        &self,
        client: SocketAddr,
        port: u16,
        netns: u64,
    ) -> Result<Option<SocketAddr>, Error> {
        let key = maps::Query {
            netns,
            ip: client.ip().into(),
            port: client.port().into(),
            to: port.into(),
        };
        let server = found(ASKED, self.asked.get(&key, 0))?;
        Ok(server.map(SocketAddr::from))
    }

    /// Before a dialling socket connects: the application that accepts will see `client` as its
    /// peer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_client(&mut self, socket: &impl AsRawFd, client: SocketAddr) -> Result<(), Error> {
        self.client
            .insert(socket, Addr::from(client), 0)
            .map_err(Error::map(CLIENT))
    }
}

fn map(name: &'static str, fd: OwnedFd) -> Result<MapData, Error> {
    MapData::from_fd(fd).map_err(Error::map(name))
}

fn found<T>(name: &'static str, result: Result<T, MapError>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::map(name)(error)),
    }
}
