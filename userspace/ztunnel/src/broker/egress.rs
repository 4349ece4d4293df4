//! Where pods may go, and what of it is captured: the worker knows it, the kernel enforces it, and the
//! broker stands between.
//!
//! What a worker says can refuse its pods a destination or let them have one, as its own proxying
//! can. It can name no pods but those that are here, and no more addresses than the kernel's map
//! holds.
//!
//! What the mesh does not know need not be captured, as long as the kernel has all that it knows: that
//! is, from the end of a whole list on, and until a change does not fit, or no worker is there to tell
//! of changes. Whenever it is in doubt, everything is captured.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sluice_kernel::{Error, Kernel, Outbound, StraightConnections, Way};

use super::{ORPHANED, VOUCHED, netns::Netns, pods::PodRecord};
use crate::link::{self, PodId};

/// How far the worker's list has come.
#[derive(Debug)]
pub(super) struct Egress {
    /// A list has begun, and what it does not name must go at its end.
    begun: bool,
    /// Not every known address is in the kernel, so that it must refuse none.
    incomplete: bool,
    /// The kernel has all that the mesh knows.
    whole: bool,
    /// Since when no worker has told of changes.
    orphaned: Option<Instant>,
    /// How many pods are restricted.
    restricted: usize,
    connections: StraightConnections,
    /// Where pods have just been restricted: a connection that was let go before may have been
    /// established after the others were cut.
    to_sweep: Vec<Arc<Netns>>,
}

impl Egress {
    pub(super) fn new(kernel: &Kernel) -> Result<Self, Error> {
        Ok(Self {
            begun: false,
            incomplete: false,
            whole: false,
            orphaned: None,
            restricted: 0,
            connections: kernel.straight_connections()?,
            to_sweep: Vec::new(),
        })
    }

    /// The worker is gone: nobody tells of changes.
    pub(super) fn orphan(&mut self) {
        self.orphaned.get_or_insert_with(Instant::now);
    }

    /// Vouches for the list, unless nobody has told of changes for too long.
    pub(super) fn tick(&mut self, kernel: &mut Kernel) {
        let orphaned = |since: Instant| since.elapsed() > ORPHANED;
        if self.orphaned.is_some_and(orphaned) && self.whole {
            tracing::warn!("no worker says what the mesh knows; everything is captured");
            self.whole = false;
        }
        report(self.vouch(kernel));
        let again = std::mem::take(&mut self.to_sweep);
        self.cut(again.iter(), kernel);
    }

    fn vouch(&self, kernel: &mut Kernel) -> Result<(), Error> {
        kernel.vouch_for_list(if self.whole { VOUCHED } else { Duration::ZERO })
    }

    /// What the kernel is to enforce for a pod that may go there.
    pub(super) fn enforceable(&self, outbound: Outbound) -> Outbound {
        if self.incomplete {
            Outbound::Anywhere
        } else {
            outbound
        }
    }

    /// Carries out what the worker says.
    pub(super) fn hear<'a>(
        &mut self,
        news: link::Egress,
        kernel: &mut Kernel,
        pods: impl Iterator<Item = &'a mut PodRecord>,
    ) {
        let done = match news {
            link::Egress::Begin => {
                kernel.begin_list();
                (self.begun, self.incomplete) = (true, false);
                Ok(())
            }
            link::Egress::Known(ips) => kernel.know(&ips).or_else(|error| {
                // What is known and not in the kernel's map must be captured, and not be refused.
                (self.incomplete, self.whole) = (true, false);
                let captured = self.vouch(kernel);
                let lifted = pods.map(|pod| pod.enforce(kernel, Outbound::Anywhere));
                lifted.fold(captured, Result::and).and(Err(error))
            }),
            link::Egress::Outbound {
                listed,
                restricted,
                free,
            } => {
                self.whole = listed && !self.incomplete;
                self.orphaned = None;
                let vouched = self.vouch(kernel);
                vouched.and(self.judge(listed, &restricted, &free, kernel, pods))
            }
            link::Egress::Forgotten(ips) => kernel.forget(&ips),
        };
        report(done);
    }

    fn judge<'a>(
        &mut self,
        listed: bool,
        restricted: &[PodId],
        free: &[PodId],
        kernel: &mut Kernel,
        pods: impl Iterator<Item = &'a mut PodRecord>,
    ) -> Result<(), Error> {
        let to_registry: HashSet<_> = restricted.iter().collect();
        let anywhere: HashSet<_> = free.iter().collect();
        let (mut count, mut applied) = (0, Ok(()));
        let mut narrowed = Vec::new();
        for pod in pods {
            if to_registry.contains(&pod.info.id) {
                if pod.outbound != Outbound::Registry {
                    narrowed.push(pod.netns.clone());
                }
                pod.outbound = Outbound::Registry;
            } else if anywhere.contains(&pod.info.id) {
                pod.outbound = Outbound::Bypass;
            }
            count += usize::from(pod.outbound == Outbound::Registry);
            applied = applied.and(pod.enforce(kernel, self.enforceable(pod.outbound)));
        }
        if std::mem::replace(&mut self.restricted, count) != count {
            tracing::info!(pods = count, "pods that may go only to what the mesh knows");
        }
        self.cut(narrowed.iter(), kernel);
        self.to_sweep.extend(narrowed);
        applied.and(self.end_list(count, listed, kernel))
    }

    /// Forgets what the worker's list does not name; everything, when there is no list and nobody is
    /// held to one.
    fn end_list(&mut self, pods: usize, listed: bool, kernel: &mut Kernel) -> Result<(), Error> {
        match (listed, pods) {
            (true, _) if self.begun => {}
            (false, 0) => kernel.begin_list(),
            _ => return Ok(()),
        }
        self.begun = false;
        kernel.end_list()
    }

    /// Ends the connections out of the mesh in these namespaces.
    fn cut<'a>(&self, namespaces: impl Iterator<Item = &'a Arc<Netns>>, kernel: &Kernel) {
        // What has become known since may be dialled again.
        let keep = |to: SocketAddr| kernel.knows(to.ip()).unwrap_or(false);
        for netns in namespaces {
            match netns.inside(|| Ok(self.connections.cut(Way::Outside, keep)?)) {
                Ok(cut) if cut.is_empty() => {}
                Ok(cut) => tracing::info!(
                    connections = cut.len(),
                    "cut, since the mesh does not know where they go"
                ),
                Err(error) => tracing::error!(
                    error = crate::one_line(&error),
                    "connections out of the mesh are not cut"
                ),
            }
        }
    }
}

fn report(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::error!(
            %error,
            "outbound traffic policy is not in the kernel as it should be; the worker enforces it \
             alone where the kernel cannot"
        );
    }
}
