//! How often the programs came to each verdict.

use std::{fmt, os::fd::OwnedFd};

use aya::maps::{Map, MapData, PerCpuArray};

use crate::{Error, Kernel, Reason, sys};

pub(crate) const COUNTERS: &str = "COUNTERS";

/// Reads the counters; needs no privilege.
pub struct Counters(PerCpuArray<MapData, u64>);

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// From the descriptor that [`Kernel::counters`] made.
    ///
    /// # Errors
    /// When it is not that map.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let map = MapData::from_fd(fd).map_err(Error::map(COUNTERS))?;
        let map = PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(Error::map(COUNTERS))?;
        Ok(Self(map))
    }

    /// How often each reason was met since the node's pods were first enrolled.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self) -> Result<Vec<(Reason, u64)>, Error> {
        Reason::ALL
            .iter()
            .map(|&reason| {
                let values = self.0.get(&(reason as u32), 0);
                let values = values.map_err(Error::map(COUNTERS))?;
                Ok((reason, values.iter().sum()))
            })
            .collect()
    }
}

impl Kernel {
    /// The descriptor behind [`Counters`], for handing over; nothing can be written by it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<OwnedFd, Error> {
        self.read_only(COUNTERS)
    }

    /// A pinned map, by which nothing can be written.
    pub(crate) fn read_only(&self, name: &str) -> Result<OwnedFd, Error> {
        let path = self.pins.maps().join(name);
        sys::open_pin(&path, true).map_err(Error::system(format!("open {}", path.display())))
    }
}
