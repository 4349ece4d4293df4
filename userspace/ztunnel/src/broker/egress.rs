//! Where pods may go: the worker knows it, the kernel enforces it, and the broker stands between.
//!
//! What a worker says can refuse its pods a destination or let them have one, as its own proxying
//! can. It can name no pods but those that are here, and no more addresses than the kernel's map
//! holds.

use std::collections::HashSet;

use sluice_kernel::{Error, Kernel, Outbound};

use super::pods::PodRecord;
use crate::link::{self, PodId};

/// How far the worker's list has come.
#[derive(Debug, Default)]
pub(super) struct Egress {
    /// A list has begun, and what it does not name must go at its end.
    begun: bool,
    /// Not every known address is in the kernel, so that it must refuse none.
    incomplete: bool,
    /// How many pods are restricted.
    restricted: usize,
}

impl Egress {
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
                // What is known and not in the kernel's map must not be refused.
                self.incomplete = true;
                let lifted = pods.map(|pod| pod.enforce(kernel, Outbound::Anywhere));
                lifted.fold(Ok(()), Result::and).and(Err(error))
            }),
            link::Egress::Outbound { restricted, free } => {
                self.judge(&restricted, &free, kernel, pods)
            }
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

    fn judge<'a>(
        &mut self,
        restricted: &[PodId],
        free: &[PodId],
        kernel: &mut Kernel,
        pods: impl Iterator<Item = &'a mut PodRecord>,
    ) -> Result<(), Error> {
        let to_registry: HashSet<_> = restricted.iter().collect();
        let anywhere: HashSet<_> = free.iter().collect();
        let (mut count, mut applied) = (0, Ok(()));
        for pod in pods {
            if to_registry.contains(&pod.info.id) {
                pod.outbound = Outbound::Registry;
            } else if anywhere.contains(&pod.info.id) {
                pod.outbound = Outbound::Anywhere;
            }
            count += usize::from(pod.outbound == Outbound::Registry);
            applied = applied.and(pod.enforce(kernel, self.enforceable(pod.outbound)));
        }
        if std::mem::replace(&mut self.restricted, count) != count {
            tracing::info!(pods = count, "pods that may go only to what the mesh knows");
        }
        applied.and(self.end_list(count, !restricted.is_empty(), kernel))
    }

    /// Forgets what no restricted pod needs: everything when there is none, and otherwise what the
    /// worker's list, if it has one, does not name.
    fn end_list(&mut self, pods: usize, listed: bool, kernel: &mut Kernel) -> Result<(), Error> {
        if pods == 0 {
            kernel.begin_list();
        } else if !(listed && self.begun) {
            return Ok(());
        }
        self.begun = false;
        kernel.end_list()
    }
}
