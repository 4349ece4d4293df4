//! What the programs have counted of connections that ended, by the way they went.

use std::{fmt, os::fd::OwnedFd};

use aya::maps::{Map, MapData, PerCpuArray};
use sluice_abi::flows::{FlowPath, FlowStats};

use crate::{Error, Kernel};

pub(crate) const FLOW_STATS: &str = "FLOW_STATS";

/// Reads these counters; needs no privilege.
pub struct FlowCounters(PerCpuArray<MapData, FlowStats>);

impl fmt::Debug for FlowCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowCounters").finish_non_exhaustive()
    }
}

impl FlowCounters {
    /// From the descriptor that [`Kernel::flow_counters`] made.
    ///
    /// # Errors
    /// When it is not that map.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let map = MapData::from_fd(fd).map_err(Error::map(FLOW_STATS))?;
        let map = PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(Error::map(FLOW_STATS))?;
        Ok(Self(map))
    }

    /// What was counted of each way since the node's pods were first enrolled.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self) -> Result<Vec<(FlowPath, FlowStats)>, Error> {
        FlowPath::ALL
            .iter()
            .map(|&path| {
                let values = self.0.get(&(path as u32), 0);
                let values = values.map_err(Error::map(FLOW_STATS))?;
                Ok((path, values.iter().fold(FlowStats::default(), add)))
            })
            .collect()
    }
}

fn add(mut sum: FlowStats, one: &FlowStats) -> FlowStats {
    sum.connections += one.connections;
    sum.sent += one.sent;
    sum.received += one.received;
    sum.retransmits += one.retransmits;
    sum.rtt_sum += one.rtt_sum;
    for (sum, one) in sum.rtt.iter_mut().zip(one.rtt) {
        *sum += one;
    }
    sum
}

impl Kernel {
    /// The descriptor behind [`FlowCounters`], for handing over; nothing can be written by it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flow_counters(&self) -> Result<OwnedFd, Error> {
        self.read_only(FLOW_STATS)
    }
}
