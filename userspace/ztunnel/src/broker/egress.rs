//! Where pods may go: the worker knows it, the kernel enforces it, and the broker stands between.
//!
//! What a worker says can refuse its pods a destination or let them have one, as its own proxying
//! can. It can name no pods but those enrolled, and no more addresses than the kernel's map holds.

use std::collections::BTreeSet;

use sluice_kernel::{EnrolledPod, Error, Kernel, Outbound};

use crate::link::{self, PodId};

/// What the worker has said.
#[derive(Debug, Default)]
pub(super) struct Egress {
    restricted: BTreeSet<PodId>,
    /// A list has begun, and what it does not name must go at its end.
    begun: bool,
    /// Not every known address is in the kernel, so that it must refuse none.
    incomplete: bool,
}

impl Egress {
    /// Where the kernel lets a pod go.
    pub(super) fn outbound(&self, pod: PodId) -> Outbound {
        if !self.incomplete && self.restricted.contains(&pod) {
            Outbound::Registry
        } else {
            Outbound::Anywhere
        }
    }

    /// Carries out what the worker says; `pods` are those enrolled.
    pub(super) fn hear<'a>(
        &mut self,
        news: link::Egress,
        kernel: &mut Kernel,
        pods: impl Iterator<Item = (PodId, &'a EnrolledPod)>,
    ) {
        let done = match news {
            link::Egress::Begin => {
                kernel.begin_list();
                (self.begun, self.incomplete) = (true, false);
                Ok(())
            }
            link::Egress::Known(ips) => kernel.know(&ips).or_else(|error| {
                // What is known and not in the kernel's map must not be refused.
                self.incomplete = true;
                self.apply(kernel, pods).and(Err(error))
            }),
            link::Egress::Restricted(ids) => self.restrict(ids, kernel, pods),
            link::Egress::Forgotten(ips) => kernel.forget(&ips),
        };
        if let Err(error) = done {
            tracing::error!(
                %error,
                "outbound traffic policy is not in the kernel as it should be; the worker enforces \
                 it alone where the kernel cannot"
            );
        }
    }

    fn restrict<'a>(
        &mut self,
        ids: Vec<PodId>,
        kernel: &mut Kernel,
        pods: impl Iterator<Item = (PodId, &'a EnrolledPod)>,
    ) -> Result<(), Error> {
        let none = ids.is_empty();
        self.restricted = ids.into_iter().collect();
        let applied = self.apply(kernel, pods);
        if none {
            // Nothing is in the list that begins here, so that all is stale.
            kernel.begin_list();
        }
        let ended = if none || std::mem::take(&mut self.begun) {
            kernel.end_list()
        } else {
            Ok(())
        };
        tracing::info!(
            pods = self.restricted.len(),
            enforced = !self.incomplete,
            "outbound traffic policy"
        );
        applied.and(ended)
    }

    fn apply<'a>(
        &self,
        kernel: &mut Kernel,
        pods: impl Iterator<Item = (PodId, &'a EnrolledPod)>,
    ) -> Result<(), Error> {
        let results = pods.map(|(id, pod)| kernel.set_outbound(pod, self.outbound(id)));
        results.fold(Ok(()), Result::and)
    }
}
