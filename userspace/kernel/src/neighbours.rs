//! Connections in which the ztunnel has no part: what the kernel lets go from one pod of the node to
//! another, and what is under way there and out of the mesh.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use aya::maps::{Array, HashMap, MapData};
use nix::time::{ClockId, clock_gettime};
use sluice_abi::{Addr, maps};

use crate::{EnrolledPod, Error, Kernel, diag, error::removed, sys};

pub(crate) const ALLOW: &str = "ALLOW";
pub(crate) const ROUTES: &str = "ROUTES";

/// What pods of the node may dial without the ztunnel. It is empty when a broker starts: nothing is
/// taken over from another.
pub(crate) struct Neighbours {
    pub(crate) allow: HashMap<MapData, maps::Dial, u64>,
    pub(crate) routes: HashMap<MapData, maps::Dial, Addr>,
}

impl Kernel {
    /// Puts off the end of all that is allowed. Programs let nobody go on the word of a broker that
    /// has not said so for as long.
    ///
    /// # Errors
    /// The kernel's.
    pub fn vouch(&mut self, length: Duration) -> Result<(), Error> {
        self.put_off(maps::CONFIG_ALLOW_UNTIL, length)
    }

    /// Sets the end of what is in force until the time in a word of `CONFIG`.
    pub(crate) fn put_off(&mut self, word: u32, length: Duration) -> Result<(), Error> {
        let until = match length.as_secs() {
            0 => 0,
            length => now()?.saturating_add(length),
        };
        let until = u32::try_from(until).unwrap_or(u32::MAX);
        let config: &mut Array<MapData, u32> = &mut self.config;
        config.set(word, until, 0).map_err(Error::map("CONFIG"))
    }

    /// Lets a pod dial an address of another straight.
    ///
    /// # Errors
    /// The kernel's, as when there are too many.
    pub fn allow(
        &mut self,
        client: &EnrolledPod,
        to: SocketAddr,
        server: &EnrolledPod,
    ) -> Result<(), Error> {
        let dial = maps::Dial::new(client.cookie, to.into());
        let inserted = self.neighbours.allow.insert(dial, server.cookie, 0);
        inserted.map_err(Error::map(ALLOW))
    }

    /// Takes that back, for connections that do not stand yet. `client` is the cookie of the pod's
    /// network namespace: the pod may be gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn disallow(&mut self, client: u64, to: SocketAddr) -> Result<(), Error> {
        let dial = maps::Dial::new(client, to.into());
        removed(ALLOW, self.neighbours.allow.remove(&dial))
    }

    /// Has a pod that dials an address of a service be led to `to`, as far as it may dial that.
    ///
    /// # Errors
    /// The kernel's, as when there are too many.
    pub fn route(
        &mut self,
        client: &EnrolledPod,
        dialled: SocketAddr,
        to: SocketAddr,
    ) -> Result<(), Error> {
        let dial = maps::Dial::new(client.cookie, dialled.into());
        let inserted = self.neighbours.routes.insert(dial, Addr::from(to), 0);
        inserted.map_err(Error::map(ROUTES))
    }

    /// Takes that back; see [`Self::disallow`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn unroute(&mut self, client: u64, dialled: SocketAddr) -> Result<(), Error> {
        let dial = maps::Dial::new(client, dialled.into());
        removed(ROUTES, self.neighbours.routes.remove(&dial))
    }

    /// A hold on the connections that go straight, of earlier brokers' programs as well.
    ///
    /// # Errors
    /// The kernel's.
    pub fn straight_connections(&self) -> Result<StraightConnections, Error> {
        let path = self.pins.maps().join("ORIG_DST");
        let marks = sys::open_pin(&path, true)
            .map_err(Error::system(format!("open {}", path.display())))?;
        Ok(StraightConnections { marks })
    }
}

/// Where connections go in which the ztunnel has no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To another pod of the node.
    Neighbour,
    /// Out of the mesh.
    Outside,
}

/// Finds and ends connections in which the ztunnel has no part.
#[derive(Debug)]
pub struct StraightConnections {
    /// The map of socket storage that such a socket is known by.
    marks: OwnedFd,
}

impl StraightConnections {
    /// Ends those that a pod made on a way and that are not to be kept, by where they go; returns
    /// where those went that were ended. Both ends see a reset. Acts in the network namespace of the
    /// calling thread.
    ///
    /// When nothing new may be let go to a neighbour, nothing escapes it: a socket is listed before
    /// its SYN leaves.
    ///
    /// # Errors
    /// The kernel's.
    pub fn cut(
        &self,
        way: Way,
        keep: impl Fn(SocketAddr) -> bool,
    ) -> Result<Vec<SocketAddr>, Error> {
        let failed = || Error::system("list the sockets of a network namespace");
        let mark = match way {
            Way::Neighbour => maps::DIRECT,
            Way::Outside => maps::OUTSIDE,
        };
        let straight = |value: &[u8]| {
            // `OrigDst::end`, the last word.
            let end = value.last_chunk().copied().map(u32::from_ne_bytes);
            value.len() >= size_of::<maps::OrigDst>() && end == Some(mark)
        };
        let mut diag = diag::Diag::open().map_err(failed())?;
        let (mut cut, mut outcome) = (Vec::new(), Ok(()));
        for socket in diag
            .sockets_with(self.marks.as_raw_fd(), straight)
            .map_err(failed())?
        {
            if keep(socket.remote) {
                continue;
            }
            match diag.destroy(&socket) {
                Ok(true) => cut.push(socket.remote),
                Ok(false) => {}
                // The others are ended all the same.
                Err(error) => outcome = Err(Error::system("end a connection")(error)),
            }
        }
        outcome.map(|()| cut)
    }
}

/// Seconds since boot, as the programs count them.
fn now() -> Result<u64, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|errno| Error::system("read the clock")(errno.into()))?;
    Ok(now.tv_sec().try_into().unwrap_or(0))
}
