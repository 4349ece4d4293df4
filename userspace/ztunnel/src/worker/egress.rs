//! Tells the broker which pods may go only to what the mesh knows, and what that is, so that the
//! kernel refuses them the rest at `connect`, and does not capture it for others.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use sluice_kernel::{MAX_RANGES, MAX_REGISTRY};
use sluice_model::{Mesh, Name, Uid, workload::Egress as Policy};
use tokio::sync::watch;

use super::Shared;
use crate::link::{AsyncLink, Egress, PodId, ToBroker, message::MAX_ADDRESSES};

/// For so many times as long as it took to tell something nothing more is told: changes that come in
/// crowds are gathered, the longer the larger the mesh is. What has just come is refused to restricted
/// pods, and not captured for others, meanwhile.
const GATHER: u32 = 4;
/// But not for longer than this.
const MAX_GATHER: Duration = Duration::from_millis(50);

type Pods = BTreeMap<PodId, Uid>;

/// Tells it once, and then every change, until the broker is gone.
pub(super) async fn tell(
    shared: &Shared,
    link: &AsyncLink,
    mut pods: watch::Receiver<Pods>,
) -> io::Result<()> {
    let mut told = Told::default();
    let mut fitted = true;
    loop {
        let began = Instant::now();
        let seen = shared.mesh.status().version;
        let wanted = {
            let here = pods.borrow_and_update();
            let bypass = shared.settings.bypass && !shared.settings.on_demand;
            Wanted::of(
                Arc::clone(&shared.mesh.load()),
                &shared.network,
                &here,
                bypass,
            )
        };
        if fitted && !wanted.fits() {
            tracing::warn!(
                "the mesh has more than {MAX_REGISTRY} addresses, or {MAX_RANGES} ranges of them: \
                 everything is captured, and outbound traffic policy is enforced by the worker \
                 alone, by a reset after connect"
            );
        }
        fitted = wanted.fits();
        // What was never asked for is not known here, and has to come to the worker to be.
        let in_kernel = fitted && !shared.settings.on_demand;
        let wanted = if in_kernel { wanted } else { wanted.lifted() };
        for message in told.catch_up(wanted) {
            link.send_when_room(&ToBroker::Egress(message), &[]).await?;
        }
        tokio::time::sleep((began.elapsed() * GATHER).min(MAX_GATHER)).await;
        tokio::select! {
            _ = shared.mesh.changed(seen) => {}
            // The sender lives as long as the link.
            _ = pods.changed() => {}
        }
    }
}

/// What the broker should know.
#[derive(Clone, Debug, Default)]
struct Wanted {
    restricted: BTreeSet<PodId>,
    /// A pod that the control plane has not described yet is in neither set.
    free: BTreeSet<PodId>,
    /// Absent when nobody needs it, or when it is more than the kernel can hold.
    known: Option<Known>,
}

/// What a mesh knows of a network: no list of it, which would be as long as the mesh is large.
#[derive(Clone, Debug, Default)]
struct Known {
    mesh: Arc<Mesh>,
    network: Name,
}

impl Known {
    /// What is known here, and not there, cut into pieces for messages.
    fn beyond(&self, other: &Self) -> impl Iterator<Item = Vec<IpNet>> {
        let all = self.mesh.addresses_beyond(&other.mesh, &self.network);
        let all: Vec<IpNet> = all.collect();
        let pieces = all.chunks(MAX_ADDRESSES).map(<[IpNet]>::to_vec);
        pieces.collect::<Vec<_>>().into_iter()
    }

    /// Whether the kernel can hold it. Other networks' addresses are counted only if they matter.
    fn fits(&self) -> bool {
        let (single, ranges) = (MAX_REGISTRY as usize, MAX_RANGES as usize);
        if self.mesh.address_count() <= single && self.mesh.range_count() <= ranges {
            return true;
        }
        let nothing = Mesh::default();
        let is_range = |net: &IpNet| net.prefix_len() < net.max_prefix_len();
        let known = self.mesh.addresses_beyond(&nothing, &self.network);
        let known: (HashSet<IpNet>, HashSet<IpNet>) = known.partition(is_range);
        known.0.len() <= ranges && known.1.len() <= single
    }
}

impl Wanted {
    /// `bypass`: what is not known is not captured.
    fn of(mesh: Arc<Mesh>, network: &Name, pods: &Pods, bypass: bool) -> Self {
        let mut wanted = Self::default();
        for (id, uid) in pods {
            match mesh.workload(uid).map(|workload| workload.egress) {
                Some(Policy::Registry) => wanted.restricted.insert(*id),
                Some(Policy::Anywhere) => wanted.free.insert(*id),
                None => continue,
            };
        }
        if bypass || !wanted.restricted.is_empty() {
            let network = network.clone();
            wanted.known = Some(Known { mesh, network });
        }
        wanted
    }

    /// Without any restriction, and with everything captured.
    fn lifted(mut self) -> Self {
        self.free.append(&mut self.restricted);
        self.known = None;
        self
    }

    /// Whether the kernel can hold it.
    fn fits(&self) -> bool {
        self.known.as_ref().is_none_or(Known::fits)
    }
}

/// What the broker has been told; nothing before the first list.
#[derive(Debug, Default)]
struct Told(Option<Wanted>);

impl Told {
    /// What brings the broker up to date, in the order in which it must hear it.
    fn catch_up(&mut self, wanted: Wanted) -> Vec<Egress> {
        let first = self.0.is_none();
        let told = self.0.take().unwrap_or_default();
        let mut messages = Vec::new();
        let nothing = Known::default();
        if let Some(known) = &wanted.known {
            if told.known.is_none() {
                messages.push(Egress::Begin);
            }
            let before = told.known.as_ref().unwrap_or(&nothing);
            messages.extend(known.beyond(before).map(Egress::Known));
        }
        let said = |wanted: &Wanted| Egress::Outbound {
            listed: wanted.known.is_some(),
            restricted: wanted.restricted.iter().copied().collect(),
            free: wanted.free.iter().copied().collect(),
        };
        let outbound = said(&wanted);
        if first || outbound != said(&told) {
            messages.push(outbound);
        }
        if let (Some(known), Some(before)) = (&wanted.known, &told.known) {
            messages.extend(before.beyond(known).map(Egress::Forgotten));
        }
        self.0 = Some(wanted);
        messages
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
